"""One batch of images: from stored files to recorded predictions, warnings and end states.

Takes claimed jobs; gives rows. Decoding runs in killable processes and overlaps the forward pass of the batch before.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from db import facts, queue
from db.engine import db_now, session_scope
from db.facts import InstanceFile, NewPrediction, SeenDevice, WarningFacts
from db.queue import Job, LostLease, QueuePolicy
from models.card import ModelCard
from models.header import DeviceModel
from models.predictor import DeviceOutOfMemory, Prediction, Predictor
from models.suitability import Examination, ImageWarning, examine_file, make_warning, settled, unreadable
from pacs_node.decoding import Collapsed, DecodingPool, TookTooLong, result_of
from pacs_node.log import describe
from pacs_node.store import ObjectStore

logger = logging.getLogger(__name__)

STORE_RETRY = timedelta(seconds=30)
"""An image whose file cannot be read waits so long: the store is away, and its return is worth waiting for."""
RECALLED_RETRY = timedelta(seconds=2)
"""An image that a recalled model judged waits so long: time to take up the active one, and no busy loop without it."""


class FileGone(Exception):
    """An image's own file is missing in a store that is there: purged after the retention time, or lost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Claimed jobs whose images are being decoded; `decoding[i]` belongs to `jobs[i]`."""

    jobs: tuple[Job, ...]
    decoding: tuple[Any, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What is to be recorded about one image: an examination with its predictions, or the error that ended it."""

    job: Job
    predictions: tuple[NewPrediction, ...] = ()
    warnings: tuple[WarningFacts, ...] = ()
    voi: str | None = None
    device: SeenDevice | None = None
    """What took the image, if it was answered and says so."""
    view: str = ""
    """"PA" or "AP", if it says so."""
    error: str | None = None
    is_store_away: bool = False
    """The file could not be opened: no fault of the image's, so it costs no attempt."""
    is_gone: bool = False
    """The file is missing for good: no other try can help until it comes again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Examined:
    """What a decoding process gave: an examination, or why there is none."""

    examination: Examination | None = None
    decoding_ms: float = 0.0
    error: str | None = None
    is_store_away: bool = False
    is_gone: bool = False


def timed_examination(path: str, card: ModelCard, age_policy: str) -> tuple[Examination, float]:
    """Run in a decoding process; return the examination and its duration in ms.

    Raises
    ------
    FileGone
        The store is there, the file is not.
    OSError
        The store is away: a fault to be retried, not a verdict on the image.
    """
    start = time.perf_counter()
    try:
        Path(path).open("rb").close()
    except FileNotFoundError as error:
        if Path(path).parent.is_dir():  # a store's folders are never deleted: without them it is not mounted
            raise FileGone("its stored file is gone, purged after the retention time or lost: send it again") from error
        raise
    return examine_file(path, card, age_policy=age_policy), 1000 * (time.perf_counter() - start)


def start_batch(
    jobs: Sequence[Job],
    files: dict[Any, InstanceFile],
    *,
    store: ObjectStore,
    pool: DecodingPool,
    card: ModelCard,
    age_policy: str,
) -> Batch:
    """Hand every image to the decoding processes and return at once."""
    decoding = tuple(
        pool.submit(timed_examination, str(store.absolute(files[job.subject_id].path)), card, age_policy)
        for job in jobs
    )
    return Batch(jobs=tuple(jobs), decoding=decoding)


def judge(batch: Batch, predictor: Predictor) -> list[Judgement]:
    """Wait for the batch to be decoded, then judge what is fit for an answer in one forward pass."""
    examined = [_examined(job, future) for job, future in zip(batch.jobs, batch.decoding, strict=True)]
    images = [one.examination.image_1HW if one.examination else None for one in examined]
    fit = {i: image_1HW for i, image_1HW in enumerate(images) if image_1HW is not None}
    start = time.perf_counter()
    ages = [one.examination.age_years for i, one in enumerate(examined) if i in fit and one.examination]
    predicted = _predict(predictor, np.stack(list(fit.values())), ages) if fit else []
    forward_ms = 1000 * (time.perf_counter() - start)
    found = dict(zip(fit, predicted, strict=True))
    return [
        _judgement(job, one, found.get(i, ()), one.decoding_ms + forward_ms)
        for i, (job, one) in enumerate(zip(batch.jobs, examined, strict=True))
    ]


def _predict(
    predictor: Predictor, image_B1HW: np.ndarray, age_years_B: list[int | None]
) -> list[tuple[Prediction, ...]]:
    """Predict; a batch too large for the device's memory is halved once."""
    try:
        return predictor.predict(image_B1HW, age_years_B)
    except DeviceOutOfMemory:
        if len(image_B1HW) == 1:
            raise
        logger.warning(
            "The device is out of memory: the batch is halved",
            extra={"action": "batch_halved", "images": len(image_B1HW)},
        )
        half = len(image_B1HW) // 2
        return predictor.predict(image_B1HW[:half], age_years_B[:half]) + predictor.predict(
            image_B1HW[half:], age_years_B[half:]
        )


def _examined(job: Job, future: Any) -> Examined:
    """Wait for one image; a decoder that is killed twice is a verdict on it, once may have been the machine."""
    try:
        examination, decoding_ms = result_of(future)
    except (TookTooLong, Collapsed) as error:
        if job.attempts == 0:
            return Examined(error=describe(error))
        return Examined(examination=unreadable("decode_timeout" if isinstance(error, TookTooLong) else "undecodable"))
    except FileGone as error:
        return Examined(error=str(error), is_gone=True)
    except OSError as error:
        logger.warning("A stored file cannot be read", extra={"action": "store_away", "why": describe(error)})
        return Examined(error=describe(error), is_store_away=True)
    except Exception as error:  # a bug in one image's path must cost that job an attempt, not the batch
        logger.exception("An image could not be examined", extra={"action": "examination_failed"})
        return Examined(error=describe(error))
    return Examined(examination=examination, decoding_ms=decoding_ms)


def _judgement(job: Job, examined: Examined, predictions: Sequence[Prediction], processing_time_ms: float) -> Judgement:
    examination = examined.examination
    if examination is None:
        is_store_away, is_gone = examined.is_store_away, examined.is_gone
        return Judgement(job=job, error=examined.error, is_store_away=is_store_away, is_gone=is_gone)
    predictions, warnings = settled(predictions, examination.warnings)
    return Judgement(
        job=job,
        predictions=tuple(_row(prediction, processing_time_ms) for prediction in predictions),
        warnings=tuple(map(_warning, warnings)),
        voi=examination.voi or None,
        device=_seen(examination.device) if predictions else None,
        view=examination.projection,
    )


def _warning(warning: ImageWarning) -> WarningFacts:
    return WarningFacts(code=warning.code, severity=warning.severity.value, text=warning.text)


def _seen(device: DeviceModel | None) -> SeenDevice | None:
    if device is None:
        return None
    return SeenDevice(
        manufacturer=device.manufacturer, model_name=device.model_name, detector_type=device.detector_type
    )


def _row(prediction: Prediction, processing_time_ms: float) -> NewPrediction:
    return NewPrediction(
        finding=prediction.finding,
        probability=prediction.probability,
        confidence=prediction.confidence,
        threshold=prediction.threshold,
        abstain_low=prediction.abstain_low,
        abstain_high=prediction.abstain_high,
        model_name=prediction.model_name,
        model_version=prediction.model_version,
        processing_time_ms=processing_time_ms,
    )


def devices_of(judgements: Sequence[Judgement]) -> dict[UUID, SeenDevice]:
    """Return what took the answered images, by instance."""
    return {one.job.subject_id: one.device for one in judgements if one.device is not None}


def with_first_seen(judgement: Judgement, firsts: Collection[UUID]) -> Judgement:
    """Return the judgement with a note if its image is the first of its device model."""
    if judgement.job.subject_id not in firsts:
        return judgement
    return replace(judgement, warnings=(*judgement.warnings, _warning(make_warning("first_seen_device"))))


def record(engine: Engine, judgements: Sequence[Judgement], *, policy: QueuePolicy) -> bool:
    """Write the whole batch in one transaction; a job whose lease was lost drops its own rows only.

    What a model says that was recalled meanwhile is not recorded: its images are judged anew.

    Returns
    -------
    bool
        The model in hand was recalled.
    """
    with session_scope(engine) as session:
        now = db_now(session)
        recalled = facts.recalled_models(session)
        dropped = [judgement for judgement in judgements if _is_of(judgement, recalled)]
        queue.release(session, [judgement.job for judgement in dropped], now=now + RECALLED_RETRY)
        kept = [judgement for judgement in judgements if judgement not in dropped]
        firsts = facts.note_devices(session, devices_of(kept), now=now)  # before any study's row is taken
        for judgement in sorted(kept, key=lambda one: one.job.study_id):  # one order for all: no deadlock
            try:
                with session.begin_nested():
                    _record_one(session, with_first_seen(judgement, firsts), policy, now)
            except LostLease:
                logger.warning(
                    "A result was dropped: the job went to another worker",
                    extra={"action": "lease_lost", "job_id": judgement.job.id},
                )
    if dropped:
        extra = {"action": "recalled_dropped", "images": len(dropped)}
        logger.warning("The model was recalled: its images are judged anew", extra=extra)
    return bool(dropped)


def _is_of(judgement: Judgement, models: Collection[tuple[str, str]]) -> bool:
    return any((prediction.model_name, prediction.model_version) in models for prediction in judgement.predictions)


def _record_one(session: Session, judgement: Judgement, policy: QueuePolicy, now: datetime) -> None:
    job = judgement.job
    if judgement.is_store_away:
        queue.release(session, [job], now=now + STORE_RETRY)
        return
    if judgement.error is not None:
        is_gone = judgement.is_gone
        if queue.fail(session, job, error=judgement.error, now=now, policy=policy, permanent=is_gone):
            facts.record_failure(session, job.subject_id, error_text=judgement.error, is_gone=is_gone, now=now)
        return
    queue.finish(session, job, now=now)
    facts.record_judgement(
        session,
        job.subject_id,
        predictions=judgement.predictions,
        warnings=judgement.warnings,
        voi=judgement.voi,
        device=judgement.device,
        view=judgement.view,
        now=now,
    )
