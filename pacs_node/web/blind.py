"""A study as a reader sees it who answers before the model's answer is shown (`reviews.answer_first`). Pure.

What the model said is taken out on the server: it is not in the page that such a reader gets. Whether an image could be
judged at all is no secret; what was seen in it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from db.facts import ReviewFacts
from pacs_node.web import words
from pacs_node.web.choices import blind_choices
from pacs_node.web.reading import ImageView, PriorView, StudyView
from pacs_node.web.reviewing import ReviewView
from pacs_node.web.words import Kind


def has_answered(standing: Sequence[ReviewFacts], reviewer: str | None) -> bool:
    """Tell whether this reader's verdict stands; None = nobody is logged in, so that anybody's counts."""
    return any(reviewer in (None, review.reviewer) for review in standing)


def hidden(view: StudyView) -> StudyView:
    """Return the study without what the model, and readers who have seen it, said about it."""
    if view.kind not in words.HIDEABLE:
        return view
    return replace(
        view,
        kind=Kind.HIDDEN,
        saying=words.SAYINGS[Kind.HIDDEN],
        probability=None,
        probability_text="",
        point=None,
        reasons=(),
        meaning="",
        caution="",
        warnings=(),
        images=[_hidden_image(image) for image in view.images],
        shown=_hidden_image(view.shown) if view.shown else None,
        reviews=(),
        standing=[_hidden_review(review) for review in view.standing],
        facts=[fact for fact in view.facts if fact[0] == "Received"],
        choices=blind_choices(),
        veiled_choices=(),
        report_href="",
        priors=[_hidden_prior(prior) for prior in view.priors],
        beside=_hidden_prior(view.beside) if view.beside else None,
    )


def _hidden_image(image: ImageView) -> ImageView:
    if not image.is_explained:
        return image
    saying = words.SAYINGS[Kind.HIDDEN]
    return replace(image, kind=Kind.HIDDEN, words=saying.short.lower(), probability_text="", is_explained=False)


def _hidden_review(review: ReviewView) -> ReviewView:
    return replace(review, words="what it says is shown after yours", comment="", region=None)


def _hidden_prior(prior: PriorView) -> PriorView:
    return replace(prior, said="the model's answer is shown after yours", read="")
