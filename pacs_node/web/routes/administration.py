"""The administration page: what needs a person, who may send, which model answers, who may log in, what was done.

Shows no patient attribute: a study is a link. What the page does goes through the API.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from db import audit, facts, queue
from db.audit import Action
from db.engine import Session, db_now, read_scope
from db.facts import accounts, credentials
from db.facts.peers import Standing, destination_standings, last_seen
from db.facts.retention import bytes_per_day
from db.queue import Job, JobKind, JobState
from models.errors import ModelError
from pacs_node.rollout import known_versions
from pacs_node.settings import Settings
from pacs_node.web import charts, words
from pacs_node.web.access import Role, requires
from pacs_node.web.context import Web, WebContext
from pacs_node.web.query import cursor_out
from pacs_node.web.readiness import check_all
from pacs_node.web.routes.pages import show

router = APIRouter(include_in_schema=False, dependencies=[requires(Role.ADMIN)])

FAILED_SHOWN, EVENTS_SHOWN = 50, 40
EXPORTS = ("studies", "results", "reviews", "deliveries")
"""Lists that can be had as files."""
PACE_DAYS = 7
"""Over which the filling of the disk is averaged."""
STEPS = {JobKind.INFER: "Judge an image", JobKind.REPORT: "Build a report", JobKind.DELIVER: "Deliver a report"}
STATES = {
    JobState.READY: "wait for a worker",
    JobState.RUNNING: "being done",
    JobState.FAILED: "need a person",
    JobState.CLOSED: "closed undone",
    JobState.DONE: "done",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedJob:
    """A job that waits for a person."""

    job: Job
    step: str
    because: str
    """The last line of its error, without the way there."""
    tries: str
    at: str
    can_close: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Somebody this node talks to."""

    name: str
    does: str
    address: str
    transport: str
    state: str
    seen: str
    can_echo: bool = False
    is_bad: bool = False
    """Whether somebody should look there."""


@router.get("/admin")
def show_administration(web: WebContext, request: Request) -> HTMLResponse:
    """Show the node's state, read now."""
    checks = check_all(web)
    with read_scope(web.engine) as session:
        now = db_now(session)
        daily_bytes = bytes_per_day(session, days=PACE_DAYS, now=now)
        events, older = facts.list_events(session, limit=EVENTS_SHOWN)
        checked, _ = facts.list_events(session, action=Action.CHAIN_VERIFIED, limit=1)
        states = _job_states(session)
        people, tokens, seen = accounts.list_accounts(session), credentials.list_tokens(session), last_seen(session)
        context = {
            "jobs": [(STATES.get(state, state.value), n) for state, n in states.items()],
            "failed_count": states[JobState.FAILED],
            "failed": [_failed(job, now) for job in _failed_jobs(session)],
            "peers": [
                *_senders(web.settings, seen, now),
                *_destinations(web.settings, destination_standings(session), now),
            ],
            "held": facts.count_stuck_studies(session)["held"],
            "previous": facts.previous_active(session),
            "accounts": people,
            "tokens": tokens,
            "actors": [
                *(one.actor for one in people),
                *(one.actor for one in tokens),
                *map(audit.peer, seen),
            ],
            "events": events,
            "older": cursor_out(older) or "",
            "checked": checked[0] if checked else None,
            "quarantined": len(facts.list_quarantined(session, limit=200)[0]),
            "reviewed": len(facts.reviewed_studies(session, None)),
        }
    context |= {"training": web.training.standing(), "exports": EXPORTS, "actions": list(Action)} | _models(web)
    context |= {
        "page": "admin",
        "groups": web.settings.web.groups,
        "checks": checks,
        "disk": _disk(web, daily_bytes),
        "pace_days": PACE_DAYS,
        "charts": charts,
        "now": now,
        "words": words,
    }
    return show(web, request, "admin.html", context)


def _job_states(session: Session) -> dict[JobState, int]:
    counted = queue.counts(session)
    return {state: sum(n for (_, s), n in counted.items() if s is state) for state in STATES}


def _failed_jobs(session: Session) -> list[Job]:
    return queue.list_jobs(session, state=JobState.FAILED, limit=FAILED_SHOWN)


def _failed(job: Job, now: datetime) -> FailedJob:
    lines = (job.error or "").strip().splitlines()
    crashes = f", {job.crashes} crashed" if job.crashes else ""
    return FailedJob(
        job=job,
        step=STEPS.get(job.kind, job.kind.value),
        because=lines[-1].partition(" < ")[0] if lines else "no reason was recorded",
        tries=f"{job.attempts}{crashes}",
        at=words.clock(job.finished_at or job.created_at, now),
        can_close=job.kind is not JobKind.REPORT,
    )


def _models(web: Web) -> dict[str, Any]:
    try:
        return {"models": known_versions(web.engine, web.registry), "models_fault": ""}
    except ModelError as error:
        return {"models": [], "models_fault": str(error)}


def _senders(settings: Settings, seen: dict[str, datetime], now: datetime) -> list[Peer]:
    listed = [
        Peer(
            name=peer.ae_title,
            does="sends" if peer.may_store else "may only ask",
            address=", ".join(peer.addresses),
            transport="TLS" if settings.dicom.tls else "plain",
            state="" if peer.ae_title in seen else "not seen",
            seen=words.clock(seen[peer.ae_title], now) if peer.ae_title in seen else "never",
        )
        for peer in settings.dicom.peers
    ]
    known = {peer.ae_title for peer in settings.dicom.peers}
    return listed + [
        Peer(name=title, does="sends", address="", transport="", state="not listed", seen=words.clock(at, now))
        for title, at in sorted(seen.items())
        if title not in known
    ]


def _destinations(settings: Settings, standings: dict[str, Standing], now: datetime) -> list[Peer]:
    listed = []
    for to in settings.destinations:
        standing = standings.get(to.name, Standing(last_sent_at=None, put_off=0, failed=0, closed=0))
        counted = ((standing.failed, "failed"), (standing.put_off, "tried again"), (standing.closed, "closed undone"))
        missed = [f"{n} {word}" for n, word in counted if n]
        listed.append(
            Peer(
                name=to.name,
                does="gets reports",
                address=to.url if to.kind == "stow" else f"{to.ae_title}@{to.host}:{to.port}",
                transport="TLS" if to.tls or to.url.startswith("https://") else "plain",
                state=", ".join(missed) or ("takes reports" if standing.last_sent_at else "nothing sent yet"),
                seen=f"took one {words.clock(standing.last_sent_at, now)}" if standing.last_sent_at else "never",
                can_echo=to.kind == "dimse",
                is_bad=bool(standing.failed or standing.put_off),
            )
        )
    return listed


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """How full the object store's disk is."""

    used_gb: float
    free_gb: float
    """For this process: without what the file system keeps for root."""
    size_gb: float
    floor_gb: float
    daily_gb: float
    """Of images, that came a day lately."""

    @property
    def share(self) -> float:
        return self.used_gb / self.size_gb if self.size_gb else 0.0

    @property
    def limit(self) -> float:
        return 1 - self.floor_gb / self.size_gb if self.size_gb else 1.0

    @property
    def days_left(self) -> int | None:
        """Until senders are asked to wait, at the late pace and if nothing is purged; None = longer than ten years."""
        left_gb = max(self.free_gb - self.floor_gb, 0.0)
        return int(left_gb / self.daily_gb) if left_gb < 3650 * self.daily_gb else None


def _disk(web: Web, daily_bytes: float) -> Disk | None:
    try:
        usage = shutil.disk_usage(web.settings.store_dir)
    except OSError:
        return None  # the checks beside it say so in words
    return Disk(
        used_gb=usage.used / 1e9,
        free_gb=usage.free / 1e9,
        size_gb=usage.total / 1e9,
        floor_gb=web.settings.store.min_free_gb,
        daily_gb=daily_bytes / 1e9,
    )
