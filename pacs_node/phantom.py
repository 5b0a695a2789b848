"""A drawn chest phantom as a valid CR, DX or Secondary Capture data set: for the demo, the benches and the tests.

Takes options, gives a pydicom data set in memory. No patient stands behind it: the pixels are drawn and the word
PHANTOM is written into them. One seed is one image: seeds differ in pixels and in UIDs.
"""

from __future__ import annotations

import uuid
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
)

SERIES_DESCRIPTION = "PHANTOM, drawn, not a patient"

_NAMESPACE = uuid.UUID("6d3b4a58-3c1d-5a0e-9a55-2a1f6f0c7e11")
_SOP_CLASSES = {
    "DX": DigitalXRayImageStorageForPresentation,
    "CR": ComputedRadiographyImageStorage,
    "SC": SecondaryCaptureImageStorage,
}
_VIEW_CODES = {
    "PA": ("272479007", "SCT", "postero-anterior"),
    "AP": ("399348003", "SCT", "antero-posterior"),
    "LL": ("399173006", "SCT", "left lateral"),
    "RL": ("399198007", "SCT", "right lateral"),
}


def make_radiograph(
    *,
    modality: str = "DX",
    rows: int = 512,
    columns: int = 420,
    bits_stored: int = 12,
    photometric: str = "MONOCHROME2",
    seed: int = 1,
    study_instance_uid: str | None = None,
    series_instance_uid: str | None = None,
    sop_instance_uid: str | None = None,
    patient_id: str | None = None,
    patient_name: str = "Phantom^Drawn",
    patient_age: str | None = "004Y",
    patient_birth_date: str | None = None,
    study_date: date | None = None,
    body_part: str | None = "CHEST",
    view_position: str | None = "PA",
    transfer_syntax: UID = ExplicitVRLittleEndian,
    pixels: np.ndarray | None = None,
    **attributes: Any,
) -> FileDataset:
    """Return a valid frontal chest radiograph as a data set with file meta, not yet written.

    Parameters
    ----------
    modality
        "DX", "CR", or "SC" (Secondary Capture SOP class with Modality CR, as converted archives hold them).
    bits_stored
        1 to 16; up to 8 are allocated in 8 bits, else in 16.
    photometric
        "MONOCHROME2" or "MONOCHROME1"; the displayed image is the same.
    seed
        Distinct seeds give distinct pixels and UIDs; the same seed gives the same image again.
    patient_birth_date
        DICOM DA; by default it agrees with `patient_age` on the study date.
    study_date
        Today (UTC) by default: a node may hold back old studies.
    pixels
        Grey values to store instead of the drawing: float, shape (Rows, Columns), range [0, 1], lung dark.
    **attributes
        DICOM keywords set last, whatever was set before; None deletes.

    References
    ----------
    PS3.3 A.26 (Digital X-Ray), A.2 (Computed Radiography), A.8.1 (Secondary Capture)
    """
    day = study_date or datetime.now(UTC).date()
    grey_HW = draw_chest(rows, columns, seed=seed) if pixels is None else pixels
    sop_class = _SOP_CLASSES[modality]
    dataset = _new_file(sop_class, UID(sop_instance_uid or _uid("instance", seed)), transfer_syntax)
    dataset.StudyInstanceUID = study_instance_uid or _uid("study", seed)
    dataset.SeriesInstanceUID = series_instance_uid or _uid("series", seed)
    _add_study(dataset, day, seed)
    _add_patient(dataset, day, patient_age, patient_birth_date)
    dataset.PatientID = patient_id if patient_id is not None else f"PHANTOM-{seed}"
    dataset.PatientName = patient_name
    dataset.Modality = "CR" if modality == "SC" else modality
    dataset.BodyPartExamined, dataset.ViewPosition = body_part, view_position
    _add_pixels(dataset, grey_HW, bits_stored, photometric)
    if modality == "DX":
        _add_dx_modules(dataset, photometric, body_part, view_position)
    if modality == "SC":
        dataset.ConversionType = "WSD"
    _set_last(dataset, {"BodyPartExamined": body_part, "ViewPosition": view_position} | attributes)
    return dataset


def draw_chest(rows: int, columns: int, *, seed: int = 1) -> np.ndarray:
    """Draw a frontal chest: float32, shape (rows, columns), range [0, 1], lung dark, PHANTOM written at the top."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:rows, 0:columns].astype(np.float32)
    y, x = y / rows, x / columns

    def blob(cx: float, cy: float, rx: float, ry: float, power: int = 2) -> np.ndarray:
        return np.asarray(np.exp(-((((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2) ** power)))

    shift, width = random.normal(0, 0.008), random.normal(0.15, 0.006)
    grey = 0.06 + 0.72 * blob(0.5 + shift, 0.62, 0.52, 0.62, 4)  # the body before a black background
    lungs = blob(0.30 + shift, 0.50, width, 0.31) + blob(0.70 + shift, 0.50, width * 0.96, 0.31)
    grey -= 0.52 * lungs
    grey += 0.16 * blob(0.5 + shift, 0.5, 0.045, 0.6)  # spine and mediastinum
    grey += 0.34 * blob(0.57 + shift, 0.66, 0.14, 0.14)  # heart
    grey += 0.30 * blob(0.33 + shift, 0.90, 0.20, 0.12) + 0.26 * blob(0.68 + shift, 0.92, 0.20, 0.11)  # diaphragm
    ribs = np.sin((y - 0.55 * (x - 0.5 - shift) ** 2) * 58.0 + random.uniform(0, 6.28))
    grey += 0.035 * ribs * lungs
    if seed % 2:  # every second phantom has an opacity in a lung
        side, height = random.choice([0.29, 0.71]), random.uniform(0.45, 0.68)
        grey += 0.26 * blob(float(side) + shift, height, 0.07, 0.06, 1)
    grey += 0.012 * random.standard_normal(grey.shape, dtype=np.float32)
    drawn: np.ndarray = np.clip(np.maximum(grey, _written("PHANTOM", rows, columns)), 0.0, 1.0)
    return drawn.astype(np.float32)


def _written(text: str, rows: int, columns: int) -> np.ndarray:
    canvas = Image.new("L", (columns, rows))
    font = ImageFont.load_default(size=max(8, rows // 28))
    ImageDraw.Draw(canvas).text((columns // 40, rows // 60), text, fill=230, font=font)
    return np.asarray(canvas, dtype=np.float32) / 255.0


def _uid(kind: str, seed: int) -> UID:
    return UID(f"2.25.{uuid.uuid5(_NAMESPACE, f'{kind}/{seed}').int}")


def _new_file(sop_class: UID, sop_instance_uid: UID, transfer_syntax: UID) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = sop_class, sop_instance_uid
    meta.TransferSyntaxUID = transfer_syntax
    dataset = FileDataset(
        "",
        {},
        file_meta=meta,
        preamble=b"\0" * 128,
        is_implicit_VR=transfer_syntax.is_implicit_VR,
        is_little_endian=transfer_syntax.is_little_endian,
    )
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class, sop_instance_uid
    return dataset


def _add_study(dataset: Dataset, day: date, seed: int) -> None:
    for kind in ("Study", "Series", "Acquisition", "Content"):
        setattr(dataset, f"{kind}Date", f"{day:%Y%m%d}")
        setattr(dataset, f"{kind}Time", "101112")
    dataset.ImageType = ["ORIGINAL", "PRIMARY", ""]
    dataset.AccessionNumber = f"PH{seed}"
    dataset.Manufacturer, dataset.ManufacturerModelName = "Synthetic", "phantom"
    dataset.DeviceSerialNumber, dataset.SoftwareVersions = "1", "1"
    dataset.InstitutionName, dataset.ReferringPhysicianName = "Test hospital", ""
    dataset.StudyDescription, dataset.SeriesDescription = "XR chest", SERIES_DESCRIPTION
    dataset.ProcedureCodeSequence = [_code("399208008", "SCT", "Plain chest X-ray")]
    dataset.StudyID, dataset.SeriesNumber, dataset.InstanceNumber, dataset.AcquisitionNumber = "1", 1, 1, 1


def _add_patient(dataset: Dataset, day: date, age: str | None, birth_date: str | None) -> None:
    dataset.PatientSex = "F"
    dataset.IssuerOfPatientID = "TESTHOSP"
    if age is not None:
        dataset.PatientAge = age
    if birth_date is None and age is not None:
        days_in = {"D": 1.0, "W": 7.0, "M": 30.44, "Y": 365.25}[age[-1]]
        birth_date = f"{day - timedelta(days=int(age[:-1]) * days_in + 5):%Y%m%d}"
    dataset.PatientBirthDate = birth_date or ""


def _add_pixels(dataset: Dataset, grey_HW: np.ndarray, bits_stored: int, photometric: str) -> None:
    stored = np.rint(np.clip(grey_HW, 0, 1) * (2**bits_stored - 1)).astype(np.uint16)
    if photometric == "MONOCHROME1":
        stored = (2**bits_stored - 1 - stored).astype(np.uint16)
    is_big_endian = dataset.file_meta.TransferSyntaxUID == ExplicitVRBigEndian
    stored = stored.astype(np.uint8 if bits_stored <= 8 else ">u2" if is_big_endian else "<u2")
    dataset.PatientOrientation = ["L", "F"]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, photometric, 0
    dataset.Rows, dataset.Columns = stored.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8 * stored.itemsize, bits_stored, bits_stored - 1
    dataset.ImagerPixelSpacing = [0.8, 0.8]
    dataset.BurnedInAnnotation = "NO"  # the word PHANTOM identifies nobody (PS3.3 C.7.6.1)
    dataset.WindowCenter, dataset.WindowWidth = 2 ** (bits_stored - 1), 2**bits_stored
    dataset.PixelData = stored.tobytes() + b"\0" * (stored.nbytes % 2)
    dataset["PixelData"].VR = "OB" if bits_stored <= 8 else "OW"


def _add_dx_modules(dataset: Dataset, photometric: str, body_part: str | None, view_position: str | None) -> None:
    is_inverse = photometric == "MONOCHROME1"
    dataset.PresentationIntentType = "FOR PRESENTATION"
    dataset.ImageLaterality = "U"
    if body_part is not None and body_part.upper() == "CHEST":
        dataset.AnatomicRegionSequence = [_code("816094009", "SCT", "Chest")]
    if view_position in _VIEW_CODES:
        dataset.ViewCodeSequence = [_code(*_VIEW_CODES[view_position])]
        dataset.ViewCodeSequence[0].ViewModifierCodeSequence = []
    dataset.PixelIntensityRelationship, dataset.PixelIntensityRelationshipSign = "LOG", 1 if is_inverse else -1
    dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = 0, 1, "US"
    dataset.PresentationLUTShape = "INVERSE" if is_inverse else "IDENTITY"
    dataset.LossyImageCompression = "00"
    dataset.AcquisitionContextSequence = []
    dataset.PositionerType, dataset.DetectorType, dataset.DetectorID, dataset.KVP = "", "DIRECT", "D1", 120


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def _set_last(dataset: Dataset, attributes: dict[str, Any]) -> None:
    for keyword, value in attributes.items():
        if value is not None:
            setattr(dataset, keyword, value)
        elif keyword in dataset:
            delattr(dataset, keyword)
