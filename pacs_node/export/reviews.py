"""The way back to training: what readers said, as a training manifest with de-identified images.

Takes reviewed studies; gives a folder that `python -m training.train --data DIR/manifest.csv` reads as it is:

    manifest.csv     path, label, patient, age, sex, view, source: see `training/manifest.py`
    images/UID.dcm   one file per image, de-identified by `pacs_node.export.deidentify`
    excluded.csv     study, image, reason, why: what was reviewed and is not in the manifest; our own ids, no patient

The label of an image is the newest standing verdict on its study: who agrees says what the model said, who disagrees
says what is there instead. Where the readers differ, or one is unsure, nothing is exported. The same reviews give the
same bytes, in any folder and at any time. The folder has its name only once it is whole; an export that was
interrupted goes on where it stopped.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout
from pydicom import dcmread
from pydicom.dataset import Dataset
from sqlalchemy.engine import Engine
from tqdm import tqdm

from db import facts
from db.engine import db_now, read_scope, session_scope
from db.facts import ImageFacts, ReviewedStudy
from db.tables import InstanceState
from models import header
from models.preprocess import UNREADABLE
from pacs_node import __version__
from pacs_node.errors import ConfigError
from pacs_node.export.deidentify import REFUSALS, Deidentifier, NotDeidentifiable
from pacs_node.export.labels import UNLABELLED, label_of
from pacs_node.settings import Settings
from pacs_node.store import ObjectStore, fsync_folder
from pacs_node.wiring import pseudonym_key

MANIFEST, EXCLUDED, IMAGES, LOCK = "manifest.csv", "excluded.csv", "images", ".lock"
REASONS = (
    REFUSALS
    | UNLABELLED
    | {
        "held": "The study is held: nobody has decided yet whose it is.",
        "purged": "Its images were deleted when their time was over.",
        "not_analysed": "The model did not judge this image of the study.",
        "rejected": "Its sender rejected the image.",
        "file_missing": "Its file is not in the store.",
    }
)
"""Code -> why something is not in the manifest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the manifest."""

    path: str
    label: str
    patient: str
    age: str
    sex: str
    view: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Excluded:
    """One line of the list of what stays behind; `image` is empty where it is the whole study."""

    study: str
    image: str
    reason: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What an export has in it."""

    folder: Path
    rows: tuple[Row, ...]
    excluded: tuple[Excluded, ...]
    manifest_sha256: str

    @property
    def summary(self) -> tuple[str, ...]:
        """Say what is in it, and what stayed behind and why."""
        labels = ", ".join(f"{n} {label}" for label, n in sorted(Counter(row.label for row in self.rows).items()))
        patients = len({row.patient for row in self.rows})
        lines = [f"{len(self.rows)} images of {patients} patients ({labels or 'none'})"]
        for reason, count in sorted(Counter(one.reason for one in self.excluded).items()):
            lines.append(f"Not exported: {count} x {reason}. {REASONS[reason]}")
        return tuple(lines)

    def __str__(self) -> str:
        first, *rest = self.summary
        return "\n".join([f"{first} in {self.folder / MANIFEST}.", *rest])


def export_reviews(
    settings: Settings,
    engine: Engine,
    folder: Path,
    *,
    since: datetime | None,
    actor: str,
    address: str = "",
    accept_unstated: bool = False,
) -> Exported:
    """Export every study that was reviewed at or after `since` into a new folder; audited before it is there to take.

    Parameters
    ----------
    address
        From where it was asked for over the network; empty = on this machine, by a command.
    accept_unstated
        Take also images whose headers do not say whether text is burned into them: somebody has looked.

    Raises
    ------
    ConfigError
        `folder` is not empty, or another export into it runs.
    """
    folder = folder.absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder}: not empty; name a new folder for each export")
    deidentifier = Deidentifier(pseudonym_key(settings.node.secrets_dir))
    draft = _Draft(folder, deidentifier, ObjectStore(settings.store_dir), accept_unstated)
    with draft.lock():
        with read_scope(engine) as session:
            study_ids = facts.reviewed_studies(session, since)
        for study_id in tqdm(study_ids, desc="exporting", unit="study", disable=None):
            with read_scope(engine) as session:
                study = facts.reviewed_study(session, study_id)
            draft.add(study)
        manifest_sha256 = draft.finish()
        with session_scope(engine, address=address) as session:
            facts.record_export(
                session,
                images=len(draft.rows),
                excluded=len(draft.excluded),
                manifest_sha256=manifest_sha256,
                since=since,
                actor=actor,
                now=db_now(session),
            )
        draft.publish()
    return Exported(
        folder=folder, rows=tuple(draft.rows), excluded=tuple(draft.excluded), manifest_sha256=manifest_sha256
    )


class _Draft:
    """The folder while it grows, beside its final place; what it holds already is not made again."""

    def __init__(self, folder: Path, deidentifier: Deidentifier, store: ObjectStore, accept_unstated: bool) -> None:
        self._final = folder
        self._deidentifier, self._store, self._accept_unstated = deidentifier, store, accept_unstated
        # Another version, key or rule makes other files: they are not to be found in the same draft.
        kind = deidentifier.name("draft", __version__, str(accept_unstated))
        self._folder = folder.with_name(f".{folder.name}.{kind}.part")
        (self._folder / IMAGES).mkdir(parents=True, exist_ok=True, mode=0o700)
        self._folder.chmod(0o700)
        self._source = f"reviews-{deidentifier.name('source')}"
        self.rows: list[Row] = []
        self.excluded: list[Excluded] = []

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the draft against a second export into the same folder."""
        lock = FileLock(self._folder / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise ConfigError(f"{self._final}: another export into this folder runs") from None
        try:
            yield
        finally:
            lock.release()

    def add(self, study: ReviewedStudy) -> None:
        """Write the images of a study, or note why not."""
        label, reason = label_of(study.verdicts)
        if study.hold is not None:
            reason = "held"
        elif study.is_purged:
            reason = "purged"
        if reason:
            self._exclude(study, None, reason)
            return
        for image in study.images:
            if image.is_judged:
                self._add_image(study, image, label)

    def finish(self) -> str:
        """Write both lists, delete what is in neither, and return the SHA-256 of the manifest."""
        self.rows.sort(key=lambda row: row.path)
        self.excluded.sort(key=lambda one: (one.study, one.image))
        kept = {row.path for row in self.rows}
        for path in (self._folder / IMAGES).iterdir():
            if f"{IMAGES}/{path.name}" not in kept:
                path.unlink()
        manifest = _table([field.name for field in fields(Row)], map(astuple, self.rows))
        _write(self._folder / MANIFEST, manifest)
        _write(
            self._folder / EXCLUDED,
            _table([field.name for field in fields(Excluded)], map(astuple, self.excluded)),
        )
        fsync_folder(self._folder / IMAGES)
        fsync_folder(self._folder)
        return hashlib.sha256(manifest).hexdigest()

    def publish(self) -> None:
        """Give the folder its name."""
        (self._folder / LOCK).unlink(missing_ok=True)
        self._folder.rename(self._final)
        fsync_folder(self._final.parent)

    def _add_image(self, study: ReviewedStudy, image: ImageFacts, label: str) -> None:
        if image.sop_instance_uid in study.rejected:
            self._exclude(study, image, "rejected")
            return
        if image.state is not InstanceState.ANALYSED:
            self._exclude(study, image, "not_analysed")
            return
        path = f"{IMAGES}/{self._deidentifier.uid(image.sop_instance_uid)}.dcm"
        patient = self._patient(study)
        try:
            if not (self._folder / path).exists():
                self._make(image, path, patient)
        except FileNotFoundError:
            self._exclude(study, image, "file_missing")
        except NotDeidentifiable as refusal:
            self._exclude(study, image, refusal.code)
        else:
            self.rows.append(_row(path, label, self._source, dcmread(self._folder / path, stop_before_pixels=True)))

    def _make(self, image: ImageFacts, path: str, patient: str) -> None:
        """De-identify one image: it was decoded before, within the limits of a worker, or it had not been analysed."""
        with self._store.open(image.path) as file:
            try:
                source = dcmread(file)
            except UNREADABLE as error:
                if isinstance(error, OSError) and error.errno is not None:
                    raise  # the disk, not the image
                raise NotDeidentifiable("undecodable") from error
        made = self._deidentifier.deidentify(source, patient=patient, accept_unstated=self._accept_unstated)
        content = io.BytesIO()
        made.save_as(content, enforce_file_format=True)
        _write(self._folder / path, content.getvalue())

    def _patient(self, study: ReviewedStudy) -> str:
        """Return the pseudonym; an unidentified patient, whom an administrator let pass, has this study alone."""
        if not study.patient_id.strip():
            return self._deidentifier.name("study", study.study_instance_uid)
        return self._deidentifier.name("patient", study.issuer_of_patient_id.strip(), study.patient_id.strip())

    def _exclude(self, study: ReviewedStudy, image: ImageFacts | None, reason: str) -> None:
        self.excluded.append(
            Excluded(
                study=str(study.study_id),
                image=str(image.instance_id) if image else "",
                reason=reason,
                why=REASONS[reason],
            )
        )


def _row(path: str, label: str, source: str, image: Dataset) -> Row:
    """Return the line of an image; all that is said of the patient stands in the de-identified file."""
    age_years = header.age_years_of(image)
    return Row(
        path=path,
        label=label,
        patient=str(image.PatientID),
        age="" if age_years is None else str(age_years),
        sex=str(image.PatientSex or ""),
        view=str(image.get("ViewPosition") or ""),
        source=source,
    )


def _table(heads: Sequence[str], rows: Iterable[tuple[str, ...]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(heads)
    writer.writerows(rows)
    return text.getvalue().encode()


def _write(path: Path, content: bytes) -> None:
    """Give the file its name once all its bytes are on the disk."""
    part = path.with_name(f"{path.name}.part")
    with part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    part.rename(path)
