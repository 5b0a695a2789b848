"""What several roles make of the settings in the same way."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
from pathlib import Path

from sqlalchemy.engine import Engine

import models
from db import facts
from db.engine import read_scope
from db.queue import QueuePolicy
from models.card import ModelCard
from models.registry import Registry
from pacs_node.errors import ConfigError
from pacs_node.settings import QueueSettings, Settings

BUNDLED_MODELS = Path(models.__file__).parent / "bundles"


def queue_policy(settings: QueueSettings) -> QueuePolicy:
    """Return the rules by which jobs are tried again, from the section [queue]."""
    return QueuePolicy(
        lease_s=settings.lease_s,
        max_attempts=settings.max_attempts,
        max_crashes=settings.max_crashes,
        retry_base_s=settings.retry_base_s,
        retry_cap_s=settings.retry_cap_s,
        age_step_s=settings.age_step_s,
    )


def registry_of(settings: Settings) -> Registry:
    """The bundled models, then the operator's own."""
    return Registry([BUNDLED_MODELS, settings.model_dir])


def active_card(engine: Engine, registry: Registry) -> ModelCard:
    """Return the card of the version that answers: the one activated in the database, else the newest bundled one.

    A version that an operator added answers only once it was activated, unless no model is bundled at all.

    Raises
    ------
    UnknownModel
        The active version is on none of the model folders, or there is no model at all.
    """
    with read_scope(engine) as session:
        active = facts.active_model(session)
    if active:
        return registry.find(*active)
    bundled = Registry([BUNDLED_MODELS])
    return (bundled if bundled.cards() else registry).newest()


def require_findings(settings: Settings, registry: Registry) -> None:
    """Refuse codes for a finding that no model on disk looks for: a typing error would pass for a default.

    Raises
    ------
    ConfigError
        `codes.findings` names one.
    """
    known = sorted({finding.name for card in registry.cards() for finding in card.findings})
    unknown = sorted(settings.codes.findings.keys() - set(known))
    if unknown:
        raise ConfigError(f"codes.findings.{unknown[0]}: no model here has this finding ({', '.join(known)})")


def audit_key(secrets_dir: Path) -> bytes:
    """Return the HMAC key of the audit chain, made on the first start."""
    return secret_key(secrets_dir, "audit.key")


def pseudonym_key(secrets_dir: Path) -> bytes:
    """Return the HMAC key of the pseudonyms in training exports, made for the first one."""
    return secret_key(secrets_dir, "pseudonyms.key")


def secret_key(secrets_dir: Path, name: str) -> bytes:
    """Return the 32 bytes of a key of ours, made when it is first asked for (mode 0600).

    It is written under another name and linked into place, so that two processes that start at once agree on one key.
    """
    path = secrets_dir / name
    if not path.exists():
        secrets_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        draft = secrets_dir / f".{name}.{os.getpid()}"
        draft.touch(mode=0o600)
        draft.write_text(secrets.token_hex(32), encoding="ascii")
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(draft)
        draft.unlink()
    return bytes.fromhex(path.read_text(encoding="ascii").strip())


def worker_name() -> str:
    """Name this process in leases and locks: host and process id, at most 64 characters."""
    return f"{socket.gethostname()[:48]}:{os.getpid()}"
