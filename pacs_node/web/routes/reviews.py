"""Reviews: what readers say about an answer. Every one is kept; a change of mind is another one that names it.

Two readers cannot overwrite each other: where another reader's verdict stands, the next one is taken only with the tag
of what stood when its reader looked (If-Match), and is then the second reader's word beside the first.
"""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Header, HTTPException, Response

from db import facts
from db.engine import Session, db_now, read_scope
from db.facts import Region, ReviewConflict, ReviewFacts, ReviewState
from db.tables import Answer, Verdict
from pacs_node.report.answer import FINDING
from pacs_node.report.codes import QUALITY
from pacs_node.web import blind
from pacs_node.web.access import Role, requires
from pacs_node.web.context import Web, WebContext
from pacs_node.web.listing import Listed, OfReviews, page_for
from pacs_node.web.problems import documented
from pacs_node.web.query import refuse_body
from pacs_node.web.render import size_of
from pacs_node.web.routes import API
from pacs_node.web.schemas import NewReview, Page, RegionBox, ReviewOut, ReviewStateOut

router = APIRouter(
    prefix=API,
    tags=["reviews"],
    responses=documented(404, 422),
    dependencies=[requires(Role.RADIOLOGIST, Role.ADMIN, Role.SERVICE)],
)

MEANT_BY_AGREEING = {Answer.PRESENT: FINDING, Answer.ABSENT: "normal"}
MEANT_BY_DISAGREEING = {Answer.PRESENT: "normal", Answer.ABSENT: FINDING}
"""Who disagrees with a yes or a no says the other."""
NEEDS_TAG = (
    "Send as If-Match the ETag of `GET /api/v1/studies/{study_id}/reviews` as it was when the reader saw the study, so "
    "that no answer is kept for another report; `*` takes it whatever stands now."
)
IfMatch = Annotated[
    str | None,
    Header(
        max_length=200,
        description="The ETag of `GET /studies/{study_id}/reviews`, always with `agree` and `disagree`; `*` = any.",
    ),
]
ETAG = {"headers": {"ETag": {"description": "What stands now.", "schema": {"type": "string"}}}}


@router.get("/reviews", summary="List reviews")
def list_reviews(web: WebContext, asked: Listed, wanted: OfReviews) -> Page[ReviewOut]:
    """Return one page of reviews, the newest first."""
    with read_scope(web.engine) as session:
        found = facts.list_reviews(session, asked, **wanted)
    return page_for(web, ReviewOut, "reviews", asked, found)


@router.get("/reviews/{review_id}", summary="One review")
def get_review(web: WebContext, review_id: UUID) -> ReviewOut:
    """Return one reader's word; it never changes. The view is audited."""
    with read_scope(web.engine) as session:
        review = ReviewOut.model_validate(facts.review_facts(session, review_id))
    web.note_view(review.study_id, "review")
    return review


@router.get("/studies/{study_id}/reviews", summary="Where the reading of a study stands", responses={200: ETAG})
def get_review_state(web: WebContext, response: Response, study_id: UUID) -> ReviewStateOut:
    """Return what stands, every word before it, and the ETag to send with the next verdict; the view is audited."""
    with read_scope(web.engine) as session:
        history = facts.study_detail(session, study_id).reviews
        state = facts.review_state(session, study_id)
    web.note_view(study_id, "reviews")
    response.headers["ETag"] = _etag(state)
    standing = [ReviewOut.model_validate(review) for review in state.standing]
    said = [ReviewOut.model_validate(review) for review in history]
    return ReviewStateOut(tag=state.tag, report_id=state.report_id, standing=standing, history=said)


@router.post(
    "/reviews",
    summary="Agree, disagree, be unsure, comment or withdraw",
    status_code=201,
    responses=documented(409, 412, 428) | {201: ETAG},
    dependencies=[requires(Role.RADIOLOGIST)],
)
def post_review(web: WebContext, response: Response, review: NewReview, if_match: IfMatch = None) -> ReviewOut:
    """Keep a reader's word on the study's current report; audited.

    Send the ETag of what the reader saw as If-Match: 412 names the review, or the report, that came in between. Who
    agrees or disagrees must (else 428), for the report may have been replaced a second ago; *unsure* and *withdraw* are
    taken without it as long as no other reader's verdict stands. A second reader's verdict stands beside the first.
    """
    web.require_visible(study_id=review.study_id)
    if if_match is None and review.verdict in (Verdict.AGREE, Verdict.DISAGREE):
        raise HTTPException(428, NEEDS_TAG)
    tag = None if if_match is None or if_match.strip() == "*" else if_match.strip().removeprefix("W/").strip('"')
    kept = add_review(web, review, tag=tag, is_unconditional=if_match is not None and tag is None)
    with read_scope(web.engine) as session:
        response.headers["ETag"] = _etag(facts.review_state(session, review.study_id))
    response.headers["Location"] = f"{API}/reviews/{kept.review_id}"
    return ReviewOut.model_validate(kept)


def add_review(web: Web, review: NewReview, *, tag: str | None = None, is_unconditional: bool = False) -> ReviewFacts:
    """Keep the review, in one transaction with the look at what it is about.

    Parameters
    ----------
    tag
        `ReviewState.tag` of what the reader saw; None = it is taken unless another reader's verdict stands.
    is_unconditional
        The reader said that it shall be taken whatever stands.

    Raises
    ------
    HTTPException
        404, 409, 412 or 428, see the route.
    """
    reviewer = _reviewer(web, review)
    region = _region(web, review) if review.region else None
    with web.change() as session:
        study = facts.study_facts(session, review.study_id, lock=True)
        state = facts.review_state(session, review.study_id)
        is_hidden = blind.is_hidden_from(web.caller, web.settings.reviews, state.standing)
        report = study.current_report
        answer = report.answer if report and report.withdrawn_at is None else None  # a withdrawn one counts no more
        review = _settled(review, answer, is_hidden=is_hidden)
        if tag is None and not is_unconditional and review.verdict is not Verdict.COMMENT:
            _refuse_unseen(state, reviewer)
        kept = _added(web, session, review, reviewer=reviewer, region=region, tag=tag)
        reviews = web.settings.reviews
        facts.follow_review(
            session,
            kept.review_id,
            is_sent=reviews.send_verified and web.caller.account_id is not None,  # a person answers for it
            code=QUALITY,
            now=kept.created_at,
            delay_s=reviews.verified_delay_s,
        )
        return kept


def _added(
    web: Web,
    session: Session,
    review: NewReview,
    *,
    reviewer: str,
    region: Region | None,
    tag: str | None,
) -> ReviewFacts:
    try:
        return facts.add_review(
            session,
            review.study_id,
            verdict=review.verdict,
            comment=review.comment,
            reviewer=reviewer,
            corrected_finding=review.corrected_finding,
            region=region,
            is_blind=review.is_blind,
            predecessor_id=review.predecessor_id,
            tag=tag,
            actor=web.caller.actor if web.caller.is_known else None,
            now=db_now(session),
        )
    except ReviewConflict as conflict:
        raise HTTPException(412, _conflict_words(conflict.state), {"ETag": _etag(conflict.state)}) from None


def _reviewer(web: Web, review: NewReview) -> str:
    """Return whose word it is: who is logged in or shows a token speaks for nobody else."""
    if web.caller.account_id is not None:
        if review.reviewer not in (None, web.caller.name):
            raise HTTPException(409, "The reviewer is who is logged in; leave it out, or log in as the other reader.")
        return web.caller.name
    if web.caller.is_token:
        return web.caller.actor
    if review.reviewer is None:
        raise refuse_body("reviewer", "without a login a review says whose it is")
    return review.reviewer


def _settled(review: NewReview, answer: Answer | None, *, is_hidden: bool) -> NewReview:
    """Return the review as it is kept: with what it means, and blind only where the answer was hidden from its reader.

    Who names the finding that the model named agrees with it, whether it was seen or not.
    """
    if review.is_blind and review.verdict is Verdict.AGREE:
        raise refuse_body("is_blind", "who has not seen an answer cannot agree with it; say what you see")
    if review.is_blind and review.verdict is Verdict.DISAGREE and review.corrected_finding is None:
        raise refuse_body("corrected_finding", "who has not seen the answer says what is seen")
    is_blind = review.is_blind and is_hidden and answer not in (None, Answer.NOT_ANALYSED)
    meant = MEANT_BY_AGREEING.get(answer) if answer and review.verdict is Verdict.DISAGREE else None
    if meant is not None and review.corrected_finding == meant:
        return review.model_copy(update={"verdict": Verdict.AGREE, "corrected_finding": None, "is_blind": is_blind})
    return review.model_copy(update={"corrected_finding": _corrected(review, answer), "is_blind": is_blind})


def _corrected(review: NewReview, answer: Answer | None) -> str | None:
    """Return what the reader sees instead, and refuse what cannot be said about this answer."""
    if review.verdict is Verdict.COMMENT and not review.comment:
        raise HTTPException(422, "A comment needs words.")
    if review.verdict is Verdict.AGREE and answer not in MEANT_BY_DISAGREEING:
        raise HTTPException(409, "This study has no answer to agree with; say what you see, or comment.")
    if review.verdict is not Verdict.DISAGREE:
        if review.corrected_finding is not None:
            raise refuse_body("corrected_finding", "only who disagrees corrects the finding")
        return None
    corrected = review.corrected_finding or (MEANT_BY_DISAGREEING.get(answer) if answer else None)
    if corrected is None:
        raise HTTPException(409, "This study has no answer to disagree with; name the corrected finding, or comment.")
    return corrected


def _region(web: Web, review: NewReview) -> Region:
    """Return the region, once it is known to lie in an image of this study."""
    assert isinstance(review.region, RegionBox)
    with read_scope(web.engine) as session:
        images = [image.instance_id for image in facts.study_detail(session, review.study_id).images]
        if review.region.instance_id not in images:  # said too where it is of a study that the caller may not see
            raise refuse_body("region.instance_id", "no image of this study")
        instance = facts.instance_detail(session, review.region.instance_id)
    if not instance.is_purged:
        rows, columns = web.renderer.work(size_of, web.store.absolute(instance.image.path))
        if review.region.right > columns or review.region.bottom > rows:
            raise refuse_body("region", "reaches out of the image")
    return Region(**review.region.model_dump())


def _refuse_unseen(state: ReviewState, reviewer: str) -> None:
    if any(review.reviewer != reviewer for review in state.standing):
        raise HTTPException(
            428,
            f"{_conflict_words(state)} Send the ETag of what you saw as If-Match to add a second reader's verdict.",
            {"ETag": _etag(state)},
        )


def _conflict_words(state: ReviewState) -> str:
    if state.newest is None:
        return "The report has changed since you looked; nobody has reviewed it yet."
    newest = state.newest
    return f"{newest.reviewer} came first: review {newest.review_id} says {newest.verdict}."


def _etag(state: ReviewState) -> str:
    return f'"{state.tag}"'
