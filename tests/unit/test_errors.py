from __future__ import annotations

from collections.abc import Iterator

import pytest

from db.engine import DatabaseAway, SchemaMismatch
from db.queue import LostLease
from models.errors import BundleConflict, CardError, ModelError, UnknownModel, WeightsMismatch, WeightsUnavailable
from pacs_node.errors import (
    ConfigError,
    DeliveryDelayed,
    DeliveryFailed,
    DeliveryRejected,
    ErrorOutcome,
    PacsNodeError,
    StorageRefused,
    outcome_of,
)

EXPECTED = {
    ConfigError: ErrorOutcome.EXIT,
    SchemaMismatch: ErrorOutcome.EXIT,
    WeightsMismatch: ErrorOutcome.EXIT,
    WeightsUnavailable: ErrorOutcome.EXIT,
    UnknownModel: ErrorOutcome.EXIT,
    CardError: ErrorOutcome.EXIT,
    BundleConflict: ErrorOutcome.EXIT,
    StorageRefused: ErrorOutcome.REFUSE,
    DeliveryDelayed: ErrorOutcome.RETRY,
    DeliveryRejected: ErrorOutcome.FAIL,
    LostLease: ErrorOutcome.DROP,
    DatabaseAway: ErrorOutcome.RETRY,
    RuntimeError: ErrorOutcome.RETRY,
}


def subclasses(kind: type[Exception]) -> Iterator[type[Exception]]:
    for child in kind.__subclasses__():
        yield child
        yield from subclasses(child)


def make(kind: type[Exception]) -> Exception:
    return kind("PACS", "away") if issubclass(kind, DeliveryFailed) else kind("x")


@pytest.mark.parametrize("kind", EXPECTED, ids=lambda kind: kind.__name__)
def test_outcome_of_each_error(kind: type[Exception]) -> None:
    assert outcome_of(make(kind)) is EXPECTED[kind]


@pytest.mark.parametrize("kind", [*subclasses(PacsNodeError), *subclasses(ModelError)], ids=lambda kind: kind.__name__)
def test_every_error_of_ours_has_a_decided_outcome(kind: type[Exception]) -> None:
    if kind is DeliveryFailed:
        return  # abstract: raised as Delayed or Rejected
    assert any(issubclass(kind, decided) for decided in EXPECTED if decided is not RuntimeError)
