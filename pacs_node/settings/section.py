"""What every section of the settings has in common: frozen, nothing unknown in it, no time that no clock counts."""

from __future__ import annotations

import ipaddress
from typing import Self

from pydantic import BaseModel, ConfigDict, model_validator

UNIT_S = {"s": 1, "minutes": 60, "hours": 3600, "days": 86_400}
"""Of the keys that end so."""
CENTURY_S = 100 * 366 * 86_400
LINE = r"^[^\\\x00-\x1f\x7f]+$"
"""Printable, without a backslash: VR LO (PS3.5 6.2), and a name that stands in lists and logs."""


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="after")
    def _refuse_what_no_clock_counts(self) -> Self:
        """Refuse times with which no date can be calculated."""
        for name in type(self).model_fields:
            unit, value = name.rpartition("_")[2], getattr(self, name)
            if unit in UNIT_S and value * UNIT_S[unit] > CENTURY_S:
                raise ValueError(f"{name} = {value:g} is more than a century")
        return self


def checked_networks(value: tuple[str, ...]) -> tuple[str, ...]:
    """Check addresses and networks, such as 192.0.2.17 or 198.51.100.0/24."""
    for address in value:
        ipaddress.ip_network(address, strict=False)
    return value


def is_loopback(host: str) -> bool:
    """Tell whether `host` is an address (or `localhost`) that other machines cannot reach."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
