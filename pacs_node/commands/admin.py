"""The commands of an administrator: look, retry, release, verify, check, migrate, back up, change the model."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from uuid import UUID

from db import audit, facts, queue
from db.audit import Action
from db.engine import Session, check_revision, db_now, make_engine, read_scope, session_scope
from db.tables import JobState
from pacs_node.commands.terminal import Add, instant_of, needed_id, person, table, time_text
from pacs_node.errors import ConfigError
from pacs_node.settings import Settings
from pacs_node.wiring import audit_key

Command = Callable[[Settings, argparse.Namespace], int | None]

_OVER = (JobState.DONE, JobState.CLOSED)
_LISTED = 1000
"""Jobs of one state, the newest first."""


def add_commands(commands: object, add: Add) -> None:
    """Declare every administrative command on the parser of `cli`."""
    send = add(commands, "send", _send, "send DICOM files to a destination by C-STORE")
    send.add_argument("paths", nargs="+", type=Path, metavar="FILES|FOLDERS")
    send.add_argument(
        "--to", required=True, metavar="NAME|AET@HOST:PORT", help="a destination of config.toml, or an address"
    )
    send.add_argument("--calling", default="PACS_NODE_SEND", metavar="AET", help="our AE title (default: %(default)s)")

    jobs = add(commands, "jobs", _jobs, "list, show, retry or close jobs; failed ones are the dead letters")
    jobs.add_argument("action", choices=["list", "show", "retry", "close"])
    jobs.add_argument("id", nargs="?", type=UUID, help="of the job to show, retry or close")
    jobs.add_argument(
        "--state", type=JobState, choices=list(JobState), help="list only these (default: what is not over)"
    )
    jobs.add_argument(
        "--reason",
        type=facts.ClosingReason,
        choices=list(facts.ClosingReason),
        help="why `close` leaves a failed job undone, its images free to be purged after store.retention_days",
    )
    jobs.add_argument("--all", action="store_true", help="retry every job that failed or waits for its next try")

    quarantine = add(
        commands, "quarantine", _quarantine, "list objects that were kept apart: unreadable, or other content"
    )
    quarantine.add_argument("action", choices=["list"])
    quarantine.add_argument("--limit", type=int, default=50, help="how many, the newest first (default: %(default)s)")

    trail = add(commands, "audit", _audit, "verify the sealed audit chain, or show its end")
    trail.add_argument("action", choices=["verify", "tail"])
    trail.add_argument("--limit", type=int, default=20, help="how many events `tail` shows (default: %(default)s)")

    add(
        commands,
        "check",
        _check,
        "show settings (secrets masked); test node, database, model, store and destinations",
    )
    add(
        commands,
        "migrate",
        _migrate,
        "create the database or bring it to this version (an SQLite file is copied first)",
    )

    backup = add(
        commands, "backup", _backup, "copy database (SQLite, online), store, added models and secrets into a new folder"
    )
    backup.add_argument("folder", type=Path)
    restore = add(commands, "restore", _restore, "put a backup into an empty data folder (the node must be stopped)")
    restore.add_argument("folder", type=Path)

    export = add(
        commands, "export-reviews", _export_reviews, "export reviewed images, de-identified, as a training manifest"
    )
    export.add_argument("--out", required=True, type=Path, metavar="DIR", help="a new folder")
    export.add_argument(
        "--since", type=instant_of, metavar="TIME", help="reviewed since 2026-11-01, or 2026-11-01T12:00 (default: all)"
    )
    export.add_argument(
        "--accept-unstated",
        action="store_true",
        help="also images whose header does not say whether text is burned into the pixels: somebody has looked",
    )

    taken_back = add(commands, "recall", _recall, "take back what a model version said, everywhere it was sent")
    taken_back.add_argument("--model", required=True, metavar="NAME/VERSION")
    taken_back.add_argument("--since", type=instant_of, metavar="TIME", help="only reports since then (default: all)")
    taken_back.add_argument("--no-replacement", action="store_true", help="reject only: judge nothing anew")
    taken_back.add_argument("--dry-run", action="store_true", help="say what would be done")

    fetched = add(commands, "fetch", _fetch, "have a PACS send a missing or prior study to this node (C-FIND, C-MOVE)")
    fetched.add_argument("--from", required=True, dest="source", metavar="NAME", help="a destination of config.toml")
    fetched.add_argument("--study", dest="StudyInstanceUID", metavar="UID")
    fetched.add_argument("--accession", dest="AccessionNumber", metavar="NUMBER")
    fetched.add_argument("--patient", dest="PatientID", metavar="ID")
    fetched.add_argument("--date", dest="StudyDate", metavar="DATE", help="20261124, or 20261101-20261124")
    fetched.add_argument("--dry-run", action="store_true", help="list what would be fetched")

    models = add(commands, "models", _models, "list, add, activate or roll back model versions")
    models.add_argument("action", choices=["list", "add", "activate", "rollback"])
    models.add_argument("what", nargs="?", metavar="FOLDER|NAME/VERSION")


def _send(settings: Settings, options: argparse.Namespace) -> int:
    from pacs_node.commands.sending import send_paths

    return send_paths(settings, options.paths, to=options.to, calling_ae_title=options.calling)


def _recall(settings: Settings, options: argparse.Namespace) -> int:
    from pacs_node.commands.recall import recall

    return recall(
        settings,
        options.model,
        since=options.since,
        actor=person(),
        dry_run=options.dry_run,
        replace=not options.no_replacement,
    )


def _fetch(settings: Settings, options: argparse.Namespace) -> int:
    from pacs_node.commands.fetch import KEYS, fetch

    keys = {key: value for key in KEYS if (value := getattr(options, key))}
    return fetch(settings, options.source, keys, actor=person(), dry_run=options.dry_run)


def _jobs(settings: Settings, options: argparse.Namespace) -> int:
    engine = _engine(settings)
    if options.action == "list":
        with read_scope(engine) as session:
            states = [options.state] if options.state else [state for state in JobState if state not in _OVER]
            shown = [job for state in states for job in queue.list_jobs(session, state=state, limit=_LISTED)]
            counts = queue.counts(session)
        table(
            ["job", "kind", "state", "attempts", "crashes", "due", "study", "error"],
            [
                [j.id, j.kind, j.state, j.attempts, j.crashes, time_text(j.due_at), j.study_id, (j.error or "")[:60]]
                for j in shown
            ],
        )
        print(", ".join(f"{kind} {state}: {n}" for (kind, state), n in sorted(counts.items())) or "no jobs yet")
        return 0
    if options.action == "show":
        with read_scope(engine) as session:
            job = queue.show(session, needed_id(options))
            closings, _ = facts.list_events(session, action=Action.JOB_CLOSED, subject_id=job.id, limit=1)
        for name in type(job).__dataclass_fields__:
            print(f"{name:24} {getattr(job, name)}")
        for closing in closings if job.state is JobState.CLOSED else []:
            print(f"{'closed':24} {closing.details['reason']}, by {closing.actor} at {time_text(closing.at)}")
        return 0
    if options.action == "close":
        if options.reason is None:
            raise ConfigError(f"`close` needs --reason: {', '.join(facts.ClosingReason)}")
        try:
            with session_scope(engine) as session:
                job_id, now = needed_id(options), db_now(session)
                facts.close_job(session, job_id, reason=options.reason, actor=person(), now=now)
        except facts.CannotBeClosed as error:
            raise ConfigError(f"{error}") from error
        print("closed; until its images are purged `retry` opens it again")
        return 0
    refused = []
    with session_scope(engine) as session:
        now = db_now(session)
        wanted = _stopped(session, now) if options.all else [needed_id(options)]
        for job_id in wanted:
            try:
                facts.retry_job(session, job_id, actor=person(), now=now)
            except facts.CannotBeRepeated as error:
                refused.append(error)
    if refused and not options.all:
        raise ConfigError(f"{refused[0]}") from refused[0]
    left = f", {len(refused)} refused: files are gone" if refused else ""
    print(f"{len(wanted) - len(refused)} job(s) due now{left}")
    return 0


def _stopped(session: Session, now: datetime) -> list[UUID]:
    """Return the jobs that failed, and those that wait for their next try."""
    failed, ready = (
        queue.list_jobs(session, state=state, limit=100_000) for state in (JobState.FAILED, JobState.READY)
    )
    return [job.id for job in failed] + [job.id for job in ready if job.attempts and job.due_at > now]


def _quarantine(settings: Settings, options: argparse.Namespace) -> int:
    with read_scope(_engine(settings)) as session:
        kept, _ = facts.list_quarantined(session, limit=options.limit)
    table(
        ["object", "received", "bytes", "reason", "first copy", "file"],
        [
            [
                q.receipt_id,
                time_text(q.received_at),
                q.size_bytes,
                q.reason,
                q.instance_id or "-",
                settings.store_dir / q.path if q.path else "purged",
            ]
            for q in kept
        ],
    )
    return 0


def _audit(settings: Settings, options: argparse.Namespace) -> int:
    with read_scope(_engine(settings)) as session:
        if options.action == "tail":
            rows = audit.tail(session, options.limit)
            table(
                ["number", "time", "action", "actor", "subject", "details"],
                [
                    [r.sequence or "-", time_text(r.at), r.action, r.actor, r.subject_id or "-", json.dumps(r.details)]
                    for r in rows
                ],
            )
            return 0
        verdict = audit.verify(session, audit_key(settings.node.secrets_dir))
    print(
        f"sealed {verdict.sealed}, unsealed {verdict.unsealed}, broken {len(verdict.broken)}; "
        f"head {verdict.head or '-'}"
    )
    if verdict.broken:
        print("Broken at number " + ", ".join(map(str, verdict.broken[:20])), file=sys.stderr)
    return 1 if verdict.broken else 0


def _check(settings: Settings, options: argparse.Namespace) -> int:
    from pacs_node.commands.check import check

    return check(settings)


def _migrate(settings: Settings, options: argparse.Namespace) -> int:
    from pacs_node.commands.upkeep import migrate_database

    print(migrate_database(settings, actor=person()))
    return 0


def _backup(settings: Settings, options: argparse.Namespace) -> int:
    from pacs_node.commands.upkeep import make_backup

    print(make_backup(settings, options.folder, actor=person()))
    return 0


def _restore(settings: Settings, options: argparse.Namespace) -> int:
    from pacs_node.commands.upkeep import restore_backup

    print(restore_backup(settings, options.folder))
    return 0


def _export_reviews(settings: Settings, options: argparse.Namespace) -> int:
    from pacs_node.export.reviews import export_reviews

    exported = export_reviews(
        settings,
        _engine(settings),
        options.out,
        since=options.since,
        actor=person(),
        accept_unstated=options.accept_unstated,
    )
    print(exported)
    return 0


def _models(settings: Settings, options: argparse.Namespace) -> int:
    from pacs_node.commands import rollout

    if options.action in ("add", "activate") and not options.what:
        raise ConfigError(
            f"`models {options.action}` needs {'a bundle folder' if options.action == 'add' else 'NAME/VERSION'}"
        )
    match options.action:
        case "list":
            table(
                ["", "model", "version", "validated on", "added", "active since", "weights"], rollout.listing(settings)
            )
        case "add":
            print(rollout.add(settings, Path(options.what), actor=person()))
        case "activate":
            print(rollout.activate(settings, options.what, actor=person()))
        case "rollback":
            print(rollout.roll_back(settings, actor=person()))
    return 0


def _engine(settings: Settings):  # type: ignore[no-untyped-def]  # an Engine: sqlalchemy is db's alone
    engine = make_engine(settings.database_url)
    check_revision(engine)
    return engine
