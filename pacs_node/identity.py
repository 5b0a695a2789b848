"""Who this product is on the network and in every object it makes."""

from __future__ import annotations

import uuid

IMPLEMENTATION_CLASS_UID = "2.25.124114613494773788844454732218529848447"
"""Fixed for the product, whatever its version (PS3.7 D.3.3.2)."""
IMPLEMENTATION_VERSION_NAME = "PACS_NODE_0_1"
MANUFACTURER = "pacs-node open source project"
_DEVICES = uuid.UUID("5b0a3e0e-7f0b-5c7e-9d0f-2f9f3a4d1c66")


def device_uid(weights_sha256: str) -> str:
    """Return the Device UID of a model version: the same on every node, another for every change of the weights."""
    return f"2.25.{uuid.uuid5(_DEVICES, weights_sha256).int}"
