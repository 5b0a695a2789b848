"""The worklist as the page shows it: rows in the order in which a reader should look, and words around them. Pure.

Urgent, then suspected, then unanswered, then what asks for another reader, then the rest, then what readers answered;
each group says why. A page holds the beginning of each group, so that none pushes another off; its counts are of all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlencode

from db.facts import StudyFilters
from db.facts.study_filters import GroupCount
from pacs_node.web import words
from pacs_node.web.rows import Row
from pacs_node.web.words import Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Studies that stand in the list for one reason; the first of them."""

    name: str
    """One of `GROUPS`."""
    title: str
    why: str
    rows: Sequence[Row]
    count: int
    """Of all its studies."""
    href: str = ""
    """Where the group stands alone, page by page."""

    @property
    def count_text(self) -> str:
        return counted(self.count)

    @property
    def more(self) -> str:
        """Return what is not shown, in words; empty = all of it is."""
        if self.count <= len(self.rows):
            return ""
        number = f"{self.count - len(self.rows)} more" if self.count <= COUNTED else "more"
        return f"and {number}; here stand the first and the newest" if self.name != "answered" else f"and {number}"


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A choice of rows that the reader can ask for."""

    words: str
    href: str
    count: str
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
    delivery: str = ""
    """One of `DELIVERIES`."""
    warning: str = ""
    """A code that some image of the study has."""
    end: str = ""
    """One of `ENDS`."""
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
            "delivery": self.delivery,
            "warning": self.warning,
            "end": self.end,
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
    group: str = ""
    """The one that is shown alone; empty = all."""
    choice: Choice = field(default_factory=lambda: Choice())
    sought: str = ""

    @property
    def is_live(self) -> bool:
        """Only the worklist as a whole is kept fresh; a search and a group alone stand still."""
        return not self.group and not self.sought


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """How many studies there are of what the filters let through, whatever fits on the page."""

    unread: Sequence[GroupCount] = ()
    undelivered: Sequence[GroupCount] = ()
    answered: int = 0
    """Counted to `COUNTED` and one more."""

    @property
    def to_read(self) -> int:
        return sum(count.studies for count in self.unread)

    def of_view(self, view: str, choice: Choice) -> dict[str, int]:
        """Return how many studies each group of a view holds."""
        chosen = self.undelivered if view == "undelivered" else self.unread
        says = asked_in(view, choice).get("says")
        found: dict[str, int] = {}
        for count in chosen:
            if says in (None, count.says):
                found[count.group] = found.get(count.group, 0) + count.studies
        return found | ({"answered": self.answered} if view == "all" and self.answered else {})


VIEWS: dict[str, tuple[str, StudyFilters]] = {
    "open": ("To read", {"is_reviewed": False}),
    "positive": ("Above threshold", {"is_reviewed": False, "says": "positive"}),
    "silent": ("No answer", {"is_reviewed": False, "says": "silent"}),
    "undelivered": ("Not delivered", {"is_undelivered": True}),
    "all": ("All", {}),
}
_SILENT = ("No answer from the model", "these need a reader no less than the others")
GROUPS = {
    "urgent": ("Urgent", "asked for as STAT, whatever the model says"),
    "hidden": ("To read", "longest wait first; the model's answers are shown after yours"),
    "positive": ("Above threshold", "highest probability first"),
    "silent": _SILENT,
    "unjudged": _SILENT,
    "another": ("Needs another reader", "the readers so far are unsure, or as many say one thing as another"),
    "negative": ("Below threshold", "the model knows pneumonia only; other findings are not excluded"),
    "answered": ("Answered by a reader", "newest first"),
}
"""In the order of need; of each the title, and why it stands there."""
COUNTED = 10_000
"""Answered studies are counted so far."""
_ORDER = list(Kind)


def asked_in(view: str, choice: Choice) -> StudyFilters:
    """Return what the database is asked for in a view; who answers first is not told that a band was met."""
    _, asked = VIEWS[view]
    return {**asked, "says": "unjudged"} if view == "silent" and not choice.is_by_answer else asked


def counted(number: int) -> str:
    """Return a count as it is written."""
    return f"{number}" if number <= COUNTED else f"{COUNTED}+"


def list_view(
    rows: Sequence[Row],
    counts: Counts,
    *,
    view: str,
    choice: Choice,
    group: str = "",
    last_received: str = "",
    is_of_groups: bool = False,
    now: datetime,
) -> WorkList:
    """Return the rows of the view, grouped, with the words around them.

    Parameters
    ----------
    group
        The one that is shown alone; empty = all.
    last_received
        When the node's newest image came, and from whom; empty = never.
    is_of_groups
        Whether the caller sees the studies of their groups alone.
    """
    return WorkList(
        summary=_summary(counts, now),
        groups=_groups_of(rows, counts.of_view(view, choice), view=view, choice=choice),
        silence=None if rows else _silence(counts, choice, last_received, is_of_groups=is_of_groups),
        views=_views(counts, view, choice),
        view=view,
        group=group,
        choice=choice,
    )


def search_view(rows: Sequence[Row], sought: str, *, has_more: bool = False) -> WorkList:
    """Return what a search found, or the first of it."""
    silence = Silence(
        title="No study has this name, id or accession.",
        text="A name is found by any part of it; an id or accession number by the whole.",
        href="/",
        action="Show the worklist",
    )
    found = f"{len(rows)} studies found." if len(rows) != 1 else "1 study found."
    found = f"The first {len(rows)} of more studies; write more of the name to find the others." if has_more else found
    return WorkList(summary=found, groups=_groups_of(rows, {}), silence=None if rows else silence, sought=sought or " ")


def _groups_of(rows: Sequence[Row], counts: Mapping[str, int], **query: Any) -> list[Group]:
    """Return the rows in the order of need; a group without rows is left out.

    Parameters
    ----------
    counts
        By group, of all its studies; a group that is missing is shown in full.
    """
    gathered: dict[str, list[Row]] = {name: [] for name in GROUPS}
    for row in rows:
        gathered[_group_of(row)].append(row)
    is_veiled = "choice" in query and not query["choice"].is_by_answer
    gathered |= {"silent": [], "unjudged": gathered["silent"]} if is_veiled else {}
    return [
        Group(
            name=name,
            title=title,
            why=why,
            rows=gathered[name] if name == "answered" else sorted(gathered[name], key=_need),
            count=max(counts.get(name, 0), len(gathered[name])),
            href=href(view=query["view"], group=name, **query["choice"].query) if query else "",
        )
        for name, (title, why) in GROUPS.items()
        if gathered[name]
    ]


def _group_of(row: Row) -> str:
    """Return where a study stands, as `db.facts.groups` says it."""
    if row.is_reviewed:
        return "answered"
    if row.is_urgent:
        return "urgent"
    if row.needs_reader:
        return "another"
    if row.kind is Kind.HIDDEN:
        return "hidden"
    return "silent" if row.is_silent else row.kind.value


def _need(row: Row) -> tuple[int, float, datetime]:
    """Sort by kind, then what is suspected by the highest probability, then by the longest wait."""
    probability = row.probability if row.kind is Kind.POSITIVE else None
    return _ORDER.index(row.kind), -(probability or 0.0), row.waiting_since


def _views(counts: Counts, chosen: str, choice: Choice) -> list[View]:
    return [
        View(
            words=title,
            href=href(view=name, **choice.query),
            count=counted(sum(counts.of_view(name, choice).values())),
            is_chosen=name == chosen,
        )
        for name, (title, _) in VIEWS.items()
        if choice.is_by_answer or name != "positive"  # it would count what is hidden
    ]


DELIVERIES = {"": "any", "failed": "not delivered"}
ENDS = {"": "any", "analysed": "analysed", "not_analysed": "not analysed", "failed": "failed", "waiting": "waiting"}
"""Where a study stands in the sum that the quality page counts."""
PERIODS = {
    "": "Any date",
    "1": "Last 24 hours",
    "7": "Last 7 days",
    "30": "Last 30 days",
    "84": "Last 12 weeks",
    "365": "Last year",
}
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
        "warning": choice.warning,
        "end": choice.end,
        "undelivered": "true" if choice.delivery else "",
    }
    return "/api/v1/exports/studies?" + urlencode({name: v for name, v in asked.items() if v not in ("", None)})


def _summary(counts: Counts, now: datetime) -> str:
    if not counts.unread:
        return ""
    longest = words.time_since(min(count.waiting_since for count in counts.unread), now)
    return f"{counts.to_read} to read, longest wait {longest}. {counted(counts.answered)} answered."


def _silence(counts: Counts, choice: Choice, last_received: str, *, is_of_groups: bool) -> Silence:
    if choice.is_narrowed:
        text = "The node has studies, but none that these filters let through."
        return Silence(title="No study matches these filters.", text=text, href="/", action="Clear the filters")
    answered = counted(counts.answered)
    if counts.answered and not counts.unread:
        text = f"Studies answered by a reader: {answered}. The last image came {last_received}."
        return Silence(title="Nothing waits for a reader.", text=text, href=href(view="all"), action="Show all studies")
    if counts.unread:
        text = f"Studies to read: {counts.to_read}; answered by a reader: {answered}."
        return Silence(title="No study matches this view.", text=text, href=href(view="all"), action="Show all studies")
    if is_of_groups:
        text = "Nothing has come from the senders and institutions of your groups. An administrator sets your groups."
        return Silence(title="Your groups see no study.", text=text)
    return Silence(
        title="Nothing has been received yet.",
        text="The node waits for its first image: send one by C-STORE, or by pacs-node send. It shows here in seconds.",
    )
