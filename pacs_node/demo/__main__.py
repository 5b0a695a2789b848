"""`make demo`: a node on free ports with its own store, a receiving PACS, real images over the network, and a table.

The node is the one that `pacs-node run` starts. Exits 0 only if nothing failed, every frontal chest radiograph within
the model's card was analysed and the report of every chest study was stored by the PACS.
"""

from __future__ import annotations

import argparse
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pynetdicom import AE, evt
from pynetdicom.sop_class import Comprehensive3DSRStorage, Verification
from tqdm import tqdm

from db import audit, facts
from db.audit import Action
from db.engine import make_engine, read_scope
from db.tables import DeliveryState, InstanceState
from pacs_node.commands.sending import destination_of
from pacs_node.demo.images import gather_images
from pacs_node.dimse.storage import SentFile, find_files, send_files
from pacs_node.errors import ConfigError, StorageStatus
from pacs_node.report.answer import NOT_FOR_THIS_MODEL
from pacs_node.settings import Settings, load_settings

START_S = 120.0
FINISH_S = 180.0
NOT_NEGOTIATED = ("no presentation context", "the peer accepts none")
"""What no radiograph is refused for: the node takes radiographs only."""
EXPECTED_REFUSALS = NOT_FOR_THIS_MODEL | {"age_outside_card"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    file: SentFile
    answered_at: float
    """Monotonic seconds."""

    @property
    def sop_instance_uid(self) -> str:
        return str(dcmread(self.file.path, specific_tags=["SOPInstanceUID"], force=True).get("SOPInstanceUID", ""))


class ReceivingPacs:
    """A Storage SCP that remembers when it stored which study's report, in monotonic seconds."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.stored_at: dict[str, float] = {}
        entity = AE("DEMO_PACS")
        entity.add_supported_context(Verification)
        entity.add_supported_context(Comprehensive3DSRStorage)
        self._server: Any = entity.start_server(
            ("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, self._store)]
        )
        self.port: int = self._server.socket.getsockname()[1]

    def _store(self, event: Any) -> int:
        path = self._folder / f"{len(self.stored_at)}.dcm"
        path.write_bytes(event.encoded_dataset())
        now = time.monotonic()
        self.stored_at[str(dcmread(path).StudyInstanceUID)] = now
        return StorageStatus.SUCCESS

    def close(self) -> None:
        self._server.shutdown()


def main() -> int:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--from", dest="folder", type=Path, help="a folder of DICOM, JPEG or PNG images")
    parser.add_argument("--stay", action="store_true", help="keep the page open until Ctrl-C")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pacs-node-demo-") as scratch:
        base = Path(scratch)
        try:
            images = gather_images(options.folder, base / "images")
        except (ConfigError, OSError) as error:
            print(f"demo: {error}", file=sys.stderr)
            return 2
        print(images.said)
        (base / "pacs").mkdir()
        pacs = ReceivingPacs(base / "pacs")
        try:
            with _node(base, pacs.port) as settings:
                sent = _send(settings, images.folder)
                is_done = _wait(settings)
                is_good = _print_table(settings, sent, pacs) and is_done
                page = f"http://127.0.0.1:{settings.web.port}/"
                print(
                    f"\nThe page: {page}"
                    + ("   (Ctrl-C ends the demo)" if options.stay else "   (make demo STAY=1 keeps it open)")
                )
                if options.stay:
                    _until_interrupted()
        finally:
            pacs.close()
    print("\nThe demo " + ("passed." if is_good else "FAILED: see the table and the lines above."))
    return 0 if is_good else 1


@contextmanager
def _node(base: Path, pacs_port: int) -> Iterator[Settings]:
    config = base / "config.toml"
    config.write_text(
        f"""\
[node]
data_dir = "var"
secrets_dir = "var/secrets"
[dicom]
port = {_free_port()}
listeners = 1
[web]
port = {_free_port()}
authentication = "off"
[study]
max_study_age_days = 36500
[[destinations]]
name = "demo"
ae_title = "DEMO_PACS"
host = "127.0.0.1"
port = {pacs_port}
""",
        encoding="utf-8",
    )
    settings = load_settings(config)
    command = [sys.executable, "-m", "pacs_node.cli", "--config", str(config)]
    subprocess.run([*command, "migrate"], check=True, stdout=subprocess.DEVNULL)
    node = subprocess.Popen([*command, "run"], stdout=subprocess.DEVNULL)
    try:
        _wait_ready(settings, node)
        yield settings
    finally:
        node.terminate()
        node.wait(timeout=60)


def _wait_ready(settings: Settings, node: subprocess.Popen[bytes]) -> None:
    print("Starting the node ...", flush=True)
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and node.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{settings.web.port}/ready", timeout=2):
                if _has_worker(settings):
                    return
        except (urllib.error.URLError, OSError):
            pass
        time.sleep(0.3)
    raise SystemExit("demo: the node did not start; its lines stand above")


def _has_worker(settings: Settings) -> bool:
    """Tell whether a worker has loaded the model: the seconds of the table shall not count the node's start."""
    with read_scope(make_engine(settings.database_url)) as session:
        return any(record.action == Action.MODEL_LOADED for record in audit.tail(session, 20))


def _send(settings: Settings, folder: Path) -> list[Sent]:
    """Send everything; note when each C-STORE was answered."""
    to = destination_of(settings, f"{settings.dicom.ae_title}@127.0.0.1:{settings.dicom.port}")
    files = find_files([folder])
    sending = send_files(files, to, calling_ae_title="DEMO_MODALITY")
    bar = tqdm(sending, total=len(files), unit="image", disable=not sys.stderr.isatty())
    return [Sent(file=file, answered_at=time.monotonic()) for file in bar]


def _wait(settings: Settings) -> bool:
    """Wait until every study has its answer and the PACS every report it is owed; False when that takes too long."""
    engine = make_engine(settings.database_url)
    deadline = time.monotonic() + FINISH_S
    while time.monotonic() < deadline:
        with read_scope(engine) as session:
            studies, _ = facts.list_studies(session, limit=10_000)
        is_over = all(study.state in ("answered", "held") for study in studies)
        if is_over and all(line.state is not DeliveryState.WAITING for study in studies for line in study.deliveries):
            return True
        time.sleep(0.2)
    print(f"demo: not everything was answered and reported within {FINISH_S:g} s", file=sys.stderr)
    return False


def _print_table(settings: Settings, sent: list[Sent], pacs: ReceivingPacs) -> bool:
    """Print a line per image; return whether every promise of the demo was kept."""
    is_good = True
    engine = make_engine(settings.database_url)
    print(f"\n{'image':32} {'answer':14} {'probability':>11} {'SR stored':>9} {'seconds':>7}  warnings")
    with read_scope(engine) as session:
        by_uid = {image.sop_instance_uid: (study, image) for study, image in _all_images(session)}
    for item in sent:
        name = item.file.path.name[:32]
        found = by_uid.get(item.sop_instance_uid)
        if found is None or not item.file.is_sent:
            print(f"{name:32} not taken by the node: {item.file.text}")
            is_good &= item.file.is_dicom and item.file.text.startswith(NOT_NEGOTIATED)
            continue
        study, image = found
        codes = [warning.code for warning in image.warnings]
        forbidding = {warning.code for warning in image.warnings if warning.severity == "forbids"}
        probability = f"{image.predictions[0].probability:.3f}" if image.predictions else "-"
        stored_at = pacs.stored_at.get(study.study_instance_uid)
        is_owed = study.current_report is not None and study.current_report.is_sent
        seconds = f"{stored_at - item.answered_at:.1f}" if stored_at else "-"
        stored = "yes" if stored_at else "HELD" if study.hold else "NO" if is_owed else "not due"
        answer = study.current_report.answer.value if image.predictions and study.current_report else image.state.value
        facts_of_it = f"{answer:14} {probability:>11} {stored:>9} {seconds:>7}"
        held = [f"held: {study.hold}"] if study.hold else []
        print(f"{name:32} {facts_of_it}  {', '.join(held + codes) or '-'}")
        is_analysed_or_unfit = image.state is InstanceState.ANALYSED or (
            image.state is InstanceState.NOT_ANALYSED and (not image.is_judged or bool(forbidding & EXPECTED_REFUSALS))
        )
        is_good &= is_analysed_or_unfit and (stored_at is not None or not is_owed)
    return is_good


def _all_images(session: Any) -> Iterator[tuple[Any, Any]]:
    studies, _ = facts.list_studies(session, limit=10_000)
    for summary in studies:
        study = facts.study_facts(session, summary.study_id, lock=False)
        for image in study.images:
            yield study, image


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _until_interrupted() -> None:
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        print()


if __name__ == "__main__":
    sys.exit(main())
