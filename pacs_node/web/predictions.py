"""What one upload becomes: examined in a killable process, judged in a shared forward pass, audited, answered.

Takes bytes and options; gives an UploadAnswer. Hides the decoding processes, the batches, the model that may change
meanwhile, the memory of earlier answers and every bound: an upload is in work or refused, it never queues without end.
Nothing of an upload is kept but its digest in the audit trail and, for a while, the answer in memory.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from db import facts
from db.engine import DatabaseAway, Engine, SchemaMismatch, db_now, session_scope
from db.facts import UploadFacts
from models.batcher import Batcher, Busy
from models.card import ModelCard
from models.errors import ModelError
from models.pictures import ExaminedUpload, examine_upload, format_of
from models.registry import Registry
from models.suitability import load_libraries, settled, unreadable
from pacs_node.decoding import Collapsed, DecodingPool, PoolDown, TookTooLong, result_of
from pacs_node.settings import Settings
from pacs_node.web.access import Visitor
from pacs_node.web.active_model import ActiveModel, LoadedModel
from pacs_node.web.uploads import Memory, Options, UploadAnswer, facts_of

if TYPE_CHECKING:
    from models.predictor import Prediction

logger = logging.getLogger(__name__)

BYTES_MAX = 512 << 20
"""Of all uploads in work at once."""
MAPS_BATCH = 4
DECODE_ATTEMPTS = 2
"""A decoder that dies twice is a verdict on the image; once may have been the machine."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Image:
    """What the network is given."""

    model: LoadedModel
    image_1HW: np.ndarray
    age_years: int | None
    use_tta: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Map:
    """What a heat map is made of."""

    model: LoadedModel
    image_1HW: np.ndarray
    preview_HW: np.ndarray
    finding: str


class Predictions:
    """Answers uploads for the web role; owns its processes and threads, which start with the first upload or `warm`."""

    def __init__(self, engine: Engine, registry: Registry, settings: Settings) -> None:
        chosen, worker = settings.predict, settings.worker
        self._engine, self._age_policy = engine, settings.model.age_policy
        self._model = ActiveModel(engine, registry, worker)
        self._pool = DecodingPool(
            processes=chosen.decode_processes,
            timeout_s=worker.decode_timeout_s,
            memory_mb=worker.decode_memory_mb,
            prepare=load_libraries,
        )
        self._images: Batcher[_Image, tuple[Prediction, ...]] = Batcher(
            self._judge,
            max_batch=chosen.batch_size,
            max_waiting=chosen.max_waiting,
            max_wait_s=chosen.batch_wait_ms / 1000,
            name="forward-pass",
        )
        self._maps: Batcher[_Map, bytes] = Batcher(
            _draw_maps, max_batch=MAPS_BATCH, max_waiting=chosen.max_waiting, max_wait_s=0, name="heat-maps"
        )
        self._books: Batcher[UploadFacts, None] = Batcher(
            self._record,
            max_batch=chosen.max_waiting,
            max_waiting=chosen.max_waiting,
            max_wait_s=0,
            name="upload-audit",
        )
        self._answers = Memory(chosen.remembered)
        self._max_waiting, self._in_work, self._in_work_bytes = chosen.max_waiting, 0, 0
        self._lock = threading.Lock()

    @property
    def loaded(self) -> LoadedModel | None:
        """The model in memory; None before the first one is loaded."""
        return self._model.loaded

    def warm(self) -> None:
        """Start the decoding processes and load the model beside them; returns at once."""
        self._pool.warm()
        threading.Thread(target=self._load, name="preload", daemon=True).start()

    def _load(self) -> None:
        """Load the model; what fails now is said to whoever asks first."""
        try:
            self._model.current()
        except (ModelError, DatabaseAway, SchemaMismatch):
            logger.exception("The model for uploads is not loaded yet", extra={"action": "preload_failed"})

    def close(self) -> None:
        """End every thread and process; who still waits is told so."""
        for batcher in (self._images, self._maps, self._books):
            batcher.close(timeout_s=5)
        self._pool.close()

    @contextmanager
    def admitted(self, images: int, size_bytes: int) -> Iterator[None]:
        """Hold places for so many images at once and for so many bytes.

        Raises
        ------
        Busy
            They are taken.
        """
        with self._lock:
            if self._in_work + images > self._max_waiting or (
                self._in_work and self._in_work_bytes + size_bytes > BYTES_MAX
            ):
                raise Busy(f"{self._in_work} uploads are in work")
            self._in_work, self._in_work_bytes = self._in_work + images, self._in_work_bytes + size_bytes
        try:
            yield
        finally:
            with self._lock:
                self._in_work, self._in_work_bytes = self._in_work - images, self._in_work_bytes - size_bytes

    async def answer(self, content: bytes, options: Options, caller: Visitor) -> UploadAnswer:
        """Judge one upload for whom places were `admitted`; the answer is in the audit trail when it is given.

        Raises
        ------
        UploadRefused
            The upload is none that is looked at.
        ModelError
            No model can answer.
        DatabaseAway
            Nothing is said that cannot be audited.
        Busy, Closed
            Come again.
        """
        kind = format_of(content)
        digest = await asyncio.to_thread(_digest_of, content)
        model = self._model.fresh()
        if model is None:
            model = await asyncio.to_thread(self._model.current)
        key = (digest, options, model.card.name, model.card.version, model.card.weights_sha256)
        known = self._answers.get(key)
        answer = known or await self._judged(content, options, model)
        if answer.is_lasting:
            self._answers.put(key, answer)
        audited = facts_of(answer, digest, len(content), kind, options, caller, is_repeated=known is not None)
        await asyncio.wrap_future(self._books.submit(audited))
        return answer

    async def _judged(self, content: bytes, options: Options, model: LoadedModel) -> UploadAnswer:
        upload, is_lasting = await self._examined(content, options, model.card)
        examination, image_1HW = upload.examination, upload.examination.image_1HW
        predictions: tuple[Prediction, ...] = ()
        heatmap_png = None
        if image_1HW is not None:
            image = _Image(model=model, image_1HW=image_1HW, age_years=examination.age_years, use_tta=options.use_tta)
            predictions = await asyncio.wrap_future(self._images.submit(image))
        if image_1HW is not None and upload.preview_HW is not None:
            wanted = _Map(
                model=model, image_1HW=image_1HW, preview_HW=upload.preview_HW, finding=predictions[0].finding
            )
            heatmap_png = await asyncio.wrap_future(self._maps.submit(wanted))
        predictions, warnings = settled(predictions, examination.warnings)
        return UploadAnswer(
            card=model.card,
            rows=examination.rows,
            columns=examination.columns,
            predictions=predictions,
            warnings=warnings,
            heatmap_png=heatmap_png,
            is_lasting=is_lasting,
        )

    async def _examined(self, content: bytes, options: Options, card: ModelCard) -> tuple[ExaminedUpload, bool]:
        """Return the examination, and whether another one of the same bytes would be the same."""
        for _ in range(DECODE_ATTEMPTS):
            try:
                future = self._pool.submit(
                    examine_upload,
                    content,
                    card,
                    age_policy=self._age_policy,
                    age_years=options.age_years,
                    has_preview=options.gradcam,
                )
                await _settled(future)
                return result_of(future), True
            except PoolDown as error:
                raise Busy(str(error)) from error
            except TookTooLong:
                return _unreadable("decode_timeout"), False
            except Collapsed:
                logger.warning("A decoder died of an upload", extra={"action": "decoder_died"})
        return _unreadable("undecodable"), False

    def _judge(self, images: Sequence[_Image]) -> list[tuple[Prediction, ...]]:
        """Run in the batcher's thread: one forward pass for all who want the same of the same model."""
        from models.predictor import DeviceFault

        alike: dict[tuple[LoadedModel, bool], list[int]] = {}
        for i, image in enumerate(images):
            alike.setdefault((image.model, image.use_tta), []).append(i)
        found: dict[int, tuple[Prediction, ...]] = {}
        for (model, use_tta), places in alike.items():
            chosen = [images[i] for i in places]
            try:
                said = model.judge(
                    [one.image_1HW for one in chosen], [one.age_years for one in chosen], use_tta=use_tta
                )
            except DeviceFault:
                logger.exception("The device failed: the web role starts anew", extra={"action": "device_fault"})
                os.kill(os.getpid(), signal.SIGTERM)  # as the worker: this process can use the device no more
                raise
            found.update(zip(places, said, strict=True))
        return [found[i] for i in range(len(images))]

    def _record(self, uploads: Sequence[UploadFacts]) -> list[None]:
        """Run in the batcher's thread: one transaction for all who are answered at the same time."""
        with session_scope(self._engine) as session:
            facts.record_uploads(session, uploads, now=db_now(session))
        return [None] * len(uploads)


def _draw_maps(wanted: Sequence[_Map]) -> list[bytes]:
    return [one.model.explain(one.image_1HW, one.preview_HW, one.finding) for one in wanted]


def _digest_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


async def _settled(future: Future[Any]) -> None:
    """Wait until the call has ended in whatever way; if the waiting is cancelled, so is a call that has not begun.

    One that has begun goes on: to cancel it would kill its process, and the next would take seconds to start.
    """
    waiting = asyncio.wrap_future(future)
    waiting.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # it is for `result_of`
    try:
        await asyncio.wait([waiting])
    except asyncio.CancelledError:
        if not future.running():
            future.cancel()
        raise


def _unreadable(code: str) -> ExaminedUpload:
    return ExaminedUpload(examination=unreadable(code))
