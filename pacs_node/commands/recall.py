"""`pacs-node recall`: take back what a model version said, everywhere it was sent.

Every report with a prediction of that version is marked, once; what of it was not sent yet stays in the house. Its
images are judged anew by the model that is active now, and a revision replaces the report wherever it was sent; where a
destination takes rejection notes, what it has is rejected as well. What is left for a person is said in the end. Run it
again after a minute: it names what is not replaced yet (a worker may have held the former model), and judges it anew.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.engine import Engine

from db import facts
from db.engine import check_revision, db_now, make_engine, read_scope, session_scope
from db.facts import RecallFacts
from pacs_node.errors import ConfigError
from pacs_node.listener.rejected import QUALITY
from pacs_node.settings import Settings
from pacs_node.wiring import active_card, registry_of

BATCH = 100
"""Reports recalled in one transaction."""


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
    def is_unreplaced(self) -> bool:
        """Recalled earlier, and still the study's newest word: the worker had not changed its model yet."""
        return self.is_replaced and self.said.is_current and self.said.recalled_at is not None


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
        Only reports of this instant and later.
    replace
        False: nothing is judged anew; what was said is only rejected.

    Raises
    ------
    ConfigError
        `model` is not NAME/VERSION, or it is the one that would replace itself.
    """
    name, separator, version = model.partition("/")
    if not (name and separator and version):
        raise ConfigError(f"--model {model!r}: write NAME/VERSION, as `pacs-node models list` shows it")
    engine = make_engine(settings.database_url)
    check_revision(engine)
    card = active_card(engine, registry_of(settings))
    if replace and (card.name, card.version) == (name, version) and not dry_run:
        text = "it still answers: activate another model first, or say --no-replacement to reject its results only"
        raise ConfigError(f"--model {model}: {text}")
    with read_scope(engine) as session:
        said = facts.said_by_model(session, name, version, since=since)
    noting = {one.name for one in settings.destinations if one.send_rejection_notes}
    plans = [_plan_of(one, noting, replace=replace) for one in said]
    for line in _told(plans):
        print(line)
    if not dry_run:
        open_ = [plan for plan in plans if plan.said.recalled_at is None]
        for start in range(0, len(open_), BATCH):
            _carry_out(engine, open_[start : start + BATCH], (name, version), actor)
        with session_scope(engine) as session:
            for plan in (plan for plan in plans if plan.is_unreplaced):
                facts.judge_again(session, plan.said.instance_ids, now=db_now(session))
    engine.dispose()
    return _summary(plans, dry_run=dry_run)


def _plan_of(said: RecallFacts, noting: Collection[str], *, replace: bool) -> Plan:
    there = [delivery.destination for delivery in said.deliveries if delivery.may_be_there]
    is_replaced = replace and not said.is_purged
    noted = tuple(name for name in there if name in noting)
    left = () if is_replaced else tuple(name for name in there if name not in noting)
    return Plan(said=said, is_replaced=is_replaced, noted=noted, left=left)


def _carry_out(engine: Engine, plans: Sequence[Plan], model: tuple[str, str], actor: str) -> None:
    """Mark, withdraw and queue in one transaction: a crash leaves a report as it was, or wholly recalled."""
    with session_scope(engine) as session:
        now = db_now(session)
        for plan in sorted(plans, key=lambda plan: plan.said.study_id):
            said = plan.said
            is_new = facts.recall_report(
                session, said.report_id, model_name=model[0], model_version=model[1], actor=actor, now=now
            )
            if not is_new:
                continue
            only = plan.noted if plan.is_replaced else None
            facts.withdraw_report(session, said.report_id, code=QUALITY, only=only, actor=actor, now=now)
            if plan.is_replaced and said.is_current:
                facts.judge_again(session, said.instance_ids, now=now)


def _told(plans: Sequence[Plan]) -> Iterator[str]:
    for plan in plans:
        said = plan.said
        sent = " ".join(f"{one.destination}:{one.state}" for one in said.deliveries) or "sent nowhere"
        state = f"recalled {said.recalled_at:%Y-%m-%d %H:%M}Z" if said.recalled_at else "not recalled"
        yield f"{said.report_id}  revision {said.revision}  {said.answer}  {state}  {sent}"


def _summary(plans: Sequence[Plan], *, dry_run: bool) -> int:
    fresh = [plan for plan in plans if plan.said.recalled_at is None]
    would = "would be " if dry_run else ""
    print(
        f"{len(plans)} report(s) say what this model said; {len(fresh)} {would}recalled now: "
        f"{sum(plan.is_replaced for plan in fresh)} {would}judged anew and replaced, "
        f"{sum(len(plan.noted) for plan in fresh)} rejection note(s)"
    )
    unreplaced = sum(plan.is_unreplaced for plan in plans)
    if unreplaced:
        again = "" if dry_run else " once more"
        print(f"{unreplaced} recalled earlier and not replaced yet: {would}judged anew{again}", file=sys.stderr)
    left = Counter(name for plan in plans for name in plan.left)
    for name, count in sorted(left.items()):
        print(f"{name}: {count} result(s) stay there; take them out by hand", file=sys.stderr)
    return 1 if left or unreplaced else 0
