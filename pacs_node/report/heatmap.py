"""The heat map as a picture that every PACS shows: a Secondary Capture, RGB, with its warning burned in. Pure.

Takes a radiograph as displayed and the bare map; gives a data set. Hides colours, banner and module attributes.
Shapes: H rows, W columns of the radiograph; h, w of the map; C red, green, blue.
"""

from __future__ import annotations

import warnings

import numpy as np
from highdicom.sc import SCImage
from PIL import Image, ImageDraw, ImageFont
from pydicom import config
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from db.facts import ImageFacts, PredictionFacts
from pacs_node.report import codes
from pacs_node.report.document import coded, finish, general_equipment, header_of, made_at, picture_series_uid
from pacs_node.report.picture import Picture
from pacs_node.report.study import StudyReport, own_uid

SERIES_NUMBER = 9101
SHOWN_FROM = 0.15
"""Lower values of the map are not drawn."""
OPACITY = 0.45
"""Of the colour where the map is 1."""
BANNER = "AI RESULT - NOT FOR DIAGNOSIS - {model} {version}"
BANNER_SHARE = 1 / 40
"""Of the rows, for one line."""
LINE_MIN, LINE_MAX = 12, 64
"""Pixels."""
BLOCK_ROWS = 256
_PASSED_ON = ("PixelAspectRatio", "LossyImageCompressionRatio", "LossyImageCompressionMethod")


def build_heatmap(
    study: StudyReport, image: ImageFacts, prediction: PredictionFacts, picture: Picture, heatmap_hw: np.ndarray
) -> Dataset:
    """Return the heat map of one image of the study, as large as the image.

    Parameters
    ----------
    heatmap_hw
        uint8, 0 to 255 for 0 to 1.

    References
    ----------
    PS3.3 A.8.1 (Secondary Capture), C.8.6.1 (SC Equipment), C.7.6.1 (General Image)
    """
    card = study.cards[prediction.model_name, prediction.model_version]
    banner = BANNER.format(model=card.name, version=card.version)
    at, attributes = made_at(study), picture.attributes
    with warnings.catch_warnings(), config.disable_value_validation():
        warnings.simplefilter("ignore")  # a foreign UID may be any string; pydicom's warnings quote values
        document: Dataset = SCImage(
            pixel_array=overlay(picture.grey_HW, heatmap_hw, banner),
            photometric_interpretation="RGB",
            bits_allocated=8,
            coordinate_system="PATIENT",
            patient_orientation=("L", "F"),  # replaced below: highdicom takes no empty one
            study_instance_uid=study.study_instance_uid,
            series_number=SERIES_NUMBER,
            series_description="AI heat map (not for diagnosis)",
            instance_number=picture_number(study, image),
            transfer_syntax_uid=ExplicitVRLittleEndian,
            content_date=at.date(),
            content_time=at.time(),
            **picture_uids(study, image, "heatmap", SecondaryCaptureImageStorage),
            **general_equipment(study.node),
        )
        document.ConversionType, document.BurnedInAnnotation = "WSD", "YES"
        document.RecognizableVisualFeatures = "NO"
        document.DateOfSecondaryCapture, document.TimeOfSecondaryCapture = document.ContentDate, document.ContentTime
        document.PatientOrientation = attributes.get("PatientOrientation")
        document.LossyImageCompression = attributes.get("LossyImageCompression", "00")
        for keyword in _PASSED_ON:
            if keyword in attributes and (not keyword.startswith("Lossy") or document.LossyImageCompression == "01"):
                document[keyword] = attributes[keyword]
        name_body_part(document, attributes)
        document.SourceImageSequence = [source_of(image)]
        document.DerivationDescription = f"Grad-CAM overlay by {card.name} {card.version}"
        finish(document, header=header_of(study).dataset, at=at, node=study.node, models=[card])
    return document


def picture_uids(study: StudyReport, image: ImageFacts, kind: str, sop_class_uid: str) -> dict[str, str]:
    """Return highdicom's arguments for the UIDs of a picture of an image and of its series."""
    here, uid, report = study.installation_id, study.study_instance_uid, study.report
    return {
        "sop_instance_uid": str(own_uid(here, kind, uid, report.revision, sop_class_uid, image.sop_instance_uid)),
        "series_instance_uid": picture_series_uid(here, uid, kind, report.model_name),
    }


def name_body_part(document: Dataset, attributes: Dataset) -> None:
    """Copy what was examined; where the source does not say, *Laterality* is there and empty (PS3.3 C.7.3.1)."""
    for keyword in ("BodyPartExamined", "Laterality"):
        if keyword in attributes:
            document[keyword] = attributes[keyword]
    if "BodyPartExamined" not in document and "Laterality" not in document:
        document.Laterality = ""


def picture_number(study: StudyReport, image: ImageFacts) -> int:
    """Return the Instance Number: the revision, then the image's place in the study in three digits."""
    return 1000 * study.report.revision + study.place_of(image)


def source_of(image: ImageFacts) -> Dataset:
    """Return the item that names the radiograph a picture was made of (PS3.3 C.7.6.1.1.3)."""
    source = Dataset()
    source.ReferencedSOPClassUID, source.ReferencedSOPInstanceUID = image.sop_class_uid, image.sop_instance_uid
    source.PurposeOfReferenceCodeSequence = [coded(codes.SOURCE_IMAGE)]
    return source


def overlay(grey_HW: np.ndarray, heatmap_hw: np.ndarray, banner: str) -> np.ndarray:
    """Return the picture, uint8, shape (H, W, 3): the map in colours over the greys, the banner over its top."""
    rows, columns = grey_HW.shape
    heat_HW = np.asarray(Image.fromarray(heatmap_hw).resize((columns, rows), Image.Resampling.BILINEAR))
    table = _colour_table()
    rgb_HWC = np.empty((rows, columns, 3), dtype=np.uint8)
    for top in range(0, rows, BLOCK_ROWS):  # the indices of a whole detector would take 200 MB
        block = slice(top, top + BLOCK_ROWS)
        rgb_HWC[block] = table[heat_HW[block], grey_HW[block]]
    return _with_banner(rgb_HWC, banner)


def _colour_table() -> np.ndarray:
    """Return the colour of each value of the map over each grey, uint8, shape (256, 256, 3): blue, green, red."""
    heat = np.arange(256) / 255
    colour_hC = 255 * np.clip(1.5 - np.abs(4 * heat[:, None] - np.array([3, 2, 1])), 0, 1)
    weight_h = OPACITY * (heat >= SHOWN_FROM) * np.sqrt(heat)
    grey_g = np.arange(256)
    mixed = (1 - weight_h)[:, None, None] * grey_g[None, :, None] + (weight_h[:, None] * colour_hC)[:, None, :]
    table: np.ndarray = np.rint(mixed).astype(np.uint8)
    return table


def _with_banner(rgb_HWC: np.ndarray, banner: str) -> np.ndarray:
    """Write the banner in yellow on black over the top rows, whole: where it is too wide, on several lines."""
    rows, columns = rgb_HWC.shape[:2]
    height = min(max(round(rows * BANNER_SHARE), LINE_MIN), LINE_MAX)
    lines = [banner]
    if _width(banner, LINE_MIN) > columns:
        lines = banner.split(" - ")
    while height > LINE_MIN and max(_width(line, height) for line in lines) > columns:
        height -= 1
    picture = Image.fromarray(rgb_HWC)
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 0, columns, height * len(lines)), fill=(0, 0, 0))
    for number, line in enumerate(lines):
        draw.text((2, number * height), line, fill=(255, 255, 0), font=_font(height))
    return np.asarray(picture)


def _width(line: str, height: int) -> float:
    return 4 + float(_font(height).getlength(line))


def _font(height: int) -> ImageFont.FreeTypeFont:
    """Return Pillow's own font in a size whose ascenders and descenders fit into a line of that height, in pixels."""
    font = ImageFont.load_default(size=0.8 * height)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError("Pillow was built without FreeType: the banner cannot be written")
    return font
