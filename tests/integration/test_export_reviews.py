"""Reviewed studies go to training: with the readers' labels, without the patients, and always the same."""

from __future__ import annotations

import csv
import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from filelock import FileLock
from pydicom import dcmread
from pydicom.dataset import FileDataset
from sqlalchemy import Engine, insert

from db import audit, facts
from db.engine import db_now, read_scope, session_scope
from db.facts import ReviewFacts
from db.tables import Hold, RejectedObject, Verdict
from models.preprocess import read_radiograph
from pacs_node import cli
from pacs_node.errors import ConfigError
from pacs_node.export.reviews import Exported, export_reviews
from pacs_node.report.answer import answer_of
from pacs_node.settings import NodeSettings, Settings
from pacs_node.store import ObjectStore
from tests.builders import as_bytes, make_radiograph
from tests.records import LATERAL, end_jobs, make_instance, make_prediction
from training.data import load_images
from training.sources import read_items

NAME = "Zebedeus^Clothilde"
HOUR = timedelta(hours=1)
START = datetime(2026, 11, 20, 8, tzinfo=UTC)


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node with images, answers and reviews, and nothing that runs."""

    engine: Engine
    settings: Settings
    store: ObjectStore

    def study(self, seed: int, probability: float | None = 0.95, **changes: Any) -> UUID:
        """Receive a drawn radiograph, judge it and freeze the study's report."""
        study_id = self.receive(seed, probability, **changes)
        self.freeze(study_id)
        return study_id

    def receive(self, seed: int, probability: float | None, *, study: int | None = None, **changes: Any) -> UUID:
        patient = changes.pop("patient_id", f"SYN-{seed}")
        dataset = radiograph(seed, patient_id=patient, study_instance_uid=study_uid(study or seed), **changes)
        kept = self.store.place([as_bytes(dataset)])
        row = {"study": study_uid(study or seed), "sop_instance_uid": str(dataset.SOPInstanceUID), "path": kept.path}
        row |= {"digest": kept.digest, "size_bytes": kept.size_bytes, "patient_id": patient, "patient_name": NAME}
        with session_scope(self.engine) as session:
            accepted = facts.add_instance(session, make_instance(seed, **row), now=START)
            predictions = [] if probability is None else [make_prediction(probability)]
            facts.record_judgement(
                session,
                accepted.instance_id,
                predictions=predictions,
                warnings=[] if predictions else [LATERAL],
                voi="window",
                now=START,
            )
            end_jobs(session, accepted.instance_id)
        return accepted.study_id

    def freeze(self, study_id: UUID) -> None:
        with session_scope(self.engine) as session:
            said = answer_of(facts.study_facts(session, study_id, lock=True).images)
            model = {"model_name": "resnet50", "model_version": "1.0.0", "is_sent": True, "now": START}
            facts.freeze_report(
                session,
                study_id,
                answer=said.answer,
                probability=said.probability,
                contents=said.contents,
                **model,  # type: ignore[arg-type]
            )

    def review(
        self, study_id: UUID, verdict: Verdict, finding: str | None = None, *, by: str = "anna", hours: float = 1
    ) -> ReviewFacts:
        with session_scope(self.engine) as session:
            return facts.add_review(
                session,
                study_id,
                verdict=verdict,
                comment=f"about {NAME}",
                reviewer=by,
                now=START + hours * HOUR,
                corrected_finding=finding,
            )

    def export(self, folder: Path, **options: Any) -> Exported:
        return export_reviews(self.settings, self.engine, folder, **{"since": None, "actor": "admin:eva"} | options)


def study_uid(number: int) -> str:
    return f"1.2.826.0.1.3680043.8.498.{number}"


def radiograph(seed: int, **changes: Any) -> FileDataset:
    fields = {"rows": 64, "columns": 56, "patient_name": NAME, "InstitutionName": "Zebedeus Clinic"}
    return make_radiograph(seed=seed, **fields | changes)


@pytest.fixture
def node(sqlite_engine: Engine, tmp_path: Path) -> Node:
    return make_node(sqlite_engine, tmp_path / "var")


def make_node(engine: Engine, root: Path) -> Node:
    settings = Settings(node=NodeSettings(data_dir=root, secrets_dir=root / "secrets"))
    return Node(engine=engine, settings=settings, store=ObjectStore(settings.store_dir))


def labels(exported: Exported) -> list[str]:
    return sorted(row.label for row in exported.rows)


def reasons(exported: Exported) -> list[str]:
    return [one.reason for one in exported.excluded]


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# What goes, and under which label


def test_training_reads_the_folder_as_it_is(engine: Engine, tmp_path: Path) -> None:
    node = make_node(engine, tmp_path / "var")
    node.review(node.study(1, 0.95, patient_id="A"), Verdict.AGREE)
    node.review(node.study(2, 0.05, patient_id="A"), Verdict.AGREE)
    node.review(node.study(3, 0.95), Verdict.DISAGREE, "normal")
    node.review(node.study(4, 0.05), Verdict.DISAGREE, "pneumonia")
    exported = node.export(tmp_path / "out")
    assert labels(exported) == ["NORMAL", "NORMAL", "PNEUMONIA", "PNEUMONIA"]
    assert not exported.excluded

    items = read_items([tmp_path / "out" / "manifest.csv"], ("normal", "pneumonia"))
    assert len(items) == 4
    assert len({item.group for item in items}) == 3
    assert {(item.age_years, item.sex, item.view) for item in items} == {(4, "F", "PA")}
    images = load_images(items, size=32, cache=tmp_path / "cache")
    assert len(images.items) == 4
    assert not images.skipped


def test_pixels_of_training_are_those_of_the_model(node: Node, tmp_path: Path) -> None:
    node.review(node.study(1), Verdict.AGREE)
    (row,) = node.export(tmp_path / "out").rows
    away = dcmread(tmp_path / "out" / row.path)
    assert np.array_equal(read_radiograph(away).grey_HW, read_radiograph(radiograph(1)).grey_HW)


def test_nothing_in_the_folder_names_a_patient_a_reader_or_a_uid(node: Node, tmp_path: Path) -> None:
    study_id = node.study(1)
    node.review(study_id, Verdict.AGREE)
    held = node.study(2)
    node.review(held, Verdict.AGREE)
    with session_scope(node.engine) as session:
        facts.hold_study(session, held, Hold.IDENTITY_CONFLICT, actor="test", now=START)
    node.export(tmp_path / "out")
    source = radiograph(1)
    for name, content in bytes_of(tmp_path / "out").items():
        for word in ("zebedeus", "clothilde", "syn-1", "syn-2", "anna", study_uid(1), str(source.SOPInstanceUID)):
            assert word not in name.lower()
            assert word.encode() not in content.lower().split(b"\xe0\x7f\x10\x00")[0], (name, word)


def test_patient_keeps_one_name_in_all_exports_of_a_node(node: Node, tmp_path: Path) -> None:
    node.review(node.study(1, patient_id="A"), Verdict.AGREE, hours=1)
    first = node.export(tmp_path / "first")
    node.review(node.study(2, patient_id="A"), Verdict.AGREE, hours=3)
    second = node.export(tmp_path / "second", since=START + 2 * HOUR)
    assert len(second.rows) == 1
    assert {(r.patient, r.source) for r in first.rows} == {(r.patient, r.source) for r in second.rows}
    both = read_items([tmp_path / name / "manifest.csv" for name in ("first", "second")], ("pneumonia",))
    assert len({item.group for item in both}) == 1
    days = [dcmread(tmp_path / n / e.rows[0].path).StudyDate for n, e in (("first", first), ("second", second))]
    assert days[0] == days[1] < radiograph(1).StudyDate


@pytest.mark.parametrize(
    ("probability", "verdict", "finding", "reason"),
    [
        (0.5, Verdict.AGREE, None, "no_answer"),
        (0.95, Verdict.UNSURE, None, "unsure"),
        (0.95, Verdict.DISAGREE, None, "no_finding"),
        (0.95, Verdict.DISAGREE, "effusion", "other_finding"),
    ],
)
def test_verdict_without_a_class_is_listed_and_not_exported(
    node: Node, tmp_path: Path, probability: float, verdict: Verdict, finding: str | None, reason: str
) -> None:
    study_id = node.study(1, probability)
    node.review(study_id, verdict, finding)
    exported = node.export(tmp_path / "out")
    assert not exported.rows
    assert [(one.study, one.image, one.reason) for one in exported.excluded] == [(str(study_id), "", reason)]
    with (tmp_path / "out" / "excluded.csv").open(encoding="utf-8", newline="") as file:
        assert [row["reason"] for row in csv.DictReader(file)] == [reason]


def test_last_word_of_a_reader_counts(node: Node, tmp_path: Path) -> None:
    study_id = node.study(1, 0.95)
    node.review(study_id, Verdict.AGREE, hours=1)
    node.review(study_id, Verdict.DISAGREE, "normal", hours=2)
    node.review(study_id, Verdict.COMMENT, hours=3)
    assert labels(node.export(tmp_path / "changed")) == ["NORMAL"]
    node.review(study_id, Verdict.WITHDRAW, hours=4)
    assert reasons(node.export(tmp_path / "withdrawn")) == ["withdrawn"]
    commented = node.study(2)
    node.review(commented, Verdict.COMMENT)
    assert reasons(node.export(tmp_path / "commented")) == ["withdrawn"]


def test_readers_that_differ_stay_here_and_those_that_agree_go(node: Node, tmp_path: Path) -> None:
    apart, together = node.study(1, 0.95), node.study(2, 0.95)
    node.review(apart, Verdict.AGREE, by="anna", hours=1)
    node.review(apart, Verdict.DISAGREE, "normal", by="bert", hours=2)
    node.review(together, Verdict.AGREE, by="anna", hours=1)
    node.review(together, Verdict.DISAGREE, "pneumonia", by="bert", hours=2)
    exported = node.export(tmp_path / "out", since=START + 1.5 * HOUR)
    assert labels(exported) == ["PNEUMONIA"]
    assert [(one.study, one.reason) for one in exported.excluded] == [(str(apart), "readers_differ")]


def test_only_what_was_reviewed_since_is_exported(node: Node, tmp_path: Path) -> None:
    node.review(node.study(1), Verdict.AGREE, hours=1)
    node.review(node.study(2), Verdict.AGREE, hours=3)
    assert len(node.export(tmp_path / "all").rows) == 2
    assert len(node.export(tmp_path / "late", since=START + 3 * HOUR).rows) == 1
    assert not node.export(tmp_path / "none", since=START + 4 * HOUR).rows


def test_images_that_the_reader_never_saw_judged_stay_here(node: Node, tmp_path: Path) -> None:
    study_id = node.receive(1, 0.95, patient_id="A")
    node.receive(2, None, study=1, patient_id="A")  # a lateral
    node.freeze(study_id)
    node.review(study_id, Verdict.AGREE)
    node.receive(3, 0.95, study=1, patient_id="A")  # came after the review
    exported = node.export(tmp_path / "out")
    assert len(exported.rows) == 1
    assert reasons(exported) == ["not_analysed"]


# What must stay


def test_held_purged_rejected_and_missing_images_are_named_with_their_reason(node: Node, tmp_path: Path) -> None:
    held, purged, rejected, missing = (node.study(seed) for seed in (1, 2, 3, 4))
    for study_id in (held, purged, rejected, missing):
        node.review(study_id, Verdict.AGREE)
    with session_scope(node.engine) as session:
        now = db_now(session)
        facts.hold_study(session, held, Hold.UNIDENTIFIED, actor="test", now=now)
        assert facts.mark_purged(session, purged, now)
        image = facts.study_facts(session, missing, lock=False).images[0]
        sender = {"code": "113038", "note_uid": "1.9", "calling_ae_title": "CR", "is_trusted": True, "received_at": now}
        row = {"sop_instance_uid": str(radiograph(3).SOPInstanceUID), "study_instance_uid": study_uid(3)}
        session.execute(insert(RejectedObject), row | sender)
    node.store.delete(image.path)
    exported = node.export(tmp_path / "out")
    assert not exported.rows
    found = {UUID(one.study): one.reason for one in exported.excluded}
    assert found == {held: "held", purged: "purged", rejected: "rejected", missing: "file_missing"}
    assert "Not exported: 1 x held" in str(exported)


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"BurnedInAnnotation": "YES"}, "text_in_pixels"),
        ({"BurnedInAnnotation": None}, "text_not_excluded"),
        ({"modality": "SC"}, "secondary_capture"),
    ],
)
def test_pixels_that_may_show_a_name_stay_here(
    node: Node, tmp_path: Path, attributes: dict[str, Any], reason: str
) -> None:
    node.review(node.study(1, **attributes), Verdict.AGREE)
    assert reasons(node.export(tmp_path / "out")) == [reason]
    accepted = node.export(tmp_path / "accepted", accept_unstated=True)
    assert len(accepted.rows) == (reason == "text_not_excluded")


# How it leaves


def test_same_reviews_give_the_same_bytes(node: Node, tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        node.review(node.study(seed), Verdict.AGREE)
    node.review(node.study(4), Verdict.UNSURE)
    node.export(tmp_path / "first")
    node.export(tmp_path / "second")
    first = bytes_of(tmp_path / "first")
    assert first == bytes_of(tmp_path / "second")
    assert sorted(first)[:1] == ["excluded.csv"]
    assert len(first) == 5
    assert (tmp_path / "first").stat().st_mode & 0o077 == 0


def test_interrupted_export_goes_on_where_it_stopped(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in (1, 2, 3):
        node.review(node.study(seed), Verdict.AGREE)
    node.export(tmp_path / "whole")
    opened: list[str] = []
    open_stored = ObjectStore.open

    def fail_third(store: ObjectStore, path: str) -> Any:
        opened.append(path)
        if len(opened) == 3:
            raise KeyboardInterrupt
        return open_stored(store, path)

    monkeypatch.setattr(ObjectStore, "open", fail_third)
    with pytest.raises(KeyboardInterrupt):
        node.export(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    node.export(tmp_path / "out")
    assert len(opened) == 4  # the two that were made already are not made again
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole")
    assert not list(tmp_path.glob(".out*"))


def test_image_of_a_draft_that_is_excluded_now_does_not_go(node: Node, tmp_path: Path) -> None:
    study_id = node.study(1)
    node.review(study_id, Verdict.AGREE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(facts, "record_export", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            node.export(tmp_path / "out")
    node.review(study_id, Verdict.WITHDRAW, hours=2)
    node.export(tmp_path / "out")
    assert sorted(bytes_of(tmp_path / "out")) == ["excluded.csv", "manifest.csv"]


def _interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_export_is_audited_before_it_can_be_taken_and_names_no_patient(node: Node, tmp_path: Path) -> None:
    node.review(node.study(1), Verdict.AGREE)
    since = START - HOUR
    node.export(tmp_path / "out", since=since)
    with read_scope(node.engine) as session:
        event = audit.tail(session, 1)[0]
    assert (event.action, event.actor, event.subject_id) == ("reviews_exported", "admin:eva", None)
    digest = hashlib.sha256((tmp_path / "out" / "manifest.csv").read_bytes()).hexdigest()
    assert event.details == {"images": 1, "excluded": 0, "manifest_sha256": digest, "since": since.isoformat()}


def test_folder_that_is_not_empty_or_in_use_is_refused(node: Node, tmp_path: Path) -> None:
    node.review(node.study(1), Verdict.AGREE)
    used = tmp_path / "used"
    used.mkdir()
    (used / "mine.txt").write_text("keep me", encoding="utf-8")
    with pytest.raises(ConfigError, match="not empty"):
        node.export(used)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(facts, "record_export", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            node.export(tmp_path / "out")
    (draft,) = tmp_path.glob(".out.*.part")
    with FileLock(draft / ".lock"), pytest.raises(ConfigError, match="another export"):
        node.export(tmp_path / "out")
    (tmp_path / "out").mkdir()  # an empty one is as good as none
    assert len(node.export(tmp_path / "out").rows) == 1


def test_command_exports_and_says_what_stayed(node: Node, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    node.review(node.study(1), Verdict.AGREE)
    node.review(node.study(2), Verdict.UNSURE)
    url = str(node.engine.url)
    settings = node.settings.model_copy(update={"database": node.settings.database.model_copy(update={"url": url})})
    options = cli._parser().parse_args(["export-reviews", "--since", "2026-11-20", "--out", str(tmp_path / "out")])
    assert not options.command(settings, options)
    printed = capsys.readouterr().out
    assert "1 images of 1 patients (1 PNEUMONIA)" in printed
    assert "Not exported: 1 x unsure" in printed
    key = node.settings.node.secrets_dir / "pseudonyms.key"
    assert key.stat().st_mode & 0o777 == 0o600
