"""A study as a reader sees it who answers before the model's answer is shown (`reviews.answer_first`). Pure.

What the model said is taken out on the server: it is not in the page that such a reader gets. Whether an image could be
judged at all is no secret; what was seen in it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from db.facts import ReviewFacts
from db.tables import Role
from pacs_node.settings import ReviewSettings
from pacs_node.web import words
from pacs_node.web.access import Visitor
from pacs_node.web.choices import blind_choices
from pacs_node.web.reading import ImageView, PriorView, StudyView
from pacs_node.web.reviewing import ReviewView
from pacs_node.web.words import Kind


def reader_of(caller: Visitor) -> str | None:
    """Return under which name the caller answers; None = anybody's, where nobody logs in."""
    return caller.name if caller.account_id is not None else None


def answers_first(caller: Visitor, reviews: ReviewSettings) -> bool:
    """Tell whether the caller, as a reader, gets the model's answer after their own alone."""
    return reviews.answer_first and Role.RADIOLOGIST in caller.roles


def is_hidden_from(caller: Visitor, reviews: ReviewSettings, standing: Sequence[ReviewFacts]) -> bool:
    """Tell whether the pages hide from the caller what the model said of a study with these standing verdicts.

    The API hides nothing, so nothing is hidden from a program.
    """
    if caller.is_token or not answers_first(caller, reviews):
        return False
    reader = reader_of(caller)
    return not any(reader in (None, review.reviewer) for review in standing)


def hidden(view: StudyView) -> StudyView:
    """Return the study without what the model, and readers who have seen it, said about it."""
    images = [_hidden_image(image) for image in view.images]
    shown = _hidden_image(view.shown) if view.shown else None
    if not view.is_hideable:
        return replace(view, images=images, shown=shown)  # an image may be judged before its study is
    return replace(
        view,
        kind=Kind.HIDDEN,
        saying=words.SAYINGS[Kind.HIDDEN],
        probability=None,
        probability_text="",
        point=None,
        reasons=view.standing_of_result,
        meaning="",
        caution="",
        warnings=(),
        images=images,
        shown=shown,
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
