"""Hostile and odd objects by the hundred, as raw bytes: the node stays up, stays small, and loses count of nothing."""

from __future__ import annotations

import io
import re
import uuid
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.config import disable_value_validation

from tests.acceptance.node import Node
from tests.acceptance.peers import SUCCESS, echoscu, storescu
from tests.acceptance.raw_dimse import CR, EXPLICIT_VR_LITTLE_ENDIAN, Aborted, RawAssociation, Rejected, split_file
from tests.builders import data_folder, make_radiograph, save

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(300)]

CT = b"1.2.840.10008.5.1.4.1.1.2\0"
"""Most of the hostile corpus calls itself CT; CR is as long."""
CHEST = b"\x18\x00\x15\x00CS\x06\x00CHEST \x18\x00\x01\x51CS\x02\x00PA"
"""Body Part Examined and View Position, explicit little endian."""
STUDY_INSTANCE_UID = b"\x20\x00\x0d\x00UI"
CANNOT_UNDERSTAND, DATA_SET_MISMATCH = 0xC000, 0xA900
CHUNK = 40
"""Objects in one association."""
RSS_LIMIT_BYTES = 6_000_000_000
"""Of all processes, shared pages counted for each: supervisor, listeners, worker with torch, decoders, web, tick."""
LISTENER_GROWTH_BYTES = 500_000_000
"""Of all listeners together; the largest object sent has 17 MB."""


@dataclass(frozen=True, kw_only=True)
class Raw:
    """One object as its bytes leave us."""

    name: str
    data_set: bytes = field(repr=False)
    transfer_syntax_uid: str
    sop_class_uid: str
    sop_instance_uid: str

    @property
    def context(self) -> tuple[str, str]:
        return self.sop_class_uid, self.transfer_syntax_uid


REFUSED, ABORTED, SILENT = "refused in negotiation", "aborted", "no answer"
ANSWER_S = 15.0


@dataclass(kw_only=True)
class Flood:
    """The node after everything was sent and nothing is under way any more."""

    node: Node
    answers: list[tuple[Raw, int | str]] = field(default_factory=list)
    """A C-STORE status, REFUSED, ABORTED or SILENT."""
    highest_rss_bytes: int = 0
    listener_growth_bytes: int = 0

    def statuses(self) -> Counter[int | str]:
        return Counter(answer for _, answer in self.answers)


@pytest.fixture(scope="module")
def flood(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flood]:
    hostile = [(path.name, path.read_bytes()) for path in sorted(data_folder("dicom", "hostile").iterdir())]
    mixed = [(path.name, path.read_bytes()) for path in sorted(data_folder("dicom", "mixed").iterdir())]
    raws = [*map(_as_it_is, hostile), *map(_as_chest_radiograph, hostile), *map(_as_it_is, mixed)]
    node = Node(
        tmp_path_factory.mktemp("flood"),
        worker={"decode_processes": 2, "batch_size": 16, "decode_timeout_s": 10.0, "decode_memory_mb": 2048},
        model={"age_policy": "warn"},
    )
    try:
        yield _send_all(node.start(), raws)
    finally:
        node.kill()


def _as_it_is(file: tuple[str, bytes]) -> Raw:
    name, content = file
    transfer_syntax, data_set = split_file(content)
    return Raw(name=name, data_set=data_set, transfer_syntax_uid=transfer_syntax, **_identity(content))


def _as_chest_radiograph(file: tuple[str, bytes]) -> Raw:
    """Disguise an object as a chest CR: it then gets past negotiation and suitability as far as its faults let it."""
    name, content = file
    disguised = content.replace(CT, CR.encode() + b"\0").replace(
        b"\x08\x00\x60\x00CS\x02\x00CT", b"\x08\x00\x60\x00CS\x02\x00CR"
    )
    disguised = disguised.replace(STUDY_INSTANCE_UID, CHEST + STUDY_INSTANCE_UID, 1)
    transfer_syntax, data_set = split_file(disguised)
    # In a real object of this name the UID would differ: the disguise must not look like a conflict with the original.
    identity = _identity(disguised) | {"sop_class_uid": CR}
    return Raw(
        name=f"{name} as CR",
        data_set=data_set,
        transfer_syntax_uid=transfer_syntax if _is_uid(transfer_syntax) else EXPLICIT_VR_LITTLE_ENDIAN,
        **identity,
    )


def _is_uid(text: str) -> bool:
    return re.fullmatch(r"[0-9.]{1,64}", text) is not None


def _identity(content: bytes) -> dict[str, str]:
    """Read what a C-STORE command must name; what cannot be read is made up."""
    identity = {"sop_class_uid": CR, "sop_instance_uid": f"2.25.{uuid.uuid4().int}"}
    with disable_value_validation(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            header = dcmread(io.BytesIO(content), specific_tags=["SOPClassUID", "SOPInstanceUID"], force=True)
            found = {"sop_class_uid": str(header.SOPClassUID), "sop_instance_uid": str(header.SOPInstanceUID)}
        except Exception:  # noqa: BLE001 - hostile files break readers in every way
            return identity
    return identity | {key: uid for key, uid in found.items() if uid.isascii() and 0 < len(uid) <= 64}


def _send_all(node: Node, raws: Sequence[Raw]) -> Flood:
    flood = Flood(node=node)
    listeners_before = _listener_rss(node)
    for start in range(0, len(raws), CHUNK):
        _send_chunk(flood, raws[start : start + CHUNK])
        flood.highest_rss_bytes = max(flood.highest_rss_bytes, node.rss_bytes())
    flood.listener_growth_bytes = _listener_rss(node) - listeners_before
    node.wait_quiet(timeout_s=120)
    return flood


def _send_chunk(flood: Flood, raws: Sequence[Raw]) -> None:
    """Send in one association; where the peer aborts, go on with the next object in another."""
    left = list(raws)
    while left:
        try:
            association = _associate(flood.node, left)
        except (Aborted, Rejected, TimeoutError) as error:
            if len(left) == 1:
                flood.answers.append((left.pop(), SILENT if isinstance(error, TimeoutError) else ABORTED))
            else:  # one hostile transfer syntax must not hide the others
                for raw in left:
                    _send_chunk(flood, [raw])
                return
            continue
        with association:
            while left and _send_one(flood, association, left.pop(0)):
                pass
            if not left:
                _release(association)


def _associate(node: Node, raws: Sequence[Raw]) -> RawAssociation:
    contexts = list(dict.fromkeys(raw.context for raw in raws))
    return RawAssociation(("127.0.0.1", node.dicom_port), contexts, timeout_s=ANSWER_S)


def _send_one(flood: Flood, association: RawAssociation, raw: Raw) -> bool:
    """Return whether the association lives on."""
    if raw.context not in association.accepted:
        flood.answers.append((raw, REFUSED))
        return True
    try:
        answer = association.store(
            raw.data_set,
            sop_instance_uid=raw.sop_instance_uid,
            sop_class_uid=raw.sop_class_uid,
            transfer_syntax_uid=raw.transfer_syntax_uid,
        )
    except TimeoutError:
        flood.answers.append((raw, SILENT))
        return False
    except (Aborted, OSError):
        flood.answers.append((raw, ABORTED))
        return False
    flood.answers.append((raw, answer.status))
    return True


def _release(association: RawAssociation) -> None:
    with suppress(Aborted, OSError):
        association.release()


def _listener_rss(node: Node) -> int:
    listeners = [process for name in ("listen-1", "listen-2") if (process := node.role(name))]
    return sum(process.memory_info().rss for process in listeners)


def test_every_object_gets_an_answer_of_the_conformance_statement(flood: Flood) -> None:
    assert set(flood.statuses()) <= {SUCCESS, CANNOT_UNDERSTAND, DATA_SET_MISMATCH, REFUSED, ABORTED}, flood.statuses()
    # Bytes that are no UID break the association request itself (PS3.8 9.3.1): the one case in which an abort is right.
    assert [raw.name for raw, answer in flood.answers if answer == ABORTED and _is_uid(raw.transfer_syntax_uid)] == []
    assert flood.statuses()[SUCCESS] > 200, flood.statuses()


def test_everything_received_is_counted_once(flood: Flood) -> None:
    node = flood.node
    outcomes = {row["outcome"]: row["n"] for row in node.rows("SELECT outcome, count(*) AS n FROM receipts GROUP BY 1")}
    states = {row["state"]: row["n"] for row in node.rows("SELECT state, count(*) AS n FROM instances GROUP BY 1")}
    acknowledged = flood.statuses()[SUCCESS]
    kept = acknowledged + flood.statuses()[CANNOT_UNDERSTAND]
    assert sum(outcomes.values()) == kept
    assert sum(states.values()) == outcomes["new"]
    assert set(states) <= {"analysed", "not_analysed", "failed"}, "nothing may be left waiting"


def test_the_page_of_an_admin_shows_the_same_sum(flood: Flood) -> None:
    counts = _conservation(flood.node.get("/metrics"))
    parts = ("analysed", "not_analysed", "failed", "waiting", "duplicate", "quarantined")
    assert counts["received"] == sum(counts[part] for part in parts)
    assert counts["received"] == flood.node.count("SELECT count(*) FROM receipts")


def _conservation(metrics: str) -> dict[str, int]:
    """Read the received instances by outcome from the Prometheus text."""
    found = re.findall(r'^pacs_node_instances\{outcome="(\w+)"\} (\S+)$', metrics, re.MULTILINE)
    received = re.findall(r"^pacs_node_instances_received (\S+)$", metrics, re.MULTILINE)
    return {outcome: int(float(value)) for outcome, value in [*found, ("received", received[0])]}


def test_what_is_not_analysed_says_why(flood: Flood) -> None:
    silent = """SELECT count(*) FROM instances WHERE state != 'analysed' AND id NOT IN
                (SELECT instance_id FROM warnings WHERE superseded_at IS NULL)"""
    assert flood.node.count(silent) == 0
    assert flood.node.count("SELECT count(*) FROM receipts WHERE outcome = 'quarantined' AND reason = ''") == 0


def test_quarantined_bytes_are_kept(flood: Flood) -> None:
    rows = flood.node.rows("SELECT path FROM receipts WHERE outcome = 'quarantined'")
    assert rows
    assert [row["path"] for row in rows if not (flood.node.data_dir / "store" / row["path"]).is_file()] == []


def test_no_role_died_and_memory_is_bounded(flood: Flood) -> None:
    assert flood.node.rows("SELECT details FROM audit_events WHERE action = 'role_restarted'") == []
    assert flood.highest_rss_bytes < RSS_LIMIT_BYTES
    assert flood.listener_growth_bytes < LISTENER_GROWTH_BYTES


def test_logs_name_no_patient(flood: Flood) -> None:
    names = {row[0] for row in flood.node.rows("SELECT patient_name FROM studies WHERE length(patient_name) > 5")}
    lines = [str(line) for line in flood.node.logged()] + [flood.node.said()]
    assert [name for name in names if any(name in line for line in lines)] == []


def test_a_good_radiograph_is_still_judged(flood: Flood, tmp_path: Path) -> None:
    assert echoscu(flood.node).returncode == 0
    assert storescu(flood.node, [save(make_radiograph(seed=777), tmp_path / "good.dcm")]).returncode == 0
    flood.node.wait_quiet()
    state = "SELECT state FROM instances WHERE sop_instance_uid = ?"
    assert flood.node.rows(state, str(make_radiograph(seed=777).SOPInstanceUID))[0]["state"] == "analysed"
