"""The command line as an administrator uses it: what cannot run says why in one line; what runs can be looked after."""

from __future__ import annotations

import re
import shutil
import socket
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from models.card import CARD_FILE, ModelCard, load_card
from models.registry import Registry
from pacs_node.wiring import BUNDLED_MODELS
from tests.acceptance.node import QUICK, Node, until
from tests.acceptance.peers import SUCCESS, Modality, RecordingPacs
from tests.builders import make_radiograph, save

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(240)]

REFUSED_TO_START, FAILED = 2, 1
CANNOT_UNDERSTAND = 0xC000
NOWHERE = {"name": "nowhere", "ae_title": "NOWHERE", "host": "127.0.0.1", "port": 9}
"""The discard port of loopback: nothing listens there."""


def the_one_line(done: subprocess.CompletedProcess[str], code: int) -> str:
    """Return the single line on the terminal of a command that ended with `code`."""
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert (done.returncode, len(lines)) == (code, 1), done.stderr + done.stdout
    return lines[0]


# What cannot run


def test_help_names_every_command(tmp_path: Path) -> None:
    said = Node(tmp_path).command("--help").stdout
    words = "run listen work deliver web tick send jobs studies quarantine audit check migrate backup restore models"
    assert [word for word in words.split() if not re.search(rf"^\s+{word}\s", said, re.MULTILINE)] == []


@pytest.mark.parametrize(
    ("sections", "named"),
    [
        ({"dicom": {"prot": 104}}, "dicom.prot"),
        ({"dicom": {"port": 123456}}, "dicom.port"),
        ({"dicom": {"host": "0.0.0.0"}}, "dicom"),
        ({"destinations": [NOWHERE | {"ae_title": "A TITLE FAR TOO LONG"}]}, "destinations.0.ae_title"),
        ({"destinations": [NOWHERE, NOWHERE]}, "same name"),
    ],
)
def test_a_bad_configuration_is_one_line_that_names_the_key(tmp_path: Path, sections: dict, named: str) -> None:
    node = Node(tmp_path, **sections)
    assert named in the_one_line(node.command("run"), REFUSED_TO_START)


def test_a_configuration_that_is_missing_or_no_toml_is_one_line(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.config.write_text("[dicom\n", encoding="utf-8")
    assert "config.toml" in the_one_line(node.command("check"), REFUSED_TO_START)
    node.config.unlink()
    assert "no such file" in the_one_line(node.command("check"), REFUSED_TO_START)


def test_an_unknown_environment_variable_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PACS_NODE_DICOM__PROT", "104")
    assert "PACS_NODE_DICOM__PROT" in the_one_line(Node(tmp_path).command("check"), REFUSED_TO_START)


@pytest.fixture
def migrated(tmp_path: Path) -> Node:
    """A node that was never started."""
    node = Node(tmp_path / "node")
    node.command("migrate", check=True)
    return node


@pytest.mark.parametrize(("command", "key"), [("run", "dicom.port"), ("run", "web.port"), ("web", "web.port")])
def test_a_port_in_use_is_one_line_that_names_it(migrated: Node, command: str, key: str) -> None:
    port = getattr(migrated, key.replace(".", "_"))
    with socket.create_server(("127.0.0.1", port)):
        told = the_one_line(migrated.command(command), REFUSED_TO_START)
    assert str(port) in told
    assert key in told


def test_a_database_without_tables_is_one_line(tmp_path: Path) -> None:
    assert "pacs-node migrate" in the_one_line(Node(tmp_path).command("run"), REFUSED_TO_START)


def test_an_unknown_database_revision_is_one_line(migrated: Node) -> None:
    _write(migrated, "UPDATE alembic_version SET version_num = 'fromthefuture'")
    for command in ("run", "jobs"):
        line = the_one_line(migrated.command(command, *(["list"] if command == "jobs" else [])), REFUSED_TO_START)
        assert "fromthefuture" in line


def test_a_missing_model_is_one_line_that_lists_what_there_is(migrated: Node, tmp_path: Path) -> None:
    bundle = another_version(tmp_path / "bundle", "9.9.9")
    name = bundle.name
    migrated.command("models", "add", str(bundle.folder), check=True)
    told = migrated.command("models", "activate", f"{name}/9.9.9", check=True).stdout
    assert f"Validated on patients of {bundle.ages_text}." in told
    assert bundle.ages_text in migrated.command("models", "list", check=True).stdout
    shutil.rmtree(migrated.data_dir / "models")
    line = the_one_line(migrated.command("run"), REFUSED_TO_START)
    assert f"{name} 9.9.9" in line
    assert "known" in line


def test_a_model_whose_weights_are_not_its_cards_is_refused(migrated: Node, tmp_path: Path) -> None:
    bundle = another_version(tmp_path / "bundle", "9.9.9")
    with bundle.weights_path.open("r+b") as weights:
        weights.seek(5_000_000)
        weights.write(b"tampered")
    line = the_one_line(migrated.command("models", "add", str(bundle.folder)), REFUSED_TO_START)
    assert "sha256" in line
    assert not (migrated.data_dir / "models" / bundle.name).exists()


def test_sending_to_nobody_is_one_line(tmp_path: Path) -> None:
    node = Node(tmp_path / "node", destinations=[NOWHERE])
    file = save(make_radiograph(seed=601), tmp_path / "image.dcm")
    for to in ("nowhere", "ANY@127.0.0.1:9"):
        done = node.command("send", str(file), "--to", to)
        assert done.returncode == FAILED
        assert "Traceback" not in done.stderr
        assert len(done.stderr.strip().splitlines()) <= 2, done.stderr
    assert "somewhere" in the_one_line(node.command("send", str(file), "--to", "somewhere"), REFUSED_TO_START)


# What runs


@dataclass(frozen=True, kw_only=True)
class House:
    """A running node with one PACS that answers and one that does not."""

    node: Node
    pacs: RecordingPacs

    def send(self, seed: int, **options: str) -> str:
        """Send one radiograph and return its Study Instance UID."""
        dataset = make_radiograph(seed=seed, **options)  # type: ignore[arg-type]
        assert Modality(node=self.node).send([dataset]) == [SUCCESS]
        return str(dataset.StudyInstanceUID)

    def model_version_of(self, study_instance_uid: str) -> str:
        query = """SELECT p.model_version FROM predictions p JOIN instances i ON i.id = p.instance_id
                   JOIN studies s ON s.id = i.study_id WHERE s.study_instance_uid = ?"""
        return str(self.node.rows(query, study_instance_uid)[0]["model_version"])


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("commands")
    with RecordingPacs(folder / "pacs") as pacs:
        node = Node(
            folder / "node",
            destinations=[pacs.destination(), NOWHERE],
            delivery=QUICK["delivery"] | {"connect_timeout_s": 2},
        )
        with node:
            yield House(node=node, pacs=pacs)


def test_run_says_what_is_running_and_how_to_send(house: House) -> None:
    said = house.node.said()
    for part in (str(house.node.dicom_port), "PACS_NODE", house.node.url, "dcmsend", "Ctrl-C", "not a medical device"):
        assert part in said
    until(lambda: "Ready." in house.node.said(), timeout_s=30, what="the word Ready on the terminal")


def test_a_second_node_on_the_same_folder_is_one_line(house: House) -> None:
    other = Node(house.node.folder.parent / "other")
    other.configure(other.sections | {"node": {"data_dir": str(house.node.data_dir)}})  # type: ignore[operator]
    assert "another node" in the_one_line(other.command("run"), REFUSED_TO_START)


def test_an_unreachable_destination_is_shown_and_holds_nothing_up(house: House) -> None:
    study = house.send(610)
    house.pacs.wait_report(study)
    checked = house.node.command("check")
    assert checked.returncode == FAILED
    failures = [line for line in checked.stdout.splitlines() if line.startswith("FAIL")]
    assert len(failures) == 1
    assert "nowhere" in failures[0]
    query = "SELECT state, reason FROM deliveries WHERE destination = 'nowhere'"
    delivery = until(lambda: [r for r in house.node.rows(query) if r["reason"]], timeout_s=20, what="the reason")[0]
    assert delivery["state"] == "waiting"


def test_check_names_what_it_looked_at(house: House) -> None:
    said = house.node.command("check").stdout
    for what in ("database revision", "model checksum", "store writable", "C-ECHO pacs"):
        assert re.search(rf"^ok\s+{what}", said, re.MULTILINE), said


def test_a_dead_letter_is_listed_and_run_again(house: House) -> None:
    house.pacs.answer = lambda _: CANNOT_UNDERSTAND
    study = house.send(620)
    failed = "SELECT id FROM jobs WHERE kind = 'deliver' AND state = 'failed'"
    until(lambda: house.node.rows(failed), timeout_s=60, what="a failed delivery", describe=house.node.unfinished)
    listed = house.node.command("jobs", "list", "--state", "failed").stdout
    assert "deliver" in listed
    house.pacs.answer = lambda _: SUCCESS
    retried = house.node.command("jobs", "retry", "--all")
    assert retried.returncode == 0, retried.stderr
    report = house.pacs.wait_report(study)
    assert report.InstanceNumber == 1
    # What waits for the destination that never answers was tried at once too.
    retried_too = "SELECT count(*) FROM audit_events WHERE action = 'job_retried'"
    assert f"{house.node.count(retried_too)} job(s) due now" in retried.stdout


def test_another_model_answers_only_after_it_was_activated(house: House, tmp_path: Path) -> None:
    bundled = Registry([BUNDLED_MODELS]).newest()
    bundle = another_version(tmp_path / "bundle", "9.9.9")
    house.node.command("models", "add", str(bundle.folder), check=True)
    assert _answering_version(house, 630) == bundled.version, "an added model must not answer by itself"
    house.node.command("models", "activate", f"{bundle.name}/9.9.9", check=True)
    assert "9.9.9" in house.node.command("models", "list").stdout
    until(lambda: _loaded(house.node) == "9.9.9", timeout_s=30, what="the worker to take up the model")
    assert _answering_version(house, 631) == "9.9.9"
    house.node.command("models", "rollback", check=True)
    until(lambda: _loaded(house.node) == bundled.version, timeout_s=30, what="the worker to return to the model before")
    assert _answering_version(house, 632) == bundled.version
    actions = {row["action"] for row in house.node.rows("SELECT action FROM audit_events WHERE action LIKE 'model%'")}
    assert {"model_added", "model_activated"} <= actions


def _answering_version(house: House, seed: int) -> str:
    study = house.send(seed)
    house.pacs.wait_report(study)
    return house.model_version_of(study)


def _loaded(node: Node) -> str:
    lines = [line for line in node.logged() if line.get("action") == "model_loaded" and line["role"].startswith("work")]
    return str(max(lines, key=lambda line: line["at"])["model"]).split()[-1]


def test_the_audit_trail_is_sealed_and_shown(house: House) -> None:
    house.send(635)
    until(
        lambda: ", unsealed 0," in house.node.command("audit", "verify").stdout,
        timeout_s=120,
        what="the seal",
        every_s=1,
    )
    verified = house.node.command("audit", "verify")
    assert verified.returncode == 0
    assert "broken 0" in verified.stdout
    assert "instance_stored" in house.node.command("audit", "tail", "--limit", "500").stdout


def test_a_backup_of_a_running_node_can_be_restored(house: House, tmp_path: Path) -> None:
    house.send(640)
    until(
        lambda: house.node.count("SELECT count(*) FROM jobs WHERE kind = 'infer' AND state != 'done'") == 0,
        timeout_s=30,
        what="the image",
    )
    backed_up = house.node.command("backup", str(tmp_path / "backup"))
    assert backed_up.returncode == 0, backed_up.stderr
    restored = Node(tmp_path / "restored", destinations=[house.pacs.destination()])
    done = restored.command("restore", str(tmp_path / "backup"))
    assert done.returncode == 0, done.stderr
    assert restored.command("audit", "verify").returncode == 0
    for row in restored.rows("SELECT path FROM instances"):
        assert (restored.data_dir / "store" / row["path"]).is_file()
    checked = restored.command("check")
    assert checked.returncode == 0, checked.stdout
    assert "a database is there already" in the_one_line(
        restored.command("restore", str(tmp_path / "backup")), REFUSED_TO_START
    )
    with restored:
        assert restored.get("/api/v1/studies")["items"]


def test_ctrl_c_drains_and_nothing_acknowledged_is_lost(house: House) -> None:
    """Last but one: it stops the node."""
    modality = Modality(node=house.node)
    datasets = [make_radiograph(seed=seed, rows=1000, columns=900) for seed in range(650, 690)]
    with ThreadPoolExecutor() as threads:
        sending = threads.submit(modality.send, datasets)
        until(lambda: len(modality.acknowledged) >= 3, timeout_s=30, what="the first images", every_s=0.02)
        start = time.monotonic()
        assert house.node.stop() == 0
        assert time.monotonic() - start < 30
        sending.result(30)
    assert house.node.processes() == []
    assert "Stopped." in house.node.said()
    stored = {row["sop_instance_uid"] for row in house.node.rows("SELECT sop_instance_uid FROM instances")}
    assert set(modality.acknowledged) <= stored
    running = "SELECT count(*) FROM jobs WHERE state = 'running'"
    assert house.node.count(running) == 0, "a stopping role gives its jobs back"
    house.node.start()
    for uid in modality.acknowledged:
        assert uid in stored
    judged = "SELECT count(*) FROM jobs WHERE kind = 'infer' AND state != 'done'"
    until(lambda: house.node.count(judged) == 0, timeout_s=60, what="the rest", describe=house.node.unfinished)
    assert house.node.stop() == 0


def test_a_forged_audit_event_is_found(house: House) -> None:
    """The last: it breaks the chain."""
    _write(house.node, "UPDATE audit_events SET actor = 'nobody' WHERE sequence = 3")
    verified = house.node.command("audit", "verify")
    assert verified.returncode == FAILED
    assert "3" in verified.stderr


def another_version(folder: Path, version: str) -> ModelCard:
    """Copy the bundled model under another version, as a newly trained one would come."""
    card = Registry([BUNDLED_MODELS]).newest()
    folder.mkdir(parents=True)
    for file in set(card.files) - {CARD_FILE}:
        shutil.copyfile(card.folder / file, folder / file)
    text = (card.folder / CARD_FILE).read_text(encoding="utf-8")
    (folder / CARD_FILE).write_text(
        text.replace(f'version = "{card.version}"', f'version = "{version}"', 1), encoding="utf-8"
    )
    return load_card(folder)


def _write(node: Node, statement: str) -> None:
    with closing(sqlite3.connect(node.database)) as connection, connection:
        assert connection.execute(statement).rowcount == 1
