"""The delivery role: takes built reports to the destinations, each revision once, in order, under one UID.

Takes jobs from `db.queue`; gives the state of each delivery. Hides the choice of the SR class, the order of revisions
and what a failure costs. What is sent was built and recorded before: after a crash the same bytes go out again.

One association carries all of a batch that goes to one destination. The SR class is chosen by what the peer accepts and
recorded before the first byte is sent; a later revision keeps it, so that the peer has the report that it replaces.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from db import audit, facts, queue
from db.audit import Action
from db.engine import DatabaseAway, check_revision, db_now, make_engine, read_scope, session_scope
from db.facts import BuiltObject, DeliveryFacts
from db.queue import Job, LostLease, QueuePolicy
from db.tables import DeliveryState, JobKind
from pacs_node.destinations import Connect, Destinations
from pacs_node.dimse import SendSession
from pacs_node.errors import DeliveryDelayed, DeliveryFailed, DeliveryRejected, ErrorOutcome, outcome_of
from pacs_node.lease import LeaseKeeper
from pacs_node.log import describe
from pacs_node.report.codes import SR_SOP_CLASSES
from pacs_node.settings import Settings
from pacs_node.store import ObjectStore
from pacs_node.wiring import queue_policy, worker_name

logger = logging.getLogger(__name__)

ACTOR = "deliver"
BATCH = 16
POLL_S = 0.1
DATABASE_RETRY_S = 1.0
OVER = (DeliveryState.SENT, DeliveryState.HELD)
"""Nothing is to be sent now; what is held is queued again by its release."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parcel:
    """A claimed job with what it is to deliver."""

    job: Job
    delivery: DeliveryFacts


class Courier:
    """Owns the jobs in hand and their leases."""

    def __init__(
        self, settings: Settings, engine: Engine, stop: threading.Event, *, connect: Connect | None = None
    ) -> None:
        self._engine, self._stop = engine, stop
        self._store = ObjectStore(settings.store_dir)
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
        parcels = self._claim()
        try:
            for name in dict.fromkeys(parcel.delivery.destination for parcel in parcels):
                group = [parcel for parcel in parcels if parcel.delivery.destination == name]
                self._deliver_to(name, sorted(group, key=lambda parcel: parcel.delivery.revision))
        finally:  # what an error leaves is not kept alive: its lease runs out
            self._leases.let_go([parcel.job for parcel in parcels])
        return bool(parcels)

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

    def _deliver(self, session: SendSession, parcel: Parcel) -> None:
        """Send one report and record it, or count an attempt."""
        try:
            chosen = self._recorded(lambda: self._choose(session, parcel))
            if chosen is not None:
                session.send(self._file_of(parcel, chosen), is_urgent=parcel.job.priority > 0)
                self._recorded(lambda: self._sent(parcel, chosen))
        except DeliveryFailed as failure:
            self._not_sent(parcel, failure)
        except LostLease:
            _log_lost(parcel)
        except DatabaseAway:
            raise
        except Exception as error:  # a bug with one report must not keep the others from the PACS
            logger.exception("A delivery failed", extra={"action": "delivery_broke", "job_id": parcel.job.id})
            self._not_sent(parcel, DeliveryDelayed(parcel.delivery.destination, describe(error)))

    def _choose(self, session: SendSession, parcel: Parcel) -> BuiltObject | None:
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
            if not queue.heartbeat(database, [parcel.job], owner=self._owner, policy=self._policy, now=now):
                raise LostLease
            delivery = facts.delivery_facts(database, parcel.delivery.delivery_id)
            earlier = facts.earlier_deliveries(database, delivery)
            blocked = next((before for before in earlier if before.state is not DeliveryState.SENT), None)
            if delivery.state in OVER or (blocked and blocked.state is DeliveryState.HELD):
                _put_aside(database, delivery, blocked, parcel.job)
                return None
            predecessor = facts.report_facts(database, delivery.report_id).predecessor
            if predecessor is not None and not predecessor.objects:
                raise DeliveryDelayed(delivery.destination, f"revision {predecessor.revision} is not built yet")
            if blocked is None:
                chosen = _chosen_object(session, delivery, earlier)
                uids = {"sop_class_uid": chosen.sop_class_uid, "sop_instance_uid": chosen.sop_instance_uid}
                facts.record_choice(database, delivery.delivery_id, **uids)
                return chosen
            failure = _wait_for(database, blocked, parcel.job)
        raise failure

    def _file_of(self, parcel: Parcel, chosen: BuiltObject) -> Path:
        path = self._store.absolute(chosen.path)
        if not path.exists():
            raise DeliveryRejected(parcel.delivery.destination, "the stored report is gone")
        return path

    def _sent(self, parcel: Parcel, chosen: BuiltObject) -> None:
        uids = {"sop_class_uid": chosen.sop_class_uid, "sop_instance_uid": chosen.sop_instance_uid}
        with session_scope(self._engine) as session:
            now = db_now(session)
            facts.record_sent(session, parcel.delivery.delivery_id, **uids, now=now)
            queue.finish(session, parcel.job, now=now)
        logger.info("A report was delivered", extra=_named(parcel) | {"action": "delivery_sent"})

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
    SchemaMismatch
        Refused to start.
    """
    engine = make_engine(settings.database_url)
    check_revision(engine)
    Courier(settings, engine, stop).run()
    engine.dispose()


def _put_aside(session: Session, delivery: DeliveryFacts, blocked: DeliveryFacts | None, job: Job) -> None:
    """End a job that has nothing to send; hold what follows a held report: one release lets go of both, in order."""
    now = db_now(session)
    if delivery.state not in OVER and blocked is not None:
        facts.record_not_sent(session, delivery.delivery_id, state=DeliveryState.HELD, reason=blocked.reason, now=now)
    queue.finish(session, job, now=now)


def _chosen_object(session: SendSession, delivery: DeliveryFacts, earlier: Sequence[DeliveryFacts]) -> BuiltObject:
    """Return the report in the class that this destination gets: the one it got before, else the best it accepts."""
    before = [one.sop_class_uid for one in (*earlier, delivery) if one.sop_class_uid]
    accepted = session.accepted_class(before[-1:] or SR_SOP_CLASSES)
    chosen = next((built for built in delivery.objects if built.sop_class_uid == accepted), None)
    if chosen is None:
        what = "the SR class that it was sent before" if before else "any of the SR classes"
        raise DeliveryRejected(delivery.destination, f"the peer does not accept {what}")
    return chosen


def _wait_for(session: Session, blocked: DeliveryFacts, job: Job) -> DeliveryFailed:
    """Return why a report must wait: the PACS gets the whole chain of revisions, in order.

    A report that failed before, perhaps because the PACS was away too long, is given one more chance by its successor.
    """
    name, reason, now = blocked.destination, f"revision {blocked.revision} comes first", db_now(session)
    if blocked.state is not DeliveryState.FAILED:
        return DeliveryDelayed(name, reason)
    if job.attempts > 0:
        return DeliveryRejected(name, f"revision {blocked.revision} was not delivered: retry it first")
    facts.record_not_sent(session, blocked.delivery_id, state=DeliveryState.WAITING, reason="", now=now)
    queue.requeue(session, JobKind.DELIVER, blocked.delivery_id, now=now)
    audit.append(session, Action.JOB_RETRIED, actor=ACTOR, subject_id=blocked.delivery_id, now=now)
    return DeliveryDelayed(name, reason)


def _log_lost(parcel: Parcel) -> None:
    logger.warning("A delivery went to another process", extra={"action": "lease_lost", "job_id": parcel.job.id})


def _named(parcel: Parcel) -> dict[str, object]:
    return {"delivery_id": parcel.delivery.delivery_id, "destination": parcel.delivery.destination}
