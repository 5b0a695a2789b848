"""The configured destinations by name: what each wants, and which of them are away just now.

Takes a name; gives an open session, by DIMSE or by HTTP, that proposes what its delivery profile names. Hides how long
a destination that could not be reached, or fell silent, is left alone, so that it does not hold up the others.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

from pacs_node.conformance import (
    EXPLICIT_VR_LITTLE_ENDIAN,
    GRAYSCALE_PRESENTATION_STATE,
    IMPLICIT_VR_LITTLE_ENDIAN,
    KEY_OBJECT_SELECTION,
    SECONDARY_CAPTURE,
    SEGMENTATION,
)
from pacs_node.delivery.stow import StowSession
from pacs_node.dimse.storage import SendSession, StoreResult
from pacs_node.errors import DeliveryDelayed, DeliveryRejected
from pacs_node.report.codes import SR_SOP_CLASSES
from pacs_node.settings import DestinationSettings, Settings

PAUSE_S = 30.0
"""The longest time for which a destination is left alone; the first is `delivery.retry_base_s`, then doubled."""
SR_CLASS_BY_NAME = dict(zip(("comprehensive_3d", "comprehensive", "enhanced"), SR_SOP_CLASSES, strict=True))
PICTURE_CLASSES = {
    "heatmap": SECONDARY_CAPTURE,
    "gsps": GRAYSCALE_PRESENTATION_STATE,
    "seg": SEGMENTATION,
}
TRANSFER_SYNTAXES = {"explicit": EXPLICIT_VR_LITTLE_ENDIAN, "implicit": IMPLICIT_VR_LITTLE_ENDIAN}


class Session(Protocol):
    """An open way to a destination, for a batch."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...
    @property
    def is_open(self) -> bool: ...
    def accepted_class(self, sop_class_uids: Sequence[str]) -> str | None: ...
    def send(self, path: Path, *, is_urgent: bool = False) -> StoreResult: ...


Connect = Callable[[DestinationSettings], Session]


def contexts_of(destination: DestinationSettings) -> tuple[tuple[str, str], ...]:
    """Return what is proposed to a destination, as pairs of SOP Class and transfer syntax UID.

    Every SR class is, wanted or not: a later revision goes in the class of the one before.
    """
    pictures = tuple(PICTURE_CLASSES[kind] for kind in destination.objects if kind in PICTURE_CLASSES)
    notes = (KEY_OBJECT_SELECTION,) if destination.send_rejection_notes else ()
    syntaxes = (TRANSFER_SYNTAXES[name] for name in destination.transfer_syntaxes)
    return tuple(itertools.product((*SR_SOP_CLASSES, *pictures, *notes), syntaxes))


@dataclass(frozen=True, slots=True, kw_only=True)
class Outage:
    """No association, or none that lasted, `times` in a row; not tried again before `until` (monotonic seconds)."""

    until: float
    times: int
    reason: str


class Destinations:
    """Opens associations; knows of each destination whether it answered last."""

    def __init__(self, settings: Settings, connect: Connect | None = None) -> None:
        self._settings = settings
        self._by_name = {destination.name: destination for destination in settings.destinations}
        self._connect = connect or self._associate
        self._outages: dict[str, Outage] = {}

    def profile(self, name: str) -> DestinationSettings | None:
        """Return what a destination wants; None if the configuration names it no more."""
        return self._by_name.get(name)

    def session(self, name: str) -> Session:
        """Open an association, or a connection.

        Raises
        ------
        DeliveryDelayed
            The destination is away, or was a moment ago.
        DeliveryRejected
            It does not know us, accepts no SR class, or is not in the configuration.
        """
        destination, outage = self._by_name.get(name), self._outages.get(name)
        if destination is None:
            raise DeliveryRejected(name, "the configuration names no such destination any more")
        if outage is not None and time.monotonic() < outage.until:
            raise DeliveryDelayed(name, outage.reason)
        try:
            return self._connect(destination)
        except DeliveryDelayed as failure:
            self.note_outage(failure)
            raise

    def note_outage(self, failure: DeliveryDelayed) -> None:
        """Leave a destination alone that could not be reached or ended a session: longer with each time in a row."""
        before = self._outages.get(failure.destination)
        times = before.times + 1 if before else 1
        pause_s = min(self._settings.delivery.retry_base_s * 2.0 ** min(times - 1, 30), PAUSE_S)
        until = time.monotonic() + pause_s
        self._outages[failure.destination] = Outage(until=until, times=times, reason=failure.reason)

    def note_answer(self, name: str) -> None:
        """Forget the outages of a destination that took an object; an association alone is no answer."""
        self._outages.pop(name, None)

    def _associate(self, destination: DestinationSettings) -> Session:
        connect_timeout_s = self._settings.delivery.connect_timeout_s
        response_timeout_s = self._settings.dicom.dimse_timeout_s
        if destination.kind == "stow":
            return StowSession(destination, connect_timeout_s=connect_timeout_s, response_timeout_s=response_timeout_s)
        return SendSession(
            destination,
            contexts_of(destination),
            calling_ae_title=self._settings.dicom.ae_title,
            connect_timeout_s=connect_timeout_s,
            response_timeout_s=response_timeout_s,
        )
