"""What `/predict` takes and gives, in the keys that small pneumonia APIs have in common."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from pacs_node.web.schemas import Body, ModelName, Schema, WarningOut, Written

BATCH_MAX = 64
SUCCESS: Literal["success"] = "success"
NOT_ANALYSED: Literal["not_analysed"] = "not_analysed"
UNDETERMINED = "UNDETERMINED"
NOTE = "Research use only: not a medical device. A radiologist decides."

PatientId = Annotated[str, Written, Field(max_length=64)]


class _Options(Body):
    use_tta: bool = Field(False, description="The mean over the image and four small moves of it: five times the work.")
    gradcam: bool = Field(False, description="Also draw where the probability comes from, as a PNG data URL.")
    age_years: int | None = Field(
        None,
        ge=0,
        le=150,
        examples=[4],
        description="The patient's age in completed years: the model is calibrated by age, and not for all ages. "
        "A DICOM object says it itself.",
    )


class Fields(_Options):
    """The form of `/predict`, beside the file."""

    patient_id: PatientId | None = Field(
        None, examples=["SYN-0001"], description="Given back in the answer, and kept nowhere."
    )


class BatchFields(_Options):
    """The form of `/predict/batch`, beside the files."""

    patient_id: list[PatientId] = Field(
        [],
        max_length=BATCH_MAX,
        examples=[["SYN-0001", "SYN-0002"]],
        description="One for each file in order, or none.",
    )


class ImageSize(Schema):
    """Pixels of the image as it was sent; 0 where it could not be read."""

    width: int = Field(examples=[1024])
    height: int = Field(examples=[1024])


class PredictionAnswer(Schema):
    """What the model says about one image."""

    model_config = ConfigDict(protected_namespaces=())
    status: Literal["success", "not_analysed"] = Field(examples=["success"])
    prediction: str | None = Field(
        examples=["PNEUMONIA"], description="`NORMAL`, `PNEUMONIA`, or `UNDETERMINED`: too close to the threshold."
    )
    confidence: float | None = Field(
        examples=[97.31], description="Percent: how far the probability leans to either side."
    )
    probabilities: dict[str, float] | None = Field(examples=[{"NORMAL": 0.0269, "PNEUMONIA": 0.9731}])
    p_pneumonia: float | None = Field(examples=[0.9731])
    threshold: float | None = Field(examples=[0.5], description="Pneumonia at this probability and above.")
    processing_time_ms: float = Field(examples=[41.7])
    timestamp: datetime
    patient_id: str | None = Field(examples=["SYN-0001"])
    image_size: ImageSize
    warnings: list[WarningOut] = Field(description="With severity `forbids`: why there is no answer.")
    model: ModelName
    note: str = NOTE
    gradcam: str | None = Field(examples=[None], description="A PNG as a data URL, where one was asked for.")


class BatchItem(PredictionAnswer):
    """The answer to one file of a batch."""

    index: int = Field(description="Its place among the files, from 0.")
    filename: str


class BatchRefusal(Schema):
    """A file of a batch that was not looked at."""

    index: int
    filename: str
    status: Literal["error"]
    code: int = Field(examples=[415], description="The HTTP status that it would have got alone.")
    detail: str = Field(examples=["The upload is none of JPEG, PNG and DICOM (by its first bytes)."])


class BatchAnswer(Schema):
    """The answers to all files, in their order."""

    status: Literal["success"]
    count: int
    results: list[BatchItem | BatchRefusal]
    processing_time_ms: float
    timestamp: datetime
    note: str = NOTE


def _form_of(fields: type[Body], file: str, content: dict[str, Any]) -> dict[str, Any]:
    schema = fields.model_json_schema()
    schema["properties"] = {file: content} | schema["properties"]
    schema["required"] = [file]
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


_FILE = {"type": "string", "format": "binary", "description": "JPEG or PNG of 8 bits, or a DICOM object."}
FORM = _form_of(Fields, "file", _FILE)
BATCH_FORM = _form_of(BatchFields, "files", {"type": "array", "items": _FILE, "minItems": 1, "maxItems": BATCH_MAX})
