"""Every code that an image can get: its severity, a sentence for a radiologist, and one for an admin."""

from __future__ import annotations

from enum import StrEnum


class Severity(StrEnum):
    """What a warning does to the answer."""

    NOTE = "note"
    WARNING = "warning"
    FORBIDS = "forbids"


CODES: dict[str, tuple[Severity, str]] = {
    "wrong_modality": (Severity.FORBIDS, "The object is not a CR or DX radiograph."),
    "not_chest": (Severity.FORBIDS, "The body part is not the chest."),
    "body_part_unknown": (Severity.FORBIDS, "The body part is not stated; only the chest is judged."),
    "not_frontal": (Severity.FORBIDS, "The view is lateral, oblique or decubitus; only frontal views are judged."),
    "turned": (Severity.FORBIDS, "The stored image is rotated or mirrored (Patient Orientation)."),
    "not_human": (Severity.FORBIDS, "The image is marked as a veterinary one."),
    "for_processing": (Severity.FORBIDS, "The image is raw detector data (For Processing)."),
    "derived_secondary": (Severity.FORBIDS, "The image is a derived secondary image, not an original radiograph."),
    "no_pixels": (Severity.FORBIDS, "The object holds no pixel data."),
    "undecodable": (Severity.FORBIDS, "The pixel data cannot be decoded."),
    "left_justified_bits": (Severity.FORBIDS, "The pixels are stored left-justified, which is not supported."),
    "colour": (Severity.FORBIDS, "The image is in colour."),
    "several_frames": (Severity.FORBIDS, "The image has several frames."),
    "low_resolution": (Severity.FORBIDS, "The image has fewer pixels than the model needs."),
    "blank_image": (Severity.FORBIDS, "The image shows one grey level only."),
    "age_outside_card": (Severity.FORBIDS, "The patient's age is outside the {ages} of the validation."),
    "processing_failed": (Severity.FORBIDS, "Processing failed."),
    "decode_timeout": (Severity.FORBIDS, "Decoding the pixel data took too long."),
    "inverted": (
        Severity.WARNING,
        "The grey levels look inverted (lungs lighter than the mediastinum): the answer is not reliable.",
    ),
    "looks_turned": (Severity.WARNING, "The chest looks rotated in the image: the answer is not reliable."),
    "exposure_out_of_range": (
        Severity.WARNING,
        "The image is much darker or lighter than the model's training images.",
    ),
    "low_contrast": (Severity.WARNING, "The image has much less contrast than the model's training images."),
    "clipped": (Severity.WARNING, "Large parts of the image are plain white or plain black: detail is lost."),
    "much_padding": (Severity.WARNING, "More than a third of the image is padding or an even border."),
    "age_unknown": (Severity.WARNING, "The patient's age is unknown; the model was validated at {ages}."),
    "view_unknown": (Severity.WARNING, "The view is not stated; the model judges frontal views only."),
    "secondary_capture": (Severity.WARNING, "The image is a secondary capture; its grey levels may have been changed."),
    "lut_shape_contradicts": (
        Severity.WARNING,
        "Presentation LUT Shape contradicts the Photometric Interpretation, which was followed.",
    ),
    "burned_in_annotation": (Severity.WARNING, "The pixels contain burned-in annotation."),
    "low_confidence": (
        Severity.WARNING,
        "Low confidence: the probability lies in the band of {low} to {high} % where the model abstains.",
    ),
    "lossy_source": (Severity.NOTE, "The image was compressed with loss."),
    "no_window": (Severity.NOTE, "The image brings no window; its grey levels were spread by percentiles."),
    "stored_in_colour": (
        Severity.NOTE,
        "The image is grey but stored in colour; its grey levels were taken as displayed.",
    ),
    "ap_or_portable": (
        Severity.NOTE,
        "The view is AP or portable: heart and mediastinum look wider than in a PA view.",
    ),
    "identity_incomplete": (Severity.NOTE, "The patient's ID, name or birth date is missing in the image."),
}

ADVICE: dict[str, str] = {
    "wrong_modality": "Send CR, DX or Secondary Capture of Modality CR or DX only; check the sender's routing rule.",
    "not_chest": "Nothing is to be done, unless Body Part Examined is wrong: then correct the modality's protocol.",
    "body_part_unknown": "Have the modality fill Body Part Examined or the study description.",
    "not_frontal": "Nothing is to be done, unless View Position is wrong: then correct the modality's protocol.",
    "turned": "Have the image turned at the modality and sent again. The node does not: a false orientation would swap "
    "left and right.",
    "not_human": "Nothing is to be done, unless it is a person: then correct species and description.",
    "for_processing": "Have the modality send its For Presentation images.",
    "derived_secondary": "Send the original image; take derived images out of the routing rule.",
    "no_pixels": "Check that the sender sends images and not their references alone.",
    "undecodable": "Look at the transfer syntax first: 12-bit JPEG Extended is not supported. Else have it sent again.",
    "left_justified_bits": "High Bit is not Bits Stored - 1 and the pixels do not prove what is meant: ask the vendor.",
    "colour": "Have the grey radiograph sent instead of a colour screenshot.",
    "several_frames": "Send single images; cine and tomosynthesis are stored only.",
    "low_resolution": "Send the full image, not a thumbnail.",
    "blank_image": "Check detector and window at the modality.",
    "age_outside_card": 'Allow it by age_policy = "warn", or install a model that was validated at this age.',
    "processing_failed": "Read the error on the Failed page, then run it again.",
    "decode_timeout": "Look at the file's size and transfer syntax; run it again, or raise the worker's time limit.",
    "inverted": "Compare Photometric Interpretation with the pixels; correct the modality or converter that writes it.",
    "looks_turned": "Have images turned upright at the modality; Patient Orientation is missing or false.",
    "exposure_out_of_range": "Compare window and exposure index with other images of this device.",
    "low_contrast": "Check the window or VOI LUT that the device writes.",
    "clipped": "Check the window that the device writes; the stored values may still hold the detail.",
    "much_padding": "Have the image cropped to the exposed field at the modality.",
    "age_unknown": "Have Patient's Age or Patient's Birth Date filled in, by a modality worklist for instance.",
    "view_unknown": "Have View Position or View Code Sequence filled in at the modality.",
    "secondary_capture": "Send the modality's own CR or DX object where there is one.",
    "lut_shape_contradicts": "Tell the vendor; check on one image that lungs are dark in the viewer.",
    "burned_in_annotation": "Keep such images out of training exports; they may name the patient.",
    "low_confidence": "Nothing is to be done; if it is frequent, look at drift and at the model's thresholds.",
    "lossy_source": "Send the image before it is compressed with loss, if there is a choice.",
    "no_window": "Have the device write a window or VOI LUT.",
    "stored_in_colour": "Send the grey original where there is one.",
    "ap_or_portable": "Nothing is to be done.",
    "identity_incomplete": "Have the study matched to the patient before its result is used.",
}
"""What an admin can do; the same keys as CODES."""
