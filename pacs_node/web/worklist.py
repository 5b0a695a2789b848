"""The worklist as the page shows it: rows in the order in which a reader should look, and words around them. Pure.

Urgent, then suspected, then unanswered, then the rest, then what a reader answered; each group says why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from urllib.parse import urlencode

from pacs_node.web import words
from pacs_node.web.rows import Row
from pacs_node.web.words import Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    title: str
    why: str
    rows: Sequence[Row]


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A choice of rows that the reader can ask for."""

    words: str
    href: str
    count: int
    is_chosen: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Silence:
    """Why there is no row, so that an empty list is not mistaken for a broken one."""

    title: str
    text: str
    href: str = ""
    action: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What the reader narrowed the list to, and from what."""

    sender: str = ""
    period: str = ""
    probability_from: float | None = None
    probability_to: float | None = None
    model_version: str = ""
    is_by_answer: bool = True
    """False = what the model said is no filter: this reader answers first."""
    senders: Sequence[str] = ()
    model_versions: Sequence[str] = ()

    @property
    def query(self) -> dict[str, str]:
        """Return what stands in the address."""
        asked = {
            "sender": self.sender,
            "period": self.period,
            "from": self.probability_from,
            "to": self.probability_to,
            "version": self.model_version,
        }
        return {name: str(value) for name, value in asked.items() if value not in ("", None)}

    @property
    def is_narrowed(self) -> bool:
        return bool(self.query)

    @property
    def has_more(self) -> bool:
        """Tell whether one of the filters that are folded away is set."""
        return bool(self.query.keys() - {"sender", "period"})


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkList:
    """One page of the worklist."""

    summary: str
    groups: Sequence[Group]
    silence: Silence | None
    views: Sequence[View] = ()
    view: str = "all"
    choice: Choice = field(default_factory=lambda: Choice())
    sought: str = ""
    is_first_page: bool = True

    @property
    def is_live(self) -> bool:
        """Only the newest studies are kept fresh; a search and older pages stand still."""
        return self.is_first_page and not self.sought


VIEWS: dict[str, tuple[str, Callable[[Row], bool]]] = {
    "open": ("To read", lambda row: not row.is_reviewed),
    "positive": ("Above threshold", lambda row: row.says(Kind.POSITIVE) and not row.is_reviewed),
    "silent": ("No answer", lambda row: row.is_silent and not row.is_reviewed),
    "undelivered": ("Not delivered", lambda row: row.is_undelivered),
    "all": ("All", lambda row: True),
}
_ORDER = list(Kind)
_SILENT_WHY = "these need a reader no less than the others"
_HIDDEN_WHY = "longest wait first; the model's answers are shown after yours"
_NEGATIVE_WHY = "the model knows pneumonia only; other findings are not excluded"


def list_view(
    rows: Sequence[Row],
    *,
    view: str,
    choice: Choice,
    others: Sequence[Row] = (),
    last_received: str = "",
    is_first_page: bool = True,
    now: datetime,
) -> WorkList:
    """Return the rows that the view shows, grouped, with the words around them.

    Parameters
    ----------
    others
        Rows that are not on this page and count all the same.
    last_received
        When the node's newest image came, and from whom; empty = never.
    """
    shown = [row for row in rows if VIEWS[view][1](row)]
    known = list({row.study_id: row for row in (*rows, *others)}.values())
    return WorkList(
        summary=_summary(known, now),
        groups=_groups_of(shown),
        silence=None if shown else _silence(known, choice, last_received),
        views=_views(known, view, choice),
        view=view,
        choice=choice,
        is_first_page=is_first_page,
    )


def search_view(rows: Sequence[Row], sought: str, now: datetime) -> WorkList:
    """Return what a search found."""
    silence = Silence(
        title="No study has this name, id or accession.",
        text="A name is found by any part of it; an id or accession number by the whole.",
        href="/",
        action="Show the worklist",
    )
    found = f"{len(rows)} studies found." if len(rows) != 1 else "1 study found."
    return WorkList(summary=found, groups=_groups_of(rows), silence=None if rows else silence, sought=sought or " ")


def _groups_of(rows: Sequence[Row]) -> list[Group]:
    """Return the rows in the order of need; a group without rows is left out."""
    return [Group(title=title, why=why, rows=ordered) for title, why, ordered in _groups(rows) if ordered]


def _groups(rows: Sequence[Row]) -> Iterator[tuple[str, str, list[Row]]]:
    unread = [row for row in rows if not row.is_reviewed]
    calm = [row for row in unread if not row.is_urgent]
    yield "Urgent", "asked for as STAT, whatever the model says", _sorted([row for row in unread if row.is_urgent])
    yield "To read", _HIDDEN_WHY, _sorted([row for row in calm if row.kind is Kind.HIDDEN])
    yield "Above threshold", "highest probability first", _sorted([row for row in calm if row.says(Kind.POSITIVE)])
    yield "No answer from the model", _SILENT_WHY, _sorted([row for row in calm if row.is_silent])
    yield "Below threshold", _NEGATIVE_WHY, _sorted([row for row in calm if row.says(Kind.NEGATIVE)])
    yield "Answered by a reader", "newest first", [row for row in rows if row.is_reviewed]


def _sorted(rows: Sequence[Row]) -> list[Row]:
    """By kind, then the highest probability, then the longest wait."""
    return sorted(rows, key=lambda row: (_ORDER.index(row.kind), -(row.probability or 0.0), row.waiting_since))


def _views(rows: Sequence[Row], chosen: str, choice: Choice) -> list[View]:
    is_blind = any(row.kind is Kind.HIDDEN for row in rows)
    return [
        View(words=title, href=href(view=name, **choice.query), count=sum(map(shows, rows)), is_chosen=name == chosen)
        for name, (title, shows) in VIEWS.items()
        if not (is_blind and name == "positive")  # it would count what is hidden
    ]


PERIODS = {"": "Any date", "1": "Last 24 hours", "7": "Last 7 days", "30": "Last 30 days"}
"""In days."""


def href(**query: str | None) -> str:
    """Return the worklist's address with what of the query is set."""
    return "/?" + urlencode({name: value for name, value in query.items() if value})


def export_href(choice: Choice, now: datetime) -> str:
    """Return where the studies that the filters let through are a file, in every view."""
    asked = {
        "format": "csv",
        "calling_ae_title": choice.sender,
        "since": (now - timedelta(days=int(choice.period))).isoformat(timespec="seconds") if choice.period else "",
        "probability_from": choice.probability_from,
        "probability_to": choice.probability_to,
        "model_version": choice.model_version,
    }
    return "/api/v1/exports/studies?" + urlencode({name: v for name, v in asked.items() if v not in ("", None)})


def _summary(rows: Sequence[Row], now: datetime) -> str:
    unread = [row for row in rows if not row.is_reviewed]
    if not unread:
        return ""
    longest = words.time_since(min(row.waiting_since for row in unread), now)
    return f"{len(unread)} to read, longest wait {longest}. {len(rows) - len(unread)} answered."


def _silence(rows: Sequence[Row], choice: Choice, last_received: str) -> Silence:
    if choice.is_narrowed:
        text = "The node has studies, but none that these filters let through."
        return Silence(title="No study matches these filters.", text=text, href="/", action="Clear the filters")
    if rows and all(row.is_reviewed for row in rows):
        text = f"All {len(rows)} studies of this list are answered. The node is receiving: {last_received}."
        return Silence(title="Nothing waits for a reader.", text=text, href=href(view="all"), action="Show all studies")
    if rows:
        answered = sum(row.is_reviewed for row in rows)
        text = f"Studies in the list: {len(rows)}; answered by a reader: {answered}."
        return Silence(title="No study matches this view.", text=text, href=href(view="all"), action="Show all studies")
    return Silence(
        title="Nothing has been received yet.",
        text="The node waits for its first image: send one by C-STORE, or by pacs-node send. It shows here in seconds.",
    )
