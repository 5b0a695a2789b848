"""One image in, one answer out, for programs that know no DICOM node: JPEG, PNG or DICOM by a form.

The image enters no study and no report. What was said about it stands in the audit trail by the digest of its bytes;
`patient_id` is given back to the sender and goes nowhere else.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from fastapi import APIRouter, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.datastructures import FormData, UploadFile

from db.tables import Answer
from models.batcher import Busy, Closed
from models.errors import ModelError
from models.pictures import Refusal, UploadRefused
from pacs_node.report.answer import presence_of
from pacs_node.web.access import requires_to_predict
from pacs_node.web.context import Web, WebContext
from pacs_node.web.predict_schemas import (
    BATCH_FORM,
    BATCH_MAX,
    FORM,
    NOT_ANALYSED,
    SUCCESS,
    UNDETERMINED,
    BatchAnswer,
    BatchFields,
    BatchItem,
    BatchRefusal,
    Fields,
    ImageSize,
    PredictionAnswer,
)
from pacs_node.web.problems import documented
from pacs_node.web.schemas import ModelName, WarningOut
from pacs_node.web.uploads import Options, UploadAnswer

if TYPE_CHECKING:
    from models.predictor import Prediction

logger = logging.getLogger(__name__)

Form = TypeVar("Form", Fields, BatchFields)
router = APIRouter(
    tags=["predict"],
    dependencies=[requires_to_predict()],
    responses=documented(400, 408, 413, 415, 422, 429),
)

AT_ONCE = 8
"""Images of one batch that are in work at once: a batch leaves room for others."""
BUSY = "As many images are being judged as may be at once; ask again in a moment."
NO_MODEL = "No model can answer now; on the node, `pacs-node check` says why."
COME_AGAIN_S = "2"
FIELDS_MAX = BATCH_MAX + 8
FIELD_MAX_BYTES = 4096
_STATUS = {Refusal.FORMAT: 415, Refusal.PIXELS: 413, Refusal.BITS: 415}


@router.post("/predict", summary="Judge one image", openapi_extra=FORM)
async def predict(web: WebContext, request: Request) -> PredictionAnswer:
    """Judge one frontal chest radiograph: JPEG or PNG of 8 bits, or a DICOM object.

    `status` is `not_analysed` where the image is not one that the model may judge: `warnings` then hold the reasons,
    with severity `forbids`, and there is no probability. `prediction` is `UNDETERMINED` where the probability lies in
    the band in which the model abstains. The same bytes are judged by the same preprocessing as images in the PACS.
    """
    web.limits.take_predictions(web.caller)
    started = time.perf_counter()
    with _places(web, 1, request):
        async with _form(request, files=1) as form:
            fields = _fields(Fields, _without_files(form))
            file = _only_file(form, "file")
            said = await _said(web, file, fields)
    return _answer(said, fields.patient_id, started)


@router.post("/predict/batch", summary="Judge up to 64 images", openapi_extra=BATCH_FORM)
async def predict_batch(web: WebContext, request: Request) -> BatchAnswer:
    """Judge each image by itself and answer in the order of the files; one that is refused does not fail the rest.

    Give `patient_id` once per file, in their order, or not at all. Every image counts against the limit per minute.
    """
    started = time.perf_counter()
    web.limits.take_predictions(web.caller)  # before a place is held: the first image; the others once they are known
    with _places(web, AT_ONCE, request):
        async with _form(request, files=BATCH_MAX) as form:
            fields = _fields(BatchFields, _without_files(form, listed="patient_id"))
            files = _files(form, "files")
            if fields.patient_id and len(fields.patient_id) != len(files):
                raise _invalid("patient_id", "give one for each file, in their order, or none")
            web.limits.take_predictions(web.caller, len(files) - 1, asked=len(files))
            items = await _judged_in_turn(web, files, fields)
    return BatchAnswer(
        status=SUCCESS,
        count=len(items),
        results=items,
        processing_time_ms=_ms_since(started),
        timestamp=datetime.now(UTC),
    )


async def _judged_in_turn(web: Web, files: list[UploadFile], fields: BatchFields) -> list[BatchItem | BatchRefusal]:
    turn = asyncio.Semaphore(AT_ONCE)

    async def judged(index: int, file: UploadFile) -> BatchItem | BatchRefusal:
        async with turn:
            started, name = time.perf_counter(), file.filename or ""
            try:
                said = await _said(web, file, fields)
            except HTTPException as refusal:
                if refusal.status_code == 503:  # the node's fault, not this file's: the whole batch may come again
                    raise
                return BatchRefusal(
                    index=index, filename=name, status="error", code=refusal.status_code, detail=refusal.detail
                )
            answer = _answer(said, fields.patient_id[index] if fields.patient_id else None, started)
            return BatchItem(index=index, filename=name, **dict(answer))

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(judged(index, file)) for index, file in enumerate(files)]
    except ExceptionGroup as errors:  # the rest was cancelled: one reason is enough
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


async def _said(web: Web, file: UploadFile, fields: Fields | BatchFields) -> UploadAnswer:
    """Return what is said about one file, or the problem that it is answered with."""
    settings = web.settings.predict
    if (file.size or 0) > settings.max_upload_mb * 1e6:
        raise HTTPException(413, f"One image holds at most {settings.max_upload_mb:g} MB.")
    options = Options(use_tta=fields.use_tta, gradcam=fields.gradcam, age_years=fields.age_years)
    try:
        async with asyncio.timeout(settings.timeout_s):
            return await web.predictions.answer(await file.read(), options, web.caller)
    except UploadRefused as refused:
        raise HTTPException(_STATUS[refused.refusal], refused.sentence) from None
    except TimeoutError:
        raise _come_again(f"There was no answer within {settings.timeout_s:g} s.") from None
    except (Busy, Closed):
        raise _come_again(BUSY) from None
    except ModelError as error:
        logger.error("No model can answer", extra={"action": "no_model"}, exc_info=error)
        raise HTTPException(503, NO_MODEL) from error


def _come_again(detail: str) -> HTTPException:
    return HTTPException(503, detail, {"Retry-After": COME_AGAIN_S})


@contextmanager
def _places(web: Web, images: int, request: Request) -> Iterator[None]:
    """Hold places before the body is read: a busy node answers at once."""
    most = int(web.settings.predict.max_upload_mb * 1e6) * images
    length = request.headers.get("content-length", "")
    with ExitStack() as held:
        try:
            held.enter_context(web.predictions.admitted(images, min(most, int(length)) if length.isdecimal() else most))
        except Busy:
            raise _come_again(BUSY) from None
        yield


def _form(request: Request, *, files: int) -> Any:
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise HTTPException(415, "Send a form with the image as a file (multipart/form-data).")
    return request.form(max_files=files, max_fields=FIELDS_MAX, max_part_size=FIELD_MAX_BYTES)


def _without_files(form: FormData, listed: str = "") -> dict[str, Any]:
    """Return the fields as they were sent; `listed` may stand several times, of others the last one counts."""
    fields: dict[str, Any] = {name: value for name, value in form.multi_items() if isinstance(value, str)}
    if listed in fields:
        fields[listed] = [value for value in form.getlist(listed) if isinstance(value, str)]
    return fields


def _fields(model: type[Form], sent: dict[str, Any]) -> Form:
    try:
        return model.model_validate(sent)
    except ValidationError as error:
        errors = error.errors(include_input=False, include_url=False)
        raise RequestValidationError([_in_body(one) for one in errors]) from None


def _in_body(error: Any) -> dict[str, Any]:
    return {**error, "loc": ("body", *error["loc"])}


def _invalid(field: str, rule: str) -> RequestValidationError:
    return RequestValidationError([{"loc": ("body", field), "msg": rule, "type": "value_error"}])


def _files(form: FormData, name: str) -> list[UploadFile]:
    files = [value for field, value in form.multi_items() if isinstance(value, UploadFile) and field == name]
    strangers = [field for field, value in form.multi_items() if isinstance(value, UploadFile) and field != name]
    if strangers or not files:
        raise _invalid(name, f"send the image as a file in the field {name!r}, and no other file")
    return files


def _only_file(form: FormData, name: str) -> UploadFile:
    (file,) = _files(form, name)  # `max_files` has refused more
    return file


def _answer(said: UploadAnswer, patient_id: str | None, started: float) -> PredictionAnswer:
    """Return the answer in the words of the field."""
    named = {one.finding: one for one in said.predictions}
    first = _decisive(said)
    return PredictionAnswer(
        status=SUCCESS if first else NOT_ANALYSED,
        prediction=_word(said, first) if first else None,
        confidence=round(first.confidence, 2) if first else None,
        probabilities=_probabilities(said) if first else None,
        p_pneumonia=named["pneumonia"].probability if "pneumonia" in named else None,
        threshold=first.threshold if first else None,
        processing_time_ms=_ms_since(started),
        timestamp=datetime.now(UTC),
        patient_id=patient_id,
        image_size=ImageSize(width=said.columns, height=said.rows),
        warnings=[WarningOut.model_validate(warning) for warning in said.warnings],
        model=ModelName(name=said.card.name, version=said.card.version),
        gradcam=_data_url(said.heatmap_png) if said.heatmap_png else None,
    )


def _decisive(said: UploadAnswer) -> Prediction | None:
    """Return the prediction that the answer follows: present before undetermined before absent, then the likeliest."""
    weight = {Answer.PRESENT: 2, Answer.UNDETERMINED: 1}
    ordered = sorted(said.predictions, key=lambda one: (weight.get(presence_of(one), 0), one.probability))
    return ordered[-1] if ordered else None


def _word(said: UploadAnswer, decisive: Prediction) -> str:
    presence = presence_of(decisive)
    if presence is Answer.UNDETERMINED:
        return UNDETERMINED
    return (decisive.finding if presence is Answer.PRESENT else said.card.outputs[0]).upper()


def _probabilities(said: UploadAnswer) -> dict[str, float]:
    """Return every finding's probability, and the first output's where the findings are all the others."""
    found = {one.finding.upper(): one.probability for one in said.predictions}
    if {one.finding for one in said.predictions} != set(said.card.outputs[1:]):
        return found
    return {said.card.outputs[0].upper(): max(0.0, 1.0 - sum(found.values()))} | found


def _data_url(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"


def _ms_since(started: float) -> float:
    return round(1000 * (time.perf_counter() - started), 2)
