"""Who this node is, and failed work that an operator starts again or closes."""

from __future__ import annotations

import enum
from datetime import datetime
from uuid import UUID

from sqlalchemy import select, update

from db import audit, queue
from db.audit import Action
from db.engine import NoSuchRecord, Session
from db.facts.again import FILE_GONE, CannotBeRepeated
from db.tables import Delivery, DeliveryState, Installation, Instance, InstanceState, JobKind, rows_of


def installation_id(session: Session) -> UUID:
    """Return the random id that the first migration gave this installation; every UID we make comes from it."""
    return session.execute(select(Installation.installation_id)).scalar_one()


def retry_job(session: Session, job_id: UUID, *, actor: str, now: datetime) -> queue.Job:
    """Run a job again that failed, or waits for its next try: its subject waits again, and that is audited.

    Raises
    ------
    NoSuchRecord
        There is no such job, or it is neither.
    CannotBeRepeated
        It judges an image whose bytes are gone.
    """
    instances, deliveries = rows_of(Instance), rows_of(Delivery)
    subject = queue.show(session, job_id)
    is_gone = (instances.c.id == subject.subject_id) & instances.c.gone_at.is_not(None)
    if subject.kind is JobKind.INFER and session.execute(select(instances.c.id).where(is_gone)).first():
        raise CannotBeRepeated(FILE_GONE)
    job = queue.retry(session, job_id, now=now)
    if job is None:
        raise NoSuchRecord(f"no job {job_id} that failed or waits for its next try")
    if job.kind is JobKind.INFER:
        failed = (instances.c.id == job.subject_id) & (instances.c.state == InstanceState.FAILED)
        session.execute(update(instances).where(failed).values(state=InstanceState.WAITING))
    elif job.kind is JobKind.DELIVER:
        refused = (deliveries.c.id == job.subject_id) & (deliveries.c.state == DeliveryState.FAILED)
        session.execute(update(deliveries).where(refused).values(state=DeliveryState.WAITING, reason=""))
    details = {"kind": job.kind.value, "subject_id": str(job.subject_id)}
    audit.append(session, Action.JOB_RETRIED, actor=actor, subject_id=job_id, details=details, now=now)
    return job


class ClosingReason(enum.StrEnum):
    """Why failed work stays undone. Chosen, not written: the audit trail holds no word about a patient."""

    CANNOT_BE_DONE = "cannot_be_done"
    DONE_ELSEWHERE = "done_elsewhere"
    NOT_WANTED = "not_wanted"
    SENT_BY_MISTAKE = "sent_by_mistake"


class CannotBeClosed(Exception):
    """This work has to be done; the text says why."""


def close_job(session: Session, job_id: UUID, *, reason: ClosingReason, actor: str, now: datetime) -> queue.Job:
    """Let a failed job rest: its subject stays as the failure left it; who decided that, and why, is audited.

    Raises
    ------
    NoSuchRecord
        There is no such job, or it did not fail.
    CannotBeClosed
        It builds a report: without it the study would never have an answer.
    """
    job = queue.close(session, job_id)
    if job is None:
        raise NoSuchRecord(f"no job {job_id} that failed")
    if job.kind is JobKind.REPORT:
        raise CannotBeClosed("A report that could not be built must be built: the study waits for its answer.")
    details = {"kind": job.kind.value, "subject_id": str(job.subject_id), "reason": reason.value}
    audit.append(session, Action.JOB_CLOSED, actor=actor, subject_id=job_id, details=details, now=now)
    return job
