"""Rejection notes that arrive (IHE RAD TF-3 4.66, IOCM): Key Object Selections whose title rejects what they name.

Takes the encoded data set, gives a `RejectionNote` or None; what strangers write is read within a budget of bytes.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset

from pacs_node.conformance import (
    DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
    EXPLICIT_VR_BIG_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
)
from pacs_node.listener.header import UID_LENGTH
from pacs_node.report.codes import QUALITY
from pacs_node.store import Part

BUDGET_BYTES = 1 << 18
"""A note of two thousand images; one of a megabyte would keep a listener busy for seconds."""
MOST_OBJECTS = 2000
"""Each is a row of its own, written under the one lock that all senders wait for; our images are radiographs."""
PATIENT_SAFETY, WRONG_WORKLIST_ENTRY = "113037", "113038"
REJECTING = frozenset({QUALITY, PATIENT_SAFETY, WRONG_WORKLIST_ENTRY})
"""Titles (DCM, CID 7011) that say that an object must not be used. 113039, *Data Retention Policy Expired*, says only
that it is no longer kept: what was said about it stays true."""


class UnreadableNote(Exception):
    """A Key Object Selection that cannot be read within the budget."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectionNote:
    """Objects of one study that are not to be used any more."""

    code: str
    study_instance_uid: str
    sop_instance_uids: tuple[str, ...]


def read_note(part: Part, transfer_syntax_uid: str) -> tuple[RejectionNote, ...]:
    """Return what a received Key Object Selection rejects, one note per study; none for one that rejects nothing.

    Raises
    ------
    UnreadableNote
        It is too long, names too many objects or cannot be parsed.
    """
    with part.data_set() as data_set:
        encoded = _bounded(data_set, transfer_syntax_uid)
    try:
        dataset = read_dataset(
            io.BytesIO(encoded),
            is_implicit_VR=transfer_syntax_uid == IMPLICIT_VR_LITTLE_ENDIAN,
            is_little_endian=transfer_syntax_uid != EXPLICIT_VR_BIG_ENDIAN,
        )
        notes = tuple(_notes(dataset))
    except Exception as error:  # a parser fed by strangers may raise anything, RecursionError included
        raise UnreadableNote("a Key Object Selection cannot be parsed") from error
    if sum(len(note.sop_instance_uids) for note in notes) > MOST_OBJECTS:
        raise UnreadableNote("a Key Object Selection names too many objects")
    return notes


def _bounded(data_set: BinaryIO, transfer_syntax_uid: str) -> bytes:
    encoded = data_set.read(BUDGET_BYTES + 1)
    if transfer_syntax_uid == DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN and len(encoded) <= BUDGET_BYTES:
        try:
            encoded = zlib.decompressobj(-zlib.MAX_WBITS).decompress(encoded, BUDGET_BYTES + 1)
        except zlib.error as error:
            raise UnreadableNote("a Key Object Selection cannot be inflated") from error
    if len(encoded) > BUDGET_BYTES:
        raise UnreadableNote("a Key Object Selection is too long")
    return encoded


def _notes(dataset: Dataset) -> Iterator[RejectionNote]:
    """Read title and Current Requested Procedure Evidence Sequence (PS3.3 C.17.6.2)."""
    titles = dataset.get("ConceptNameCodeSequence") or ()
    code = next((str(title.CodeValue) for title in titles if title.get("CodingSchemeDesignator") == "DCM"), "")
    if code not in REJECTING:
        return
    for study in dataset.get("CurrentRequestedProcedureEvidenceSequence") or ():
        named = [
            str(item.ReferencedSOPInstanceUID)
            for series in study.ReferencedSeriesSequence
            for item in series.ReferencedSOPSequence
        ]
        study_uid = str(study.StudyInstanceUID)
        uids = tuple(dict.fromkeys(uid for uid in named if 0 < len(uid) <= UID_LENGTH))
        if uids and len(study_uid) <= UID_LENGTH:
            yield RejectionNote(code=code, study_instance_uid=study_uid, sop_instance_uids=uids)
