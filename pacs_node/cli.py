"""The composition root: `pacs-node COMMAND`. Reads the settings once and hands each role its own.

Exit codes: 0 done, 1 something failed (said on the terminal), 2 refused to start or wrong usage (one clear line).
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from db.engine import DatabaseAway, NoSuchRecord
from pacs_node import log
from pacs_node.commands import accounts, admin, studies
from pacs_node.errors import ErrorOutcome, PacsNodeError, outcome_of
from pacs_node.settings import Settings, load_settings
from pacs_node.supervisor import stop_when_parent_is_gone

logger = logging.getLogger(__name__)

EPILOG = """\
A node in three commands:
  pacs-node migrate            create or update the database
  pacs-node run                everything, supervised; Ctrl-C drains and stops
  pacs-node send FOLDER --to PACS_NODE@127.0.0.1:11112
At night:
  pacs-node check              settings, running or not, database, model, store, C-ECHO to every destination
  pacs-node jobs list          what failed, and why;  pacs-node jobs retry ID (or --all), close ID --reason WHY
  pacs-node studies list       every study with its state and answer

Research software, not a medical device.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return the exit code of the process.

    0: done. 1: not all could be done, or an error ended the process. 2: arguments or settings are refused, or there is
    nothing to send. 130: Ctrl-C.
    """
    options = _parser().parse_args(arguments)
    os.umask(0o077)  # what the node writes is about patients
    log.to_terminal(options.command.__name__.strip("_"))
    try:
        settings = load_settings(options.config)
        code = int(options.command(settings, options) or 0)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `pacs-node jobs list | head`: whoever read has enough; nothing is left to flush at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # noqa: BLE001 - the last resort: one line, and no library's words about a patient
        return _last_words(error)


def _last_words(error: Exception) -> int:
    """Say on the terminal, and of a bug in the log too, why this process ends; return its exit code."""
    outcome = outcome_of(error)
    if isinstance(error, DatabaseAway):
        print(f"pacs-node: the database is away: {error}", file=sys.stderr)
        return 1
    if outcome is ErrorOutcome.EXIT or isinstance(error, PacsNodeError | NoSuchRecord):
        print(f"pacs-node: {error}", file=sys.stderr)
        return 2 if outcome is ErrorOutcome.EXIT else 1
    logger.critical("The process ends by an error it did not expect", exc_info=error, extra={"action": "died"})
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pacs-node",
        description="A DICOM node that judges chest radiographs and answers with a Structured Report.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="settings (default: $PACS_NODE_CONFIG, else config.toml)"
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add(commands, "run", _run, "run every role, one process each, supervised")
    for name, text in {
        "listen": "receive images (one listener process)",
        "work": "judge images and build reports",
        "deliver": "send reports to the destinations",
        "web": "serve the page and the API",
        "tick": "run the schedule: settle studies, seal the audit chain, purge, sweep",
    }.items():
        role = _add(commands, name, _role, f"one role alone: {text}")
        role.set_defaults(role=name)
        role.add_argument("--supervised", action="store_true", help=argparse.SUPPRESS)
        role.add_argument("--process-name", default=name, help=argparse.SUPPRESS)
        role.add_argument("--socket-fd", type=int, help=argparse.SUPPRESS)
    admin.add_commands(commands, _add)
    studies.add_commands(commands, _add)
    accounts.add_commands(commands, _add)
    return parser


def _add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    command: Callable[[Settings, argparse.Namespace], int | None],
    text: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.set_defaults(command=command)
    return parser


def _stop_on_signal() -> threading.Event:
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    return stop


def _run(settings: Settings, options: argparse.Namespace) -> int:
    from pacs_node.commands.running import run_node  # its imports cost a second that `jobs list` need not pay

    log.configure(settings.log, "run", settings.log_dir)
    return run_node(settings, options.config, _stop_on_signal())


def _role(settings: Settings, options: argparse.Namespace) -> int:
    """Serve one role. Each imports its own libraries only, so that the listener never waits for torch."""
    log.configure(settings.log, options.process_name, settings.log_dir)
    stop = _stop_on_signal()
    if options.supervised:
        stop_when_parent_is_gone(stop)
    match options.role:
        case "listen":
            from pacs_node.listener.service import run_listener

            listening = socket.socket(fileno=options.socket_fd) if options.socket_fd is not None else None
            run_listener(settings, listening, options.process_name, stop)
        case "work":
            # Read when torch is loaded. Threads that spin while they wait for each other starve decoders and listeners
            # on the same cores, and then themselves: 2.2 images/s against 12.9 was seen beside one busy process.
            os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
            from pacs_node.worker.service import run_worker

            run_worker(settings, stop)
        case "deliver":
            from pacs_node.delivery.courier import run_delivery

            run_delivery(settings, stop)
        case "web":
            from pacs_node.web.app import run_web

            run_web(settings, stop)
        case "tick":
            from pacs_node.schedule import run_tick

            run_tick(settings, stop)
    return 0


if __name__ == "__main__":
    sys.exit(main())
