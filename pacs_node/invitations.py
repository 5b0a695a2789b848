"""One-time links by which people choose their password: there is no default one, and nobody learns another's."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

from db.engine import Session, db_now
from db.facts import accounts, credentials
from db.facts.accounts import Account
from pacs_node.passwords import new_secret
from pacs_node.settings.web import WebSettings

LINK_HOURS = 24


def invite(session: Session, account_id: UUID | None, settings: WebSettings) -> str:
    """Keep a new link, in place of an earlier one for the same, and return its address.

    Parameters
    ----------
    account_id
        Whose password it sets; None = it makes the first administrator.
    """
    secret = new_secret()
    expires_at = db_now(session) + timedelta(hours=LINK_HOURS)
    credentials.add_link(session, secret, account_id, expires_at=expires_at)
    return f"{settings.address}/setup?link={secret}"


def invite_again(session: Session, account: Account, settings: WebSettings, *, actor: str) -> str:
    """Return the address of a new link for somebody who is there already; audited, for it can set their password."""
    accounts.record_link(session, account, actor=actor, now=db_now(session))
    return invite(session, account.account_id, settings)


def first_link(session: Session, settings: WebSettings) -> str | None:
    """Return a new link that makes the first administrator; None where there is one, or where nobody logs in."""
    if settings.authentication == "off" or accounts.has_admin(session):
        return None
    return invite(session, None, settings)
