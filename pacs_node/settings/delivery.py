"""Where results go, and by which profile: [[destinations]], [delivery] and [reviews]."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from pacs_node.settings.dicom import TLS_FILES, checked_ae_title
from pacs_node.settings.section import LINE, Section


class DeliverySettings(Section):
    max_attempts: int = Field(400, ge=1)
    retry_base_s: float = Field(2.0, gt=0)
    retry_cap_s: float = Field(900.0, gt=0)
    connect_timeout_s: float = Field(10, gt=0)
    commitment_wait_hours: float = Field(24, gt=0)
    commitment_attempts: int = Field(5, ge=1)


class DestinationSettings(Section):
    """Where results go, and the profile by which they are delivered there."""

    name: str = Field(min_length=1, max_length=64, pattern=LINE)
    kind: Literal["dimse", "stow"] = "dimse"
    ae_title: str = ""
    host: str = Field("", pattern=r"^\S*$")
    port: int = Field(0, ge=0, le=65535)
    url: str = ""
    """Of a STOW-RS service, up to and without `/studies`."""
    token_file: Path | None = None
    """Holds the bearer token of that service."""
    objects: tuple[Literal["sr", "heatmap", "gsps", "seg"], ...] = Field(("sr", "heatmap"), min_length=1)
    sr_classes: tuple[Literal["comprehensive_3d", "comprehensive", "enhanced"], ...] = Field(
        ("comprehensive_3d", "comprehensive", "enhanced"), min_length=1
    )
    transfer_syntaxes: tuple[Literal["explicit", "implicit"], ...] = Field(("explicit", "implicit"), min_length=1)
    send_not_analysed: bool = True
    send_rejection_notes: bool = False
    storage_commitment: bool = False
    tls: bool = False
    tls_hostname: str = ""
    """The name in the peer's certificate; empty: `host`."""
    tls_certificate: Path | None = None
    tls_private_key: Path | None = None
    tls_ca: Path | None = None
    """Under `tls` empty ones are those of [dicom]. HTTPS needs no `tls`: it believes `tls_ca`, else the system."""

    @property
    def address(self) -> str:
        """For people: where it is."""
        return self.url if self.kind == "stow" else f"{self.ae_title}@{self.host}:{self.port}"

    @field_validator("objects")
    @classmethod
    def _send_the_report_first(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if "sr" not in value:
            raise ValueError('"sr" is missing: a picture without its report explains nothing')
        return value

    @model_validator(mode="after")
    def _give_the_address_of_its_kind(self) -> DestinationSettings:
        if self.kind == "stow":
            if not re.fullmatch(r"https?://[^\s/?#@]+(/[^\s?#]*)?", self.url):
                raise ValueError("url: a STOW-RS destination needs http(s)://HOST[:PORT]/PATH, without user or query")
            if self.storage_commitment:
                raise ValueError('storage_commitment is a DIMSE service: not for kind = "stow"')
            if self.tls_hostname:
                raise ValueError("tls_hostname: the url names the host of a STOW-RS service")
            is_tls_named = self.tls or any(getattr(self, name) for name in TLS_FILES)
            if is_tls_named and not self.url.startswith("https:"):
                raise ValueError("url: TLS needs https://")
            return self
        if self.url or self.token_file:
            raise ValueError('url and token_file belong to kind = "stow"')
        if not (self.ae_title and self.host and self.port):
            raise ValueError("a destination needs ae_title, host and port")
        return self

    @field_validator("ae_title")
    @classmethod
    def _check_title(cls, value: str) -> str:
        return checked_ae_title(value) if value else value


class ReviewSettings(Section):
    send_verified: bool = False
    verified_delay_s: float = Field(10, ge=0)
    organization: str = Field("", max_length=64)
    """Stands beside the reader's name in a verified report."""
    answer_first: bool = False
    """Readers answer before the page shows them the model's answer."""

    @model_validator(mode="after")
    def _name_who_answers(self) -> ReviewSettings:
        if self.send_verified and not re.fullmatch(LINE, self.organization):
            raise ValueError("send_verified = true needs `organization`: whose readers answer for the reports")
        return self
