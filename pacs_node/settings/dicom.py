"""Who may send, how much at once, and by which certificates: the section [dicom]."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator, model_validator

from pacs_node.settings.section import Section, checked_networks, is_loopback

TLS_FILES = ("tls_certificate", "tls_private_key", "tls_ca")


def checked_ae_title(value: str) -> str:
    """Check an AE title (PS3.5 6.2, VR AE): 1-16 printable characters without backslash, outer blanks dropped."""
    title = value.strip(" ")
    if not 1 <= len(title) <= 16 or "\\" in title or not title.isascii() or not title.isprintable():
        raise ValueError(f"{value!r} is not an AE title: 1-16 printable ASCII characters without backslash")
    return title


class PeerSettings(Section):
    ae_title: str
    addresses: tuple[str, ...] = Field(min_length=1)
    may_store: bool = True
    is_urgent: bool = False
    send_priors: bool = False
    may_reject: bool = False
    """Its rejection notes (IHE IOCM) count for images that others sent too: the PACS, not a modality."""
    certificates: tuple[str, ...] = ()
    """Under TLS: the only certificates that may call by this title, each a name in it or `sha256:` and its digest."""

    _check_title = field_validator("ae_title")(checked_ae_title)
    _check_addresses = field_validator("addresses")(checked_networks)


class DicomSettings(Section):
    ae_title: str = "PACS_NODE"
    host: str = "127.0.0.1"
    port: int = Field(11112, ge=0, le=65535)
    listeners: int = Field(2, ge=1, le=64)
    max_pdu_bytes: int = Field(131072, ge=4096, le=1 << 24)
    max_associations: int = Field(50, ge=1)
    max_associations_per_ae: int = Field(20, ge=1)
    acse_timeout_s: float = Field(30, gt=0)
    dimse_timeout_s: float = Field(30, gt=0)
    network_timeout_s: float = Field(60, gt=0)
    drain_timeout_s: float = Field(30, ge=0)
    tls: bool = False
    tls_certificate: Path | None = None
    tls_private_key: Path | None = None
    tls_ca: Path | None = None
    storage_commitment: bool = False
    peers: tuple[PeerSettings, ...] = ()

    _check_title = field_validator("ae_title")(checked_ae_title)

    @model_validator(mode="after")
    def _refuse_open_door(self) -> DicomSettings:
        if not is_loopback(self.host) and not self.peers:
            raise ValueError(f"host {self.host} is beyond loopback: list who may send in [[dicom.peers]] first")
        return self

    @model_validator(mode="after")
    def _name_the_certificates(self) -> DicomSettings:
        missing = [name for name in TLS_FILES if getattr(self, name) is None]
        if self.tls and missing:
            raise ValueError(f"tls = true needs {' and '.join(missing)}: PEM files")
        if not self.tls and any(peer.certificates for peer in self.peers):
            raise ValueError("peers: `certificates` are compared under TLS only: set dicom.tls = true")
        return self
