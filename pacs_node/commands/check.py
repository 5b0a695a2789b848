"""`pacs-node check`: what is in force, and whether each part the node needs answers."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Iterator

from db.engine import current_revision, head_revision, make_engine
from pacs_node.commands.readiness import is_ready, ready_url
from pacs_node.dimse.storage import echo
from pacs_node.errors import ConfigError
from pacs_node.log import OUR_PACKAGES
from pacs_node.settings import DestinationSettings, Settings
from pacs_node.store import ObjectStore
from pacs_node.wiring import active_card, registry_of, require_findings

Finding = tuple[str, bool, str]


def check(settings: Settings) -> int:
    """Print the settings in force with secrets masked, then one line per check; return 1 if any failed."""
    print(json.dumps(json.loads(masked(settings)), indent=2))
    findings = list(_findings(settings))
    for what, is_well, text in findings:
        print(f"{'ok  ' if is_well else 'FAIL'}  {what:24} {text}")
    return 0 if all(is_well for _, is_well, _ in findings) else 1


def masked(settings: Settings) -> str:
    """Return the settings as JSON without the password of the database URL."""
    return re.sub(r"(://[^:/@\"]+:)[^@\"]+@", r"\1***@", settings.model_dump_json())


def _findings(settings: Settings) -> Iterator[Finding]:
    yield _node(settings)
    yield _try("database revision", lambda: _revision(settings))
    yield _try("model checksum", lambda: _model(settings))
    yield _try("store writable", lambda: _store(settings))
    for destination in settings.destinations:
        if destination.kind == "stow":
            yield f"STOW-RS {destination.name}", True, f"{destination.address} (not asked: STOW-RS has no echo)"
        else:
            yield _try(f"C-ECHO {destination.name}", lambda d=destination: _echo(settings, d))  # type: ignore[misc]
    if not settings.destinations:
        yield "destinations", True, "none: reports stay here; add [[destinations]] to config.toml"


def _try(what: str, step: Callable[[], str]) -> Finding:
    try:
        return what, True, step()
    except Exception as error:  # noqa: BLE001 - a check reports whatever is wrong and goes on with the next
        is_ours = type(error).__module__.split(".")[0] in OUR_PACKAGES
        return what, False, (str(error) if is_ours else f"{type(error).__name__}: {error}").splitlines()[0]


def _node(settings: Settings) -> Finding:
    """A node that does not run is no fault: what it needs is checked before its start too."""
    said = {
        True: "runs, and is ready",
        False: f"runs, and is not ready: {ready_url(settings.web)} says why",
        None: f"nobody answers at {ready_url(settings.web)}: `pacs-node run` starts it",
    }
    answer = is_ready(settings.web)
    return "node", answer is not False, said[answer]


def _revision(settings: Settings) -> str:
    engine = make_engine(settings.database_url)
    found, wanted = current_revision(engine), head_revision()
    if found != wanted:
        raise ConfigError(f"at revision {found}, this version needs {wanted}: run `pacs-node migrate`")
    return f"{found} (newest)"


def _model(settings: Settings) -> str:
    registry = registry_of(settings)
    card = active_card(make_engine(settings.database_url), registry)
    registry.verify(card)
    require_findings(settings, registry)
    return f"{card.name} {card.version}, sha256 {card.weights_sha256[:12]}... verified"


def _store(settings: Settings) -> str:
    store = ObjectStore(settings.store_dir)
    probe = settings.store_dir / f".check-{uuid.uuid4().hex}"
    probe.write_bytes(b"check")
    probe.unlink()
    free_gb, least_gb = store.free_bytes() / 1e9, settings.store.min_free_gb
    if free_gb < least_gb:
        raise ConfigError(f"{free_gb:.1f} GB free, below store.min_free_gb ({least_gb:g}): senders get A700")
    return f"{settings.store_dir}, {free_gb:.1f} GB free, refuses below {least_gb:g} GB"


def _echo(settings: Settings, destination: DestinationSettings) -> str:
    echo(destination, calling_ae_title=settings.dicom.ae_title, timeout_s=settings.delivery.connect_timeout_s)
    return f"{destination.address} answers"
