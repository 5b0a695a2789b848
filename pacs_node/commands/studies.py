"""`pacs-node studies ...`: what came, where it stands and what is to be done about it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from uuid import UUID

from sqlalchemy.engine import Engine

from db import facts, queue
from db.engine import Session, check_revision, db_now, make_engine, read_scope, session_scope
from db.facts import ImageFacts, StudyDetail
from db.tables import Hold
from models.codes import CODES
from pacs_node.commands.reconcile import reconcile, reconcile_with
from pacs_node.commands.terminal import Add, day_of, needed_id, person, table, time_text
from pacs_node.errors import ConfigError
from pacs_node.settings import Settings

WITHDRAWALS = {"quality": "113001", "safety": "113037", "worklist": "113038"}
"""Reasons and the titles of the rejection notes that say them (PS3.16 CID 7011): the result should not have been said,
endangers the patient, or stands under the wrong one."""


def add_commands(commands: object, add: Add) -> None:
    """Declare `studies` on the parser of `cli`."""
    studies = add(
        commands,
        "studies",
        _studies,
        "list, show, release (a held study leaves the node only then), withdraw (take back what was reported, and hold "
        "the study) or reconcile (do the sums add up?)",
    )
    studies.add_argument("action", choices=["list", "show", "release", "withdraw", "reconcile"])
    studies.add_argument("id", nargs="?", type=UUID, help="of the study to show, release or withdraw")
    studies.add_argument("--reason", choices=WITHDRAWALS, help="why its reports are withdrawn, as the PACS is told")
    studies.add_argument("--limit", type=int, default=50, help="list so many, the newest first (default: %(default)s)")
    studies.add_argument("--state", choices=facts.STUDY_STATES, help="list only these")
    span = studies.add_mutually_exclusive_group()
    span.add_argument("--day", type=day_of, help="reconcile one local day, 2026-11-24")
    span.add_argument("--since", type=day_of, metavar="DAY", help="reconcile since that day (default: a week)")
    studies.add_argument("--against", metavar="NAME", help="reconcile with what this destination has, by C-FIND")


def _studies(settings: Settings, options: argparse.Namespace) -> int:
    engine = make_engine(settings.database_url)
    check_revision(engine)
    if options.action == "list":
        with read_scope(engine) as session:
            _print_list(session, options)
    elif options.action == "show":
        with read_scope(engine) as session:
            for name, text in _described(session, needed_id(options)):
                print(f"{name:12} {text}")
    elif options.action == "release":
        with session_scope(engine) as session:
            released = facts.release_study(session, needed_id(options), actor=person(), now=db_now(session))
        print(f"released; {released} report deliver{'y is' if released == 1 else 'ies are'} on the way")
    elif options.action == "withdraw":
        _withdraw(settings, engine, needed_id(options), options.reason)
    else:
        try:
            fault = reconcile(engine, day=options.day, since=options.since)
            if options.against:
                fault |= reconcile_with(settings, engine, options.against, day=options.day, since=options.since)
            return fault
        except ValueError as error:
            raise ConfigError(str(error)) from error
    return 0


def _withdraw(settings: Settings, engine: Engine, study_id: UUID, reason: str | None) -> None:
    if reason is None:
        raise ConfigError(f"say why: --reason {{{','.join(WITHDRAWALS)}}}")
    with session_scope(engine) as session:
        reports, told = facts.withdraw_study(
            session, study_id, code=WITHDRAWALS[reason], actor=person(), now=db_now(session)
        )
    print(f"withdrawn: {reports} report{_s(reports)}, which may have reached {told} destination{_s(told)}")
    print(f"held: nothing more about it leaves; by mistake: pacs-node studies release {study_id} reports it anew")
    if silent := [one.name for one in settings.destinations if not one.send_rejection_notes]:
        print(f"no rejection notes are sent to {', '.join(silent)}: take them out there by hand")


def _s(number: int) -> str:
    return "" if number == 1 else "s"


def _print_list(session: Session, options: argparse.Namespace) -> None:
    studies, _ = facts.list_studies(session, state=options.state, limit=options.limit)
    table(
        ["study", "received", "from", "state", "answer", "probability", "images", "deliveries"],
        [
            [
                s.study_id,
                time_text(s.received_at),
                s.calling_ae_title,
                f"held: {s.hold}" if s.hold else s.state,
                s.answer or "-",
                "-" if s.probability is None else f"{s.probability:.2f}",
                s.images,
                " ".join(f"{name}:{state}" for name, state, _ in s.deliveries) or "-",
            ]
            for s in studies
        ],
    )


def _described(session: Session, study_id: UUID) -> Iterator[tuple[str, object]]:
    """Say all about a study that an administrator needs, line by line; nothing about its patient."""
    study = facts.study_detail(session, study_id)
    line = study.summary
    yield "study", f"{study_id}, Study Instance UID {study.study_instance_uid}"
    yield (
        "received",
        f"{time_text(line.received_at)} to {time_text(line.last_received_at)} from {line.calling_ae_title}",
    )
    yield "state", f"held: {line.hold}" if line.hold else line.state
    if study.purged_at:
        yield "purged", time_text(study.purged_at)
    for report in study.reports:
        said = report.answer if report.probability is None else f"{report.answer} {report.probability:.2f}"
        whose = "a reader" if report.review_id else f"{report.model_name}/{report.model_version}"
        withdrawn = f", withdrawn {time_text(report.withdrawn_at)}" if report.withdrawn_at else ""
        yield "report", f"{report.report_id} revision {report.revision}: {said}, by {whose}{withdrawn}"
    for name, state, reason in line.deliveries:
        yield "delivery", f"{name}: {state}{f' ({reason})' if reason else ''}"
    for image in study.images:
        yield "image", f"{image.instance_id} {_said_of(image)}"
    yield from _to_do(session, study)


def _said_of(image: ImageFacts) -> str:
    scores = [f"{one.finding} {one.probability:.2f}" for one in image.predictions]
    return ", ".join([image.state, *scores, *(warning.code for warning in image.warnings)])


def _to_do(session: Session, study: StudyDetail) -> Iterator[tuple[str, str]]:
    """Say what a person can do about what is not as it should be."""
    for code in sorted({warning.code for image in study.images for warning in image.warnings} & CODES.keys()):
        yield "what to do", f"{code}: {CODES[code].advice}"
    if study.summary.hold is Hold.WITHDRAWN:
        yield "what to do", f"withdrawn by mistake: pacs-node studies release {study.summary.study_id} reports it anew"
    elif study.summary.hold:
        yield (
            "what to do",
            f"held: look whose images these are; this patient's: pacs-node studies release {study.summary.study_id}; "
            "another's: studies withdraw, which takes back what left before and keeps the study held",
        )
    if (job_id := study.summary.failed_job_id) is not None:
        yield "failed", f"its report could not be built: {queue.show(session, job_id).error}"
        yield "what to do", f"mend the cause, then: pacs-node jobs retry {job_id}"
