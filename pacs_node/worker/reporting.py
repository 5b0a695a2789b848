"""One report job: from a frozen answer to stored DICOM objects and a delivery per destination.

Takes a claimed job; gives rows and files: the report itself in each SR class, and its pictures (`heatmaps`). What a
report says was frozen with its revision; here it is only built, so that building twice gives the same bytes. Headers of
strangers are read in a killable process.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from pydicom.dataset import Dataset
from sqlalchemy.engine import Engine

from db import audit, facts, queue
from db.audit import Action
from db.engine import DatabaseAway, Session, db_now, read_scope, session_scope
from db.facts import BuiltObject, ImageFacts, ReportFacts, ReviewFacts, StudyDetail, StudyFacts
from db.queue import Job, LostLease, QueuePolicy
from db.tables import Hold, ObjectKind
from models.card import ModelCard
from models.registry import Registry
from pacs_node import __version__
from pacs_node.decoding import DecodingPool, result_of
from pacs_node.log import describe
from pacs_node.report.answer import answer_of
from pacs_node.report.codes import QUALITY
from pacs_node.report.plan import delivery_plan
from pacs_node.report.source import SafeHeader, read_safe_header, safe_header
from pacs_node.report.sr import SR_CLASSES, build_sr, sop_instance_uid, to_bytes
from pacs_node.report.study import NodeIdentity, StudyReport, Verification
from pacs_node.settings import Settings
from pacs_node.store import ObjectStore
from pacs_node.worker.heatmaps import PictureMaker, Pictures
from pacs_node.worker.judging import STORE_RETRY

logger = logging.getLogger(__name__)
ACTOR = "worker"
"""A report that the disk does not take waits so long: room is worth waiting for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reporter:
    """Builds reports; everything it needs beside the job."""

    engine: Engine
    store: ObjectStore
    pool: DecodingPool
    registry: Registry
    settings: Settings
    policy: QueuePolicy
    _pictures: PictureMaker = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_pictures", PictureMaker(self.engine, self.store, self.pool))

    def report(self, job: Job) -> None:
        """Build the job's report and record it, or count an attempt."""
        try:
            self._build(job)
        except (LostLease, DatabaseAway) as error:
            logger.warning("A report is left to a later turn", extra={"action": "report_left", "why": describe(error)})
        except OSError as error:  # no fault of the report's, so it costs no attempt
            logger.warning("A report could not be stored", extra={"action": "store_away", "why": describe(error)})
            self._put_off(job)
        except Exception as error:  # a bug in one report must cost that job an attempt, not the worker
            extra = {"action": "report_failed", "report_id": job.subject_id}
            logger.exception("A report could not be built", extra=extra)
            self._count_attempt(job, describe(error))

    def _put_off(self, job: Job) -> None:
        with session_scope(self.engine) as session:
            queue.release(session, [job], now=db_now(session) + STORE_RETRY)

    def _count_attempt(self, job: Job, error: str) -> None:
        try:
            with session_scope(self.engine) as session:
                now = db_now(session)
                if queue.fail(session, job, error=error, now=now, policy=self.policy):
                    facts.record_report_failed(session, job.subject_id, now=now)
        except (LostLease, DatabaseAway):  # its lease runs out by itself
            logger.warning("A failed report job is left to its lease", extra={"action": "lease_left", "job_id": job.id})

    def _build(self, job: Job) -> None:
        with read_scope(self.engine) as session:
            report = facts.report_facts(session, job.subject_id)
            images = facts.frozen_images(session, report.report_id)
            study = facts.study_facts(session, report.study_id, lock=False)
            installation_id = facts.installation_id(session)
            review = facts.review_facts(session, report.review_id) if report.review_id else None
        headers = self._headers(images)
        if not any(image.instance_id in headers for image in images if image.is_judged):
            headers |= self._header_of_intake(report, images)
        content = StudyReport(
            installation_id=installation_id,
            study_instance_uid=study.study_instance_uid,
            report=report,
            answer=answer_of(images),
            images=images,
            headers=headers,
            cards=self._cards(report, images),
            node=NodeIdentity(
                name=self.settings.node.name, ae_title=self.settings.dicom.ae_title, software_version=__version__
            ),
            local_zone=datetime.now().astimezone().tzinfo,  # type: ignore[arg-type]  # astimezone always sets one
            verification=None if review is None else self._verification(review),
        )
        objects = [self._stored(content, sop_class_uid) for sop_class_uid in SR_CLASSES]
        kinds = wanted_kinds(self.settings) if report.is_sent else ()
        pictures = self._pictures.pictures_of(content, kinds, is_first_try=job.attempts == 0)
        self._record(job, content, study, objects, pictures)

    def _verification(self, review: ReviewFacts) -> Verification:
        """Name the reader by the login: the node knows no other name; "^" ends a family name (PS3.5 6.2.1)."""
        return Verification(
            person_name=re.sub(r"[\\^=]", " ", review.reviewer)[:63] + "^",
            login=review.reviewer,
            organization=self.settings.reviews.organization or self.settings.node.name,
            at=review.created_at,
            comment=review.comment,
        )

    def _stored(self, content: StudyReport, sop_class_uid: str) -> BuiltObject:
        file = self.store.place([to_bytes(build_sr(content, sop_class_uid))])
        return BuiltObject(
            sop_instance_uid=sop_instance_uid(content, sop_class_uid, content.report.revision),
            sop_class_uid=sop_class_uid,
            path=file.path,
            digest=file.digest,
        )

    def _record(
        self,
        job: Job,
        content: StudyReport,
        study: StudyFacts,
        reports: Sequence[BuiltObject],
        pictures: Pictures,
    ) -> None:
        report = content.report
        emptied = sorted({keyword for header in content.headers.values() for keyword in header.emptied})
        with session_scope(self.engine) as session:
            now = db_now(session)
            queue.finish(session, job, now=now)
            if "PatientID" in emptied and report.revision == 1:  # the report names nobody: an admin decides, once
                facts.hold_study(session, study.study_id, Hold.UNIDENTIFIED, actor=ACTOR, now=now)
            plan = delivery_plan(study, report, self.settings)
            facts.record_report_built(session, report.report_id, [*reports, *pictures.objects], plan, now=now)
            if report.replaced is not None and content.verification is not None:
                self._withdraw(session, report.replaced.report_id, actor=content.verification.login, now=now)
            for heatmap in pictures.heatmaps:
                facts.record_heatmap(session, heatmap, now=now)
            for instance_id in pictures.failed:
                audit.append(session, Action.HEATMAP_FAILED, actor=ACTOR, subject_id=instance_id, now=now)
            if emptied:
                audit.append(
                    session,
                    Action.ATTRIBUTES_EMPTIED,
                    actor=ACTOR,
                    subject_id=report.report_id,
                    details={"emptied": emptied},
                    now=now,
                )

    def _withdraw(self, session: Session, report_id: UUID, *, actor: str, now: datetime) -> None:
        """Withdraw a reader's report now that the one that replaces it is built; without notes it stays beside it."""
        noting = [one.name for one in self.settings.destinations if one.send_rejection_notes]
        facts.withdraw_report(session, report_id, code=QUALITY, only=noting, actor=actor, now=now)

    def _headers(self, images: Sequence[ImageFacts]) -> dict[UUID, SafeHeader]:
        """Read the header of every image whose file is still there."""
        reading = {
            image.instance_id: self.pool.submit(read_safe_header, str(path))
            for image in images
            if (path := self.store.absolute(image.path)).exists()
        }
        headers: dict[UUID, SafeHeader] = {}
        for instance_id, future in reading.items():
            try:
                headers[instance_id] = result_of(future)
            except Exception:  # a stranger's header costs its own image only; the report is made from the others
                extra = {"action": "header_unread", "instance_id": instance_id}
                logger.exception("A header could not be read", extra=extra)
        return headers

    def _header_of_intake(self, report: ReportFacts, images: Sequence[ImageFacts]) -> dict[UUID, SafeHeader]:
        """Return what intake understood of the patient and the study, for want of a header that can be read now.

        It is copied as plain ASCII or not at all, as anything without a character set is.
        """
        with read_scope(self.engine) as session:
            header = safe_header(_as_dataset(facts.study_detail(session, report.study_id)))
        first = next(image for image in images if image.is_judged)
        extra = {"action": "headers_unread", "report_id": report.report_id, "images": len(images)}
        logger.error("No header of a study can be read: its report names what intake understood", extra=extra)
        return {first.instance_id: header}

    def _cards(self, report: ReportFacts, images: Sequence[ImageFacts]) -> dict[tuple[str, str], ModelCard]:
        versions = {(report.model_name, report.model_version)}
        versions |= {(found.model_name, found.model_version) for image in images for found in image.predictions}
        return {version: self.registry.find(*version) for version in versions}


def wanted_kinds(settings: Settings) -> frozenset[ObjectKind]:
    """Return what some destination wants beside the report, which all get."""
    named = {ObjectKind(name) for destination in settings.destinations for name in destination.objects}
    return frozenset(named - {ObjectKind.SR})


def _as_dataset(study: StudyDetail) -> Dataset:
    dataset = Dataset()
    summary = study.summary
    dataset.PatientName, dataset.PatientID = summary.patient_name, summary.patient_id
    dataset.IssuerOfPatientID, dataset.AccessionNumber = study.issuer_of_patient_id, summary.accession_number
    dataset.PatientBirthDate, dataset.PatientSex = study.patient_birth_date, study.patient_sex
    dataset.StudyDate = f"{summary.study_date:%Y%m%d}" if summary.study_date else ""
    dataset.StudyDescription = study.study_description
    return dataset
