"""Errors by their consequence, and `outcome_of`, the only place that decides what an error causes.

PacsNodeError
├─ ConfigError                    refuse to start, exit 2, say which key and what to do
├─ StorageRefused(status)         answered to the peer (PS3.4 B.2.3)
│   ├─ OutOfResources   A700      disk low, queue too long, database away: the peer should try again
│   ├─ DataSetMismatch  A900      SOP Class or Instance UID differs from the request
│   └─ CannotUnderstand C000      not parseable as DICOM (the bytes are kept in quarantine)
└─ DeliveryFailed(destination)
    ├─ DeliveryDelayed            no association, transient rejection, timeout, A7xx: retry with backoff
    └─ DeliveryRejected           A9xx, Cxxx, no presentation context: failed, shown to a person
models: ImageUnfit -> not analysed; ModelError -> refuse to start
db:     LostLease -> drop the result
anything else is a bug: attempt + 1, then failed with its traceback
"""

from __future__ import annotations

import enum
from typing import ClassVar

from db.engine import SchemaMismatch
from db.queue import LostLease
from models.errors import ModelError


class StorageStatus(enum.IntEnum):
    """C-STORE response statuses (PS3.4 B.2.3, PS3.7 C)."""

    SUCCESS = 0x0000
    PROCESSING_FAILURE = 0x0110
    SOP_CLASS_NOT_SUPPORTED = 0x0122
    NOT_AUTHORISED = 0x0124
    OUT_OF_RESOURCES = 0xA700
    DATA_SET_MISMATCH = 0xA900
    CANNOT_UNDERSTAND = 0xC000


class PacsNodeError(Exception):
    """Anything this service refuses or fails at on purpose."""


class ConfigError(PacsNodeError):
    """The configuration cannot be run; the message says which key and what to do."""


class StorageRefused(PacsNodeError):
    """A C-STORE that is not acknowledged with success."""

    status: ClassVar[StorageStatus]


class OutOfResources(StorageRefused):
    status = StorageStatus.OUT_OF_RESOURCES


class DataSetMismatch(StorageRefused):
    status = StorageStatus.DATA_SET_MISMATCH


class CannotUnderstand(StorageRefused):
    status = StorageStatus.CANNOT_UNDERSTAND


class DeliveryFailed(PacsNodeError):
    """A destination did not take a report."""

    def __init__(self, destination: str, reason: str) -> None:
        super().__init__(f"{destination}: {reason}")
        self.destination = destination
        self.reason = reason


class DeliveryDelayed(DeliveryFailed):
    """Worth another try by itself."""


class DeliveryRejected(DeliveryFailed):
    """Will not become right by trying again."""


class ErrorOutcome(enum.StrEnum):
    """What happens to the work in hand."""

    EXIT = "exit"
    REFUSE = "refuse"
    RETRY = "retry"
    FAIL = "fail"
    DROP = "drop"


def outcome_of(error: BaseException) -> ErrorOutcome:
    """Decide what `error` causes: a bug is retried until its job's attempts are used up."""
    match error:
        case ConfigError() | ModelError() | SchemaMismatch():
            return ErrorOutcome.EXIT
        case StorageRefused():
            return ErrorOutcome.REFUSE
        case DeliveryRejected():
            return ErrorOutcome.FAIL
        case LostLease():
            return ErrorOutcome.DROP
        case _:
            return ErrorOutcome.RETRY
