"""Taking back what a model version said, everywhere it was sent.

The version is marked first: what a worker that still holds it says from then on is not recorded. Every report with a
prediction of that version is marked, once; what of it was not sent yet stays in the house. Its images, and those that
no report names yet, are judged anew by the model that is active now, and a revision replaces the report wherever it was
sent; where a destination takes rejection notes, what it has is rejected as well.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy.engine import Engine

from db import facts
from db.engine import Session, db_now, read_scope, session_scope
from db.facts import RecallFacts
from models.registry import Registry
from pacs_node.errors import ConfigError
from pacs_node.report.codes import QUALITY
from pacs_node.settings import Settings
from pacs_node.wiring import active_card

BATCH = 50
"""Studies recalled in one transaction."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What is to be taken back, and how."""

    model: tuple[str, str]
    since: datetime | None
    actor: str
    noting: frozenset[str]
    """Destinations that take rejection notes."""
    is_replacing: bool
    """False: nothing is judged anew; what was said is only rejected."""
    address: str = ""
    """From where it was asked for, for the audit trail."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a recall does about one report."""

    said: RecallFacts
    is_replaced: bool
    """Its images are judged anew, and a revision replaces it wherever it was sent."""
    noted: tuple[str, ...]
    """Destinations that are told by a rejection note."""
    left: tuple[str, ...]
    """Destinations where it stays, for a person to deal with."""

    @property
    def is_awaited(self) -> bool:
        """Recalled earlier, and its replacement is on its way."""
        return self.is_replaced and self.said.is_current and self.said.recalled_at is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyPlan:
    """What a recall does about one study."""

    reports: tuple[Plan, ...]
    judged_anew: tuple[UUID, ...]
    """Its images, in a report or not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecallSums:
    """What a recall came to; in a dry run, what it would come to."""

    reports: int
    """All that say what this model said."""
    recalled: int
    """Of these, the ones that were not recalled before."""
    replaced: int
    noted: int
    """Rejection notes."""
    judged_anew: int
    """Images."""
    awaited: int
    """Recalled earlier; the replacement is on its way."""
    left: Mapping[str, int]
    """By destination: results that stay there, for a person to take out."""


def noting_destinations(settings: Settings) -> frozenset[str]:
    """Return the destinations that take rejection notes."""
    return frozenset(one.name for one in settings.destinations if one.send_rejection_notes)


def recall_model(engine: Engine, registry: Registry, order: Order, *, dry_run: bool) -> tuple[StudyPlan, ...]:
    """Carry out an order, study by study; running it twice recalls nothing twice.

    Raises
    ------
    ConfigError
        The version is the one that would replace itself.
    UnknownModel
        It never said anything, and is in no model folder.
    """
    if not _studies(engine, order):
        registry.find(*order.model)  # a slip of the pen recalls nothing
    if not dry_run:
        _mark(engine, registry, order)
    return tuple(_plans(engine, _studies(engine, order), order, dry_run=dry_run))


def sums_of(studies: Sequence[StudyPlan]) -> RecallSums:
    """Add up what is, or would be, done."""
    plans = [plan for study in studies for plan in study.reports]
    fresh = [plan for plan in plans if plan.said.recalled_at is None]
    return RecallSums(
        reports=len(plans),
        recalled=len(fresh),
        replaced=sum(plan.is_replaced for plan in fresh),
        noted=sum(len(plan.noted) for plan in fresh),
        judged_anew=sum(len(study.judged_anew) for study in studies),
        awaited=sum(plan.is_awaited for plan in plans),
        left=dict(sorted(Counter(name for plan in plans for name in plan.left).items())),
    )


def _mark(engine: Engine, registry: Registry, order: Order) -> None:
    """Let nothing that the version says be recorded from now on.

    Raises
    ------
    ConfigError
        It answers still, and is to be replaced.
    """
    card = active_card(engine, registry)
    is_active = (card.name, card.version) == order.model
    if not is_active:
        with session_scope(engine, address=order.address) as session:
            is_active = not facts.recall_model(session, *order.model, actor=order.actor, now=db_now(session))
    if is_active and order.is_replacing:
        raise ConfigError(f"{'/'.join(order.model)}: {_what_to_do(engine, registry, order)}")


def _what_to_do(engine: Engine, registry: Registry, order: Order) -> str:
    """Say what makes the recall of the version that answers possible."""
    with read_scope(engine) as session:
        barred = facts.recalled_models(session) | {order.model}
    others = [f"{card.name}/{card.version}" for card in registry.cards() if (card.name, card.version) not in barred]
    activate = f"`pacs-node models activate {others[-1] if len(others) == 1 else 'NAME/VERSION'}`"
    first = f"{activate} ({', '.join(others)})" if len(others) > 1 else activate
    if not others:
        first = f"`pacs-node models add FOLDER`, for there is no other version here, then {activate}"
    return f"it still answers. Activate another model first: {first}. Or only reject its results: --no-replacement"


def _studies(engine: Engine, order: Order) -> tuple[UUID, ...]:
    with read_scope(engine) as session:
        return facts.studies_judged_by(session, order.model)


def _plans(engine: Engine, study_ids: Sequence[UUID], order: Order, *, dry_run: bool) -> Iterator[StudyPlan]:
    """Give what is to be done about each study; unless it is a dry run, it is done when it is given."""
    for start in range(0, len(study_ids), BATCH):
        with read_scope(engine) if dry_run else session_scope(engine, address=order.address) as session:
            plans = []
            for study_id in study_ids[start : start + BATCH]:  # in order of their ids: no deadlock
                if not dry_run:  # a report that is being frozen over the recalled word is waited for
                    facts.study_facts(session, study_id, lock=True)
                plans.append(_plan_of(session, study_id, order))
                if not dry_run:
                    _carry_out(session, plans[-1], order)
        yield from plans


def _plan_of(session: Session, study_id: UUID, order: Order) -> StudyPlan:
    said = facts.said_by_model(session, study_id, order.model, since=order.since)
    named = frozenset(instance_id for report in said for instance_id in report.instance_ids)
    again = facts.judged_by(session, study_id, [order.model], since=order.since, or_among=named)
    return StudyPlan(
        reports=tuple(_report_plan(one, order) for one in said), judged_anew=again if order.is_replacing else ()
    )


def _report_plan(said: RecallFacts, order: Order) -> Plan:
    there = [delivery for delivery in said.deliveries if delivery.may_be_there]
    is_replaced = order.is_replacing and not said.is_purged
    noted = (one.destination for one in there if one.destination in order.noting and one.withdrawn_at is None)
    left = () if is_replaced else tuple(one.destination for one in there if one.destination not in order.noting)
    return Plan(said=said, is_replaced=is_replaced, noted=tuple(noted), left=left)


def _carry_out(session: Session, plan: StudyPlan, order: Order) -> None:
    """Mark, withdraw and queue in one transaction: a crash leaves a study as it was, or wholly recalled."""
    now = db_now(session)
    for one in plan.reports:
        report_id = one.said.report_id
        if facts.recall_report(session, report_id, model=order.model, actor=order.actor, now=now):
            only = order.noting if one.is_replaced else None
            facts.withdraw_report(session, report_id, code=QUALITY, only=only, actor=order.actor, now=now)
    facts.judge_anew(session, plan.judged_anew, actor=order.actor, now=now)
