"""The configured destinations by name, and which of them are away just now.

Takes a name; gives an open association that proposes what a report may be sent as. Hides how long a destination that
gave no association is left alone, so that it does not hold up the others.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass

from pacs_node.conformance import EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN
from pacs_node.dimse import SendSession
from pacs_node.errors import DeliveryDelayed, DeliveryRejected
from pacs_node.report.codes import SR_SOP_CLASSES
from pacs_node.settings import DestinationSettings, Settings

PAUSE_S = 30.0
"""The longest time for which a destination is left alone; the first is `delivery.retry_base_s`, then doubled."""
CONTEXTS = tuple(itertools.product(SR_SOP_CLASSES, (EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN)))

Connect = Callable[[DestinationSettings], SendSession]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outage:
    """No association, `times` in a row; not tried again before `until` (monotonic seconds)."""

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

    def session(self, name: str) -> SendSession:
        """Open an association.

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
            session = self._connect(destination)
        except DeliveryDelayed as failure:
            self._outages[name] = self._outage_after(outage, failure.reason)
            raise
        self._outages.pop(name, None)
        return session

    def _outage_after(self, before: Outage | None, reason: str) -> Outage:
        times = before.times + 1 if before else 1
        pause_s = min(self._settings.delivery.retry_base_s * 2.0 ** min(times - 1, 30), PAUSE_S)
        return Outage(until=time.monotonic() + pause_s, times=times, reason=reason)

    def _associate(self, destination: DestinationSettings) -> SendSession:
        return SendSession(
            destination,
            CONTEXTS,
            calling_ae_title=self._settings.dicom.ae_title,
            connect_timeout_s=self._settings.delivery.connect_timeout_s,
            response_timeout_s=self._settings.dicom.dimse_timeout_s,
        )
