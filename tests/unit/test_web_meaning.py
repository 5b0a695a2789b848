"""What a probability meant before: the sentence, and when there is none."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest

from db.facts import PredictionFacts
from models.card import ModelCard
from pacs_node.web.meaning import meaning, trained_on
from tests.builders import make_card
from tests.records import make_prediction

STEPS = [
    {"low": 0.0, "high": 0.1, "images": 80, "positive": 4},
    {"low": 0.8, "high": 0.9, "images": 19, "positive": 15},
    {"low": 0.9, "high": 1.0, "images": 101, "positive": 97},
]


def card_with(steps: list[dict[str, Any]]) -> ModelCard:
    card = make_card()
    return replace(card, metrics={card.populations[0].name: {"pneumonia": {"reliability": steps}}})


def found(card: ModelCard, probability: float, **changes: Any) -> PredictionFacts:
    limits = card.populations[0].limits["pneumonia"]
    made = make_prediction(probability, threshold=limits.threshold, **changes)
    values = {name: getattr(made, name) for name in PredictionFacts.__dataclass_fields__ if name != "prediction_id"}
    return PredictionFacts(prediction_id=uuid4(), **values)


def test_sentence_tells_share_count_and_how_frequent_the_finding_was() -> None:
    card = card_with(STEPS)
    said = meaning(found(card, 0.94), card)
    assert said.startswith("Among 101 validation images scored 0.90 to 1.00, 96 % showed pneumonia; ")
    assert f"among all 200 of them, 58 % did ({card.populations[0].name})." in said
    assert meaning(found(card, 1.0), card) == said, "the last step holds its end"


@pytest.mark.parametrize("probability", [0.85, 0.5], ids=["few images", "no image"])
def test_there_is_no_sentence_where_few_images_stand_behind_it(probability: float) -> None:
    card = card_with(STEPS)
    assert meaning(found(card, probability), card) == ""


def test_there_is_no_sentence_for_other_limits_or_a_card_without_counts() -> None:
    card = card_with(STEPS)
    assert meaning(replace(found(card, 0.94), threshold=0.123), card) == ""
    assert meaning(found(card, 0.94), make_card()) == ""


def test_card_tells_what_its_model_was_trained_on() -> None:
    counts = {"images": 4547, "patients": 2310}
    training = {"sha256": "7f", "kermany": counts, "own": {"images": 3, "patients": 2}}
    sources = {"kermany": "Chest X-Ray Images (Pneumonia), merged; Kermany et al."}
    card = make_card(training_data={"sources": sources, "training": training})
    assert trained_on(card) == "4550 images of 2312 patients: Chest X-Ray Images (Pneumonia), own"
    assert trained_on(make_card()) == ""
