"""`pacs-node recall`: take back what a model version said; what is left for a person is said in the end."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import datetime

from db.engine import check_revision, make_engine
from pacs_node.errors import ConfigError
from pacs_node.recall import Order, Plan, StudyPlan, noting_destinations, recall_model, sums_of
from pacs_node.settings import Settings
from pacs_node.wiring import active_card, registry_of


def recall(
    settings: Settings, model: str, *, since: datetime | None, actor: str, dry_run: bool, replace: bool = True
) -> int:
    """Recall what a model version said; return 1 if something is left to a person.

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
    noting, registry = noting_destinations(settings), registry_of(settings)
    order = Order(model=(name, version), since=since, actor=actor, noting=noting, is_replacing=replace)
    studies = recall_model(engine, registry, order, dry_run=dry_run)
    if dry_run and replace:
        active = active_card(engine, registry)
        if (active.name, active.version) == order.model:
            print(f"{model} still answers: activate another version before the recall", file=sys.stderr)
    engine.dispose()
    return _summary(studies, dry_run=dry_run)


def _told(plan: Plan, *, dry_run: bool) -> str:
    said = plan.said
    sent = " ".join(f"{one.destination}:{one.state}" for one in said.deliveries) or "sent nowhere"
    now = "not recalled" if dry_run else "recalled now"
    state = f"recalled {said.recalled_at:%Y-%m-%d %H:%M}Z" if said.recalled_at else now
    return f"{said.report_id}  revision {said.revision}  {said.answer}  {state}  {sent}"


def _summary(studies: Sequence[StudyPlan], *, dry_run: bool) -> int:
    for study in studies:
        for plan in study.reports:
            print(_told(plan, dry_run=dry_run))
    sums, would = sums_of(studies), "would be " if dry_run else ""
    print(
        f"{sums.reports} report(s) say what this model said; {sums.recalled} {would}recalled now: "
        f"{sums.replaced} {would}judged anew and replaced, {sums.noted} rejection note(s). "
        f"{sums.judged_anew} image(s) {would}judged anew"
    )
    if sums.awaited:
        print(f"{sums.awaited} recalled earlier: the replacement is on its way")
    for name, count in sums.left.items():
        print(f"{name}: {count} result(s) stay there; take them out by hand", file=sys.stderr)
    return 1 if sums.left else 0
