"""The delivery role: takes built reports to the destinations, each revision once, in order, under one UID.

Takes jobs from `db.queue`; gives the state of each delivery. Hides the order of revisions, what a failure costs and the
rejection of what was withdrawn. What is sent was built and recorded before: after a crash the same bytes go out again.

One association carries all of a batch that goes to one destination. The SR class is chosen by what the peer accepts and
recorded before the first byte is sent; a later revision keeps it, so that the peer has the report that it replaces.
Each object is recorded when the peer has it: a picture that is delayed does not send the report again, and one that
the peer does not take is a note beside the report, never its failure.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar
from uuid import UUID

from sqlalchemy.engine import Engine

from db import facts, queue
from db.engine import DatabaseAway, check_revision, db_now, make_engine, read_scope, session_scope
from db.facts import BuiltObject
from db.queue import LostLease, QueuePolicy
from db.tables import DeliveryState, JobKind
from pacs_node.delivery.aftercare import Aftercare
from pacs_node.delivery.destinations import Connect, Destinations, Session
from pacs_node.delivery.order import OVER, is_missing, put_aside, wait_for
from pacs_node.delivery.parcel import Contents, Parcel, contents_of
from pacs_node.delivery.withdrawal import note_of
from pacs_node.dimse.tls import require_certificates
from pacs_node.errors import DeliveryDelayed, DeliveryFailed, DeliveryRejected, ErrorOutcome, outcome_of
from pacs_node.lease import LeaseKeeper
from pacs_node.log import describe
from pacs_node.settings import Settings
from pacs_node.store import ObjectStore
from pacs_node.wiring import queue_policy, worker_name

logger = logging.getLogger(__name__)

BATCH = 16
POLL_S = 0.1
DATABASE_RETRY_S = 1.0
NO_NOTES = "this destination takes no rejection notes: what it has stays there"
REJECTED = "a rejection note was sent"

T = TypeVar("T")


class Courier:
    """Owns the jobs in hand and their leases."""

    def __init__(
        self, settings: Settings, engine: Engine, stop: threading.Event, *, connect: Connect | None = None
    ) -> None:
        self._engine, self._stop = engine, stop
        self._settings, self._store = settings, ObjectStore(settings.store_dir)
        self._destinations = Destinations(settings, connect)
        self._owner = worker_name()
        self._policy = delivery_policy(settings)
        self._leases = LeaseKeeper(engine, owner=self._owner, policy=self._policy)

    def run(self) -> None:
        """Deliver until asked to stop; what is not begun then is given back."""
        with self._leases:
            while not self._stop.is_set():
                try:
                    is_busy = self.turn()
                except DatabaseAway:
                    logger.warning("The database is away; trying again", extra={"action": "database_away"})
                    self._stop.wait(DATABASE_RETRY_S)
                    continue
                if not is_busy:
                    self._stop.wait(POLL_S)

    def turn(self) -> bool:
        """Deliver one batch; return whether there was anything to do."""
        claimed = self._claim()
        try:
            parcels = [parcel for parcel in claimed if not self._is_ended(parcel)]
            for name in dict.fromkeys(parcel.delivery.destination for parcel in parcels):
                group = [parcel for parcel in parcels if parcel.delivery.destination == name]
                self._deliver_to(name, sorted(group, key=lambda parcel: parcel.delivery.revision))
        finally:  # what an error leaves is not kept alive: its lease runs out
            self._leases.let_go([parcel.job for parcel in claimed])
        return bool(claimed)

    def _claim(self) -> list[Parcel]:
        with read_scope(self._engine) as session:  # look before claiming: a claim takes SQLite's write lock
            if not queue.is_due(session, JobKind.DELIVER, now=db_now(session)):
                return []
        with session_scope(self._engine) as session:
            jobs = queue.claim(
                session, JobKind.DELIVER, owner=self._owner, limit=BATCH, policy=self._policy, now=db_now(session)
            )
            parcels = [Parcel(job=job, delivery=facts.delivery_facts(session, job.subject_id)) for job in jobs]
        self._leases.hold(jobs)
        return parcels

    def _is_ended(self, parcel: Parcel) -> bool:
        """End a withdrawn delivery whose destination is not to be told; return whether it was one."""
        profile = self._destinations.profile(parcel.delivery.destination)
        if parcel.delivery.withdrawn_at is None or (profile is not None and profile.send_rejection_notes):
            return False
        try:
            self._recorded(lambda: self._withdrawn(parcel, NO_NOTES))
        except LostLease:
            _log_lost(parcel)
        return True

    def _deliver_to(self, name: str, parcels: list[Parcel]) -> None:
        """Deliver to one destination over one association, the first revision of each study first."""
        left = list(parcels)
        try:
            with self._destinations.session(name) as session:
                while left and session.is_open and not self._stop.is_set():
                    self._deliver(session, left.pop(0))
            self._give_back(left)
        except DeliveryFailed as failure:  # no association: the same for all
            for parcel in left:
                self._not_sent(parcel, failure)
        finally:
            self._leases.let_go([parcel.job for parcel in parcels])

    def _deliver(self, session: Session, parcel: Parcel) -> None:
        """Send what is left of one delivery and record it, or count an attempt."""
        try:
            if parcel.delivery.withdrawn_at is not None:
                self._reject(session, parcel)
                return
            contents = self._recorded(lambda: self._choose(session, parcel))
            if contents is not None:
                for built in contents.sending:
                    self._send(session, parcel, built, is_report=built is contents.report)
                self._recorded(lambda: self._sent(parcel))
        except DeliveryFailed as failure:
            if isinstance(failure, DeliveryDelayed) and not session.is_open:
                self._destinations.note_outage(failure)
            self._not_sent(parcel, failure)
        except LostLease:
            _log_lost(parcel)
        except DatabaseAway:
            raise
        except Exception as error:  # a bug with one report must not keep the others from the PACS
            logger.exception("A delivery failed", extra={"action": "delivery_broke", "job_id": parcel.job.id})
            self._not_sent(parcel, DeliveryDelayed(parcel.delivery.destination, describe(error)))

    def _choose(self, session: Session, parcel: Parcel) -> Contents | None:
        """Return what to send now, recorded as this delivery's; None if there is nothing to send any more.

        Raises
        ------
        DeliveryDelayed
            An earlier report of the study comes first.
        DeliveryRejected
            The peer does not accept the SR class, or an earlier report was refused.
        LostLease
            The job is no longer ours.
        """
        with session_scope(self._engine) as database:
            now = db_now(database)
            # The study before the job, as a release or a withdrawal takes them.
            delivery = facts.delivery_facts(database, parcel.delivery.delivery_id, lock=True)
            if not queue.heartbeat(database, [parcel.job], owner=self._owner, policy=self._policy, now=now):
                raise LostLease
            profile = self._destinations.profile(delivery.destination)
            if delivery.withdrawn_at is not None or profile is None:  # since it was claimed: the next turn sees it
                queue.release(database, [parcel.job], now)
                return None
            earlier = facts.earlier_deliveries(database, delivery)
            blocked = next((before for before in earlier if is_missing(before)), None)
            is_held = delivery.hold is not None or (blocked is not None and blocked.state is DeliveryState.HELD)
            if delivery.state in OVER or delivery.is_void or is_held:
                put_aside(database, delivery, blocked, parcel.job)
                return None
            predecessor = facts.report_facts(database, delivery.report_id).predecessor
            if predecessor is not None and not predecessor.objects:
                raise DeliveryDelayed(delivery.destination, f"revision {predecessor.revision} is not built yet")
            if blocked is None:
                contents = contents_of(delivery, earlier, profile, session.accepted_class)
                chosen = contents.report
                uids = {"sop_class_uid": chosen.sop_class_uid, "sop_instance_uid": chosen.sop_instance_uid}
                facts.record_choice(database, delivery.delivery_id, **uids)
                for built in contents.refused:
                    reason = "the peer does not accept its SOP Class"
                    facts.record_object_refused(database, delivery.delivery_id, built, reason=reason, now=now)
                return contents
            failure = wait_for(database, blocked, parcel.job)
        raise failure

    def _send(self, session: Session, parcel: Parcel, built: BuiltObject, *, is_report: bool) -> None:
        """Send one object and record it; a picture that the peer refuses is noted.

        Raises
        ------
        DeliveryFailed
            The report was not stored, or a picture is to be tried again.
        """
        delivery_id = parcel.delivery.delivery_id
        try:
            session.send(self._file_of(parcel, built), is_urgent=parcel.job.priority > 0)
        except DeliveryRejected as refusal:
            if is_report:
                raise
            reason = refusal.reason
            self._recorded(lambda: self._noted(delivery_id, built, reason))
            logger.warning("A picture was refused", extra=_named(parcel) | {"action": "object_refused"})
        else:
            self._destinations.note_answer(parcel.delivery.destination)
            self._recorded(lambda: self._object_sent(delivery_id, built))

    def _object_sent(self, delivery_id: UUID, built: BuiltObject) -> None:
        with session_scope(self._engine) as session:
            facts.record_object_sent(session, delivery_id, built, now=db_now(session))

    def _noted(self, delivery_id: UUID, built: BuiltObject, reason: str) -> None:
        with session_scope(self._engine) as session:
            facts.record_object_refused(session, delivery_id, built, reason=reason, now=db_now(session))

    def _file_of(self, parcel: Parcel, chosen: BuiltObject) -> Path:
        path = self._store.absolute(chosen.path)
        if not path.exists():
            what = "report" if chosen.kind == "sr" else chosen.kind
            raise DeliveryRejected(parcel.delivery.destination, f"the stored {what} is gone")
        return path

    def _sent(self, parcel: Parcel) -> None:
        profile = self._destinations.profile(parcel.delivery.destination)
        with session_scope(self._engine) as session:
            now = db_now(session)
            commit_due_at = now if profile is not None and profile.storage_commitment else None
            facts.record_sent(session, parcel.delivery.delivery_id, commit_due_at=commit_due_at, now=now)
            queue.finish(session, parcel.job, now=now)
        logger.info("A report was delivered", extra=_named(parcel) | {"action": "delivery_sent"})

    def _reject(self, session: Session, parcel: Parcel) -> None:
        """Tell the destination, by a rejection note, that what it was sent is withdrawn."""
        note = self._recorded(lambda: note_of(self._engine, self._store, self._settings, parcel.delivery))
        self._send(session, parcel, note, is_report=True)
        self._recorded(lambda: self._withdrawn(parcel, REJECTED))
        logger.info("A result was rejected", extra=_named(parcel) | {"action": "rejection_sent"})

    def _withdrawn(self, parcel: Parcel, reason: str) -> None:
        with session_scope(self._engine) as session:
            now = db_now(session)
            queue.finish(session, parcel.job, now=now)
            delivery_id = parcel.delivery.delivery_id
            facts.record_not_sent(session, delivery_id, state=DeliveryState.WITHDRAWN, reason=reason, now=now)

    def _not_sent(self, parcel: Parcel, failure: DeliveryFailed) -> None:
        try:
            state = self._recorded(lambda: self._record_not_sent(parcel, failure))
        except LostLease:
            _log_lost(parcel)
            return
        level = logging.ERROR if state is DeliveryState.FAILED else logging.WARNING
        logger.log(level, "A report was not delivered", extra=_named(parcel) | {"action": f"delivery_{state}"})

    def _record_not_sent(self, parcel: Parcel, failure: DeliveryFailed) -> DeliveryState:
        is_permanent, delivery_id = outcome_of(failure) is ErrorOutcome.FAIL, parcel.delivery.delivery_id
        with session_scope(self._engine) as session:
            now = db_now(session)
            delivery = facts.delivery_facts(session, delivery_id)
            if delivery.state in OVER:  # held meanwhile
                queue.finish(session, parcel.job, now=now)
                return delivery.state
            is_over = queue.fail(
                session, parcel.job, error=failure.reason, now=now, policy=self._policy, permanent=is_permanent
            )
            state = DeliveryState.FAILED if is_over else DeliveryState.WAITING
            facts.record_not_sent(session, delivery_id, state=state, reason=failure.reason, now=now)
        return state

    def _give_back(self, parcels: Sequence[Parcel]) -> None:
        if parcels:
            with session_scope(self._engine) as session:
                queue.release(session, [parcel.job for parcel in parcels], db_now(session))

    def _recorded(self, transaction: Callable[[], T]) -> T:
        """Keep what the peer said, and the leases, until the database is back; a crash means the same bytes again."""
        while True:
            try:
                return transaction()
            except DatabaseAway:
                if self._stop.is_set():
                    raise
                logger.warning("The database is away; a delivery waits", extra={"action": "database_away"})
                self._stop.wait(DATABASE_RETRY_S)


def delivery_policy(settings: Settings) -> QueuePolicy:
    """Return how long and how often a delivery is tried: leases as of the queue, attempts of its own."""
    own = settings.delivery
    return replace(
        queue_policy(settings.queue),
        max_attempts=own.max_attempts,
        retry_base_s=own.retry_base_s,
        retry_cap_s=own.retry_cap_s,
    )


def run_delivery(settings: Settings, stop: threading.Event) -> None:
    """Serve as one delivery process until `stop` is set.

    Raises
    ------
    SchemaMismatch, ConfigError
        Refused to start.
    """
    require_certificates(settings)
    engine = make_engine(settings.database_url)
    check_revision(engine)
    with Aftercare(settings, engine, stop):
        Courier(settings, engine, stop).run()
    engine.dispose()


def _log_lost(parcel: Parcel) -> None:
    logger.warning("A delivery went to another process", extra={"action": "lease_lost", "job_id": parcel.job.id})


def _named(parcel: Parcel) -> dict[str, object]:
    return {"delivery_id": parcel.delivery.delivery_id, "destination": parcel.delivery.destination}
