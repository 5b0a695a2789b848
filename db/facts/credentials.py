"""What a browser or a program shows in place of a password: session cookies, one-time links, API tokens.

Only SHA-256 digests are kept: each secret is 256 random bits, so nothing slower is needed, and a stolen database opens
no door.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import delete, insert, select, update

from db import audit
from db.audit import Action
from db.engine import NoSuchRecord, Session
from db.facts.accounts import Account, NameTaken, account_from, account_of, has_admin, names_of, roles_from
from db.tables import AccountLink, AccountRow, ApiToken, Role, WebSession, new_id, rows_of

TOUCH_EVERY_S = 30.0
"""How exactly the last use of a session or a token is known: not every request shall be a write."""

_ACCOUNTS, _SESSIONS = rows_of(AccountRow), rows_of(WebSession)
_LINKS, _TOKENS = rows_of(AccountLink), rows_of(ApiToken)


class NoSuchLink(LookupError):
    """The one-time link was never made, was used, or is too old."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionFacts:
    """A browser in which somebody is logged in."""

    account: Account
    seen_at: datetime
    confirmed_at: datetime | None
    """When the password was last shown anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenFacts:
    """An API token; itself it is shown once, when it is made."""

    token_id: UUID
    name: str
    roles: frozenset[Role]
    groups: frozenset[str]
    created_by: str
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    revoked_at: datetime | None

    @property
    def actor(self) -> str:
        """Return the name in the audit trail."""
        return f"token:{self.name}"[:64]


def digest_of(secret: str) -> str:
    """Return what is kept of a secret, as 64 hexadecimal digits."""
    return hashlib.sha256(secret.encode()).hexdigest()


def open_session(session: Session, secret: str, account_id: UUID, *, now: datetime) -> None:
    """Keep that this browser's cookie stands for this account."""
    values = {"token_sha256": digest_of(secret), "account_id": account_id, "created_at": now, "seen_at": now}
    session.execute(insert(_SESSIONS).values(**values))


def session_of(session: Session, secret: str, *, idle_s: float, longest_s: float, now: datetime) -> SessionFacts | None:
    """Return who is logged in by this cookie; None when it is unknown, too old, or its account is locked.

    Parameters
    ----------
    idle_s
        Seconds since the last request after which a session is over.
    longest_s
        Seconds since the login after which it is over in any case.
    """
    wanted = (
        select(*_ACCOUNTS.c, _SESSIONS.c.seen_at.label("session_seen_at"), _SESSIONS.c.confirmed_at)
        .join(_SESSIONS, _SESSIONS.c.account_id == _ACCOUNTS.c.id)
        .where(
            _SESSIONS.c.token_sha256 == digest_of(secret),
            _SESSIONS.c.seen_at > now - timedelta(seconds=idle_s),
            _SESSIONS.c.created_at > now - timedelta(seconds=longest_s),
            _ACCOUNTS.c.is_locked.is_(False),
        )
    )
    row = session.execute(wanted).one_or_none()
    if row is None:
        return None
    return SessionFacts(account=account_from(row), seen_at=row.session_seen_at, confirmed_at=row.confirmed_at)


def touch_session(session: Session, secret: str, *, now: datetime) -> None:
    """Note that the person is still there."""
    session.execute(update(_SESSIONS).where(_SESSIONS.c.token_sha256 == digest_of(secret)).values(seen_at=now))


def confirm_session(session: Session, secret: str, *, now: datetime) -> None:
    """Note that the person showed their password anew."""
    session.execute(update(_SESSIONS).where(_SESSIONS.c.token_sha256 == digest_of(secret)).values(confirmed_at=now))


def close_session(session: Session, secret: str) -> None:
    """Forget the cookie; nothing happens when it is forgotten already."""
    session.execute(delete(_SESSIONS).where(_SESSIONS.c.token_sha256 == digest_of(secret)))


def drop_old_sessions(session: Session, *, longest_s: float, now: datetime) -> None:
    """Take away the rows of sessions that nobody ended, and of links that nobody used."""
    session.execute(delete(_SESSIONS).where(_SESSIONS.c.created_at <= now - timedelta(seconds=longest_s)))
    session.execute(delete(_LINKS).where(_LINKS.c.expires_at <= now))


def add_link(session: Session, secret: str, account_id: UUID | None, *, expires_at: datetime) -> None:
    """Keep a one-time link, in place of earlier ones for the same; without an account it makes the first admin."""
    earlier = _LINKS.c.account_id.is_(None) if account_id is None else _LINKS.c.account_id == account_id
    session.execute(delete(_LINKS).where(earlier))
    values = {"token_sha256": digest_of(secret), "account_id": account_id, "expires_at": expires_at}
    session.execute(insert(_LINKS).values(**values))


def link_of(session: Session, secret: str, *, now: datetime) -> Account | None:
    """Return whose password a link sets; None = it makes the first administrator.

    Raises
    ------
    NoSuchLink
        It was never made, was used, is too old, or makes the first administrator where there is one.
    """
    wanted = select(_LINKS.c.account_id).where(_LINKS.c.token_sha256 == digest_of(secret), _LINKS.c.expires_at > now)
    row = session.execute(wanted).one_or_none()
    if row is None or (row.account_id is None and has_admin(session)):
        raise NoSuchLink("this link was used already, or is too old")
    return None if row.account_id is None else account_of(session, row.account_id)


def use_link(session: Session, secret: str) -> None:
    """Take a link away, in the transaction that does what it stands for.

    Raises
    ------
    NoSuchLink
        Somebody else used it in between.
    """
    gone = delete(_LINKS).where(_LINKS.c.token_sha256 == digest_of(secret)).returning(_LINKS.c.token_sha256)
    if session.execute(gone).one_or_none() is None:
        raise NoSuchLink("this link was used already, or is too old")


def create_token(
    session: Session,
    secret: str,
    name: str,
    *,
    roles: Iterable[Role],
    groups: Iterable[str] = (),
    expires_at: datetime | None = None,
    actor: str,
    now: datetime,
) -> TokenFacts:
    """Keep a new API token.

    Raises
    ------
    NameTaken
        There is, or was, a token of this name: in the audit trail a name stands for one token.
    """
    if session.execute(select(_TOKENS.c.id).where(_TOKENS.c.name == name)).first() is not None:
        raise NameTaken(f"there is, or was, a token named {name}")
    token_id, kept = new_id(), {"roles": names_of(roles), "groups": " ".join(sorted(groups))}
    values = {"id": token_id, "name": name, "token_sha256": digest_of(secret), "expires_at": expires_at}
    session.execute(insert(_TOKENS).values(created_by=actor, created_at=now, **values, **kept))
    audit.append(
        session, Action.TOKEN_CREATED, actor=actor, subject_id=token_id, details={"token": name} | kept, now=now
    )
    return _token(session, _TOKENS.c.id == token_id)


def token_of(session: Session, secret: str, *, now: datetime) -> TokenFacts | None:
    """Return the token that a program shows; None when it is unknown, revoked or too old."""
    try:
        token = _token(session, _TOKENS.c.token_sha256 == digest_of(secret))
    except NoSuchRecord:
        return None
    is_over = token.revoked_at is not None or (token.expires_at is not None and token.expires_at <= now)
    return None if is_over else token


def touch_token(session: Session, token_id: UUID, *, now: datetime) -> None:
    """Note when a token was used last."""
    session.execute(update(_TOKENS).where(_TOKENS.c.id == token_id).values(last_used_at=now))


def list_tokens(session: Session) -> list[TokenFacts]:
    """Return every token, revoked ones too, the newest first."""
    return [_token_from(row) for row in session.execute(select(_TOKENS).order_by(_TOKENS.c.created_at.desc()))]


def revoke_token(session: Session, token_id: UUID, *, actor: str, now: datetime) -> TokenFacts:
    """End a token; doing it twice changes nothing.

    Raises
    ------
    NoSuchRecord
        There is no such token.
    """
    token = _token(session, _TOKENS.c.id == token_id)
    if token.revoked_at is None:
        session.execute(update(_TOKENS).where(_TOKENS.c.id == token_id).values(revoked_at=now))
        details = {"token": token.name}
        audit.append(session, Action.TOKEN_REVOKED, actor=actor, subject_id=token_id, details=details, now=now)
    return _token(session, _TOKENS.c.id == token_id)


def _token(session: Session, condition: object) -> TokenFacts:
    row = session.execute(select(_TOKENS).where(condition)).one_or_none()  # type: ignore[arg-type]
    if row is None:
        raise NoSuchRecord("no such token")
    return _token_from(row)


def _token_from(row: object) -> TokenFacts:
    own = {name: getattr(row, name) for name in TokenFacts.__dataclass_fields__ if name in _TOKENS.c}
    own |= {"roles": roles_from(own["roles"]) - {Role.PUBLIC}, "groups": frozenset(own["groups"].split())}
    return TokenFacts(token_id=getattr(row, "id"), **own)  # noqa: B009 - a Row has no static names
