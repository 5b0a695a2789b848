"""From a request's cookie or token to the visitor behind it."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from db.engine import db_now, read_scope, session_scope
from db.facts import Visible, credentials
from db.facts.credentials import TOUCH_EVERY_S, SessionFacts
from db.facts.visibility import one_spelling
from db.tables import Role
from pacs_node.settings.web import WebSettings
from pacs_node.web.access import EVERYONE, Visitor, visitor_address

if TYPE_CHECKING:
    from pacs_node.web.context import Web

COOKIE = "pacs_node_session"
BACKGROUND = "x-background"
"""A request that a page sends by itself says so here: it does not show that the person is still there."""


def identify(web: Web, scope: Scope) -> Visitor:
    """Return who sent a request: by API token, else by session cookie, else nobody that is known.

    Where logins are off, everyone may do everything and is called `web` in the audit trail.
    """
    settings = web.settings.web
    nobody = nobody_at(scope)
    if settings.authentication == "off":
        return replace(nobody, actor="web", name="somebody", roles=EVERYONE, visible=None)
    request = Request(scope)
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return _by_token(web, nobody, token.strip())
    if secret := request.cookies.get(cookie_name(scope)):
        return _by_session(web, nobody, secret)
    return nobody


def nobody_at(scope: Scope) -> Visitor:
    """Return a visitor of whom only the address is known."""
    address, is_on_loopback = visitor_address(scope)
    return Visitor(
        actor="anyone",
        name="nobody",
        address=address,
        is_on_loopback=is_on_loopback,
        visible=Visible(),
        is_background=_is_background(Request(scope)),
    )


def cookie_name(scope: Scope) -> str:
    """Return the session cookie's name; over TLS one that no other host and no plain page can set (RFC 6265bis)."""
    return f"__Host-{COOKIE}" if scope.get("scheme") == "https" else COOKIE


def set_session(request: Request, response: Response, secret: str) -> None:
    """Hand the browser its cookie; it goes when the browser is closed."""
    is_tls = request.scope.get("scheme") == "https"
    response.set_cookie(cookie_name(request.scope), secret, path="/", httponly=True, samesite="lax", secure=is_tls)


def drop_session(request: Request, response: Response) -> None:
    """Take the cookie out of the browser."""
    is_tls = request.scope.get("scheme") == "https"
    response.delete_cookie(cookie_name(request.scope), path="/", httponly=True, samesite="lax", secure=is_tls)


def csrf_token(request: Request) -> str:
    """Return what a page of this session has to send with every change; empty where no session is."""
    caller: Visitor | None = request.scope.get("state", {}).get("caller")
    return csrf_of(caller.session) if caller and caller.session else ""


def is_csrf_token(sent: str, caller: Visitor) -> bool:
    """Tell whether a change comes from a page of the caller's own session."""
    return caller.session is not None and hmac.compare_digest(sent.encode(), csrf_of(caller.session).encode())


def csrf_of(secret: str) -> str:
    """Derive it one way, so that a page that leaks its token does not leak the session."""
    return hashlib.sha256(f"csrf:{secret}".encode()).hexdigest()


def _is_background(request: Request) -> bool:
    return BACKGROUND in request.headers or "text/event-stream" in request.headers.get("accept", "")


def _by_session(web: Web, nobody: Visitor, secret: str) -> Visitor:
    settings = web.settings.web
    with read_scope(web.engine) as session:
        now = db_now(session)
        found = credentials.session_of(
            session,
            secret,
            idle_s=settings.session_idle_minutes * 60,
            longest_s=settings.session_hours * 3600,
            now=now,
        )
    if found is None:
        return nobody
    if not nobody.is_background and (now - found.seen_at).total_seconds() > TOUCH_EVERY_S:
        with session_scope(web.engine) as session:
            credentials.touch_session(session, secret, now=db_now(session))
    return _visitor_of(found, nobody, settings, secret, now)


def _visitor_of(found: SessionFacts, nobody: Visitor, settings: WebSettings, secret: str, now: datetime) -> Visitor:
    account, holds = found.account, timedelta(minutes=settings.password_minutes)
    return replace(
        nobody,
        actor=account.actor,
        name=account.name,
        roles=account.roles | {Role.PUBLIC},
        groups=account.groups,
        account_id=account.account_id,
        session=secret,
        has_password=account.password_hash is not None,
        has_shown_password=found.confirmed_at is not None and now - found.confirmed_at < holds,
        visible=_visible(account.roles, account.groups, settings),
    )


def _by_token(web: Web, nobody: Visitor, secret: str) -> Visitor:
    with read_scope(web.engine) as session:
        now = db_now(session)
        token = credentials.token_of(session, secret, now=now)
    if token is None:
        return nobody
    if token.last_used_at is None or (now - token.last_used_at).total_seconds() > TOUCH_EVERY_S:
        with session_scope(web.engine) as session:
            credentials.touch_token(session, token.token_id, now=db_now(session))
    return replace(
        nobody,
        actor=token.actor,
        name=token.name,
        roles=token.roles | {Role.PUBLIC},
        groups=token.groups,
        is_token=True,
        visible=_visible(token.roles, token.groups, web.settings.web),
    )


def _visible(roles: frozenset[Role], groups: frozenset[str], settings: WebSettings) -> Visible | None:
    """Return what the members of these groups may see; None = all, to administrators and where nothing is grouped."""
    if Role.ADMIN in roles or not settings.groups:
        return None
    own = [group for group in settings.groups if group.name in groups]
    return Visible(
        senders=frozenset(title for group in own for title in group.senders),
        institutions=frozenset(one_spelling(name) for group in own for name in group.institutions),
    )
