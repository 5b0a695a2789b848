"""TLS for DICOM (PS3.15 B.12, BCP 195): certificates of both sides, version 1.2 or 1.3, forward secrecy alone.

Takes the files that the configuration names; gives the contexts with which the listener and the calls to other
applications speak, by DIMSE or by HTTPS, or one clear `ConfigError`. Hides the `ssl` library's settings and what a
certificate calls itself.
"""

from __future__ import annotations

import hashlib
import ssl
from pathlib import Path
from typing import Any

from pacs_node.errors import ConfigError
from pacs_node.settings import DestinationSettings, DicomSettings, Settings

CIPHERS = "ECDHE+AESGCM:DHE+AESGCM:ECDHE+CHACHA20:!aNULL"
"""Under TLS 1.2; of TLS 1.3 every suite is as good."""
FINGERPRINT = "sha256:"


def listening_context(settings: DicomSettings) -> ssl.SSLContext | None:
    """Return how the listener speaks TLS; None if it does not.

    Raises
    ------
    ConfigError
        A file cannot be used.
    """
    if not settings.tls:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    return _furnished(context, settings, "dicom")


def calling_context(destination: DestinationSettings) -> tuple[ssl.SSLContext, str] | None:
    """Return how a destination is called under TLS, and the name that its certificate must have; None without TLS.

    Raises
    ------
    ConfigError
        A file cannot be used.
    """
    if not destination.tls or destination.kind != "dimse":
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # checks the peer's certificate and its name
    named = _furnished(context, destination, f"destination {destination.name}")
    return named, destination.tls_hostname or destination.host


def https_context(destination: DestinationSettings) -> ssl.SSLContext:
    """Return how a STOW-RS service is called: it believes `tls_ca`, else the system, and shows what is named.

    Raises
    ------
    ConfigError
        A file cannot be used.
    """
    section = f"destination {destination.name}"
    if destination.tls_ca is None:
        context = ssl.create_default_context()  # not the bundle that httpx brings: the hospital adds its authority here
    else:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        _believe(context, destination, section)
    if destination.tls_certificate or destination.tls_private_key:
        _show(context, destination, section)
    return context


def doubt_of(error: ssl.SSLError) -> str:
    """Return why a TLS connection did not come about, for a person."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not believed: {error.verify_message}"
    return f"no TLS: {error.reason or 'the connection was closed'}"


def require_certificates(settings: Settings) -> None:
    """Refuse to start with certificates that cannot be used.

    Raises
    ------
    ConfigError
        The first file that cannot, with its key and what to do.
    """
    listening_context(settings.dicom)
    for destination in settings.destinations:
        (https_context if destination.kind == "stow" else calling_context)(destination)


def names_of(certificate: bytes) -> frozenset[str]:
    """Return what `dicom.peers.certificates` may call a certificate: its fingerprint.

    Parameters
    ----------
    certificate
        In DER.
    """
    return frozenset({FINGERPRINT + hashlib.sha256(certificate).hexdigest()})


def names_of_peer(connection: ssl.SSLSocket) -> frozenset[str]:
    """Return every name of the certificate that a peer showed: DNS names and addresses, its common name, its digest."""
    encoded, told = connection.getpeercert(binary_form=True), connection.getpeercert()
    if not encoded or not told:
        return frozenset()
    details: dict[str, Any] = dict(told)
    alternatives = {str(value) for kind, value in details.get("subjectAltName", ()) if kind in ("DNS", "IP Address")}
    subject = {str(value) for group in details.get("subject", ()) for kind, value in group if kind == "commonName"}
    return names_of(encoded) | alternatives | subject


def _furnished(context: ssl.SSLContext, settings: DicomSettings | DestinationSettings, section: str) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    _show(context, settings, section)
    _believe(context, settings, section)
    return context


def _show(context: ssl.SSLContext, settings: DicomSettings | DestinationSettings, section: str) -> None:
    certificate, key = settings.tls_certificate, settings.tls_private_key
    _require_readable(f"{section}: tls_certificate", certificate)
    _require_readable(f"{section}: tls_private_key", key)
    try:
        context.load_cert_chain(str(certificate), str(key), password=_no_passphrase)
    except (ssl.SSLError, ValueError, OSError):
        what = "certificate and private key are no PEM pair, or the key has a passphrase"
        raise ConfigError(f"{section}: tls_certificate {certificate}: {what}") from None


def _believe(context: ssl.SSLContext, settings: DicomSettings | DestinationSettings, section: str) -> None:
    _require_readable(f"{section}: tls_ca", settings.tls_ca)
    try:
        context.load_verify_locations(str(settings.tls_ca))
    except (ssl.SSLError, OSError):
        raise ConfigError(f"{section}: tls_ca {settings.tls_ca}: holds no PEM certificate") from None


def _no_passphrase() -> str:
    """Answer instead of a prompt on the terminal, at which a service would wait for ever."""
    raise ValueError("the key has a passphrase")


def _require_readable(key: str, file: Path | None) -> None:
    try:
        with open(file or "", "rb"):  # noqa: PTH123 - no file at all is refused in the same words
            return
    except OSError as error:
        raise ConfigError(f"{key} {file or 'is missing'}: {error.strerror or error}") from None
