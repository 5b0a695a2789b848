"""The pictures of a report: for each image answered PRESENT the bare heat map, and what destinations want made of it.

Takes a `StudyReport`; gives stored files. Hides Grad-CAM, its one network at a time, and what a picture that cannot be
made costs: itself, never the report. Shapes: H rows, W columns of a radiograph; h, w of a map; B images.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass
from uuid import UUID

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset
from sqlalchemy.engine import Engine

from db import facts
from db.engine import read_scope
from db.facts import BuiltObject, ImageFacts, NewHeatmap, PredictionFacts
from db.tables import Answer, ObjectKind
from models.card import ModelCard
from models.explain import grad_cam
from models.networks import Classifier
from models.suitability import examine_file
from models.weights import load_network
from pacs_node.decoding import Collapsed, DecodingPool, TookTooLong, result_of
from pacs_node.report.answer import presence_of
from pacs_node.report.document import to_bytes
from pacs_node.report.heatmap import build_heatmap
from pacs_node.report.picture import Picture, read_picture
from pacs_node.report.region import build_gsps, build_seg
from pacs_node.report.study import StudyReport
from pacs_node.store import ObjectStore

logger = logging.getLogger(__name__)

Build = Callable[[StudyReport, ImageFacts, PredictionFacts, Picture, np.ndarray], Dataset | None]
BUILDERS: dict[ObjectKind, Build] = {
    ObjectKind.HEATMAP: build_heatmap,
    ObjectKind.GSPS: build_gsps,
    ObjectKind.SEG: build_seg,
}
"""What can be made of a map; None where the map shows nothing to outline."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pictures:
    """What was made; `failed` are the images, answered PRESENT, of which something could not be."""

    objects: tuple[BuiltObject, ...] = ()
    heatmaps: tuple[NewHeatmap, ...] = ()
    failed: tuple[UUID, ...] = ()


class PictureMaker:
    """Draws on the CPU: the same map on every machine, one image at a time, no memory of a device.

    Only the last stage's gradient is needed, so that a map costs little more than a forward pass.
    """

    def __init__(self, engine: Engine, store: ObjectStore, pool: DecodingPool) -> None:
        self._engine, self._store, self._pool = engine, store, pool
        self._network: tuple[str, Classifier] | None = None

    def pictures_of(self, study: StudyReport, kinds: Collection[ObjectKind], *, is_first_try: bool) -> Pictures:
        """Make the pictures of those kinds; the bare maps in any case, for the page shows them.

        Raises
        ------
        OSError
            The store takes no file: a fault to be retried.
        TookTooLong, Collapsed
            On the first try, when a decoding process was killed or died: that may have been the machine.
        """
        if study.verification is not None:
            return Pictures()
        objects, heatmaps, failed = list[BuiltObject](), list[NewHeatmap](), list[UUID]()
        for image, prediction in study.analysed:
            if presence_of(prediction) is not Answer.PRESENT:
                continue
            try:
                heatmap_hw, new = self._heatmap(study, image, prediction)
                heatmaps += [new] if new is not None else []
                objects += self._objects(study, image, prediction, heatmap_hw, kinds)
            except Exception as error:  # one picture's bug must not keep the report from the PACS
                if isinstance(error, OSError) and error.errno is not None:
                    raise  # the disk, not the picture
                if is_first_try and isinstance(error, TookTooLong | Collapsed):
                    raise
                extra = {"action": "heatmap_failed", "instance_id": image.instance_id}
                logger.exception("A heat map could not be made", extra=extra)
                failed.append(image.instance_id)
        return Pictures(objects=tuple(objects), heatmaps=tuple(heatmaps), failed=tuple(failed))

    def _heatmap(
        self, study: StudyReport, image: ImageFacts, prediction: PredictionFacts
    ) -> tuple[np.ndarray, NewHeatmap | None]:
        """Return the map, uint8, shape (h, w): the one drawn before, or a new one with its file."""
        model = prediction.model_name, prediction.model_version
        with read_scope(self._engine) as session:
            drawn = facts.heatmap_by(session, image.instance_id, *model)
        if drawn is not None and self._store.absolute(drawn).exists():
            with self._store.open(drawn) as file:
                return np.asarray(Image.open(file)), None
        heatmap_hw = self._draw(study.cards[model], image, prediction.finding)
        path = self._store.place([_as_png(heatmap_hw)], suffix=".png").path
        new = NewHeatmap(instance_id=image.instance_id, model_name=model[0], model_version=model[1], path=path)
        return heatmap_hw, new

    def _draw(self, card: ModelCard, image: ImageFacts, finding: str) -> np.ndarray:
        """Return Grad-CAM of the finding's output for an image as the model saw it."""
        image_1HW = result_of(self._pool.submit(examine_file, self._path(image), card, age_policy="warn")).image_1HW
        if image_1HW is None:
            raise ValueError("the image that was analysed is not fit for an answer any more")
        heatmap_BHW = grad_cam(self._network_of(card), image_1HW[None], card.outputs.index(finding))
        heatmap_hw: np.ndarray = np.rint(255 * heatmap_BHW[0]).astype(np.uint8)
        return heatmap_hw

    def _network_of(self, card: ModelCard) -> Classifier:
        if self._network is None or self._network[0] != card.weights_sha256:
            self._network = None  # the former one's memory first
            self._network = (card.weights_sha256, load_network(card))
        return self._network[1]

    def _objects(
        self,
        study: StudyReport,
        image: ImageFacts,
        prediction: PredictionFacts,
        heatmap_hw: np.ndarray,
        kinds: Collection[ObjectKind],
    ) -> list[BuiltObject]:
        wanted = [kind for kind in BUILDERS if kind in kinds]
        if not wanted:
            return []
        picture = result_of(self._pool.submit(read_picture, self._path(image)))
        made = {kind: BUILDERS[kind](study, image, prediction, picture, heatmap_hw) for kind in wanted}
        return [self._stored(kind, document) for kind, document in made.items() if document is not None]

    def _path(self, image: ImageFacts) -> str:
        path = self._store.absolute(image.path)
        if not path.exists():
            raise ValueError("the image was purged")
        return str(path)

    def _stored(self, kind: ObjectKind, document: Dataset) -> BuiltObject:
        file = self._store.place([to_bytes(document)])
        return BuiltObject(
            sop_instance_uid=str(document.SOPInstanceUID),
            sop_class_uid=str(document.SOPClassUID),
            path=file.path,
            digest=file.digest,
            kind=kind,
        )


def _as_png(heatmap_hw: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(heatmap_hw).save(buffer, "PNG")
    return buffer.getvalue()
