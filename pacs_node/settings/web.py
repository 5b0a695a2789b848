"""The section [web]: where page and API listen, who may log in, and how much a stranger may ask."""

from __future__ import annotations

from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from pacs_node.settings.section import Section, checked_networks, is_loopback

STUDY_FIELD = "{study_instance_uid}"
"""In `viewer_url`: of a study, nothing else may stand in an address."""
EVERY_ADDRESS = frozenset({"0.0.0.0", "::"})
"""Where to listen, and no name by which a browser calls."""
WEB_FILES = ("tls_certificate", "tls_private_key")


class GroupSettings(Section):
    """Whose studies the members may see: a study belongs to the sender and the institution of its first image."""

    name: str = Field(min_length=1, max_length=64, pattern=r"^[^\s\\]+$")
    senders: tuple[str, ...] = ()
    """AE titles."""
    institutions: tuple[str, ...] = ()
    """Institution Names (0008,0080), in any spelling of case and blanks."""

    @field_validator("senders")
    @classmethod
    def _check_titles(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if any(not 1 <= len(title) <= 16 or title != title.strip() for title in value):
            raise ValueError("a sender is an AE title: 1-16 characters")
        return value

    @field_validator("institutions")
    @classmethod
    def _check_institutions(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(1 <= len(name.strip()) <= 64 for name in value):
            raise ValueError("an institution is an Institution Name: 1-64 characters")
        return value

    @model_validator(mode="after")
    def _see_something(self) -> GroupSettings:
        if not (self.senders or self.institutions):
            raise ValueError(f"group {self.name} needs senders or institutions")
        return self


class OidcSettings(Section):
    """The hospital's login (OpenID Connect); the client's secret is in `secrets_dir/oidc.secret`."""

    issuer: str = ""
    """Empty = no such login."""
    client_id: str = ""
    scopes: str = "openid profile"
    name_claim: str = Field("preferred_username", min_length=1)
    groups_claim: str = Field("groups", min_length=1)
    radiologists: tuple[str, ...] = ()
    admins: tuple[str, ...] = ()
    """Groups at the hospital whose members have the role; who is in none of them is not let in."""

    @model_validator(mode="after")
    def _be_whole(self) -> OidcSettings:
        if not self.issuer:
            return self
        host = self.issuer.partition("://")[2].partition("/")[0]
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
        if not self.issuer.startswith("https://") and not is_loopback(name.strip("[]")):
            raise ValueError("issuer: an https:// address")
        if not self.client_id or not (self.radiologists or self.admins):
            raise ValueError("issuer needs client_id too, and groups in radiologists or admins")
        return self


class WebSettings(Section):
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    public_url: str = Field("", pattern=r"^(https?://[^\s/?#]+)?$")
    """Where people find the page, when that is not the address it listens on; stands in links."""
    names: tuple[str, ...] = ()
    """What may stand in a Host header beside `host` and loopback's names."""
    authentication: Literal["required", "off"] = "required"
    tls_certificate: Path | None = None
    tls_private_key: Path | None = None
    allow_plain_http: bool = False
    trusted_proxies: tuple[str, ...] = ()
    """Addresses whose X-Forwarded-For and X-Forwarded-Proto are believed."""
    cors_origins: tuple[str, ...] = ()
    session_idle_minutes: float = Field(15, gt=0)
    session_hours: float = Field(12, gt=0)
    password_minutes: float = Field(5, gt=0)
    """So long a password that was shown anew opens what reaches far."""
    login_tries: int = Field(5, ge=1, le=100)
    login_rest_minutes: float = Field(15, gt=0)
    logins_per_minute: int = Field(20, ge=1)
    predictions_per_minute: int = Field(10, ge=0)
    """Of one address without a login or token; 0 = no limit."""
    predict_without_login: Literal["loopback", "everyone", "nobody"] = "loopback"
    request_timeout_s: float = Field(60, gt=0)
    viewer_url: str = ""
    """The hospital's own viewer at a study; empty = no link to it."""
    oidc: OidcSettings = OidcSettings()
    groups: tuple[GroupSettings, ...] = ()

    @field_validator("viewer_url")
    @classmethod
    def _check_viewer(cls, value: str) -> str:
        has_field = value.count("{") == value.count(STUDY_FIELD) == 1
        if value and not (value.startswith(("https://", "http://")) and has_field):
            raise ValueError(f"viewer_url: an http(s) address with {STUDY_FIELD} in it, and no other field")
        return value

    @field_validator("names", mode="after")
    @classmethod
    def _lower(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(name.lower() for name in value)

    _check_proxies = field_validator("trusted_proxies")(checked_networks)

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            scheme, _, host = origin.partition("://")
            if scheme not in ("http", "https") or not host or "/" in host or "*" in host:
                raise ValueError(f"{origin!r} is not an origin: http(s)://HOST[:PORT]")
        return value

    @model_validator(mode="after")
    def _refuse_open_door(self) -> WebSettings:
        if (self.tls_certificate is None) != (self.tls_private_key is None):
            raise ValueError("tls_certificate and tls_private_key belong together")
        names = [group.name for group in self.groups]
        if len(names) != len(set(names)):
            raise ValueError("two [[web.groups]] have the same name")
        if is_loopback(self.host):
            return self
        if self.authentication == "off":
            raise ValueError(f'host {self.host} is beyond loopback: that needs authentication = "required"')
        if not self.is_tls and not self.allow_plain_http:
            raise ValueError(
                f"host {self.host} is beyond loopback: give tls_certificate and tls_private_key, "
                "or say allow_plain_http = true where a proxy does the encryption"
            )
        if self.host in EVERY_ADDRESS and not (self.names or self.public_url):
            raise ValueError(f"host {self.host}: say in names or public_url by which name browsers call this machine")
        return self

    @property
    def is_tls(self) -> bool:
        return self.tls_certificate is not None

    @property
    def own_names(self) -> frozenset[str]:
        """What a Host header may say."""
        public = urlsplit(self.public_url).hostname or "localhost"
        return frozenset({"localhost", self.host.lower(), public, *self.names} - EVERY_ADDRESS)

    @property
    def address(self) -> str:
        """Return where people find the page."""
        if self.public_url:
            return self.public_url
        name = self.names[0] if self.names else self.host
        name = f"[{name}]" if ":" in name else name
        return f"{'https' if self.is_tls else 'http'}://{name}:{self.port}"
