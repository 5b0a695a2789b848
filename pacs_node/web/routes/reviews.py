"""Reviews: what readers say about an answer. Every one is kept; a change of mind is another one."""

from __future__ import annotations

from uuid import UUID

from fastapi import APIRouter, HTTPException

from db import facts
from db.engine import db_now, read_scope, session_scope
from db.facts import ReviewFacts
from db.tables import Answer, Verdict
from pacs_node.web.context import Web, WebContext
from pacs_node.web.problems import documented
from pacs_node.web.query import Cursor, Limit, cursor_out
from pacs_node.web.routes import API
from pacs_node.web.schemas import NewReview, Page, ReviewOut

router = APIRouter(prefix=f"{API}/reviews", tags=["reviews"], responses=documented(404, 422, 503))

AGREEABLE = (Answer.PRESENT, Answer.ABSENT)


@router.get("", summary="List reviews")
def list_reviews(
    web: WebContext,
    study_id: UUID | None = None,
    verdict: Verdict | None = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Page[ReviewOut]:
    """Return one page of reviews, the newest first."""
    with read_scope(web.engine) as session:
        reviews, following = facts.list_reviews(session, study_id=study_id, verdict=verdict, limit=limit, cursor=cursor)
    return Page(items=[ReviewOut.model_validate(review) for review in reviews], next_cursor=cursor_out(following))


@router.post("", summary="Agree, disagree or comment", status_code=201, responses=documented(409))
def post_review(web: WebContext, review: NewReview) -> ReviewOut:
    """Keep a reader's word on the study's current report; audited."""
    return ReviewOut.model_validate(add_review(web, review))


def add_review(web: Web, review: NewReview) -> ReviewFacts:
    """Keep the review, in one transaction with the look at what it is about."""
    with session_scope(web.engine) as session:
        study = facts.study_facts(session, review.study_id, lock=True)
        answer = study.current_report.answer if study.current_report else None
        if review.verdict is not Verdict.COMMENT and answer not in AGREEABLE:
            raise HTTPException(409, "This study has no answer to agree or disagree with; a comment is welcome.")
        if review.verdict is Verdict.COMMENT and not review.comment:
            raise HTTPException(422, "A comment needs words.")
        return facts.add_review(
            session,
            review.study_id,
            verdict=review.verdict,
            comment=review.comment,
            reviewer=review.reviewer,
            now=db_now(session),
        )
