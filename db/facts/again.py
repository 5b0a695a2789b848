"""Work that an administrator starts once more: an image judged anew, a report sent anew."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import select, update

from db import audit, queue
from db.audit import Action
from db.engine import NoSuchRecord, Session
from db.facts.recalls import judge_again
from db.tables import (
    DeliveredObject,
    Delivery,
    DeliveryState,
    Instance,
    Job,
    JobKind,
    JobState,
    Report,
    Study,
    rows_of,
)

_INSTANCES, _STUDIES, _JOBS = rows_of(Instance), rows_of(Study), rows_of(Job)
_DELIVERIES, _REPORTS, _DELIVERED = rows_of(Delivery), rows_of(Report), rows_of(DeliveredObject)

FILE_GONE = "The stored file of this image is gone, purged after the retention time or lost: send it again."


class CannotBeRepeated(Exception):
    """This work cannot be started again now; the text says why."""


def rerun_instance(session: Session, instance_id: UUID, *, actor: str, now: datetime) -> UUID:
    """Queue an image to be judged anew by the model that is active then; return its study. Audited.

    What was said about it stands until something else is said.

    Raises
    ------
    NoSuchRecord
        There is no such image.
    CannotBeRepeated
        It is never judged, its sender rejected it, its bytes are gone, or it waits already.
    """
    query = select(_INSTANCES.c.study_id, _INSTANCES.c.is_judged, _INSTANCES.c.gone_at).where(
        _INSTANCES.c.id == instance_id
    )
    found = session.execute(query).one_or_none()
    if found is None:
        raise NoSuchRecord(f"no instance {instance_id}")
    if not found.is_judged:
        raise CannotBeRepeated("This object is stored and never judged.")
    if found.gone_at is not None:
        raise CannotBeRepeated(FILE_GONE)
    _refuse_if_under_way(session, JobKind.INFER, instance_id)
    if not judge_again(session, [instance_id], now=now):
        raise CannotBeRepeated("The sender rejected this image.")
    details = {"study_id": str(found.study_id)}
    audit.append(session, Action.INSTANCE_RERUN, actor=actor, subject_id=instance_id, details=details, now=now)
    return UUID(str(found.study_id))


def resend_delivery(session: Session, delivery_id: UUID, *, actor: str, now: datetime) -> UUID:
    """Send a report to its destination once more, under the same UIDs; return its study. Audited.

    Raises
    ------
    NoSuchRecord
        There is no such delivery.
    CannotBeRepeated
        The study is held, its report was replaced or withdrawn, or the delivery is on its way.
    """
    query = (
        select(_DELIVERIES.c.state, _DELIVERIES.c.withdrawn_at, _DELIVERIES.c.destination, _REPORTS.c.revision)
        .add_columns(_REPORTS.c.study_id, _REPORTS.c.review_id, _STUDIES.c.hold, _STUDIES.c.priority)
        .add_columns(_STUDIES.c.revision.label("current"), _REPORTS.c.withdrawn_at.label("void_since"))
        .join(_REPORTS, _REPORTS.c.id == _DELIVERIES.c.report_id)
        .join(_STUDIES, _STUDIES.c.id == _REPORTS.c.study_id)
        .where(_DELIVERIES.c.id == delivery_id)
        .with_for_update(of=_DELIVERIES, key_share=True)
    )
    found = session.execute(query).one_or_none()
    if found is None:
        raise NoSuchRecord(f"no delivery {delivery_id}")
    if found.withdrawn_at is not None or found.void_since is not None:
        raise CannotBeRepeated("This result was withdrawn.")
    if found.hold is not None or found.state is DeliveryState.HELD:
        raise CannotBeRepeated("This delivery is held; release the study first.")
    if found.review_id is None and found.revision != found.current:
        raise CannotBeRepeated("The study has a newer report; that one is sent.")
    _refuse_if_under_way(session, JobKind.DELIVER, delivery_id)
    queue.enqueue(session, JobKind.DELIVER, delivery_id, found.study_id, priority=found.priority, now=now)
    queue.requeue(session, JobKind.DELIVER, delivery_id, now=now)
    session.execute(
        update(_DELIVERIES)
        .where(_DELIVERIES.c.id == delivery_id)
        .values(
            **{"state": DeliveryState.WAITING, "reason": "", "commit_due_at": None, "archived_at": None},
            **{"commit_asked": 0, "commit_failures": 0},
        )
    )
    its_objects = update(_DELIVERED).where(_DELIVERED.c.delivery_id == delivery_id)
    session.execute(its_objects.values(sent_at=None, refusal="", archived_at=None))
    details = {"study_id": str(found.study_id), "destination": found.destination}
    audit.append(session, Action.DELIVERY_RESENT, actor=actor, subject_id=delivery_id, details=details, now=now)
    return UUID(str(found.study_id))


def _refuse_if_under_way(session: Session, kind: JobKind, subject_id: UUID) -> None:
    its_job = select(_JOBS.c.state).where(_JOBS.c.kind == kind, _JOBS.c.subject_id == subject_id)
    if session.execute(its_job).scalar_one_or_none() in (JobState.READY, JobState.RUNNING):
        raise CannotBeRepeated("This work is waiting or under way already.")
