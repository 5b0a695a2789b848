"""The commands about people and programs: `pacs-node users ...` and `pacs-node tokens ...`.

Passwords are never typed here: a person gets a one-time link and chooses one. A token is printed once.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from datetime import timedelta

from db.engine import Session, check_revision, db_now, make_engine, read_scope, session_scope
from db.facts import accounts, credentials
from db.facts.accounts import Account, NameTaken
from db.tables import Role
from pacs_node.commands.terminal import Add, person, table, time_text
from pacs_node.errors import ConfigError
from pacs_node.invitations import LINK_HOURS, first_link, invite, invite_again
from pacs_node.passwords import TOKEN_PREFIX, new_secret
from pacs_node.settings import Settings

ROLES = [Role.RADIOLOGIST, Role.ADMIN, Role.SERVICE]


def add_commands(commands: object, add: Add) -> None:
    """Declare `users` and `tokens` on the parser of `cli`."""
    users = add(commands, "users", _users, "add, list, reset, change, lock or unlock accounts; print the set-up link")
    users.add_argument("action", choices=["add", "list", "reset", "change", "lock", "unlock", "setup-link"])
    users.add_argument("name", nargs="?")
    _add_grants(users, "what the account may do (default for `add`: radiologist)")

    tokens = add(commands, "tokens", _tokens, "create, list or revoke API tokens")
    tokens.add_argument("action", choices=["create", "list", "revoke"])
    tokens.add_argument("name", nargs="?")
    tokens.add_argument("--days", type=int, default=365, help="until it expires (default: %(default)s)")
    _add_grants(tokens, "what the token may do (default: service)")


def _add_grants(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("--role", type=Role, choices=ROLES, action="append", help=f"{text}; may be given again")
    parser.add_argument("--group", action="append", help="a name in [[web.groups]]; may be given again")


def _users(settings: Settings, options: argparse.Namespace) -> int:
    engine = make_engine(settings.database_url)
    check_revision(engine)
    if options.action == "list":
        with read_scope(engine) as session:
            table(["account", "roles", "groups", "state", "last login"], map(_line, accounts.list_accounts(session)))
        return 0
    _know_groups(settings, options.group)
    try:
        with session_scope(engine) as session:
            print(_change_users(session, settings, options))
    except NameTaken as error:
        raise ConfigError(str(error)) from None
    return 0


def _change_users(session: Session, settings: Settings, options: argparse.Namespace) -> str:
    now = db_now(session)
    if options.action == "setup-link":
        link = first_link(session, settings.web)
        if link is None:
            raise ConfigError("there is an administrator already: `pacs-node users reset NAME` makes a new link")
        return _say_link("Make the first administrator", link)
    if options.action == "add":
        roles = options.role or [Role.RADIOLOGIST]
        account = accounts.add_account(
            session, _name(options), roles=roles, groups=options.group or (), actor=person(), now=now
        )
        return _say_link(f"{account.name} chooses a password", invite(session, account.account_id, settings.web))
    account = _found(session, _name(options))
    if options.action == "reset":
        if account.is_of_hospital:
            raise ConfigError(f"{account.name} logs in with the hospital's account: it has no password here")
        accounts.change_account(session, account.account_id, is_locked=False, actor=person(), now=now)
        link = invite_again(session, account, settings.web, actor=person())
        return _say_link(f"{account.name} chooses a new password", link)
    is_locked = {"lock": True, "unlock": False}.get(options.action)
    accounts.change_account(
        session,
        account.account_id,
        roles=options.role,
        groups=options.group,
        is_locked=is_locked,
        actor=person(),
        now=now,
    )
    return f"{account.name}: {'locked, and logged out everywhere' if is_locked else 'done'}"


def _tokens(settings: Settings, options: argparse.Namespace) -> int:
    engine = make_engine(settings.database_url)
    check_revision(engine)
    if options.action == "list":
        with read_scope(engine) as session:
            rows = [
                [
                    token.name,
                    " ".join(sorted(token.roles)),
                    " ".join(sorted(token.groups)) or "-",
                    "revoked" if token.revoked_at else f"until {time_text(token.expires_at)}",
                    time_text(token.last_used_at),
                ]
                for token in credentials.list_tokens(session)
            ]
        table(["token", "roles", "groups", "valid", "last used"], rows)
        return 0
    _know_groups(settings, options.group)
    if options.days < 1:
        raise ConfigError("--days: at least 1")
    with session_scope(engine) as session:
        if options.action == "revoke":
            _revoke(session, _name(options))
            print(f"{options.name}: revoked")
            return 0
        secret, now = new_secret(TOKEN_PREFIX), db_now(session)
        try:
            credentials.create_token(
                session,
                secret,
                _name(options),
                roles=options.role or [Role.SERVICE],
                groups=options.group or (),
                expires_at=now + timedelta(days=options.days),
                actor=person(),
                now=now,
            )
        except NameTaken as error:
            raise ConfigError(str(error)) from None
    print(f"{secret}\nShown once. Send it as: Authorization: Bearer {TOKEN_PREFIX}...")
    return 0


def _revoke(session: Session, name: str) -> None:
    token = next((token for token in credentials.list_tokens(session) if token.name == name), None)
    if token is None:
        raise ConfigError(f"no token named {name}; `pacs-node tokens list` shows them")
    credentials.revoke_token(session, token.token_id, actor=person(), now=db_now(session))


def _name(options: argparse.Namespace) -> str:
    name = str(options.name or "")
    if not 1 <= len(name) <= 64 or any(sign.isspace() or not sign.isprintable() for sign in name):
        raise ConfigError(f"`{options.action}` needs a name: at most 64 letters, digits and signs, without blanks")
    return name


def _found(session: Session, name: str) -> Account:
    account = accounts.find_account(session, name)
    if account is None:
        raise ConfigError(f"no account named {name}; `pacs-node users list` shows them")
    return account


def _know_groups(settings: Settings, wanted: Iterable[str] | None) -> None:
    known = {group.name for group in settings.web.groups}
    unknown = sorted(set(wanted or ()) - known)
    if unknown:
        raise ConfigError(f"no [[web.groups]] named {', '.join(unknown)}")


def _line(account: Account) -> list[object]:
    states = {
        "locked": account.is_locked,
        f"rests until {time_text(account.rests_until)}": account.rests_until is not None,
        "hospital login": account.is_of_hospital,
        "no password yet": account.password_hash is None,
    }
    state = next((text for text, is_so in states.items() if is_so), "open")
    groups = " ".join(sorted(account.groups)) or "-"
    return [account.name, " ".join(sorted(account.roles)), groups, state, time_text(account.last_login_at)]


def _say_link(what: str, link: str) -> str:
    return f"{what} by this link, once and within {LINK_HOURS} hours:\n  {link}"
