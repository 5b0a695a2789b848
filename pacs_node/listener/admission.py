"""Who may open an association, how many at once, and which are open now.

Takes what a caller announced, gives a `Caller` or a `Rejection`; knows the allow-list, the limits over all listener
processes (counted in the database) and the rows by which a study knows that somebody still sends to it. Knows no DICOM
library.
"""

from __future__ import annotations

import collections
import ipaddress
import logging
import threading
import time
from dataclasses import dataclass
from uuid import UUID, uuid4

from db import audit, facts
from db.audit import Action
from db.engine import DatabaseAway, Engine, db_now, session_scope
from pacs_node.listener.header import clean_text
from pacs_node.settings import DicomSettings, PeerSettings
from pacs_node.settings.section import is_loopback

logger = logging.getLogger(__name__)

AUDIT_REFUSAL_S = 60.0
"""The same refusal is audited once in this time: a stranger that knocks all day must not fill the trail."""
REFUSALS_OF_ADDRESS, REFUSALS_AUDITED = 10, 60
"""Different ones that are audited in this time: under ever new titles, and from ever new addresses."""
AE_TITLE_LENGTH = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """An A-ASSOCIATE-RJ (PS3.8 Table 9-21)."""

    result: int
    source: int
    reason: int
    text: str


CALLED_UNKNOWN = Rejection(result=1, source=1, reason=7, text="called AE title not recognised")
CALLING_UNKNOWN = Rejection(result=1, source=1, reason=3, text="calling AE title not recognised")
LIMIT_REACHED = Rejection(result=2, source=3, reason=2, text="local limit exceeded")
CONGESTED = Rejection(result=2, source=3, reason=1, text="temporary congestion")


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """An association that was let in."""

    association_id: UUID
    calling_ae_title: str
    called_ae_title: str
    address: str
    may_store: bool
    is_urgent: bool
    may_reject: bool = False
    """Its rejection notes count for what others sent too."""


def find_peer(
    settings: DicomSettings, calling_ae_title: str, address: str, certificate: frozenset[str] = frozenset()
) -> PeerSettings | None:
    """Return the entry of the allow-list for a caller; None if it may not come in.

    Without any entry every program on this machine may, under any title. Titles are compared without outer blanks; case
    counts (PS3.5 6.2, AE).

    Parameters
    ----------
    certificate
        Every name of the certificate that it showed under TLS; an entry that names certificates wants one of them.
    """
    ip = _address_of(address)
    if not settings.peers:
        anyone = PeerSettings(ae_title=settings.ae_title, addresses=(str(ip),), may_reject=True)
        return anyone if is_loopback(str(ip)) else None
    for peer in settings.peers:
        is_certified = not peer.certificates or not certificate.isdisjoint(peer.certificates)
        if peer.ae_title == calling_ae_title and is_certified and _is_of(ip, peer):
            return peer
    return None


def is_known_address(settings: DicomSettings, address: str) -> bool:
    """Tell whether somebody may call from this address; before it is known who calls."""
    ip = _address_of(address)
    return any(_is_of(ip, peer) for peer in settings.peers) if settings.peers else is_loopback(str(ip))


def _address_of(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    ip = ipaddress.ip_address(address.partition("%")[0])
    return getattr(ip, "ipv4_mapped", None) or ip


def _is_of(ip: ipaddress.IPv4Address | ipaddress.IPv6Address, peer: PeerSettings) -> bool:
    return any(ip in ipaddress.ip_network(network, strict=False) for network in peer.addresses)


class Admission:
    """The door of one listener process; used by all its associations at once."""

    def __init__(self, settings: DicomSettings, engine: Engine, listener_name: str) -> None:
        self._settings, self._engine = settings, engine
        # Not the name of a process that died: its associations must not be kept alive by our beat.
        self._listener = f"{listener_name[:40]}-{uuid4().hex[:16]}"
        self._refusals: dict[tuple[str, str, str], float] = {}
        """What was audited lately, and when (monotonic)."""
        self._ends: collections.deque[tuple[UUID, str]] = collections.deque()
        self._one_writer, self._one_doorkeeper = threading.Lock(), threading.Lock()

    def judge(
        self, calling_ae_title: str, called_ae_title: str, address: str, certificate: frozenset[str] = frozenset()
    ) -> Caller | Rejection:
        """Let an association in and write it down, or say why not.

        Raises
        ------
        DatabaseAway
            Nobody knows how many are open.
        """
        calling, called = (clean_text(title, AE_TITLE_LENGTH) for title in (calling_ae_title, called_ae_title))
        decision = self._decide(calling, called, address, certificate)
        if isinstance(decision, Rejection):
            self._note_refusal(decision.text, calling, address)
        return decision

    def _decide(self, calling: str, called: str, address: str, certificate: frozenset[str]) -> Caller | Rejection:
        if called != self._settings.ae_title:
            return CALLED_UNKNOWN
        peer = find_peer(self._settings, calling, address, certificate)
        if peer is None:
            return CALLING_UNKNOWN
        caller = Caller(
            association_id=uuid4(),
            calling_ae_title=calling,
            called_ae_title=called,
            address=address,
            may_store=peer.may_store,
            is_urgent=peer.is_urgent,
            may_reject=peer.may_reject,
        )
        return caller if self._open(caller) else LIMIT_REACHED

    def _open(self, caller: Caller) -> bool:
        """Write an association down if it fits within the limits.

        On PostgreSQL two listeners may count at the same moment and exceed a limit by one; SQLite's writers take turns.
        """
        with session_scope(self._engine) as session:
            if facts.count_open(session) >= self._settings.max_associations:
                return False
            if facts.count_open(session, caller.calling_ae_title) >= self._settings.max_associations_per_ae:
                return False
            facts.open_association(
                session,
                association_id=caller.association_id,
                listener=self._listener,
                calling_ae_title=caller.calling_ae_title,
                called_ae_title=caller.called_ae_title,
                peer_address=caller.address,
                now=db_now(session),
            )
        return True

    def note_insecure(self, address: str, reason: str) -> None:
        """Audit a connection that ended before DICOM was spoken: its TLS handshake failed. Never raises."""
        try:
            self._note_refusal(reason, "", address)
        except DatabaseAway:
            logger.warning("A refusal could not be audited", extra={"action": "database_away"})

    def _note_refusal(self, reason: str, calling: str, address: str) -> None:
        if not self._is_news(reason, calling, address):
            return
        details = {"reason": reason, "address": address}
        context = {"action": "association_refused", "calling": calling}
        logger.warning("An association was refused", extra=context | details)
        with session_scope(self._engine) as session:
            audit.append(
                session, Action.ASSOCIATION_REFUSED, actor=audit.peer(calling), details=details, now=db_now(session)
            )

    def _is_news(self, reason: str, calling: str, address: str) -> bool:
        """Tell whether a refusal is to be audited: a new one, and not one of a flood."""
        key, now = (reason, calling, address), time.monotonic()
        with self._one_doorkeeper:
            self._refusals = {one: at for one, at in self._refusals.items() if now - at < AUDIT_REFUSAL_S}
            of_address = sum(known[2] == address for known in self._refusals)
            is_flood = of_address >= REFUSALS_OF_ADDRESS or len(self._refusals) >= REFUSALS_AUDITED
            if key in self._refusals or is_flood:
                return False
            self._refusals[key] = now
            return True

    def close(self, caller: Caller, *, is_released: bool) -> None:
        """Write down that an association is over; later, with the next beat, if the database is away."""
        self._ends.append((caller.association_id, "released" if is_released else "aborted"))
        try:
            self._write_ends()
        except DatabaseAway:
            logger.warning("The end of an association waits: the database is away", extra={"action": "database_away"})

    def beat(self) -> None:
        """Say that this listener and its open associations are alive.

        Raises
        ------
        DatabaseAway
            To be tried again with the next beat.
        """
        self._write_ends()
        with session_scope(self._engine) as session:
            facts.beat(session, self._listener, db_now(session))

    def _write_ends(self) -> None:
        with self._one_writer:
            while self._ends:
                association_id, end = self._ends[0]
                with session_scope(self._engine) as session:
                    facts.close_association(session, association_id, end, db_now(session))
                self._ends.popleft()
