"""Where the map is over a half, as objects that a viewer can switch off: a presentation state, or a segmentation. Pure.

Takes a radiograph as displayed and the bare map; gives a data set that refers to the stored image, without its pixels.
Shapes: H rows, W columns of the radiograph; h, w of the map.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from highdicom import AlgorithmIdentificationSequence, PresentationLUTTransformation, pr, seg
from highdicom.color import CIELabColor
from PIL import Image
from pydicom import config
from pydicom.dataset import Dataset
from pydicom.uid import GrayscaleSoftcopyPresentationStateStorage, SegmentationStorage

from db.facts import ImageFacts, PredictionFacts
from pacs_node.report import codes, wording
from pacs_node.report.document import finish, general_equipment, header_of, made_at, reference_to
from pacs_node.report.heatmap import name_body_part, picture_number, picture_uids
from pacs_node.report.picture import LUTS, Picture
from pacs_node.report.study import StudyReport, own_uid

GSPS_SERIES_NUMBER = 9103
SEG_SERIES_NUMBER = 9105
OVER = 127
"""Of 255: the region is where the map is larger."""
CREATOR = "pacs-node^"
"""The caret makes it a name of today's form."""
_GREYS = ("RescaleIntercept", "RescaleSlope", "WindowCenter", "WindowWidth", "VOILUTFunction")


def build_gsps(
    study: StudyReport, image: ImageFacts, prediction: PredictionFacts, picture: Picture, heatmap_hw: np.ndarray
) -> Dataset | None:
    """Return a presentation state that draws an ellipse and the answer over the image; None without a region.

    References
    ----------
    PS3.3 A.33.1 (Grayscale Softcopy Presentation State), C.10.5 (Graphic Annotation: pixels from the top left edge)
    """
    box = _bounds(picture, heatmap_hw)
    if box is None:
        return None
    left, top, right, bottom = box
    middle_x, middle_y = (left + right) / 2, (top + bottom) / 2
    axes = np.array([[left, middle_y], [right, middle_y], [middle_x, top], [middle_x, bottom]])
    percent = wording.percent_text(prediction.probability, prediction.threshold)
    tracked = own_uid(
        study.installation_id, "tracking", study.study_instance_uid, prediction.finding, image.sop_instance_uid
    )
    ellipse = pr.GraphicObject(
        graphic_type="ELLIPSE",
        graphic_data=axes,
        units="PIXEL",
        tracking_id=f"{prediction.finding}/{study.place_of(image)}",
        tracking_uid=tracked,
    )
    words = pr.TextObject(
        text_value=f"AI: {prediction.finding} {percent} (not for diagnosis)", units="PIXEL", anchor_point=(right, top)
    )
    layer = pr.GraphicLayer(layer_name="AI", order=1, description="AI findings", display_color=CIELabColor(80, -5, 70))
    with warnings.catch_warnings(), config.disable_value_validation():
        warnings.simplefilter("ignore")  # a foreign UID may be any string; pydicom's warnings quote values
        reference = _reference(study, image, picture)
        document: Dataset = pr.GrayscaleSoftcopyPresentationState(
            referenced_images=[reference],
            series_number=GSPS_SERIES_NUMBER,
            series_description="AI finding (presentation state)",
            content_label="AI_FINDING",
            content_description="AI finding outline",
            content_creator_name=CREATOR,
            graphic_annotations=[
                pr.GraphicAnnotation(
                    referenced_images=[reference],
                    graphic_layer=layer,
                    graphic_objects=[ellipse],
                    text_objects=[words],
                )
            ],
            graphic_layers=[layer],
            presentation_lut_transformation=PresentationLUTTransformation(
                presentation_lut_shape="INVERSE" if picture.is_monochrome1 else "IDENTITY"
            ),
            **_common(study, image, "gsps", GrayscaleSoftcopyPresentationStateStorage),
        )
        at = made_at(study)
        document.PresentationCreationDate, document.PresentationCreationTime = f"{at:%Y%m%d}", f"{at:%H%M%S}"
        _finish(document, study, prediction, picture)
    return document


def build_seg(
    study: StudyReport, image: ImageFacts, prediction: PredictionFacts, picture: Picture, heatmap_hw: np.ndarray
) -> Dataset | None:
    """Return a binary segmentation of the region in the image's own matrix; None without a region.

    A radiograph has no frame of reference: each frame's *Derivation Image* ties it to the image (PS3.3 C.8.20.2).

    References
    ----------
    PS3.3 A.51 (Segmentation)
    """
    region_HW = _region(picture, heatmap_hw)
    if not region_HW.any():
        return None
    card = study.cards[prediction.model_name, prediction.model_version]
    segment = seg.SegmentDescription(
        segment_number=1,
        segment_label="AI attention over a half",
        segmented_property_category=study.concepts.segment_category,
        segmented_property_type=study.concepts.segment_type,
        algorithm_type="AUTOMATIC",
        algorithm_identification=AlgorithmIdentificationSequence(
            name=card.name, version=card.version, family=codes.ARTIFICIAL_INTELLIGENCE
        ),
    )
    at = made_at(study)
    with warnings.catch_warnings(), config.disable_value_validation():
        warnings.simplefilter("ignore")  # as above
        document: Dataset = seg.Segmentation(
            source_images=[_reference(study, image, picture)],
            pixel_array=region_HW[None].astype(np.uint8),
            segmentation_type="BINARY",
            segment_descriptions=[segment],
            series_number=SEG_SERIES_NUMBER,
            series_description="AI region (SEG)",
            content_label="AI_REGION",
            content_creator_name=CREATOR,
            content_date=at.date(),
            content_time=at.time(),
            **_common(study, image, "seg", SegmentationStorage),
        )
        document.PatientOrientation = picture.attributes.get("PatientOrientation")
        _name_dimensions(document, study, image)
        _finish(document, study, prediction, picture)
    return document


def _region(picture: Picture, heatmap_hw: np.ndarray) -> np.ndarray:
    """Return where the map is over a half, bool, shape (H, W)."""
    rows, columns = picture.grey_HW.shape
    region_HW: np.ndarray = (
        np.asarray(Image.fromarray(heatmap_hw).resize((columns, rows), Image.Resampling.BILINEAR)) > OVER
    )
    return region_HW


def _bounds(picture: Picture, heatmap_hw: np.ndarray) -> tuple[float, float, float, float] | None:
    """Return left, top, right, bottom edge of the region, in pixels from the image's top left edge."""
    row, column = np.nonzero(_region(picture, heatmap_hw))
    if not len(row):
        return None
    return float(column.min()), float(row.min()), float(column.max() + 1), float(row.max() + 1)


def _reference(study: StudyReport, image: ImageFacts, picture: Picture) -> Dataset:
    """Return what highdicom needs of the image, how it is displayed included."""
    reference = reference_to(study.study_instance_uid, image)
    reference.Rows, reference.Columns = picture.grey_HW.shape
    reference.SamplesPerPixel = 1
    for keyword in (*_GREYS, *LUTS):
        if keyword in picture.attributes:
            reference[keyword] = picture.attributes[keyword]
    return reference


def _common(study: StudyReport, image: ImageFacts, kind: str, sop_class_uid: str) -> dict[str, Any]:
    uids = picture_uids(study, image, kind, sop_class_uid)
    return {"instance_number": picture_number(study, image), **uids, **general_equipment(study.node)}


def _finish(document: Dataset, study: StudyReport, prediction: PredictionFacts, picture: Picture) -> None:
    card = study.cards[prediction.model_name, prediction.model_version]
    if document.SOPClassUID == SegmentationStorage:  # Laterality may not be there: anatomy belongs to its segments
        if "BodyPartExamined" in picture.attributes:
            document.BodyPartExamined = picture.attributes.BodyPartExamined
    else:
        name_body_part(document, picture.attributes)
    finish(document, header=header_of(study).dataset, at=made_at(study), node=study.node, models=[card])


def _name_dimensions(document: Dataset, study: StudyReport, image: ImageFacts) -> None:
    """Give the dimensions a UID that is the same whenever the object is built; highdicom draws one."""
    uid = own_uid(study.installation_id, "dimensions", document.SOPInstanceUID, image.sop_instance_uid)
    for item in (*document.DimensionOrganizationSequence, *document.DimensionIndexSequence):
        item.DimensionOrganizationUID = uid
