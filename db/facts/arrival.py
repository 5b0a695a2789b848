"""What arrives, and whose it is: which attributes must agree, and what a disagreement does. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date
from uuid import UUID

from db.tables import Hold

UID_CHARACTERS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What two instances of a study, or two copies of an instance, must share."""

    study_instance_uid: str
    patient_id: str = field(repr=False)
    issuer_of_patient_id: str = field(repr=False)
    patient_name: str = field(repr=False)
    patient_birth_date: str = field(repr=False)

    def agrees_with(self, other: Identity) -> bool:
        """Compare; outer blanks and empty trailing name components do not count (PS3.5 6.2)."""
        return self._key() == other._key()

    def _key(self) -> tuple[str, ...]:
        texts = (self.patient_id, self.issuer_of_patient_id, self.patient_birth_date)
        return (
            self.study_instance_uid,
            self.patient_name.strip(" ").rstrip("=^ "),
            *(text.strip(" ") for text in texts),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class NewInstance:
    """One object whose bytes are durable, with what its header says.

    Raises
    ------
    ValueError
        A UID is empty or longer than 64 characters (PS3.5 9.1).
    """

    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    modality: str
    patient_id: str = field(repr=False)
    issuer_of_patient_id: str = field(repr=False)
    patient_name: str = field(repr=False)
    patient_birth_date: str = field(repr=False)
    patient_sex: str = field(repr=False)
    accession_number: str = field(repr=False)
    study_date: date | None
    study_description: str = field(repr=False)
    digest: str
    """SHA-256 of the data set without its file meta, hexadecimal."""
    size_bytes: int
    path: str
    """Key in the object store."""
    institution_name: str = field(default="", repr=False)
    calling_ae_title: str
    association_id: UUID | None
    priority: int
    is_judged: bool
    not_judged_reason: tuple[str, str] | None
    """Code and text, where `is_judged` is False."""

    def __post_init__(self) -> None:
        for name in ("study_instance_uid", "series_instance_uid", "sop_instance_uid", "sop_class_uid"):
            if not 1 <= len(getattr(self, name)) <= UID_CHARACTERS:
                raise ValueError(f"{name} is empty or longer than {UID_CHARACTERS} characters")

    @property
    def identity(self) -> Identity:
        """Whose it says it is."""
        return Identity(**{name: clean(getattr(self, name)) for name in Identity.__dataclass_fields__})


def hold_of_new_study(identity: Identity) -> Hold | None:
    """Return why a study is held from its first instance on: nobody can tell whose it is."""
    return None if identity.patient_id.strip(" ") else Hold.UNIDENTIFIED


def hold_after(first: Identity, later: Identity, hold: Hold | None) -> Hold | None:
    """Return a study's hold after one more instance; what an admin released is not held again for the same identity."""
    return hold if first.agrees_with(later) else Hold.IDENTITY_CONFLICT


def clean(text: str) -> str:
    """Return `text` without what PostgreSQL refuses, NUL and lone surrogates: peers send both."""
    if text.isascii() and "\x00" not in text:
        return text
    return text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode("utf-8")
