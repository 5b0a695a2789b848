"""Associations that this node opens: address, titles, time limits, TLS, and what a refusal means for the work in hand.

Takes a destination and presentation contexts; gives an established association of pynetdicom's, or raises
`DeliveryDelayed` or `DeliveryRejected`.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Sequence
from typing import Any

from pynetdicom import AE, _config, evt
from pynetdicom.association import Association
from pynetdicom.presentation import PresentationContext

from pacs_node.dimse import tls
from pacs_node.errors import ConfigError, DeliveryDelayed, DeliveryRejected
from pacs_node.identity import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from pacs_node.settings import DestinationSettings

_config.LOG_HANDLER_LEVEL = "none"  # its handlers format every PDU

CONNECT_TIMEOUT_S = 10.0
RESPONSE_TIMEOUT_S = 60.0
"""A busy PACS may take long to answer."""
PERMANENT = 1
"""Result of an A-ASSOCIATE-RJ (PS3.8 Table 9-21)."""
NO_REASON = 1
WORDS_LENGTH = 64
"""Of a peer's own words: the longest LO, as which an Error Comment is sent (PS3.5 6.2, PS3.7 E.1)."""


def associate(
    destination: DestinationSettings,
    calling_ae_title: str,
    contexts: list[PresentationContext],
    connect_timeout_s: float = CONNECT_TIMEOUT_S,
    response_timeout_s: float = RESPONSE_TIMEOUT_S,
    *,
    roles: Sequence[Any] = (),
    handlers: Sequence[Any] = (),
) -> Association:
    """Open an association.

    Parameters
    ----------
    roles
        SCP/SCU Role Selection items (PS3.7 D.3.3.4), of `pynetdicom.build_role`.
    handlers
        (event, handler) pairs of pynetdicom's.

    Raises
    ------
    DeliveryDelayed
        No connection, no answer, rejected for now, or no TLS: a file cannot be read, or a side is not believed.
    DeliveryRejected
        The peer does not know us, or accepts none of the contexts.
    """
    ae = AE(ae_title=calling_ae_title)
    ae.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    ae.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    ae.connection_timeout = connect_timeout_s
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = response_timeout_s
    doubt = _Doubt()
    try:
        association = ae.associate(
            destination.host,
            destination.port,
            contexts=contexts,
            ae_title=destination.ae_title,
            ext_neg=list(roles),
            evt_handlers=[(evt.EVT_CONN_OPEN, _send_at_once), *handlers],
            tls_args=_tls_args(destination, doubt),
        )
    except OSError as error:  # the name of the host cannot be resolved
        raise DeliveryDelayed(destination.name, f"no connection: {error.strerror or error}") from error
    if not association.is_established:
        _raise_for_association(destination, association, doubt)
    return association


class _Doubt:
    """Why a TLS connection did not come about; pynetdicom would only say that there is none."""

    reason = ""


def _tls_args(destination: DestinationSettings, doubt: _Doubt) -> tuple[ssl.SSLContext, str] | None:
    try:
        called = tls.calling_context(destination)
    except ConfigError as error:
        raise DeliveryDelayed(destination.name, str(error)) from error
    if called is None:
        return None
    context, name = called

    class Doubting(ssl.SSLSocket):
        def do_handshake(self, block: bool = False) -> None:
            try:
                super().do_handshake(block)
            except ssl.SSLError as error:
                doubt.reason = tls.doubt_of(error)
                raise

    context.sslsocket_class = Doubting
    return context, name


def _raise_for_association(destination: DestinationSettings, association: Association, doubt: _Doubt) -> None:
    answer = association.acceptor.primitive
    if doubt.reason:
        raise DeliveryDelayed(destination.name, f"no association: {doubt.reason}")
    if answer is None:
        where = f"{destination.host}:{destination.port}"
        raise DeliveryDelayed(destination.name, f"no association: {where} does not answer")
    if not association.is_rejected:
        raise DeliveryRejected(destination.name, "the peer accepts none of the presentation contexts")
    text = f"association rejected: {answer.result_str}, {answer.reason_str}"
    if answer.result == PERMANENT and answer.diagnostic != NO_REASON:
        raise DeliveryRejected(destination.name, text)
    raise DeliveryDelayed(destination.name, text)


def words_of(value: object) -> str:
    """Return what a peer says, fit to be shown: no controls that a terminal obeys, and no more than it may send."""
    return "".join(character for character in str(value or "") if character.isprintable())[:WORDS_LENGTH]


def _send_at_once(event: evt.Event) -> None:
    """Set TCP_NODELAY: without it each image waits for the peer's delayed acknowledgement, 40 ms."""
    event.assoc.dul.socket.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
