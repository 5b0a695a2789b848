"""`pacs-node run`: binds the DICOM socket, starts every role under the supervisor and says in plain words what runs."""

from __future__ import annotations

import logging
import socket
import sys
import threading
from pathlib import Path

from db import audit
from db.audit import Action
from db.engine import DatabaseAway, Engine, check_revision, db_now, make_engine, session_scope
from pacs_node.commands.readiness import is_ready, ready_url
from pacs_node.dimse.tls import require_certificates
from pacs_node.errors import ConfigError
from pacs_node.invitations import LINK_HOURS, first_link
from pacs_node.listener.service import bind_dicom_socket
from pacs_node.settings import Settings
from pacs_node.settings.dicom import DicomSettings
from pacs_node.settings.trail import changed_keys
from pacs_node.settings.web import WebSettings
from pacs_node.supervisor import Role, only_node, supervise
from pacs_node.wiring import active_card, registry_of, require_findings

logger = logging.getLogger(__name__)

READY_S = 120.0
LEAST_PATIENCE_S = 45.0
"""A worker's batch and a destination's answer are waited for, however short the drain."""
AFTER_DRAIN_S = 15.0
"""For a listener to close what is still open at the end of its drain, and to write that down."""


def run_node(settings: Settings, config: Path | None, stop: threading.Event) -> int:
    """Run until `stop`, then drain.

    Raises
    ------
    ConfigError
        Another node holds the data folder, a port is in use, or a role refused to start.
    """
    with only_node(settings.node.data_dir), bind_dicom_socket(settings.dicom) as listening:
        engine = make_engine(settings.database_url)
        check_revision(engine)
        registry = registry_of(settings)
        card = active_card(engine, registry)
        require_findings(settings, registry)
        _require_free(settings.web)
        require_certificates(settings)

        def note(action: Action, **details: str | int) -> None:
            try:
                with session_scope(engine) as session:
                    audit.append(session, action, actor="run", details=dict(details), now=db_now(session))
            except DatabaseAway:  # the roles go on or wait; the log has what the trail must do without
                logger.exception("An event could not be audited", extra={"action": str(action), **details})

        note(Action.NODE_STARTED)
        if changed := changed_keys(settings):
            note(Action.SETTINGS_CHANGED, keys=", ".join(changed))
        print(_starting(settings, f"{card.name} {card.version}", listening.getsockname()[1]), flush=True)
        _print_first_link(engine, settings.web)
        threading.Thread(target=_announce_ready, args=(settings, stop), daemon=True).start()
        try:
            supervise(
                _roles(settings, config, listening.fileno()),
                stop,
                lambda name, code: note(Action.ROLE_RESTARTED, role=name, exit_code=code),
                listening.close,  # who calls now is refused at once, not left in the queue while the roles drain
                patience_s=patience_s(settings.dicom),
            )
        finally:
            note(Action.NODE_STOPPED)
            print("Stopped. Nothing that was acknowledged is lost: what waits goes on at the next start.", flush=True)
    return 0


def patience_s(dicom: DicomSettings) -> float:
    """Return how long the roles may take to stop: longer than a listener may drain."""
    return max(LEAST_PATIENCE_S, dicom.drain_timeout_s + AFTER_DRAIN_S)


def _require_free(web: WebSettings) -> None:
    """Refuse before anything is started: the web role would only find out when the others run."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((web.host, web.port))
        except OSError as error:
            why = error.strerror or error
            raise ConfigError(f"web.port {web.port} on {web.host} cannot be opened: {why}; change web.port") from None


def _roles(settings: Settings, config: Path | None, dicom_fd: int) -> list[Role]:
    program = [sys.executable, "-m", "pacs_node.cli", *(["--config", str(config)] if config else [])]

    def role(name: str, command: str, *extra: str, fds: tuple[int, ...] = ()) -> Role:
        return Role(
            name=name, command=[*program, command, "--supervised", "--process-name", name, *extra], pass_fds=fds
        )

    listeners = [
        role(f"listen-{i + 1}", "listen", "--socket-fd", str(dicom_fd), fds=(dicom_fd,))
        for i in range(settings.dicom.listeners)
    ]
    workers = [role(f"work-{i + 1}", "work") for i in range(settings.worker.processes)]
    return [*listeners, *workers, role("deliver", "deliver"), role("web", "web"), role("tick", "tick")]


def _starting(settings: Settings, model: str, port: int) -> str:
    dicom, web = settings.dicom, settings.web
    peers = ", ".join(peer.ae_title for peer in dicom.peers) or "any program on this machine"
    to = ", ".join(f"{d.name} ({d.address})" for d in settings.destinations)
    return f"""\
PACS node, research software: not a medical device.

  receives   DICOM on {dicom.host}:{port} as {dicom.ae_title}, from {peers}
  judges     with {model}
  reports to {to or "nobody yet: add a [[destinations]] entry to config.toml"}
  shows      {web.address}   (API: {web.address}/docs){_who(web)}
  keeps      everything in {settings.node.data_dir}, logs in {settings.log_dir}

  Send:  pacs-node send FILES --to {dicom.ae_title}@{dicom.host}:{port}
    or:  dcmsend -aec {dicom.ae_title} {dicom.host} {port} FILES
  Stop:  Ctrl-C

Starting ..."""


def _who(web: WebSettings) -> str:
    return ", to everyone on this machine: logins are off" if web.authentication == "off" else ""


def _print_first_link(engine: Engine, web: WebSettings) -> None:
    """Say how the first administrator comes in; on the terminal alone, never in a log."""
    with session_scope(engine) as session:
        link = first_link(session, web)
    if link:
        print(
            f"\nNo administrator yet. Make one by this link, once and within {LINK_HOURS} hours:\n  {link}\n",
            flush=True,
        )


def _announce_ready(settings: Settings, stop: threading.Event) -> None:
    waited_s = 0.0
    while not stop.wait(0.5) and waited_s < READY_S:
        waited_s += 0.5
        if is_ready(settings.web):
            print("Ready.", flush=True)
            return
    if not stop.is_set():
        where = ready_url(settings.web)
        print(f"Not ready after {READY_S:g} s: see {where} and the logs.", file=sys.stderr, flush=True)
