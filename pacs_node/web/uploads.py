"""One upload as values: options, answer, what of them goes into the audit trail, and a memory of the last answers."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from db.facts import UploadFacts
from models.card import ModelCard
from models.pictures import Format
from models.suitability import ImageWarning
from pacs_node.report.answer import presence_of
from pacs_node.web.access import Visitor

if TYPE_CHECKING:
    from models.predictor import Prediction


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a caller may ask for; `age_years` is of a patient whom a picture cannot name."""

    use_tta: bool = False
    gradcam: bool = False
    age_years: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadAnswer:
    """What is said about one upload.

    Attributes
    ----------
    predictions
        One per finding of the card; empty where the upload was not analysed: the warnings then say why.
    heatmap_png
        Where one was asked for and there is an answer.
    is_lasting
        The same bytes would get it again; not so where a decoder was stopped.
    """

    card: ModelCard
    rows: int
    columns: int
    predictions: tuple[Prediction, ...]
    warnings: tuple[ImageWarning, ...]
    heatmap_png: bytes | None
    is_lasting: bool


class Memory:
    """The answers used last, up to so many; safe for threads."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._answers: OrderedDict[Hashable, UploadAnswer] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> UploadAnswer | None:
        with self._lock:
            if key in self._answers:
                self._answers.move_to_end(key)
            return self._answers.get(key)

    def put(self, key: Hashable, answer: UploadAnswer) -> None:
        with self._lock:
            self._answers[key] = answer
            while len(self._answers) > self._most:
                self._answers.popitem(last=False)


def facts_of(
    answer: UploadAnswer,
    digest: str,
    size_bytes: int,
    kind: Format,
    options: Options,
    caller: Visitor,
    *,
    is_repeated: bool,
) -> UploadFacts:
    """Return what the audit trail keeps of an upload and its answer: no pixel, no identity of a patient.

    Parameters
    ----------
    digest
        SHA-256 of the bytes that came.
    is_repeated
        The answer was remembered from the same bytes.
    """
    return UploadFacts(
        digest=digest,
        size_bytes=size_bytes,
        format=kind.value,
        answers={one.finding: presence_of(one) for one in answer.predictions},
        probabilities={one.finding: one.probability for one in answer.predictions},
        codes=[warning.code for warning in answer.warnings],
        model=f"{answer.card.name} {answer.card.version}",
        use_tta=options.use_tta,
        is_repeated=is_repeated,
        actor=caller.actor,
        address=caller.address,
    )
