"""Log in by the hospital's account: OpenID Connect, authorization code flow with PKCE (RFC 7636), state and nonce.

Takes the section [web.oidc] and the client's secret; gives the way to the hospital's page and, from what comes back,
who the person is. Hides metadata, keys and the check of the ID token (OpenID Connect Core 3.1.3.7).
"""

from __future__ import annotations

import base64
import binascii
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import httpx
from authlib.integrations.base_client import OAuthError
from authlib.integrations.httpx_client import OAuth2Client
from authlib.oidc.core import CodeIDToken
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet, KeySetSerialization

from db.tables import Role
from pacs_node.passwords import new_secret
from pacs_node.settings.web import OidcSettings

ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512"]
"""Signatures by a key of the hospital; `none` and those made with our own secret are not among them."""
METADATA_S = 3600.0
TIMEOUT_S = 10.0
LEEWAY_S = 60
"""Between the hospital's clock and ours."""


class HospitalRefuses(Exception):
    """The person cannot be let in by the hospital's account; the message is for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """What the browser keeps while it is at the hospital's page."""

    state: str = field(repr=False)
    nonce: str = field(repr=False)
    verifier: str = field(repr=False)
    next: str

    def packed(self) -> str:
        """Return it as the value of a cookie."""
        return base64.urlsafe_b64encode(json.dumps(asdict(self)).encode()).decode()

    @classmethod
    def unpacked(cls, value: str) -> Started:
        """Return what a cookie holds.

        Raises
        ------
        HospitalRefuses
            It holds nothing of ours: the login began in another browser, or too long ago.
        """
        try:
            return cls(**{name: str(held) for name, held in json.loads(base64.urlsafe_b64decode(value)).items()})
        except (ValueError, TypeError, AttributeError, binascii.Error):
            raise HospitalRefuses("This login was begun elsewhere, or too long ago. Begin again.") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """Whom the hospital names."""

    hospital_id: str
    """Issuer and subject: it stays the same when the name changes."""
    name: str
    roles: frozenset[Role]
    groups: frozenset[str]
    """All groups at the hospital; those of [[web.groups]] count here."""


class HospitalLogin:
    """The hospital's provider, whose metadata and keys are read anew every hour."""

    def __init__(self, settings: OidcSettings, client_secret: str) -> None:
        self._settings, self._secret = settings, client_secret
        self._metadata: tuple[float, dict[str, Any]] | None = None

    def start(self, redirect_uri: str, next: str) -> tuple[str, Started]:
        """Return the address of the hospital's page, and what the browser is to keep.

        Raises
        ------
        HospitalRefuses
            The provider does not answer.
        """
        started = Started(state=new_secret(), nonce=new_secret(), verifier=new_secret() + new_secret(), next=next)
        with self._client(redirect_uri) as client:
            address, _ = client.create_authorization_url(
                self._endpoint("authorization_endpoint"),
                state=started.state,
                nonce=started.nonce,
                code_verifier=started.verifier,
            )
        return str(address), started

    def finish(self, redirect_uri: str, started: Started, query: Mapping[str, str]) -> Person:
        """Return who came back.

        Raises
        ------
        HospitalRefuses
            It is not the login that was begun, the provider said no or nothing, its token does not hold, or the person
            is in none of the groups that may log in here.
        """
        if not query.get("code") or query.get("state") != started.state:
            raise HospitalRefuses("The hospital's login was not finished. Begin again.")
        try:
            with self._client(redirect_uri) as client:
                token = client.fetch_token(
                    self._endpoint("token_endpoint"), code=query["code"], code_verifier=started.verifier
                )
            claims = self._claims(token, started.nonce)
        except (httpx.HTTPError, OAuthError, JoseError, ValueError) as error:
            raise HospitalRefuses("The hospital's login gave no answer that can be believed. Begin again.") from error
        return self._person(claims)

    def _client(self, redirect_uri: str) -> Any:
        return OAuth2Client(
            self._settings.client_id,
            self._secret,
            scope=self._settings.scopes,
            redirect_uri=redirect_uri,
            code_challenge_method="S256",
            timeout=TIMEOUT_S,
        )

    def _claims(self, token: Mapping[str, Any], nonce: str) -> dict[str, Any]:
        keys = KeySet.import_key_set(cast(KeySetSerialization, _get(self._endpoint("jwks_uri"))))
        decoded = jwt.decode(str(token.get("id_token", "")), keys, algorithms=ALGORITHMS)
        claims = CodeIDToken(
            decoded.claims,
            decoded.header,
            {
                "iss": {"essential": True, "value": self._settings.issuer},
                "aud": {"essential": True, "value": self._settings.client_id},
                "nonce": {"essential": True, "value": nonce},
            },
            {"nonce": nonce, "client_id": self._settings.client_id, "access_token": token.get("access_token")},
        )
        claims.validate(leeway=LEEWAY_S)
        return dict(claims)

    def _person(self, claims: Mapping[str, Any]) -> Person:
        settings = self._settings
        named = claims.get(settings.groups_claim) or []
        groups = frozenset([named] if isinstance(named, str) else map(str, named))
        wanted = {Role.RADIOLOGIST: settings.radiologists, Role.ADMIN: settings.admins}
        roles = frozenset(role for role, names in wanted.items() if not groups.isdisjoint(names))
        if not roles:
            raise HospitalRefuses("Your account at the hospital is in no group that may log in here.")
        name = "-".join(str(claims.get(settings.name_claim) or claims["sub"]).split())
        return Person(hospital_id=f"{claims['iss']} {claims['sub']}"[:512], name=name, roles=roles, groups=groups)

    def _endpoint(self, name: str) -> str:
        now = time.monotonic()
        if self._metadata is None or now - self._metadata[0] > METADATA_S:
            found = _get(f"{self._settings.issuer.rstrip('/')}/.well-known/openid-configuration")
            if found.get("issuer") != self._settings.issuer:  # OpenID Connect Discovery 4.3
                raise HospitalRefuses("The hospital's login names another issuer than web.oidc.issuer.")
            self._metadata = now, found
        return str(self._metadata[1].get(name, ""))


def _get(address: str) -> dict[str, Any]:
    try:
        answer = httpx.get(address, timeout=TIMEOUT_S)
        answer.raise_for_status()
        found = answer.json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise HospitalRefuses(
            "The hospital's login does not answer. A local account of this node still works."
        ) from error
    if not isinstance(found, dict):
        raise HospitalRefuses("The hospital's login gave no answer that can be believed.")
    return found
