"""`pacs-node recall`: take back what a model version said, everywhere it was sent.

The version is marked first: what a worker that still holds it says from then on is not recorded. Every report with a
prediction of that version is marked, once; what of it was not sent yet stays in the house. Its images, and those that
no report names yet, are judged anew by the model that is active now, and a revision replaces the report wherever it was
sent; where a destination takes rejection notes, what it has is rejected as well. What is left for a person is said in
the end.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy.engine import Engine

from db import facts
from db.engine import Session, check_revision, db_now, make_engine, read_scope, session_scope
from db.facts import RecallFacts
from models.registry import Registry
from pacs_node.errors import ConfigError
from pacs_node.report.codes import QUALITY
from pacs_node.settings import Settings
from pacs_node.wiring import active_card, registry_of

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


def recall(
    settings: Settings, model: str, *, since: datetime | None, actor: str, dry_run: bool, replace: bool = True
) -> int:
    """Recall what a model version said; return 1 if something is left to a person.

    Running it twice recalls nothing twice.

    Parameters
    ----------
    model
        NAME/VERSION.
    since
        Only reports of this instant and later, and what was said about images since then.
    replace
        False: nothing is judged anew; what was said is only rejected.

    Raises
    ------
    ConfigError
        `model` is not NAME/VERSION, or it is the one that would replace itself.
    UnknownModel
        It never said anything, and is in no model folder.
    """
    name, separator, version = model.partition("/")
    if not (name and separator and version):
        raise ConfigError(f"--model {model!r}: write NAME/VERSION, as `pacs-node models list` shows it")
    engine = make_engine(settings.database_url)
    check_revision(engine)
    noting = frozenset(one.name for one in settings.destinations if one.send_rejection_notes)
    order = Order(model=(name, version), since=since, actor=actor, noting=noting, is_replacing=replace)
    registry = registry_of(settings)
    if not _studies(engine, order):
        registry.find(name, version)  # a slip of the pen recalls nothing
    if not dry_run:
        _mark(engine, registry, order)
    plans = list(_plans(engine, _studies(engine, order), order, dry_run=dry_run))
    engine.dispose()
    return _summary(plans, dry_run=dry_run)


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
        with session_scope(engine) as session:
            is_active = not facts.recall_model(session, *order.model, actor=order.actor, now=db_now(session))
    if is_active and order.is_replacing:
        raise ConfigError(f"--model {'/'.join(order.model)}: {_what_to_do(engine, registry, order)}")


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
        with read_scope(engine) if dry_run else session_scope(engine) as session:
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


def _told(plan: Plan, *, dry_run: bool) -> str:
    said = plan.said
    sent = " ".join(f"{one.destination}:{one.state}" for one in said.deliveries) or "sent nowhere"
    now = "not recalled" if dry_run else "recalled now"
    state = f"recalled {said.recalled_at:%Y-%m-%d %H:%M}Z" if said.recalled_at else now
    return f"{said.report_id}  revision {said.revision}  {said.answer}  {state}  {sent}"


def _summary(studies: Sequence[StudyPlan], *, dry_run: bool) -> int:
    plans = [plan for study in studies for plan in study.reports]
    for plan in plans:
        print(_told(plan, dry_run=dry_run))
    fresh = [plan for plan in plans if plan.said.recalled_at is None]
    would = "would be " if dry_run else ""
    print(
        f"{len(plans)} report(s) say what this model said; {len(fresh)} {would}recalled now: "
        f"{sum(plan.is_replaced for plan in fresh)} {would}judged anew and replaced, "
        f"{sum(len(plan.noted) for plan in fresh)} rejection note(s). "
        f"{sum(len(study.judged_anew) for study in studies)} image(s) {would}judged anew"
    )
    awaited = sum(plan.is_awaited for plan in plans)
    if awaited:
        print(f"{awaited} recalled earlier: the replacement is on its way")
    left = Counter(name for plan in plans for name in plan.left)
    for name, count in sorted(left.items()):
        print(f"{name}: {count} result(s) stay there; take them out by hand", file=sys.stderr)
    return 1 if left else 0
