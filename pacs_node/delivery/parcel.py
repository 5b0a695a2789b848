"""What a destination is sent of one report, chosen from facts, its profile and what it accepts. Pure.

The report comes first, in one class; the pictures that the profile names come after it, each only if the destination
takes its SOP Class. What was stored there already is not sent again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from db.facts import BuiltObject, DeliveryFacts
from db.queue import Job
from db.tables import ObjectKind
from pacs_node.delivery.destinations import SR_CLASS_BY_NAME
from pacs_node.errors import DeliveryRejected
from pacs_node.report.codes import SR_SOP_CLASSES
from pacs_node.settings import DestinationSettings

AcceptedClass = Callable[[Sequence[str]], str | None]
"""Returns the first of these SOP Classes that the peer takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parcel:
    """A claimed job with what it is to deliver."""

    job: Job
    delivery: DeliveryFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What is to be sent now, in this order, and what the destination takes in no class that was proposed."""

    report: BuiltObject
    sending: tuple[BuiltObject, ...]
    refused: tuple[BuiltObject, ...] = ()


def contents_of(
    delivery: DeliveryFacts,
    earlier: Sequence[DeliveryFacts],
    profile: DestinationSettings,
    accepted_class: AcceptedClass,
) -> Contents:
    """Return what the destination gets of a report.

    Raises
    ------
    DeliveryRejected
        It takes the report in no class.
    """
    report = _report_for(delivery, earlier, profile, accepted_class)
    pictures = [
        built
        for kind in profile.objects
        for built in delivery.objects
        if built.kind == kind and built.kind is not ObjectKind.SR
    ]
    over = {one.sop_instance_uid for one in delivery.delivered if one.is_over}
    left = [built for built in (report, *pictures) if built.sop_instance_uid not in over]
    taken = {built.sop_class_uid: accepted_class([built.sop_class_uid]) is not None for built in left}
    return Contents(
        report=report,
        sending=tuple(built for built in left if built is report or taken[built.sop_class_uid]),
        refused=tuple(built for built in left if built is not report and not taken[built.sop_class_uid]),
    )


def _report_for(
    delivery: DeliveryFacts,
    earlier: Sequence[DeliveryFacts],
    profile: DestinationSettings,
    accepted_class: AcceptedClass,
) -> BuiltObject:
    """Return the report in the class that this destination gets: the one it got before, else the best it accepts."""
    before = [one.sop_class_uid for one in (*earlier, delivery) if one.sop_class_uid in SR_SOP_CLASSES]
    wanted = [SR_CLASS_BY_NAME[name] for name in profile.sr_classes]
    accepted = accepted_class([str(uid) for uid in before[-1:]] or wanted)
    reports = (built for built in delivery.objects if built.kind is ObjectKind.SR)
    chosen = next((built for built in reports if built.sop_class_uid == accepted), None)
    if chosen is None:
        what = "the SR class that it was sent before" if before else "any of the SR classes"
        raise DeliveryRejected(delivery.destination, f"the peer does not accept {what}")
    return chosen
