"""Every code that an image can get: its severity, a sentence for a radiologist, and one for an admin."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """What a warning does to the answer."""

    NOTE = "note"
    WARNING = "warning"
    FORBIDS = "forbids"


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """One row of the table.

    Attributes
    ----------
    code
        Stands in databases, reports and other programs: it may be added, not changed.
    severity
        FORBIDS: the image is not analysed, because of this.
    text
        A whole sentence for a radiologist, without patient attributes; blanks in braces are filled in per image.
    advice
        What an admin can do.
    is_no_answer
        Whether a warning leaves the answer undetermined, whatever the probability.
    """

    code: str
    severity: Severity
    text: str
    advice: str
    is_no_answer: bool = False


_ROWS = (
    Code(
        code="wrong_modality",
        severity=Severity.FORBIDS,
        text="The object is not a CR or DX radiograph.",
        advice="Send CR, DX or Secondary Capture of Modality CR or DX only; check the sender's routing rule.",
    ),
    Code(
        code="not_chest",
        severity=Severity.FORBIDS,
        text="The body part is not the chest.",
        advice="Nothing is to be done, unless Body Part Examined is wrong: then correct the modality's protocol.",
    ),
    Code(
        code="no_chest_seen",
        severity=Severity.FORBIDS,
        text="The pixels do not look like an upright frontal chest radiograph.",
        advice="Look at the image: if it is a frontal chest, report it as a false refusal; else correct the tags "
        "at the modality.",
    ),
    Code(
        code="body_part_unknown",
        severity=Severity.FORBIDS,
        text="The body part is not stated; only the chest is judged.",
        advice="Have the modality fill Body Part Examined or the study description.",
    ),
    Code(
        code="not_frontal",
        severity=Severity.FORBIDS,
        text="The view is lateral, oblique or decubitus; only frontal views are judged.",
        advice="Nothing is to be done, unless View Position is wrong: then correct the modality's protocol.",
    ),
    Code(
        code="turned",
        severity=Severity.FORBIDS,
        text="The stored image is rotated or mirrored (Patient Orientation).",
        advice="Have the image turned at the modality and sent again. The node does not: a false orientation "
        "would swap left and right.",
    ),
    Code(
        code="not_human",
        severity=Severity.FORBIDS,
        text="The image is marked as a veterinary one.",
        advice="Nothing is to be done, unless it is a person: then correct species and description.",
    ),
    Code(
        code="for_processing",
        severity=Severity.FORBIDS,
        text="The image is raw detector data (For Processing).",
        advice="Have the modality send its For Presentation images.",
    ),
    Code(
        code="derived_secondary",
        severity=Severity.FORBIDS,
        text="The image is a derived secondary image, not an original radiograph.",
        advice="Send the original image; take derived images out of the routing rule.",
    ),
    Code(
        code="no_pixels",
        severity=Severity.FORBIDS,
        text="The object holds no pixel data.",
        advice="Check that the sender sends images and not their references alone.",
    ),
    Code(
        code="undecodable",
        severity=Severity.FORBIDS,
        text="The pixel data cannot be decoded.",
        advice="Look at the transfer syntax first: 12-bit JPEG Extended is not supported. Else have it sent again.",
    ),
    Code(
        code="left_justified_bits",
        severity=Severity.FORBIDS,
        text="The pixels are stored left-justified, which is not supported.",
        advice="High Bit is not Bits Stored - 1 and the pixels do not prove what is meant: ask the vendor.",
    ),
    Code(
        code="colour",
        severity=Severity.FORBIDS,
        text="The image is in colour.",
        advice="Have the grey radiograph sent instead of a colour screenshot.",
    ),
    Code(
        code="several_frames",
        severity=Severity.FORBIDS,
        text="The image has several frames.",
        advice="Send single images; cine and tomosynthesis are stored only.",
    ),
    Code(
        code="low_resolution",
        severity=Severity.FORBIDS,
        text="The image has fewer pixels than the model needs.",
        advice="Send the full image, not a thumbnail.",
    ),
    Code(
        code="blank_image",
        severity=Severity.FORBIDS,
        text="The image shows one grey level only.",
        advice="Check detector and window at the modality.",
    ),
    Code(
        code="age_outside_card",
        severity=Severity.FORBIDS,
        text="The patient's age is outside the {ages} of the validation.",
        advice='Allow it by age_policy = "warn", or install a model that was validated at this age.',
    ),
    Code(
        code="rejected_by_sender",
        severity=Severity.FORBIDS,
        text="Its sender rejected this image: it takes no part in the answer.",
        advice="Nothing is to be done: a rejection note (IHE IOCM) came, and what was said of the image is withdrawn.",
    ),
    Code(
        code="processing_failed",
        severity=Severity.FORBIDS,
        text="Processing failed.",
        advice="Read the error on the Admin page or in `pacs-node jobs list`, then run it again.",
    ),
    Code(
        code="decode_timeout",
        severity=Severity.FORBIDS,
        text="Decoding the pixel data took too long.",
        advice="Look at the file's size and transfer syntax; run it again, or raise the worker's time limit.",
    ),
    Code(
        code="inverted",
        severity=Severity.WARNING,
        text="The grey levels look inverted (lungs lighter than the mediastinum): the probability is no answer.",
        advice="Compare Photometric Interpretation with the pixels; correct the modality or converter that writes it.",
        is_no_answer=True,
    ),
    Code(
        code="looks_turned",
        severity=Severity.WARNING,
        text="The chest looks rotated in the image: the answer is not reliable.",
        advice="Have images turned upright at the modality; Patient Orientation is missing or false.",
    ),
    Code(
        code="exposure_out_of_range",
        severity=Severity.WARNING,
        text="The image is much darker or lighter than the model's training images.",
        advice="Compare window and exposure index with other images of this device.",
    ),
    Code(
        code="low_contrast",
        severity=Severity.WARNING,
        text="The image has much less contrast than the model's training images.",
        advice="Check the window or VOI LUT that the device writes.",
    ),
    Code(
        code="clipped",
        severity=Severity.WARNING,
        text="Large parts of the image are plain white or plain black: detail is lost.",
        advice="Check the window that the device writes; the stored values may still hold the detail.",
    ),
    Code(
        code="much_padding",
        severity=Severity.WARNING,
        text="More than a third of the image is padding or an even border.",
        advice="Have the image cropped to the exposed field at the modality.",
    ),
    Code(
        code="age_unknown",
        severity=Severity.WARNING,
        text="The patient's age is unknown: judged as {population}; the model was validated at {ages}.",
        advice="Have Patient's Age or Patient's Birth Date filled in, by a modality worklist for instance.",
    ),
    Code(
        code="depends_on_age",
        severity=Severity.WARNING,
        text="The answer depends on the patient's age, which is unknown: the probability is no answer.",
        advice="Have Patient's Age or Patient's Birth Date filled in; with an upload, state `age_years`.",
        is_no_answer=True,
    ),
    Code(
        code="view_unknown",
        severity=Severity.WARNING,
        text="The view is not stated; the model judges frontal views only.",
        advice="Have View Position or View Code Sequence filled in at the modality.",
    ),
    Code(
        code="secondary_capture",
        severity=Severity.WARNING,
        text="The image is a secondary capture; its grey levels may have been changed.",
        advice="Send the modality's own CR or DX object where there is one.",
    ),
    Code(
        code="lut_shape_contradicts",
        severity=Severity.WARNING,
        text="Presentation LUT Shape contradicts the Photometric Interpretation, which was followed.",
        advice="Tell the vendor; check on one image that lungs are dark in the viewer.",
    ),
    Code(
        code="burned_in_annotation",
        severity=Severity.WARNING,
        text="The pixels contain burned-in annotation.",
        advice="Keep such images out of training exports; they may name the patient.",
    ),
    Code(
        code="low_confidence",
        severity=Severity.WARNING,
        text="Low confidence: the probability lies in the band of {low} to {high} % where the model abstains.",
        advice="Nothing is to be done; if it is frequent, look at the Quality page and at the model's thresholds.",
    ),
    Code(
        code="out_of_distribution",
        severity=Severity.WARNING,
        text="The image is unlike the model's training images: the probability is no answer.",
        advice="If it is frequent for one device, compare its images with others, and validate the model on them "
        "before use.",
        is_no_answer=True,
    ),
    Code(
        code="lossy_source",
        severity=Severity.NOTE,
        text="The image was compressed with loss.",
        advice="Send the image before it is compressed with loss, if there is a choice.",
    ),
    Code(
        code="no_window",
        severity=Severity.NOTE,
        text="The image brings no window; its grey levels were spread by percentiles.",
        advice="Have the device write a window or VOI LUT.",
    ),
    Code(
        code="stored_in_colour",
        severity=Severity.NOTE,
        text="The image is grey but stored in colour; its grey levels were taken as displayed.",
        advice="Send the grey original where there is one.",
    ),
    Code(
        code="ap_or_portable",
        severity=Severity.NOTE,
        text="The view is AP or portable: heart and mediastinum look wider than in a PA view.",
        advice="Nothing is to be done.",
    ),
    Code(
        code="identity_incomplete",
        severity=Severity.NOTE,
        text="The patient's ID, name or birth date is missing in the image.",
        advice="Have the study matched to the patient before its result is used.",
    ),
    Code(
        code="first_seen_device",
        severity=Severity.NOTE,
        text="It is the first image of this device model that the node judged.",
        advice="Look at some images of this device model, and compare them with the reader's reports.",
    ),
)

CODES: dict[str, Code] = {row.code: row for row in _ROWS}
