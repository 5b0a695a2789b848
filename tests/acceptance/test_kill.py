"""`kill -9`, many times at random moments, while a modality sends and a PACS is slow: nothing acknowledged is lost.

At the end every acknowledged image is named in exactly one current report of its study in the PACS, a study's reports
form one chain, no two share a revision, an object is never sent twice with other bytes, and no process is left over.
"""

from __future__ import annotations

import random
import signal
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from pydicom.dataset import Dataset

from tests.acceptance.node import QUICK, Node, until
from tests.acceptance.peers import SUCCESS, Modality, RecordingPacs, named_images, predecessors
from tests.builders import make_radiograph

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(900)]

SEED = 20261120
TARGETS = ["listener"] * 6 + ["worker"] * 6 + ["delivery"] * 5 + ["schedule"] * 4 + ["supervisor"] * 3
"""Whom to kill; shuffled."""
MOMENT_S = 0.4
"""The kill comes within this time after its victim was seen at work."""
SEND_EVERY_S = 0.5
"""Pace of the modality: some images are under way in every role at any moment."""
BACKLOG = 20
"""Images waiting; above this the modality pauses, so that a slow machine ends in the same time."""
LEASE_S = 2.0


@dataclass(kw_only=True)
class Ward:
    """A modality that sends without a pause: new studies, and now and then one more image of an older study."""

    modality: Modality
    random: random.Random
    count_waiting: Callable[[], int]
    studies: list[list[Dataset]] = field(default_factory=list)
    is_over: threading.Event = field(default_factory=threading.Event)
    _seed: int = 40_000

    def run(self) -> None:
        while not self.is_over.is_set():
            if self.count_waiting() > BACKLOG:
                self.is_over.wait(SEND_EVERY_S)
                continue
            batch = self._next_batch()
            statuses = self.modality.send(batch, attempts=60, pause_s=0.5)
            assert set(statuses) == {SUCCESS}, f"the node did not take an image within its attempts: {statuses}"
            self.is_over.wait(SEND_EVERY_S)

    def _next_batch(self) -> list[Dataset]:
        if self.studies and self.random.random() < 0.3:
            return self.add_late(self.random.choice(self.studies[-6:]))
        first = self._radiograph(None)
        self.studies.append([first, *(self._radiograph(first) for _ in range(self.random.randrange(3)))])
        return self.studies[-1]

    def add_late(self, study: list[Dataset]) -> list[Dataset]:
        """Return one more image of a study."""
        study.append(self._radiograph(study[0]))
        return study[-1:]

    def _radiograph(self, of: Dataset | None) -> Dataset:
        self._seed += 1
        size = self.random.choice([(400, 360), (400, 360), (1400, 1200)])
        dataset = make_radiograph(seed=self._seed, rows=size[0], columns=size[1])
        if of is not None:
            for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "PatientID", "AccessionNumber"):
                setattr(dataset, keyword, getattr(of, keyword))
            dataset.PatientBirthDate = of.PatientBirthDate
        return dataset


@dataclass(frozen=True, kw_only=True)
class Aftermath:
    """What the killing left behind."""

    node: Node
    pacs: RecordingPacs
    ward: Ward
    killed: Counter[str]
    leftovers: list[psutil.Process]


@pytest.fixture(scope="module")
def aftermath(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aftermath]:
    folder = tmp_path_factory.mktemp("kill")
    with RecordingPacs(folder / "pacs", delay_s=0.3) as pacs:
        node = Node(
            folder / "node",
            queue={"lease_s": LEASE_S, "max_crashes": 50, "retry_base_s": 0.2, "retry_cap_s": 1.0},
            delivery=QUICK["delivery"] | {"max_attempts": 1000, "connect_timeout_s": 5},
            worker={"decode_processes": 1, "batch_size": 4, "threads": 1},
            study={"settle_s": 0.3, "idle_s": 1.0, "report_wait_s": 120.0},
            destinations=[pacs.destination()],
        )
        try:
            yield _kill_and_let_finish(node.start(), pacs)
        finally:
            node.kill()


def _kill_and_let_finish(node: Node, pacs: RecordingPacs) -> Aftermath:
    chance = random.Random(SEED)
    waiting = "SELECT count(*) FROM jobs WHERE kind = 'infer' AND state IN ('ready', 'running')"
    ward = Ward(modality=Modality(node=node), random=random.Random(SEED), count_waiting=lambda: node.count(waiting))
    targets = list(TARGETS)
    chance.shuffle(targets)
    killed: Counter[str] = Counter()
    with ThreadPoolExecutor() as threads:
        sending = threads.submit(ward.run)
        try:
            for target in targets:
                _kill(target, node, pacs, ward, chance)
                killed[target] += 1
        finally:
            ward.is_over.set()
        sending.result(60)
    node.wait_quiet(timeout_s=300)
    for study in ward.studies[:3]:  # their reports are out: whatever chance did, some studies get another revision
        assert ward.modality.send(ward.add_late(study)) == [SUCCESS]
    node.wait_quiet(timeout_s=300)
    assert node.stop() == 0
    return Aftermath(node=node, pacs=pacs, ward=ward, killed=killed, leftovers=node.processes())


def _kill(target: str, node: Node, pacs: RecordingPacs, ward: Ward, chance: random.Random) -> None:
    """Wait until the victim is at work, then end it within a moment, without a word."""
    is_at_work: dict[str, Callable[[], object]] = {
        "listener": ward.modality.is_sending.is_set,
        "worker": lambda: node.count("SELECT count(*) FROM jobs WHERE kind = 'infer' AND state = 'running'"),
        "delivery": pacs.is_receiving.is_set,
        "schedule": lambda: node.count("SELECT count(*) FROM studies WHERE unreported_since IS NOT NULL"),
        "supervisor": lambda: True,
    }
    until(is_at_work[target], timeout_s=60, what=f"the {target} to be at work", describe=node.unfinished, every_s=0.01)
    time.sleep(chance.uniform(0, MOMENT_S))
    if target == "supervisor":
        _kill_supervisor(node)
        return
    roles = {"worker": "work-1", "delivery": "deliver", "schedule": "tick"}
    name = roles.get(target) or chance.choice(["listen-1", "listen-2"])
    victim = until(lambda: node.role(name), timeout_s=60, what=f"{name} to run")
    victim.send_signal(signal.SIGKILL)
    victim.wait(10)


def _kill_supervisor(node: Node) -> None:
    """Its children must see that it is gone, drain and end by themselves; only then can a new node bind the port."""
    assert node.process is not None
    node.process.kill()
    node.process.wait()
    until(
        lambda: not node.processes(),
        timeout_s=45,
        what="the roles to end after their supervisor",
        describe=lambda: f"left: {node.processes()}",
    )
    node.start()


def test_every_victim_was_killed(aftermath: Aftermath) -> None:
    assert aftermath.killed == Counter(TARGETS)
    assert aftermath.killed.total() >= 20


def test_every_acknowledged_image_is_named_in_one_current_report(aftermath: Aftermath) -> None:
    reports = aftermath.pacs.reports()
    current: dict[str, list[str]] = defaultdict(list)
    for records in reports.values():
        documents = [record.read() for record in records]
        replaced = {uid for document in documents for uid in predecessors(document)}
        for document in documents:
            if document.SOPInstanceUID not in replaced:
                for uid in named_images(document):
                    current[uid].append(str(document.StudyInstanceUID))
    sent = {str(d.SOPInstanceUID): str(d.StudyInstanceUID) for study in aftermath.ward.studies for d in study}
    acknowledged = aftermath.ward.modality.acknowledged
    assert len(acknowledged) >= 20, "too little was sent to say anything"
    assert {uid: current[uid] for uid in acknowledged} == {uid: [sent[uid]] for uid in acknowledged}


def test_reports_of_a_study_form_one_chain(aftermath: Aftermath) -> None:
    reports = aftermath.pacs.reports()
    assert any(len(records) > 1 for records in reports.values()), "no study got a second revision: nothing was tested"
    for study, records in reports.items():
        documents = {record.sop_instance_uid: record.read() for record in records}
        links = {uid: predecessors(document) for uid, document in documents.items()}
        assert all(len(before) <= 1 for before in links.values()), study
        named = [uid for before in links.values() for uid in before]
        assert len(named) == len(set(named)), f"{study}: two reports replace the same one"
        heads = set(documents) - set(named)
        assert len(heads) == 1, f"{study}: {len(heads)} current reports"
        assert set(named) <= set(documents), f"{study}: a report replaces one that the PACS never got"


def test_revisions_are_given_once(aftermath: Aftermath) -> None:
    for study, records in aftermath.pacs.reports().items():
        revisions = sorted(int(record.read().InstanceNumber) for record in records)
        assert revisions == list(range(1, len(records) + 1)), study
    rows = aftermath.node.rows("SELECT study_id, revision, count(*) AS n FROM reports GROUP BY 1, 2 HAVING n > 1")
    assert rows == []


def test_a_report_sent_again_is_the_same_bytes(aftermath: Aftermath) -> None:
    contents: dict[str, set[bytes]] = defaultdict(set)
    for record in aftermath.pacs.received:
        contents[record.sop_instance_uid].add(_without_meta(record.path))
    assert [uid for uid, versions in contents.items() if len(versions) > 1] == []


def _without_meta(path: Path) -> bytes:
    """Return the data set's bytes; the file meta is the receiving program's own."""
    content = path.read_bytes()
    group_length = int.from_bytes(content[140:144], "little")
    return content[144 + group_length :]


def test_no_image_failed_and_none_was_judged_twice(aftermath: Aftermath) -> None:
    states = {row["state"] for row in aftermath.node.rows("SELECT state FROM instances WHERE is_judged")}
    assert states == {"analysed"}
    twice = "SELECT instance_id FROM predictions WHERE superseded_at IS NULL GROUP BY 1 HAVING count(*) > 1"
    assert aftermath.node.rows(twice) == []
    assert aftermath.node.count("SELECT count(*) FROM jobs WHERE state != 'done'") == 0


def test_no_process_and_no_half_file_is_left(aftermath: Aftermath) -> None:
    assert aftermath.leftovers == []
    known = {
        row["path"] for row in aftermath.node.rows("SELECT path FROM instances UNION SELECT path FROM own_objects")
    }
    store = aftermath.node.data_dir / "store"
    assert [path for path in known if not (store / path).is_file()] == []


def test_the_audit_chain_holds(aftermath: Aftermath) -> None:
    verified = aftermath.node.command("audit", "verify")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert "broken 0" in verified.stdout
    restarts = aftermath.node.count("SELECT count(*) FROM audit_events WHERE action = 'role_restarted'")
    assert restarts >= len(TARGETS) - Counter(TARGETS)["supervisor"]
