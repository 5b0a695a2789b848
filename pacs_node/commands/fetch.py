"""`pacs-node fetch`: have a PACS send a study that is missing here, or a prior one, to this node's listener."""

from __future__ import annotations

import sys

from db import audit
from db.audit import Action
from db.engine import check_revision, db_now, make_engine, session_scope
from pacs_node.dimse.retrieve import FoundStudy, find_studies, move_study
from pacs_node.errors import ConfigError
from pacs_node.settings import DestinationSettings, Settings

KEYS = ("StudyInstanceUID", "AccessionNumber", "PatientID", "StudyDate")
MOVE_SILENCE_S = 300.0
"""An archive may have to read from tape."""


def fetch(settings: Settings, source: str, keys: dict[str, str], *, actor: str, dry_run: bool) -> int:
    """Find studies in a PACS and have it send them here; return 1 if anything did not arrive, or nothing was found.

    Parameters
    ----------
    source
        A DIMSE destination of config.toml.
    keys
        Matching keys by DICOM keyword, of `KEYS`; at least one.

    Raises
    ------
    ConfigError
        No such destination, or no key.
    DeliveryFailed
        The PACS could not be asked.
    """
    archive = _archive_of(settings, source)
    if not keys:
        raise ConfigError("say what to fetch: --study, --accession, --patient or --date")
    own = settings.dicom.ae_title
    found = find_studies(archive, keys, calling_ae_title=own, connect_timeout_s=settings.delivery.connect_timeout_s)
    missed = 0 if found else 1
    for study in found:
        print(f"{study.study_instance_uid}  {_described(study)}", flush=True)
        if dry_run:
            continue
        moved = move_study(
            archive,
            study.study_instance_uid,
            to_ae_title=own,
            calling_ae_title=own,
            connect_timeout_s=settings.delivery.connect_timeout_s,
            response_timeout_s=MOVE_SILENCE_S,
        )
        print(f"    {moved.completed} sent, {moved.failed} failed, {moved.warned} with a warning", flush=True)
        missed += moved.failed or moved.completed + moved.warned == 0
        _audit(settings, archive, moved.completed, moved.failed, actor)
    if not found:
        print("nothing found", file=sys.stderr)
    return 1 if missed else 0


def _archive_of(settings: Settings, name: str) -> DestinationSettings:
    archives = [one for one in settings.destinations if one.kind == "dimse"]
    found = next((one for one in archives if one.name == name), None)
    if found is None:
        names = ", ".join(one.name for one in archives) or "none configured"
        raise ConfigError(f"--from {name!r}: no DIMSE destination of config.toml has this name ({names})")
    return found


def _audit(settings: Settings, archive: DestinationSettings, completed: int, failed: int, actor: str) -> None:
    engine = make_engine(settings.database_url)
    check_revision(engine)
    details = {"from": archive.name, "completed": completed, "failed": failed}
    with session_scope(engine) as session:
        audit.append(session, Action.STUDY_FETCHED, actor=actor, details=details, now=db_now(session))
    engine.dispose()


def _described(study: FoundStudy) -> str:
    """Say what a study is without naming its patient."""
    count = "?" if study.instances is None else str(study.instances)
    return f"{study.study_date or 'no date'}  {'/'.join(study.modalities) or '-'}  {count} objects"
