"""The queue and the quarantine: to look at, and to run a failed job again or close it."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query

from db import facts, queue
from db.engine import db_now, read_scope
from db.queue import JobKind, JobState
from pacs_node.web.access import Role, requires
from pacs_node.web.admin_schemas import Done, JobOut, NewClosing, QuarantinedOut
from pacs_node.web.context import WebContext
from pacs_node.web.problems import documented
from pacs_node.web.query import Cursor, Limit, cursor_out
from pacs_node.web.routes import API
from pacs_node.web.schemas import Page

router = APIRouter(prefix=API, tags=["work"], responses=documented(404, 422), dependencies=[requires(Role.ADMIN)])

Offset = Annotated[int, Query(ge=0, le=1_000_000)]


@router.get("/jobs", summary="List jobs")
def list_jobs(
    web: WebContext, state: JobState | None = None, kind: JobKind | None = None, limit: Limit = 50, offset: Offset = 0
) -> list[JobOut]:
    """Return jobs, the newest first; `state=failed` lists what waits for an operator."""
    with read_scope(web.engine) as session:
        jobs = queue.list_jobs(session, state=state, kind=kind, limit=limit, offset=offset)
    return [JobOut.model_validate(job) for job in jobs]


@router.post(
    "/jobs/{job_id}/retry",
    summary="Run a job now that failed or waits for its next try",
    status_code=202,
    responses=documented(409),
)
def retry_job(web: WebContext, job_id: UUID) -> Done:
    """Make a job due now that failed, was closed or waits for its next try; audited.

    404 where it is none of these, 409 where the stored file of its image is gone.
    """
    with web.change() as session:
        job = facts.retry_job(session, job_id, actor=web.caller.actor, now=db_now(session))
    return Done(study_id=job.study_id, subject_id=job.subject_id, detail="The job waits for its turn.")


@router.post(
    "/jobs/{job_id}/close",
    summary="Let a failed job rest undone",
    responses=documented(409),
    dependencies=[requires(Role.ADMIN, password=True)],
)
def close_job(web: WebContext, job_id: UUID, closing: NewClosing) -> Done:
    """Take a failed job off the list of what waits for a person; audited. 404 where it did not fail, 409 for a report.

    Its image stays *failed*, its delivery *failed*; the input images may be purged after `store.retention_days`.
    """
    with web.change() as session:
        job = facts.close_job(session, job_id, reason=closing.reason, actor=web.caller.actor, now=db_now(session))
    return Done(study_id=job.study_id, subject_id=job.subject_id, detail="The job is closed.")


@router.get("/quarantine", summary="List quarantined objects")
def list_quarantined(web: WebContext, limit: Limit = 50, cursor: Cursor = None) -> Page[QuarantinedOut]:
    """Return one page of bytes that were kept apart, the newest first."""
    with read_scope(web.engine) as session:
        kept, following = facts.list_quarantined(session, limit=limit, cursor=cursor)
    return Page(items=[QuarantinedOut.model_validate(one) for one in kept], next_cursor=cursor_out(following))
