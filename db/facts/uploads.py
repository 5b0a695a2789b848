"""What was said about uploads that belong to no study: kept in the audit trail alone, without a patient attribute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from db import audit
from db.audit import Action
from db.engine import Session
from db.tables import Answer


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadFacts:
    """One upload and its answer.

    Attributes
    ----------
    digest
        SHA-256 of the bytes as they came.
    answers, probabilities
        By finding; empty where the upload was not analysed.
    codes
        Of all warnings; without an answer, of the reasons.
    model
        Name and version.
    is_repeated
        The answer to the same bytes was known.
    actor, address
        Who asked, and from where.
    """

    digest: str
    size_bytes: int
    format: str
    answers: Mapping[str, Answer]
    probabilities: Mapping[str, float]
    codes: Sequence[str]
    model: str
    use_tta: bool
    is_repeated: bool
    actor: str
    address: str


def record_uploads(session: Session, uploads: Sequence[UploadFacts], *, now: datetime) -> None:
    """Audit what was said about these uploads."""
    for upload in uploads:
        action = Action.UPLOAD_JUDGED if upload.answers else Action.UPLOAD_NOT_ANALYSED
        audit.append(session, action, actor=upload.actor, details=_details(upload), now=now)


def _details(upload: UploadFacts) -> dict[str, Any]:
    details: dict[str, Any] = {
        "digest": upload.digest,
        "size_bytes": upload.size_bytes,
        "format": upload.format,
        "codes": sorted(upload.codes),
        "model": upload.model,
        "repeated": upload.is_repeated,
    }
    if upload.answers:
        details["answers"] = {finding: answer.value for finding, answer in upload.answers.items()}
        details["probabilities"] = {finding: round(value, 6) for finding, value in upload.probabilities.items()}
        details["use_tta"] = upload.use_tta
    if upload.address:
        details["from"] = upload.address
    return details
