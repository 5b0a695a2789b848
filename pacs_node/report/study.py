"""What a report is made of: the study's frozen answer, the headers of its images, the models, and who speaks. Pure."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, tzinfo
from uuid import UUID

from pydicom.uid import UID

from db.facts import ImageFacts, PredictionFacts, ReportFacts
from models.card import ModelCard
from pacs_node.report import wording
from pacs_node.report.answer import NOT_NAMED, StudyAnswer, prediction_of
from pacs_node.report.concepts import Concepts
from pacs_node.report.source import SafeHeader


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeIdentity:
    """Who writes the report: the node, not the model."""

    name: str
    ae_title: str
    software_version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """Who answers for a report in place of the model.

    Attributes
    ----------
    person_name
        As a DICOM PN, with "^" between the components.
    at
        When the reader said so, aware.
    comment
        The reader's own words; may be empty.
    """

    person_name: str = field(repr=False)
    login: str
    organization: str
    at: datetime
    comment: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyReport:
    """Everything a report is made of; equal values give equal bytes.

    Attributes
    ----------
    images
        All instances of the study as frozen with this revision, in order of reception.
    headers
        By instance id; at least one. An image whose file was purged has none and is named by its place alone.
    cards
        By name and version: of every model that the predictions and the report name.
    local_zone
        For dates and times where the source states no offset from UTC.
    """

    installation_id: UUID
    study_instance_uid: str
    report: ReportFacts
    answer: StudyAnswer
    images: tuple[ImageFacts, ...]
    headers: Mapping[UUID, SafeHeader]
    cards: Mapping[tuple[str, str], ModelCard]
    node: NodeIdentity
    local_zone: tzinfo
    verification: Verification | None = None
    """None: the model speaks. Else the report's answer is this reader's, on the AI result that it names."""

    @property
    def card(self) -> ModelCard:
        """The card of the model that this revision names."""
        return self.cards[self.report.model_name, self.report.model_version]

    @property
    def concepts(self) -> Concepts:
        """What this revision's concepts are coded as."""
        return Concepts(self.report.codes or {})

    @property
    def named_images(self) -> tuple[ImageFacts, ...]:
        """What the report must mention: all but our own objects and what is no image."""
        unnamed = {missing.image.instance_id for missing in self.answer.not_analysed if missing.code in NOT_NAMED}
        return tuple(image for image in self.images if image.instance_id not in unnamed)

    @property
    def analysed(self) -> tuple[tuple[ImageFacts, PredictionFacts], ...]:
        """The images with an answer of their own."""
        return tuple((image, found) for image in self.images if (found := prediction_of(image)) is not None)

    def name_of(self, image: ImageFacts) -> str:
        """Name an image so that a radiologist finds it."""
        header = self.headers.get(image.instance_id)
        numbers = [str(header.dataset.get(k, "")) if header else "" for k in ("SeriesNumber", "InstanceNumber")]
        return wording.image_name(self.place_of(image), len(self.named_images), *numbers)

    def place_of(self, image: ImageFacts) -> int:
        """Return an image's place in the order of reception, from 1."""
        return self.named_images.index(image) + 1


def own_uid(installation_id: UUID, kind: str, *parts: object) -> UID:
    """Return the UID that this installation gives to that thing, today and after any crash (PS3.5 B.2)."""
    return UID(f"2.25.{uuid.uuid5(installation_id, '/'.join([kind, *map(str, parts)])).int}")
