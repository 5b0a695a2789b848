"""Asking another archive what it has (C-FIND) and to send it (C-MOVE): Study Root, study level (PS3.4 Annex C).

Takes a destination's address and keys; gives `FoundStudy` values, or how many objects were sent. What C-MOVE sends
arrives at the listener as any other image.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydicom.dataset import Dataset
from pynetdicom import build_context
from pynetdicom.association import Association

from pacs_node.conformance import (
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    STUDY_ROOT_FIND,
    STUDY_ROOT_MOVE,
)
from pacs_node.dimse.association import CONNECT_TIMEOUT_S, RESPONSE_TIMEOUT_S, associate, words_of
from pacs_node.dimse.storage import OUT_OF_RESOURCES, SUCCESS
from pacs_node.errors import DeliveryDelayed, DeliveryRejected
from pacs_node.settings import DestinationSettings

PENDING = (0xFF00, 0xFF01)
"""A match, or sub-operations going on (PS3.4 Tables C.4-1 and C.4-2)."""
SUBOPERATION_FAILED = 0xB000
RETURNED = ("StudyInstanceUID", "StudyDate", "AccessionNumber", "ModalitiesInStudy", "NumberOfStudyRelatedInstances")
MOST_STUDIES = 10_000
_UID = re.compile(r"[A-Za-z0-9._-]{1,64}")
"""More than PS3.5 9.1 allows, for there are such archives; no wildcard, and nothing that a terminal obeys."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundStudy:
    """One match of a query; empty or None where the archive does not say."""

    study_instance_uid: str
    study_date: str
    """DA, as the archive writes it."""
    accession_number: str
    modalities: tuple[str, ...]
    instances: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """What became of the objects of one study."""

    completed: int
    failed: int
    warned: int


def find_studies(
    archive: DestinationSettings,
    keys: Mapping[str, str],
    *,
    calling_ae_title: str,
    connect_timeout_s: float = CONNECT_TIMEOUT_S,
) -> list[FoundStudy]:
    """Return the studies that match, at most `MOST_STUDIES`.

    Parameters
    ----------
    keys
        Matching keys by DICOM keyword, with their values as C-FIND takes them (`StudyDate`: "20260304-20260305").

    Raises
    ------
    DeliveryDelayed
        No association, no answer, or the archive is out of resources.
    DeliveryRejected
        The archive knows neither us nor the query, or answered with a failure or a match that names no study.
    """
    query = Dataset()
    query.QueryRetrieveLevel = "STUDY"
    for keyword in (*RETURNED, *keys):
        setattr(query, keyword, keys.get(keyword, ""))
    association = _open(archive, STUDY_ROOT_FIND, calling_ae_title, connect_timeout_s, RESPONSE_TIMEOUT_S)
    try:
        found: list[FoundStudy] = []
        for status, match in _answers(archive, association.send_c_find(query, STUDY_ROOT_FIND)):
            if status in PENDING and match is not None:
                found.append(_study_of(match))
                if not _UID.fullmatch(found[-1].study_instance_uid):  # to move it would be to ask for everything
                    raise DeliveryRejected(archive.name, "C-FIND answered a match without a Study Instance UID")
                if len(found) >= MOST_STUDIES:
                    association.abort()
                    break
            elif status != SUCCESS:
                raise _failure(archive, "C-FIND", status)
        return found
    finally:
        association.release()


def move_study(
    archive: DestinationSettings,
    study_instance_uid: str,
    *,
    to_ae_title: str,
    calling_ae_title: str,
    connect_timeout_s: float = CONNECT_TIMEOUT_S,
    response_timeout_s: float = RESPONSE_TIMEOUT_S,
) -> Moved:
    """Have an archive send a study to an AE title that it knows.

    Parameters
    ----------
    response_timeout_s
        Longest silence between two answers; an archive that reads from tape is silent for long.

    Raises
    ------
    DeliveryDelayed
        No association, no answer, or the archive is out of resources.
    DeliveryRejected
        The archive does not know the AE title, or answered with another failure.
    """
    query = Dataset()
    query.QueryRetrieveLevel, query.StudyInstanceUID = "STUDY", study_instance_uid
    association = _open(archive, STUDY_ROOT_MOVE, calling_ae_title, connect_timeout_s, response_timeout_s)
    try:
        last = Dataset()
        for response, _ in association.send_c_move(query, to_ae_title, STUDY_ROOT_MOVE):
            last = response
            status = response.get("Status")
            if status in PENDING:
                continue
            if status not in (SUCCESS, SUBOPERATION_FAILED):
                raise _failure(archive, "C-MOVE", status)
        return Moved(
            completed=int(last.get("NumberOfCompletedSuboperations") or 0),
            failed=int(last.get("NumberOfFailedSuboperations") or 0),
            warned=int(last.get("NumberOfWarningSuboperations") or 0),
        )
    except (RuntimeError, OSError) as error:
        raise DeliveryDelayed(archive.name, "the association was lost") from error
    finally:
        association.release()


def _open(
    archive: DestinationSettings, sop_class: str, calling_ae_title: str, connect_timeout_s: float, timeout_s: float
) -> Association:
    context = build_context(sop_class, [EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN])
    return associate(archive, calling_ae_title, [context], connect_timeout_s, timeout_s)


def _answers(archive: DestinationSettings, responses: Any) -> Iterator[tuple[int | None, Dataset | None]]:
    try:
        for response, match in responses:
            yield response.get("Status"), match
    except (RuntimeError, OSError) as error:  # pynetdicom: the association is over
        raise DeliveryDelayed(archive.name, "the association was lost") from error


def _failure(archive: DestinationSettings, what: str, status: int | None) -> DeliveryDelayed | DeliveryRejected:
    if status is None:
        return DeliveryDelayed(archive.name, f"no answer to {what}")
    kind = DeliveryDelayed if status in OUT_OF_RESOURCES else DeliveryRejected
    return kind(archive.name, f"{what} answered {status:04X}")


def _study_of(match: Dataset) -> FoundStudy:
    modalities = match.get("ModalitiesInStudy") or ()
    counted = str(match.get("NumberOfStudyRelatedInstances") or "")
    return FoundStudy(
        study_instance_uid=str(match.get("StudyInstanceUID", "")),
        study_date=words_of(match.get("StudyDate")),
        accession_number=words_of(match.get("AccessionNumber")),
        modalities=tuple(map(words_of, (modalities,) if isinstance(modalities, str) else modalities)),
        instances=int(counted) if counted.isdigit() else None,
    )
