"""The order of a study's reports at one destination: the PACS gets the whole chain of revisions, the first one first.

Takes what is recorded of the study's deliveries; says what must wait, and ends what has nothing to send.
"""

from __future__ import annotations

from sqlalchemy.orm import Session

from db import audit, facts, queue
from db.audit import DELIVERER, Action
from db.engine import db_now
from db.facts import DeliveryFacts
from db.queue import Job
from db.tables import DeliveryState, JobKind
from pacs_node.errors import DeliveryDelayed, DeliveryFailed, DeliveryRejected

OVER = (DeliveryState.SENT, DeliveryState.HELD, DeliveryState.WITHDRAWN)
"""Nothing is to be sent now; what is held is queued again by its release."""
VOID = "the report was withdrawn before it was stored there for certain"


def put_aside(session: Session, delivery: DeliveryFacts, blocked: DeliveryFacts | None, job: Job) -> None:
    """End a job that has nothing to send; hold what a held study says, however it came to be queued.

    What follows a held report is held with it: one release lets go of both, in order.
    """
    now = db_now(session)
    if delivery.state not in OVER and delivery.is_void:
        facts.record_not_sent(session, delivery.delivery_id, state=DeliveryState.WITHDRAWN, reason=VOID, now=now)
    elif delivery.state not in OVER and delivery.hold is not None:
        reason = delivery.hold.value
        facts.record_not_sent(session, delivery.delivery_id, state=DeliveryState.HELD, reason=reason, now=now)
    elif delivery.state not in OVER and blocked is not None:
        facts.record_not_sent(session, delivery.delivery_id, state=DeliveryState.HELD, reason=blocked.reason, now=now)
    queue.finish(session, job, now=now)


def is_missing(before: DeliveryFacts) -> bool:
    """Whether an earlier report must still arrive; one that was withdrawn, or closed undone, need not."""
    is_over = before.state in (DeliveryState.SENT, DeliveryState.WITHDRAWN) or before.is_closed
    return not is_over and before.withdrawn_at is None


def wait_for(session: Session, blocked: DeliveryFacts, job: Job) -> DeliveryFailed:
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
    audit.append(session, Action.JOB_RETRIED, actor=DELIVERER, subject_id=blocked.delivery_id, now=now)
    return DeliveryDelayed(name, reason)
