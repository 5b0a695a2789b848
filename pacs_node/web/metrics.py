"""The node in numbers, as Prometheus text. Read from the database at each scrape, so that all processes count.

Nothing here names a patient or a study: labels are our own states, job kinds, and the names of destinations and models.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector

from db import facts, queue
from db.engine import DatabaseAway, Session, db_now, read_scope
from models.errors import ModelError
from pacs_node.conformance import REFUSALS
from pacs_node.web.context import Web
from pacs_node.web.readiness import age_s

PREFIX = "pacs_node"


def exposition(web: Web) -> bytes:
    """Return the whole text; a database that is away is a number too."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Node(web))
    return generate_latest(registry)


class _Node(Collector):
    def __init__(self, web: Web) -> None:
        self._web = web

    def collect(self) -> Iterator[Metric]:
        is_up, from_database = self._read()
        yield _gauge("database_up", "1 when the database answers.", is_up)
        yield from from_database
        yield from self._disk()
        yield from self._model()

    def _read(self) -> tuple[int, list[Metric]]:
        try:
            with read_scope(self._web.engine) as session:
                parts = (_receptions, _studies, _jobs, _deliveries, _network)
                return 1, [metric for part in parts for metric in part(session)]
        except DatabaseAway:
            return 0, []

    def _disk(self) -> Iterator[Metric]:
        try:
            yield _gauge(
                "store_free_bytes", "Free bytes on the object store's file system.", self._web.store.free_bytes()
            )
        except OSError:
            return

    def _model(self) -> Iterator[Metric]:
        try:
            card = self._web.card()
        except (ModelError, DatabaseAway):
            return
        info = InfoMetricFamily(f"{PREFIX}_model", "The model that answers now.")
        info.add_metric([], {"name": card.name, "version": card.version, "weights_sha256": card.weights_sha256})
        yield info


def _receptions(session: Session) -> Iterator[Metric]:
    """Received = the sum of the outcomes: nothing is ever silent."""
    kept = facts.counts(session)
    yield _gauge("instances_received", "Instances answered with success, or whose bytes were kept.", kept.received)
    outcomes = GaugeMetricFamily(f"{PREFIX}_instances", "Received instances by where they ended.", labels=["outcome"])
    for outcome in ("analysed", "not_analysed", "failed", "waiting", "duplicate", "quarantined"):
        outcomes.add_metric([outcome], getattr(kept, outcome))
    yield outcomes


def _studies(session: Session) -> Iterator[Metric]:
    stuck = GaugeMetricFamily(f"{PREFIX}_studies", "Studies that wait for a person, by state.", labels=["state"])
    for state, count in facts.count_stuck_studies(session).items():
        stuck.add_metric([state], count)
    yield stuck
    oldest = facts.oldest_unreported(session)
    age = age_s(oldest, db_now(session)) if oldest else 0.0
    yield _gauge("oldest_unreported_seconds", "How long a study has waited for its report to be opened.", age)


def _jobs(session: Session) -> Iterator[Metric]:
    jobs = GaugeMetricFamily(f"{PREFIX}_jobs", "Jobs by kind and state.", labels=["kind", "state"])
    counted = queue.counts(session)
    for kind in queue.JobKind:
        for state in queue.JobState:
            jobs.add_metric([kind, state], counted.get((kind, state), 0))
    yield jobs
    ages = GaugeMetricFamily(f"{PREFIX}_oldest_waiting_seconds", "Age of the oldest job that waits.", labels=["kind"])
    oldest, now = facts.oldest_waiting(session), db_now(session)
    for kind in queue.JobKind:
        ages.add_metric([kind], age_s(oldest[kind], now) if kind in oldest else 0.0)
    yield ages


def _deliveries(session: Session) -> Iterator[Metric]:
    deliveries = GaugeMetricFamily(
        f"{PREFIX}_deliveries", "Reports by destination and state.", labels=["destination", "state"]
    )
    for (destination, state), count in facts.count_deliveries(session).items():
        deliveries.add_metric([destination, state], count)
    yield deliveries


def _network(session: Session) -> Iterator[Metric]:
    yield _gauge("open_associations", "DICOM associations that are open now.", facts.count_open(session))
    refused = GaugeMetricFamily(
        f"{PREFIX}_refused_contexts_today",
        "Presentation contexts refused since midnight; empty = nothing but Verification was accepted beside them.",
        labels=["reason", "association"],
    )
    counted = facts.count_refused_contexts(session, db_now(session).astimezone().date())
    for result, reason in REFUSALS.items():
        together, empty = counted.get(result, (0, 0))
        refused.add_metric([reason.replace(" ", "_"), "empty"], empty)
        refused.add_metric([reason.replace(" ", "_"), "other"], together - empty)
    yield refused


def _gauge(name: str, documentation: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"{PREFIX}_{name}", documentation, value=value)
