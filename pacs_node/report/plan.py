"""Where a report goes, and what holds it back: decided when it is built, from facts and settings alone. Pure."""

from __future__ import annotations

from typing import NamedTuple

from db.facts import PredecessorFacts, ReportFacts, StudyFacts
from db.tables import PRIOR, Answer, DeliveryState
from pacs_node.report.answer import StudyAnswer
from pacs_node.settings import DestinationSettings, Settings


class PlannedDelivery(NamedTuple):
    """One destination of a report: WAITING to be sent, or HELD with the reason."""

    destination: str
    state: DeliveryState
    reason: str


def is_for_others(answer: StudyAnswer, predecessor: PredecessorFacts | None, settings: Settings) -> bool:
    """Whether a report leaves the house: wanted somewhere, and of a chest or in place of one that did or is to.

    No later one names what nobody got.
    """
    is_wanted = not settings.destinations or bool(_wanting(answer.answer, predecessor, settings))
    return is_wanted and (answer.is_chest or predecessor is not None)


def _wanting(
    answer: Answer, predecessor: PredecessorFacts | None, settings: Settings
) -> tuple[DestinationSettings, ...]:
    """Return the destinations that want a report with this answer.

    One that says NOT ANALYSED may be unwanted; one that replaces a result never is: the PACS would go on showing what
    is no longer said.
    """
    is_replacing = predecessor is not None and predecessor.answer is not Answer.NOT_ANALYSED
    is_wanted = answer is not Answer.NOT_ANALYSED or is_replacing
    return tuple(one for one in settings.destinations if is_wanted or one.send_not_analysed)


def delivery_plan(study: StudyFacts, report: ReportFacts, settings: Settings) -> tuple[PlannedDelivery, ...]:
    """Return where the report goes; a destination that is not to have it is left out."""
    if not report.is_sent:
        return ()
    reason = _held_because(study, settings)
    return tuple(
        PlannedDelivery(
            destination=destination.name,
            state=DeliveryState.HELD if reason else DeliveryState.WAITING,
            reason=reason,
        )
        for destination in _wanting(report.answer, report.predecessor, settings)
    )


def _held_because(study: StudyFacts, settings: Settings) -> str:
    """Return "" if the study may leave the node now."""
    if _is_prior(study, settings):
        return PRIOR
    return study.hold.value if study.hold is not None else ""


def _is_prior(study: StudyFacts, settings: Settings) -> bool:
    """Whether the study was old when it came; one that grew old here can still be corrected."""
    sends_priors = {peer.ae_title for peer in settings.dicom.peers if peer.send_priors}
    if study.study_date is None or study.calling_ae_title in sends_priors:
        return False
    return (study.first_received_at.date() - study.study_date).days > settings.study.max_study_age_days
