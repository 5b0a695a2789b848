"""The model of `/predict`: loaded once, and another one as soon as another version answers in the node.

Takes the database's word on which version that is; gives a loaded model. Hides torch, whose import costs seconds: the
page must never wait for it, so nothing here is imported before the first use.
"""

from __future__ import annotations

import io
import logging
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from db import audit
from db.audit import Action
from db.engine import Engine, db_now, session_scope
from models.card import ModelCard
from models.errors import ModelError
from models.registry import Registry
from pacs_node.settings import WorkerSettings
from pacs_node.wiring import active_card, worker_name

if TYPE_CHECKING:
    from models.networks import Classifier
    from models.predictor import Prediction, Predictor

logger = logging.getLogger(__name__)

CHECK_S = 2.0
"""How soon another active version is taken up, as by the worker."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LoadedModel:
    """One version, ready to judge and to explain; those who began with it end with it."""

    card: ModelCard
    predictor: Predictor

    @cached_property
    def _network(self) -> Classifier:
        """The network in float32 and unfused, as its gradients need it; loaded for the first heat map."""
        from models.weights import load_network

        return load_network(self.card)

    def judge(
        self, images_1HW: Sequence[np.ndarray], age_years_B: Sequence[int | None], *, use_tta: bool
    ) -> list[tuple[Prediction, ...]]:
        """Return one Prediction per finding for each image. Raises as `Predictor.predict`."""
        return self.predictor.predict(np.stack(images_1HW), age_years_B, use_tta=use_tta)

    def explain(self, image_1HW: np.ndarray, preview_HW: np.ndarray, finding: str) -> bytes:
        """Return where the finding's probability comes from, as a PNG: colours over the preview, and a banner."""
        from models.explain import grad_cam
        from pacs_node.report.heatmap import BANNER, overlay  # brings highdicom: only those who want a map pay for it

        (heatmap_HW,) = grad_cam(self._network, image_1HW[None], self.card.outputs.index(finding))
        heat_HW = np.rint(heatmap_HW * 255).astype(np.uint8)
        drawn_HWC = overlay(preview_HW, heat_HW, BANNER.format(model=self.card.name, version=self.card.version))
        buffer = io.BytesIO()
        Image.fromarray(drawn_HWC).save(buffer, "PNG")
        return buffer.getvalue()


class ActiveModel:
    """Follows the active version; may be asked from any thread."""

    def __init__(self, engine: Engine, registry: Registry, settings: WorkerSettings) -> None:
        self._engine, self._registry, self._settings = engine, registry, settings
        self._loaded: LoadedModel | None = None
        self._checked_at = -CHECK_S
        self._lock = threading.Lock()

    @property
    def loaded(self) -> LoadedModel | None:
        """What is loaded now, whether or not it is still the active one."""
        return self._loaded

    def fresh(self) -> LoadedModel | None:
        """Return the loaded model if it was the active one a moment ago; never waits."""
        return self._loaded if time.monotonic() - self._checked_at < CHECK_S else None

    def current(self) -> LoadedModel:
        """Return the active model; waits for the database, and for the weights where they must be loaded.

        Raises
        ------
        ModelError
            There is no model that can be used.
        DatabaseAway
            Which one is active cannot be told.
        """
        with self._lock:
            loaded = self.fresh() or self._follow()
            self._loaded, self._checked_at = loaded, time.monotonic()
            return loaded

    def _follow(self) -> LoadedModel:
        try:
            card = active_card(self._engine, self._registry)
            if self._loaded and (card.name, card.version) == (self._loaded.card.name, self._loaded.card.version):
                return self._loaded
            return self._load(card)
        except ModelError:
            if self._loaded is None:
                raise
            logger.exception("The active model cannot be used; the former one goes on", extra={"action": "model_kept"})
            return self._loaded

    def _load(self, card: ModelCard) -> LoadedModel:
        # Read when torch is loaded: threads that spin while they wait starve the page, and then themselves.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        from models.predictor import Predictor

        chosen = self._settings
        predictor = Predictor(card, device=chosen.device, precision=chosen.precision, threads=chosen.threads or None)
        details = {
            "model": f"{card.name} {card.version}",
            "device": str(predictor.device),
            "precision": predictor.precision,
        }
        with session_scope(self._engine) as session:
            audit.append(session, Action.MODEL_LOADED, actor=worker_name(), details=details, now=db_now(session))
        logger.info("The model is loaded", extra={"action": "model_loaded", **details})
        return LoadedModel(card=card, predictor=predictor)
