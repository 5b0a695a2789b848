"""Everything that happens by the clock, each task on one machine at a time under a database lock.

Settles quiet studies (which opens their reports), gives up jobs whose workers keep dying, seals and verifies the audit
chain, purges, sweeps orphans and watches the disk. Retries need no task: a delayed job is due again by itself.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from uuid import UUID

from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler
from sqlalchemy.engine import Engine

from db import audit, facts, queue
from db.audit import Action
from db.engine import DatabaseAway, check_revision, db_now, make_engine, read_scope, session_scope
from db.locks import task_lock
from db.tables import DeliveryState, JobKind
from models.registry import Registry
from pacs_node.report.answer import answer_of
from pacs_node.report.plan import is_for_others
from pacs_node.settings import Settings
from pacs_node.store import ObjectStore
from pacs_node.wiring import active_card, audit_key, queue_policy, registry_of, worker_name

logger = logging.getLogger(__name__)

LOST_LISTENER_S = 15.0
"""An association whose listener did not beat this long counts as released."""
LOCK_S = 600.0
"""Longer than any task takes."""
SHORT_LOCK_S = 15.0
"""For what may run twice at once: a holder that died must not keep studies waiting."""
SETTLE_AGAIN_S = 60.0
"""A study that could not be settled is tried again after this: a bug must neither fill the log nor go unheard."""
FIRST_S = 60.0
"""A node that is started anew every day verifies its chain all the same."""
REFUSED_CONTEXTS_DAYS = 400
"""A year of counts, and the same month of the year before."""
COMMITMENTS_DAYS = 90
"""Questions of storage commitment; nobody answers one that is older."""
REJECTIONS_DAYS = 400
"""Rejections of objects that did not come."""
CHUNK = 500
"""Rows deleted in one transaction."""
ACTOR = "schedule"


class Tasks:
    """The tasks, each safe to run twice."""

    def __init__(self, settings: Settings, engine: Engine) -> None:
        self._settings, self._engine = settings, engine
        self._store = ObjectStore(settings.store_dir)
        self._registry: Registry = registry_of(settings)
        self._policy = queue_policy(settings.queue)
        self._key = audit_key(settings.node.secrets_dir)
        self._not_before: dict[UUID, float] = {}
        """Studies that could not be settled, and when (monotonic) they are tried again."""
        self._associations_until = datetime.min.replace(tzinfo=UTC)
        """No association that ended before is to be purged."""

    def settle(self) -> None:
        """Freeze a report for every study that went quiet; looks without the lock, which is rarely needed."""
        study, monotonic = self._settings.study, time.monotonic()
        self._not_before = {study_id: at for study_id, at in self._not_before.items() if at > monotonic}
        with read_scope(self._engine) as session:
            settled = facts.settled_studies(
                session,
                settle_s=study.settle_s,
                idle_s=study.idle_s,
                report_wait_s=study.report_wait_s,
                now=db_now(session),
                passing_over=self._not_before,
            )
        if not settled:
            return
        with task_lock(self._engine, "settle", holder=worker_name(), for_s=SHORT_LOCK_S) as is_ours:
            for study_id in settled if is_ours else ():
                self._freeze_or_log(study_id)

    def _freeze_or_log(self, study_id: UUID) -> None:
        try:
            self._freeze(study_id)
        except DatabaseAway:
            raise
        except Exception:  # a bug with one study must not keep the studies behind it waiting
            logger.exception("A study could not be settled", extra={"action": "settle_failed", "study_id": study_id})
            self._not_before[study_id] = time.monotonic() + SETTLE_AGAIN_S

    def _freeze(self, study_id: UUID) -> None:
        card = active_card(self._engine, self._registry)
        with session_scope(self._engine) as session:
            study = facts.study_facts(session, study_id, lock=True)
            now, recalled = db_now(session), facts.judged_by(session, study_id, facts.recalled_models(session))
            if recalled:  # no report repeats the word of a recalled model
                facts.judge_anew(session, recalled, actor=ACTOR, now=now)
                return
            answer, predecessor = answer_of(study.images), facts.next_predecessor(session, study_id)
            speaker = answer.decisive[1] if answer.decisive else None
            facts.freeze_report(
                session,
                study_id,
                answer=answer.answer,
                probability=answer.probability,
                contents=answer.contents,
                model_name=speaker.model_name if speaker else card.name,
                model_version=speaker.model_version if speaker else card.version,
                is_sent=is_for_others(answer, predecessor, self._settings),
                now=now,
                codes=self._settings.codes.said(),
            )

    def reclaim(self) -> None:
        """Mend what the dead leave: open associations, deliveries without a job, jobs whose workers died each time."""
        with session_scope(self._engine) as session:
            now = db_now(session)
            facts.lose_associations(session, silent_for_s=LOST_LISTENER_S, now=now)
            facts.requeue_waiting_deliveries(session, now=now)
            for job in queue.reclaim_expired(session, policy=self._policy, now=now):
                if job.kind is JobKind.INFER:
                    facts.record_failure(session, job.subject_id, error_text="its worker died each time", now=now)
                elif job.kind is JobKind.REPORT:
                    facts.record_report_failed(session, job.subject_id, now=now)
                elif job.kind is JobKind.DELIVER:
                    reason = "the delivery process died each time"
                    facts.record_not_sent(session, job.subject_id, state=DeliveryState.FAILED, reason=reason, now=now)

    def seal(self) -> None:
        with session_scope(self._engine) as session:
            audit.seal(session, self._key)

    def verify(self) -> None:
        """Verify the whole chain and log its head, so that a copy of it leaves the database daily."""
        with read_scope(self._engine) as session:
            verdict = audit.verify(session, self._key)
        with session_scope(self._engine) as session:
            audit.append(
                session,
                Action.CHAIN_VERIFIED,
                actor=ACTOR,
                details={"sealed": verdict.sealed, "broken": len(verdict.broken)},
                now=db_now(session),
            )
        level = logging.ERROR if verdict.broken else logging.INFO
        logger.log(
            level,
            "The audit chain was verified",
            extra={
                "action": "chain_verified",
                "sealed": verdict.sealed,
                "broken": len(verdict.broken),
                "head": verdict.head,
            },
        )

    def purge(self) -> None:
        """Delete what `retention_days` and `quarantine_days` let go.

        The rows stay, but counts of old refusals, old questions of storage commitment, old rejections of what never
        came, and associations that brought nothing: no sum names them.
        A row says *purged* first: a crash between leaves files without use, which the orphan sweep takes.
        """
        self._purge_studies()
        self._purge_quarantine()
        self._purge_associations()
        with session_scope(self._engine) as session:
            now = db_now(session)
            asked_before = now - timedelta(days=COMMITMENTS_DAYS)
            facts.purge_refused_contexts(
                session, before=now.astimezone().date() - timedelta(days=REFUSED_CONTEXTS_DAYS)
            )
            facts.purge_commitments(session, before=asked_before)
            facts.purge_commitment_requests(session, before=asked_before)
            facts.purge_rejections(session, before=now - timedelta(days=REJECTIONS_DAYS))

    def _purge_studies(self) -> None:
        if self._settings.store.retention_days == 0:
            return
        with read_scope(self._engine) as session:
            now = db_now(session)
            older_than = now - timedelta(days=self._settings.store.retention_days)
            candidates = facts.purgeable_studies(session, older_than=older_than, limit=CHUNK)
        for study_id, paths in candidates:
            with session_scope(self._engine) as session:
                is_purged = facts.mark_purged(session, study_id, now=db_now(session), paths=paths)
            for path in paths if is_purged else ():
                self._store.delete(path)

    def _purge_quarantine(self) -> None:
        days = self._settings.store.quarantine_days
        while days > 0:
            with session_scope(self._engine) as session:
                now = db_now(session)
                purged = facts.purge_quarantined(session, older_than=now - timedelta(days=days), now=now)
            for _, path in purged:
                self._store.delete(path)
            if not purged:
                return

    def _purge_associations(self) -> None:
        """Look first, without a lock: nobody who sends is to wait for it."""
        days = self._settings.store.retention_days
        while days > 0:
            with read_scope(self._engine) as session:
                before, since = db_now(session) - timedelta(days=days), self._associations_until
                empty = facts.empty_associations(session, since=since, before=before, limit=CHUNK)
            self._associations_until = empty[-1][1] if empty else before
            if not empty:
                return
            with session_scope(self._engine) as session:
                facts.delete_associations(session, [association_id for association_id, _ in empty])

    def sweep_orphans(self) -> None:
        """Delete files that no row names: what a crash between file and transaction leaves."""
        self._store.sweep_incoming(older_than_s=3600 * self._settings.store.orphan_hours)
        candidates = list(self._store.iterate(older_than_s=3600 * self._settings.store.orphan_hours))
        for start in range(0, len(candidates), CHUNK):
            chunk = candidates[start : start + CHUNK]
            with session_scope(self._engine) as session:
                known = facts.known_paths(session, chunk)
                orphans = [path for path in chunk if path not in known]
                if orphans:
                    audit.append(
                        session, Action.ORPHAN_SWEPT, actor=ACTOR, details={"files": len(orphans)}, now=db_now(session)
                    )
            for path in orphans:
                self._store.delete(path)

    def watch_disk(self) -> None:
        free_gb = self._store.free_bytes() / 1e9
        if free_gb < 2 * self._settings.store.min_free_gb:
            logger.warning(
                "The disk runs low: below store.min_free_gb, senders are told to try again later",
                extra={"action": "disk_low", "free_gb": round(free_gb, 2)},
            )


def run_tick(settings: Settings, stop: threading.Event) -> None:
    """Run the schedule until `stop` is set."""
    engine = make_engine(settings.database_url)
    check_revision(engine)
    tasks = Tasks(settings, engine)
    every = settings.schedule
    alone = functools.partial(_alone, engine)
    plan: dict[str, tuple[float, list[Callable[[], None]]]] = {
        "settle": (every.settle_every_s, [tasks.settle]),
        "seal": (every.seal_every_s, [alone(tasks.seal, SHORT_LOCK_S), alone(tasks.reclaim, SHORT_LOCK_S)]),
        "housekeeping": (
            every.housekeeping_every_s,
            [tasks.watch_disk, alone(tasks.purge), alone(tasks.sweep_orphans)],
        ),
        "verify": (3600 * every.verify_every_hours, [alone(tasks.verify)]),
    }
    scheduler = BackgroundScheduler(
        timezone="UTC",
        executors={"default": ThreadPoolExecutor(len(plan))},
        job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
    )
    for name, (every_s, steps) in plan.items():
        for number, step in enumerate(steps):
            task = functools.partial(_guarded, name, step)
            first_at = datetime.now(UTC) + timedelta(seconds=min(every_s, FIRST_S))
            scheduler.add_job(task, "interval", seconds=every_s, id=f"{name}.{number}", next_run_time=first_at)
    scheduler.start()
    stop.wait()
    scheduler.shutdown(wait=True)
    engine.dispose()


def _alone(engine: Engine, step: Callable[[], None], for_s: float = LOCK_S) -> Callable[[], None]:
    """Return the step as one that does nothing while another process is at it."""

    def run() -> None:
        with task_lock(engine, step.__name__, holder=worker_name(), for_s=for_s) as is_ours:
            if is_ours:
                step()

    return run


def _guarded(name: str, step: Callable[[], None]) -> None:
    try:
        step()
    except DatabaseAway:
        logger.warning("A task waits: the database is away", extra={"action": "database_away", "task": name})
    except Exception:  # one task's bug must not end the others; the next turn tries again
        logger.exception("A task failed", extra={"action": "task_failed", "task": name})
