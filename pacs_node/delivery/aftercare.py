"""What becomes of results after they were sent, and of what senders take back; runs beside the courier.

Asks destinations whether they keep what they got, and again when they stay silent; answers peers that ask the same of
us; takes images that their sender rejected out of their studies' answers. All of it stands in the database before
anything is said on the network, so that a restart loses no question and no answer.
"""

from __future__ import annotations

import logging
import threading
import time
from datetime import timedelta
from uuid import uuid4

from sqlalchemy.engine import Engine

from db import facts
from db.engine import DatabaseAway, db_now, read_scope, session_scope
from db.facts import OpenRequest
from pacs_node.dimse import commitment
from pacs_node.dimse.commitment import CommitmentResult
from pacs_node.errors import DeliveryDelayed, DeliveryFailed
from pacs_node.log import describe
from pacs_node.settings import DestinationSettings, Settings
from pacs_node.told import apply_rejections, record_result

logger = logging.getLogger(__name__)

LOOK_S = 1.0
BATCH = 64
"""Deliveries about which one question is asked."""
SAME_ASSOCIATION_S = 2.0
"""A destination may answer at once, on the association on which it was asked."""
UNASKED_S = 300.0
"""A question that was recorded, and then perhaps never asked because the process ended, is asked again after this."""
ANSWER_AGAIN_S = 30.0
"""A peer that could not be told what we keep is told again after this, then after twice as long, and so on."""
ANSWER_ATTEMPTS = 12
"""For each question; the last one 17 hours after it, or a day where 200 of one peer wait for each other."""
PROCESSING_FAILURE, NO_SUCH_OBJECT, CLASS_CONFLICT = 0x0110, 0x0112, 0x0119
"""Failure Reasons (PS3.3 C.14.1.1); the first for other content under the same UID: sending it again is no cure."""


class Aftercare:
    """A thread of the delivery process; several processes may have one each."""

    def __init__(self, settings: Settings, engine: Engine, stop: threading.Event) -> None:
        self._settings, self._engine, self._stop = settings, engine, stop
        self._asked = {one.name: one for one in settings.destinations if one.storage_commitment}
        self._silent: dict[str, float] = {}
        """AE titles that could not be told, and until when (monotonic seconds) they are left alone."""
        self._thread = threading.Thread(target=self._run, name="aftercare", daemon=True)

    def __enter__(self) -> Aftercare:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(LOOK_S):
            try:
                self.turn()
            except DatabaseAway:
                logger.warning("The database is away; trying again", extra={"action": "database_away"})
            except Exception as error:  # one question's bug must end neither the others nor the rejections
                logger.exception("A turn failed", extra={"action": "aftercare_broke", "why": describe(error)})

    def turn(self) -> None:
        """Do what is due."""
        apply_rejections(self._engine)
        for name in self._due():
            self._ask(self._asked[name])
        if self._settings.dicom.storage_commitment:
            self._answer_all()

    def _due(self) -> frozenset[str]:
        if not self._asked:
            return frozenset()
        with read_scope(self._engine) as session:
            return facts.commitments_due(session, self._asked, now=db_now(session))

    def _ask(self, destination: DestinationSettings) -> None:
        transaction_uid = f"2.25.{uuid4().int}"  # as UIDs are made of UUIDs (PS3.5 B.2); nobody else can know it
        with session_scope(self._engine) as session:
            now = db_now(session)
            question = facts.open_commitment(
                session,
                destination.name,
                transaction_uid=transaction_uid,
                limit=BATCH,
                again_at=now + timedelta(seconds=UNASKED_S),
                now=now,
            )
        if question is None:
            return
        own = self._settings.delivery
        again_in = timedelta(hours=own.commitment_wait_hours)
        try:
            commitment.ask(
                destination,
                transaction_uid,
                question.objects,
                calling_ae_title=self._settings.dicom.ae_title,
                on_result=lambda result: record_result(self._engine, self._settings, result),
                wait_s=SAME_ASSOCIATION_S,
                connect_timeout_s=own.connect_timeout_s,
                response_timeout_s=self._settings.dicom.dimse_timeout_s,
            )
        except DeliveryFailed as failure:
            again_in = timedelta(seconds=min(UNASKED_S, own.retry_cap_s))
            context = {"action": "commitment_not_asked", "destination": destination.name, "why": failure.reason}
            logger.warning("A destination could not be asked what it keeps", extra=context)
        with session_scope(self._engine) as session:
            facts.postpone_commitment(session, question, until=db_now(session) + again_in)

    def _answer_all(self) -> None:
        """Answer what is due; a peer that cannot be told is left alone for a while, its other questions untried."""
        while not self._stop.is_set():
            silent = [title for title, until in self._silent.items() if time.monotonic() < until]
            with read_scope(self._engine) as session:
                if not facts.is_commitment_requested(session, but_of=silent, now=db_now(session)):
                    return
            with session_scope(self._engine) as session:
                now = db_now(session)
                request = facts.claim_commitment_request(session, but_of=silent, again_in_s=ANSWER_AGAIN_S, now=now)
            if request is not None and not self._answer(request):
                self._silent[request.calling_ae_title] = time.monotonic() + ANSWER_AGAIN_S

    def _answer(self, request: OpenRequest) -> bool:
        """Tell a peer what is stored here and not purged; only a destination has an address to be told at.

        Returns
        -------
        bool
            It was told.
        """
        peers = (one for one in self._settings.destinations if one.kind == "dimse")
        peer = next((one for one in peers if one.ae_title == request.calling_ae_title), None)
        try:
            if peer is None:
                raise DeliveryDelayed(request.calling_ae_title, "no [[destinations]] entry has its AE title")
            with read_scope(self._engine) as session:
                uids = [uid for _, uid in request.objects]
                kept = facts.kept_classes(session, uids)
                quarantined = facts.quarantined_of(session, request.calling_ae_title, uids)
            commitment.answer(
                peer,
                result_for(request, kept, quarantined),
                {uid: sop_class for sop_class, uid in request.objects},
                calling_ae_title=self._settings.dicom.ae_title,
                connect_timeout_s=self._settings.delivery.connect_timeout_s,
                response_timeout_s=self._settings.dicom.dimse_timeout_s,
            )
        except DeliveryFailed as failure:
            context = {"action": "commitment_unanswered", "request_id": request.request_id, "why": failure.reason}
            logger.warning("A peer could not be told what is kept", extra=context)
            is_answered = False
        else:
            is_answered = True
        if is_answered or request.attempts >= ANSWER_ATTEMPTS:
            with session_scope(self._engine) as session:
                facts.close_commitment_request(session, request.request_id, answered=is_answered, now=db_now(session))
        return is_answered


def result_for(request: OpenRequest, kept: dict[str, str], quarantined: frozenset[str]) -> CommitmentResult:
    """Return what a peer is told, object by object.

    Parameters
    ----------
    kept
        SOP Instance UID -> SOP Class UID of what is stored here.
    quarantined
        SOP Instance UIDs under which the peer sent other content than is stored here.
    """
    failed = {
        uid: NO_SUCH_OBJECT if uid not in kept else CLASS_CONFLICT if kept[uid] != sop_class else PROCESSING_FAILURE
        for sop_class, uid in request.objects
        if kept.get(uid) != sop_class or uid in quarantined
    }
    return CommitmentResult(
        transaction_uid=request.transaction_uid,
        kept=tuple(uid for _, uid in request.objects if uid not in failed),
        failed=failed,
    )
