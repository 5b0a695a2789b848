"""A reader's word as the reading page shows it, and where in an image it was seen. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from db.facts import ImageFacts, ReviewFacts
from db.tables import Verdict
from pacs_node.web import words
from pacs_node.web.choices import NOTHING

VERDICTS = {
    Verdict.AGREE: "Agree",
    Verdict.DISAGREE: "Disagree",
    Verdict.UNSURE: "Unsure",
    Verdict.COMMENT: "Comment",
    Verdict.WITHDRAW: "Taken back",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionView:
    """Where in an image a reader saw it."""

    review_id: UUID
    instance_id: UUID
    image: str
    box: str
    """Left, top, right and bottom edge in pixels of the stored image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReviewView:
    words: str
    reviewer: str
    at: str
    comment: str
    region: RegionView | None = None


def review_view(review: ReviewFacts, now: datetime, images: Sequence[ImageFacts]) -> ReviewView:
    """Put a review into words.

    Parameters
    ----------
    images
        Of the study, as they lie on the shelf.
    """
    return ReviewView(
        words=review_words(review),
        reviewer=review.reviewer,
        at=words.clock(review.created_at, now),
        comment=review.comment,
        region=_region_view(review, [image.instance_id for image in images]),
    )


def _region_view(review: ReviewFacts, images: Sequence[UUID]) -> RegionView | None:
    region = review.region
    if region is None or region.instance_id not in images:
        return None
    return RegionView(
        review_id=review.review_id,
        instance_id=region.instance_id,
        image=f"Image {images.index(region.instance_id) + 1}",
        box=f"{region.left} {region.top} {region.right} {region.bottom}",
    )


def review_words(review: ReviewFacts) -> str:
    """Return what a reader said, without what was commented."""
    seen = {NOTHING: "no pneumonia", "other": "another finding", None: ""}.get(
        review.corrected_finding, review.corrected_finding
    )
    said = f"{VERDICTS[review.verdict]}, {seen}" if seen else VERDICTS[review.verdict]
    said = f"{said} (reader {review.reading})" if review.reading > 1 else said
    return f"{said}, before the model's answer" if review.is_blind else said
