"""`pacs-node studies reconcile`: where everything went, per day and per sender, and whether the sums add up.

Takes a span of local days; prints a table, what senders proposed and were refused, and one sentence. Exit code 1 when
something received is in no end state, or when a PACS that was asked has studies with radiographs of those days of which
no image came here, or studies that cannot be compared.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from datetime import date, datetime, time, timedelta

from db import facts
from db.engine import Engine, db_now, read_scope
from db.facts import Conservation, RefusedContexts, SenderCounts
from pacs_node.commands.terminal import table, time_text
from pacs_node.conformance import REFUSALS, class_name
from pacs_node.dimse.retrieve import MOST_STUDIES, find_studies
from pacs_node.errors import ConfigError
from pacs_node.settings import DestinationSettings, Settings

DAYS_MAX = 3660
"""Ten years; one look at the database for each day."""
DAYS_SHOWN = 7
"""Without a day or a beginning: today and the days before."""
RADIOGRAPHS = frozenset({"CR", "DX"})
"""Modalities in Study of what the node should have got; a study that does not state them is not comparable."""
UNKNOWN = "(unknown)"
NOTHING = Conservation(received=0, analysed=0, not_analysed=0, failed=0, waiting=0, duplicate=0, quarantined=0)
HEADS = (
    *("day", "sender", "received", "analysed", "not analysed", "failed", "waiting", "duplicate", "quarantined"),
    *("refused", "refused contexts", "sum"),
)
REFUSED_HEADS = ("sender", "refused SOP class", "UID", "reason", "associations", "nothing else accepted", "last")
REFUSED_SHOWN = 100
"""A router that proposes every SOP Class there is fills them by itself; the gravest come first."""


def reconcile(engine: Engine, *, day: date | None, since: date | None) -> int:
    """Print what was received on a day, or since a day until today, and return the exit code.

    Raises
    ------
    ValueError
        The span lies in the future, or is longer than `DAYS_MAX`.
    """
    with read_scope(engine) as session:
        today = db_now(session).astimezone().date()
    days = days_of(day, since, today)
    rows = []
    wrong = 0
    for one in days:
        with read_scope(engine) as session:
            sums = facts.sums_by_sender(session, *span_of(one))
            contexts = facts.list_refused_contexts(session, since=one, until=one)
        wrong += sum(not counts.ends.adds_up for counts in sums)
        rows += _rows(one, sums, contexts)
    table(HEADS, rows)
    _print_refused(engine, days)
    span = f"{days[0]}" if len(days) == 1 else f"{days[0]} to {days[-1]}"
    if not rows:
        print(f"nothing was received ({span})")
    elif not wrong:
        print(f"every object is in one end state ({span})")
    else:
        print(f"{wrong} sum(s) do not add up: see DIFFERS; look at the log and the audit trail", file=sys.stderr)
    return 1 if wrong else 0


def reconcile_with(settings: Settings, engine: Engine, pacs: str, *, day: date | None, since: date | None) -> int:
    """Ask a PACS for its studies with a Study Date of those days, print what never came, and return the exit code.

    Studies are compared, not images: one has come when an image to be judged came. The Number of Study Related
    Instances also counts reports and what this node sent.

    Raises
    ------
    ConfigError
        No DIMSE destination has this name.
    DeliveryFailed
        The PACS could not be asked.
    ValueError
        As in `reconcile`.
    """
    archive = _archive_of(settings, pacs)
    with read_scope(engine) as session:
        days = days_of(day, since, db_now(session).astimezone().date())
    found = find_studies(
        archive,
        {"StudyDate": f"{days[0]:%Y%m%d}-{days[-1]:%Y%m%d}"},
        calling_ae_title=settings.dicom.ae_title,
        connect_timeout_s=settings.delivery.connect_timeout_s,
    )
    wanted = {study.study_instance_uid: study for study in found if not RADIOGRAPHS.isdisjoint(study.modalities)}
    silent = [study.study_instance_uid for study in found if not any(study.modalities)]
    with read_scope(engine) as session:
        missing = facts.studies_without_image(session, list(wanted))
        unclear = facts.studies_without_image(session, silent)
    for uid in missing:
        print(f"{uid}  {wanted[uid].study_date or 'no date'}  {'/'.join(wanted[uid].modalities)}")
    print(f"{pacs}: {len(wanted)} studies with CR or DX, of {len(missing)} of them no image to be judged came here")
    if unclear:
        why = "no image of them came here, and it does not state their Modalities in Study"
        print(f"{pacs}: {len(unclear)} studies are not comparable: {why}", file=sys.stderr)
    if len(found) >= MOST_STUDIES:
        print(f"{pacs} has more: only {MOST_STUDIES} studies were compared; ask for fewer days", file=sys.stderr)
    return 1 if missing or unclear or len(found) >= MOST_STUDIES else 0


def days_of(day: date | None, since: date | None, today: date) -> list[date]:
    """Return the local days asked for, the earliest first.

    Raises
    ------
    ValueError
        The span lies in the future, or is longer than `DAYS_MAX`.
    """
    if day is not None:
        return [day]
    first = since if since is not None else today - timedelta(days=DAYS_SHOWN - 1)
    count = (today - first).days + 1
    if not 1 <= count <= DAYS_MAX:
        raise ValueError(f"--since must lie 0 to {DAYS_MAX - 1} days before today")
    return [first + timedelta(days=number) for number in range(count)]


def span_of(day: date) -> tuple[datetime, datetime]:
    """Return when a local day begins and ends; the clock's change makes it 23 or 25 hours long."""
    start, end = (datetime.combine(one, time()).astimezone() for one in (day, day + timedelta(days=1)))
    return start, end


def _archive_of(settings: Settings, name: str) -> DestinationSettings:
    archives = [one for one in settings.destinations if one.kind == "dimse"]
    for archive in archives:
        if archive.name == name:
            return archive
    names = ", ".join(one.name for one in archives) or "none configured"
    raise ConfigError(f"--against {name!r}: no DIMSE destination of config.toml has this name ({names})")


def _rows(day: date, sums: Sequence[SenderCounts], contexts: Sequence[RefusedContexts]) -> list[list[object]]:
    """Return a line for each sender that sent something or was refused something."""
    refused: Counter[str] = Counter()
    for one in contexts:
        refused[one.calling_ae_title] += one.associations
    silent = refused.keys() - {counts.calling_ae_title for counts in sums}
    sums = [*sums, *(SenderCounts(calling_ae_title=name, ends=NOTHING, refused=0) for name in silent)]
    sums.sort(key=lambda counts: counts.calling_ae_title)
    return [_row(day, counts, refused[counts.calling_ae_title]) for counts in sums]


def _row(day: date, counts: SenderCounts, refused_contexts: int) -> list[object]:
    ends = counts.ends
    numbers = (
        *(ends.received, ends.analysed, ends.not_analysed, ends.failed, ends.waiting, ends.duplicate, ends.quarantined),
        *(counts.refused, refused_contexts),
    )
    sender = counts.calling_ae_title or UNKNOWN
    return [day, sender, *numbers, "adds up" if ends.adds_up else "DIFFERS"]


def _print_refused(engine: Engine, days: Sequence[date]) -> None:
    """Print what senders proposed in vain over all the days: studies that may never have come."""
    with read_scope(engine) as session:
        found = facts.list_refused_contexts(session, since=days[0], until=days[-1])
    if not found:
        return
    print()
    table(REFUSED_HEADS, [_refused_row(one) for one in found[:REFUSED_SHOWN]])
    if len(found) > REFUSED_SHOWN:
        print(f"... and {len(found) - REFUSED_SHOWN} more")
    print()


def _refused_row(one: RefusedContexts) -> list[object]:
    reason = f"{REFUSALS[one.reason]} ({one.reason})"
    name, counts = class_name(one.abstract_syntax), (one.associations, one.empty_associations)
    return [one.calling_ae_title or UNKNOWN, name, one.abstract_syntax or "-", reason, *counts, time_text(one.last_at)]
