"""CONFORMANCE.md says what the code negotiates."""

from __future__ import annotations

import re
from pathlib import Path

from pacs_node.conformance import (
    DATA_TRANSFER_SYNTAXES,
    IMAGE_TRANSFER_SYNTAXES,
    STORAGE_CLASSES,
    STORAGE_COMMITMENT,
    STUDY_ROOT_FIND,
    STUDY_ROOT_MOVE,
    VERIFICATION,
)
from pacs_node.delivery.destinations import contexts_of
from pacs_node.identity import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from pacs_node.schedule import COMMITMENTS_DAYS
from pacs_node.settings import DestinationSettings, DicomSettings

STATEMENT = (Path(__file__).parents[2] / "CONFORMANCE.md").read_text(encoding="utf-8")


def rows() -> dict[str, tuple[str, str]]:
    """Return SOP Class UID -> (kind of transfer syntaxes, what happens) of section 4.2.2."""
    found = re.findall(r"^\| [^|]+ \| `([0-9.]+)` \| (images|data) \| ([^|]+) \|$", STATEMENT, flags=re.M)
    return {uid: (kind, text) for uid, kind, text in found}


def test_statement_names_exactly_the_sop_classes_that_are_negotiated() -> None:
    assert set(rows()) == {VERIFICATION, *(storage_class.uid for storage_class in STORAGE_CLASSES)}


def test_statement_says_what_is_judged_and_in_which_syntaxes() -> None:
    for storage_class in STORAGE_CLASSES:
        kind, text = rows()[storage_class.uid]
        assert (text == "stored, never judged") == (storage_class.not_judged is not None), storage_class.name
        expected = IMAGE_TRANSFER_SYNTAXES if kind == "images" else DATA_TRANSFER_SYNTAXES
        assert storage_class.transfer_syntaxes == expected, storage_class.name


def test_statement_lists_transfer_syntaxes_in_their_order() -> None:
    listed = tuple(re.findall(r"^\d+\. .* `([0-9.]+)`$", STATEMENT, flags=re.M))
    assert listed == IMAGE_TRANSFER_SYNTAXES + DATA_TRANSFER_SYNTAXES


def test_statement_names_the_product_and_its_limits() -> None:
    defaults = DicomSettings()
    for value in (IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME, defaults.ae_title, defaults.max_pdu_bytes):
        assert f"`{value}`" in STATEMENT or f"| {value} (" in STATEMENT, value


def section(heading: str) -> str:
    return STATEMENT.partition(f"#### {heading}")[2].partition("\n#")[0]


def test_statement_names_exactly_what_is_proposed_to_destinations() -> None:
    said = set(re.findall(r"^\| [^|]+ \| `([0-9.]+)` \| [^|]+ \|$", section("4.2.3 Storage SCU"), flags=re.M))
    everything = DestinationSettings(
        name="main", ae_title="A", host="h", port=1, objects=("sr", "heatmap", "gsps", "seg"), send_rejection_notes=True
    )
    assert said == {sop_class for sop_class, _ in contexts_of(everything)}


def test_statement_names_the_other_services() -> None:
    assert f"`{STORAGE_COMMITMENT}`" in section("4.2.4 Storage Commitment SCU")
    for heading in ("4.2.4 Storage Commitment SCU", "4.2.5 Storage Commitment SCP"):
        assert f"{COMMITMENTS_DAYS} days" in section(heading), "how long a question is known"
    for uid in (STUDY_ROOT_FIND, STUDY_ROOT_MOVE):
        assert f"`{uid}`" in section("4.2.6 Query/Retrieve SCU")
