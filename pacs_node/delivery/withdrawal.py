"""The rejection note of a withdrawn delivery: built when it is to be sent, recorded before it leaves.

Takes what a destination was sent of a report; gives a stored Key Object Selection that rejects exactly that. Building
it twice gives the same SOP Instance, so that a crash sends no second note.
"""

from __future__ import annotations

from datetime import datetime

from pydicom import dcmread
from sqlalchemy.engine import Engine

from db import facts
from db.engine import db_now, read_scope, session_scope
from db.facts import BuiltObject, DeliveryFacts
from db.tables import ObjectKind
from pacs_node import __version__
from pacs_node.errors import DeliveryRejected
from pacs_node.report.document import to_bytes
from pacs_node.report.rejection import DESCRIPTION, READERS_DESCRIPTION, build_rejection_note
from pacs_node.report.study import NodeIdentity
from pacs_node.settings import Settings
from pacs_node.store import ObjectStore


def note_of(engine: Engine, store: ObjectStore, settings: Settings, delivery: DeliveryFacts) -> BuiltObject:
    """Return the note that tells a destination not to show what it was sent.

    Raises
    ------
    DeliveryRejected
        The stored report, from which patient and study are copied, is gone.
    DatabaseAway
        The note is not recorded yet.
    """
    reports = (built for built in delivery.objects if built.kind is ObjectKind.SR)
    report_file = next((path for built in reports if (path := store.absolute(built.path)).exists()), None)
    if report_file is None or delivery.withdrawn_at is None:
        raise DeliveryRejected(delivery.destination, "the stored report is gone")
    with read_scope(engine) as session:
        report = facts.report_facts(session, delivery.report_id)
        installation_id = facts.installation_id(session)
    note = build_rejection_note(
        dcmread(report_file),
        rejected_of(delivery, _pictures_for(settings, delivery.destination)),
        code=delivery.withdrawal or "",
        installation_id=installation_id,
        node=NodeIdentity(name=settings.node.name, ae_title=settings.dicom.ae_title, software_version=__version__),
        at=delivery.withdrawn_at,
        local_zone=datetime.now().astimezone().tzinfo,  # type: ignore[arg-type]  # astimezone always sets one
        model_name=report.model_name,
        description=DESCRIPTION if report.review_id is None else READERS_DESCRIPTION,
    )
    uid = str(note.SOPInstanceUID)
    known = next((built for built in delivery.objects if built.sop_instance_uid == uid), None)
    if known is not None and store.absolute(known.path).exists():
        return known
    file = store.place([to_bytes(note)])
    built = BuiltObject(
        sop_instance_uid=uid,
        sop_class_uid=str(note.SOPClassUID),
        path=file.path,
        digest=file.digest,
        kind=ObjectKind.REJECTION,
    )
    with session_scope(engine) as session:
        return facts.add_rejection_note(session, delivery.report_id, built, now=db_now(session))


def _pictures_for(settings: Settings, destination: str) -> frozenset[str]:
    return frozenset(kind for one in settings.destinations if one.name == destination for kind in one.objects)


def rejected_of(delivery: DeliveryFacts, pictures: frozenset[str] = frozenset()) -> list[BuiltObject]:
    """Return what the destination has of a report, or may have: what was chosen may have left before a crash.

    Pictures follow the report and are recorded only after each: those that were not refused may be there.

    Parameters
    ----------
    pictures
        Kinds of objects that the destination's profile names.
    """
    refused = {one.sop_instance_uid for one in delivery.delivered if one.refusal}
    there = {one.sop_instance_uid for one in delivery.delivered if one.sent_at is not None}
    there |= {delivery.sop_instance_uid} if delivery.sop_instance_uid else set()
    if there:
        following = (built for built in delivery.objects if built.kind is not ObjectKind.SR and built.kind in pictures)
        there |= {built.sop_instance_uid for built in following} - refused
    return [
        built
        for built in delivery.objects
        if built.sop_instance_uid in there and built.kind is not ObjectKind.REJECTION
    ]
