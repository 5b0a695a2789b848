"""Uploads: what the first bytes decide, what a picture is worth, and what is refused before a pixel is decoded."""

from __future__ import annotations

import io
import pickle
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from models.pictures import PREVIEW_SIDE, Format, Refusal, UploadRefused, examine_upload, format_of
from models.preprocess import from_array, squash
from models.suitability import Severity
from tests.builders import as_bytes, data_folder, draw_chest, make_card, make_radiograph

CARD = make_card()


def chest(rows: int = 480, columns: int = 400) -> Image.Image:
    return Image.fromarray(np.rint(255 * draw_chest(rows, columns, seed=3)).astype(np.uint8))


def encoded(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def examined(content: bytes, **options: Any) -> Any:
    return examine_upload(content, CARD, age_policy="refuse", **options).examination


def codes(content: bytes, **options: Any) -> set[str]:
    return {warning.code for warning in examined(content, **options).warnings}


def claiming_png(columns: int, rows: int) -> bytes:
    """Return a PNG of a few hundred bytes that claims so many pixels."""
    header = struct.pack(">IIBBBBB", columns, rows, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(100_000))), (b"IEND", b"")]
    parts = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_first_bytes_decide_the_format() -> None:
    assert format_of(encoded(chest(), "JPEG")) is Format.JPEG
    assert format_of(encoded(chest())) is Format.PNG
    assert format_of(as_bytes(make_radiograph(rows=64, columns=64))) is Format.DICOM


@pytest.mark.parametrize(
    "content", [b"", b"GIF89a", b"<svg/>", b"%PDF-1.7", b"\xff\xd8", b"\x89PNG", b"MZ" + bytes(200)]
)
def test_anything_else_is_refused(content: bytes) -> None:
    with pytest.raises(UploadRefused) as refused:
        examine_upload(content, CARD, age_policy="refuse")
    assert refused.value.refusal is Refusal.FORMAT
    again = pickle.loads(pickle.dumps(refused.value))
    assert (again.refusal, again.sentence) == (refused.value.refusal, refused.value.sentence)


def test_picture_is_read_as_training_reads_it() -> None:
    picture = chest()
    expected_1HW = squash(from_array(np.asarray(picture)), CARD.input_size).numpy()
    assert np.array_equal(examined(encoded(picture)).image_1HW, expected_1HW)
    in_colour = encoded(picture.convert("RGB"))
    assert np.array_equal(examined(in_colour).image_1HW, expected_1HW)


def test_real_jpegs_are_read_as_training_reads_them() -> None:
    folder = data_folder("kermany224", "val")
    for path in sorted(folder.rglob("*.jpeg"))[::4]:
        with Image.open(path) as picture:
            expected_1HW = squash(from_array(np.asarray(picture.convert("L"))), CARD.input_size).numpy()
        examination = examined(path.read_bytes())
        assert examination.is_fit, examination.warnings
        assert np.array_equal(examination.image_1HW, expected_1HW)


def test_what_a_picture_cannot_say_is_said_as_warnings() -> None:
    assert {"age_unknown", "view_unknown"} <= codes(encoded(chest()))
    assert "lossy_source" in codes(encoded(chest(), "JPEG", quality=90))
    assert {"stored_in_colour", "lossy_source"} <= codes(encoded(chest().convert("RGB"), "JPEG"))
    examination = examined(encoded(chest()))
    assert (examination.is_fit, examination.rows, examination.columns) == (True, 480, 400)
    assert examination.voi == "displayed"


def test_age_that_the_sender_knows_chooses_and_forbids() -> None:
    assert examined(encoded(chest()), age_years=4).age_years == 4
    assert "age_unknown" not in codes(encoded(chest()), age_years=4)
    assert codes(encoded(chest()), age_years=60) == {"age_outside_card"}
    warned = examine_upload(encoded(chest()), CARD, age_policy="warn", age_years=60).examination
    assert warned.is_fit
    assert ("age_outside_card", Severity.WARNING) in [(one.code, one.severity) for one in warned.warnings]


@pytest.mark.parametrize(
    ("picture", "code"),
    [
        (chest(100, 90), "low_resolution"),
        (Image.new("L", (300, 300), 90), "blank_image"),
        (Image.merge("RGB", [chest(), chest().point(lambda grey: 255 - grey), chest()]), "colour"),
        (Image.effect_noise((300, 300), 80), "no_chest_seen"),
    ],
)
def test_picture_that_may_not_be_judged_says_why_and_nothing_else(picture: Image.Image, code: str) -> None:
    examination = examined(encoded(picture))
    assert examination.image_1HW is None
    assert code in {warning.code for warning in examination.warnings}
    assert {warning.severity for warning in examination.warnings} == {Severity.FORBIDS}


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_broken_picture_is_undecodable_not_an_error(kind: str) -> None:
    content = encoded(chest(), kind)
    assert codes(content[: len(content) // 2]) == {"undecodable"}
    assert codes(content[:16]) == {"undecodable"}


def test_animation_is_no_radiograph() -> None:
    frames = encoded(chest(), "PNG", save_all=True, append_images=[chest().point(lambda grey: grey // 2)])
    assert "several_frames" in codes(frames)


def test_bomb_is_refused_by_its_header() -> None:
    for size in ((60_000, 60_000), (8_000, 7_000)):
        with pytest.raises(UploadRefused) as refused:
            examined(claiming_png(*size))
        assert refused.value.refusal is Refusal.PIXELS


def test_sixteen_bit_picture_is_refused_as_in_training() -> None:
    deep = Image.fromarray((draw_chest(300, 300, seed=1) * 4095).astype(np.uint16))
    with pytest.raises(UploadRefused) as refused:
        examined(encoded(deep))
    assert refused.value.refusal is Refusal.BITS


def test_picture_is_turned_as_its_exif_says() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # Orientation: to be turned a quarter clockwise
    sideways = chest().transpose(Image.Transpose.ROTATE_90)
    examination = examined(encoded(sideways, "JPEG", exif=exif, quality=95))
    assert (examination.rows, examination.columns) == (480, 400)


def test_dicom_goes_through_the_same_door_as_in_the_node() -> None:
    examination = examined(as_bytes(make_radiograph(seed=2, rows=300, columns=260)))
    assert examination.is_fit
    assert (examination.rows, examination.columns, examination.age_years) == (300, 260, 4)
    lateral = make_radiograph(seed=2, rows=300, columns=260, view_position="LL")
    assert codes(as_bytes(lateral)) == {"not_frontal"}
    assert not examined(b"\0" * 128 + b"DICM" + b"nonsense").is_fit


def test_preview_is_made_where_asked_for_and_the_image_is_fit() -> None:
    def preview(content: bytes) -> Any:
        return examine_upload(content, CARD, age_policy="refuse", has_preview=True).preview_HW

    assert preview(encoded(chest(1200, 1000))).shape == (PREVIEW_SIDE, round(PREVIEW_SIDE * 1000 / 1200))
    assert preview(encoded(chest())).dtype == np.uint8
    assert preview(as_bytes(make_radiograph(seed=2, rows=300, columns=260))).shape == (300, 260)
    assert preview(encoded(chest(100, 90))) is None
