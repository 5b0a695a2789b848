"""The people who may log in: who they are, what they may do, and whether their account rests or is locked.

Passwords reach this room as Argon2id hashes; what is no fact (what is said, cookies) is the web's affair.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import delete, insert, select, update

from db import audit
from db.audit import Action
from db.engine import NoSuchRecord, Session
from db.locks import wait_turn
from db.tables import AccountLink, AccountRow, Role, WebSession, new_id, rows_of


class NameTaken(ValueError):
    """There is an account (or a token) of this name already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """One person."""

    account_id: UUID
    name: str
    roles: frozenset[Role]
    groups: frozenset[str]
    password_hash: str | None = field(repr=False)
    """None = no password was chosen yet, or the person logs in by the hospital's account."""
    is_of_hospital: bool
    failed_logins: int
    rests_until: datetime | None
    is_locked: bool
    created_at: datetime
    last_login_at: datetime | None

    @property
    def actor(self) -> str:
        """Return the name in the audit trail."""
        return f"user:{self.name}"[:64]


_ACCOUNTS, _SESSIONS, _LINKS = rows_of(AccountRow), rows_of(WebSession), rows_of(AccountLink)


def normal_name(name: str) -> str:
    """Return the one spelling of a login name: people type capitals and blanks as they come."""
    return name.strip().lower()[:64]


def find_account(session: Session, name: str) -> Account | None:
    """Return the account of this login name, or None."""
    return _one(session, _ACCOUNTS.c.name == normal_name(name))


def account_of(session: Session, account_id: UUID) -> Account:
    """Return one account.

    Raises
    ------
    NoSuchRecord
        There is none of this id.
    """
    found = _one(session, _ACCOUNTS.c.id == account_id)
    if found is None:
        raise NoSuchRecord(f"no account {account_id}")
    return found


def list_accounts(session: Session) -> list[Account]:
    """Return every account by name."""
    return [account_from(row) for row in session.execute(select(_ACCOUNTS).order_by(_ACCOUNTS.c.name))]


def has_admin(session: Session) -> bool:
    """Tell whether somebody who is not locked can act as an administrator, or will when a password is chosen."""
    return any(Role.ADMIN in account.roles and not account.is_locked for account in list_accounts(session))


def add_account(
    session: Session,
    name: str,
    *,
    roles: Iterable[Role],
    groups: Iterable[str] = (),
    hospital_id: str | None = None,
    actor: str,
    now: datetime,
) -> Account:
    """Add a person, who has no password yet.

    Raises
    ------
    NameTaken
        There is an account of this name.
    """
    name = normal_name(name)
    if find_account(session, name) is not None:
        raise NameTaken(f"there is an account named {name}")
    values = {"name": name, "roles": names_of(roles), "groups": " ".join(sorted(groups)), "hospital_id": hospital_id}
    account_id = new_id()
    session.execute(insert(_ACCOUNTS).values(id=account_id, failed_logins=0, is_locked=False, created_at=now, **values))
    _note(session, account_id, actor, now, what="added", account=name, roles=values["roles"], groups=values["groups"])
    return account_of(session, account_id)


def change_account(
    session: Session,
    account_id: UUID,
    *,
    roles: Iterable[Role] | None = None,
    groups: Iterable[str] | None = None,
    is_locked: bool | None = None,
    actor: str,
    now: datetime,
) -> Account:
    """Change what is given; locking ends the account's sessions and open links, opening ends its rest too.

    Changes come one after the other, so that two administrators who leave at once are told apart by `has_admin`.

    Raises
    ------
    NoSuchRecord
        There is no such account.
    """
    wait_turn(session, "accounts")
    account = account_of(session, account_id)
    changes: dict[str, Any] = {}
    if roles is not None:
        changes["roles"] = names_of(roles)
    if groups is not None:
        changes["groups"] = " ".join(sorted(groups))
    if is_locked is not None:
        changes |= {"is_locked": is_locked} | ({} if is_locked else {"failed_logins": 0, "rests_until": None})
    if changes:
        session.execute(update(_ACCOUNTS).where(_ACCOUNTS.c.id == account_id).values(**changes))
        told = {name: value for name, value in changes.items() if name in ("roles", "groups", "is_locked")}
        _note(session, account_id, actor, now, what="changed", account=account.name, **told)
    if is_locked:
        session.execute(delete(_SESSIONS).where(_SESSIONS.c.account_id == account_id))
        session.execute(delete(_LINKS).where(_LINKS.c.account_id == account_id))
    return account_of(session, account_id)


def set_password(session: Session, account_id: UUID, password_hash: str, *, actor: str, now: datetime) -> None:
    """Put a new password in place; every session and every open link of the account ends.

    Raises
    ------
    NoSuchRecord
        There is no such account.
    """
    account = account_of(session, account_id)
    values = {"password_hash": password_hash, "failed_logins": 0, "rests_until": None}
    session.execute(update(_ACCOUNTS).where(_ACCOUNTS.c.id == account_id).values(**values))
    session.execute(delete(_SESSIONS).where(_SESSIONS.c.account_id == account_id))
    session.execute(delete(_LINKS).where(_LINKS.c.account_id == account_id))
    _note(session, account_id, actor, now, what="password set", account=account.name)


def record_link(session: Session, account: Account, *, actor: str, now: datetime) -> None:
    """Record that somebody made a link by which this account's password can be set."""
    _note(session, account.account_id, actor, now, what="link made", account=account.name)


def renew_hash(session: Session, account_id: UUID, password_hash: str) -> None:
    """Keep the same password under newer hash parameters."""
    session.execute(update(_ACCOUNTS).where(_ACCOUNTS.c.id == account_id).values(password_hash=password_hash))


def record_login(session: Session, account: Account, *, how: str, now: datetime) -> None:
    """Record that a person was let in."""
    values = {"failed_logins": 0, "rests_until": None, "last_login_at": now}
    session.execute(update(_ACCOUNTS).where(_ACCOUNTS.c.id == account.account_id).values(**values))
    details = {"how": how}
    audit.append(
        session, Action.LOGGED_IN, actor=account.actor, subject_id=account.account_id, details=details, now=now
    )


def record_shown_password(session: Session, account: Account, *, now: datetime) -> None:
    """Record that a person who is logged in showed their password anew; the wrong tries before it are forgotten."""
    session.execute(update(_ACCOUNTS).where(_ACCOUNTS.c.id == account.account_id).values(failed_logins=0))
    audit.append(session, Action.PASSWORD_SHOWN, actor=account.actor, subject_id=account.account_id, now=now)


def record_failed_login(
    session: Session,
    account_id: UUID | None,
    *,
    actor: str = "anyone",
    why: str,
    tries: int,
    rest_s: float,
    now: datetime,
) -> None:
    """Record that somebody was not let in; after `tries` wrong passwords in a row the account rests `rest_s` seconds.

    What was typed as a name is not kept: it may be a password in the wrong field.

    Parameters
    ----------
    actor
        Whose session it was in which a wrong password was shown.
    """
    audit.append(session, Action.LOGIN_FAILED, actor=actor, subject_id=account_id, details={"why": why}, now=now)
    if account_id is None or why != "password":
        return
    counted = (
        update(_ACCOUNTS)
        .where(_ACCOUNTS.c.id == account_id)
        .values(failed_logins=_ACCOUNTS.c.failed_logins + 1)
        .returning(_ACCOUNTS.c.failed_logins)
    )
    if session.execute(counted).scalar_one() >= tries:
        values = {"failed_logins": 0, "rests_until": now + timedelta(seconds=rest_s)}
        session.execute(update(_ACCOUNTS).where(_ACCOUNTS.c.id == account_id).values(**values))
        _note(session, account_id, actor, now, what="rests")


def hospital_account(
    session: Session, hospital_id: str, name: str, *, roles: Iterable[Role], groups: Iterable[str], now: datetime
) -> Account:
    """Return the account of an OpenID Connect login, with what the hospital says today about roles and groups.

    Raises
    ------
    NameTaken
        A new person has the login name of another account: an administrator has to rename one of them.
    """
    known = _one(session, _ACCOUNTS.c.hospital_id == hospital_id)
    if known is None:
        return add_account(
            session, name, roles=roles, groups=groups, hospital_id=hospital_id, actor="hospital login", now=now
        )
    wanted_roles, wanted_groups = frozenset(roles), frozenset(groups)
    if (known.roles, known.groups) == (wanted_roles, wanted_groups):
        return known
    return change_account(
        session, known.account_id, roles=wanted_roles, groups=wanted_groups, actor="hospital login", now=now
    )


def names_of(roles: Iterable[Role]) -> str:
    """Return roles as they are kept; `Role.PUBLIC` is nobody's."""
    return " ".join(sorted(role.value for role in roles if role is not Role.PUBLIC))


def roles_from(names: str) -> frozenset[Role]:
    """Return roles from what was kept."""
    return frozenset(Role(name) for name in names.split()) | {Role.PUBLIC}


def account_from(row: Any) -> Account:
    """Return the value of one row of `accounts`."""
    own = {name: getattr(row, name) for name in Account.__dataclass_fields__ if name in _ACCOUNTS.c}
    own |= {"roles": roles_from(row.roles) - {Role.PUBLIC}, "groups": frozenset(row.groups.split())}
    return Account(account_id=row.id, is_of_hospital=row.hospital_id is not None, **own)


def _one(session: Session, condition: Any) -> Account | None:
    row = session.execute(select(_ACCOUNTS).where(condition)).one_or_none()
    return None if row is None else account_from(row)


def _note(session: Session, account_id: UUID, actor: str, now: datetime, **details: Any) -> None:
    audit.append(session, Action.ACCOUNT_CHANGED, actor=actor, subject_id=account_id, details=details, now=now)
