"""Accounts and API tokens, for administrators; and for everyone: who am I?"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, HTTPException
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from db.engine import db_now, read_scope
from db.facts import accounts, credentials
from db.facts.accounts import Account, NameTaken
from db.facts.credentials import TokenFacts
from db.tables import Role
from pacs_node.invitations import invite, invite_again
from pacs_node.passwords import TOKEN_PREFIX, new_secret
from pacs_node.web.access import EVERYONE, requires
from pacs_node.web.context import Web, WebContext
from pacs_node.web.problems import documented
from pacs_node.web.routes import API

KNOWN = EVERYONE - {Role.PUBLIC}

router = APIRouter(prefix=API, tags=["accounts"], responses=documented(404, 409, 422), dependencies=[requires(*KNOWN)])
ONLY_ADMIN = [requires(Role.ADMIN)]
LETTING_IN = [requires(Role.ADMIN, password=True)]


def _no_public(roles: list[Role]) -> list[Role]:
    if Role.PUBLIC in roles:
        raise ValueError("public is what everyone has")
    return roles


Roles = Annotated[list[Role], Field(min_length=1, max_length=3, examples=[["radiologist"]]), AfterValidator(_no_public)]
Groups = Annotated[
    list[Annotated[str, Field(pattern=r"^\S{1,64}$")]],
    Field(max_length=50, examples=[["ward_a"]], description="Names in `[[web.groups]]`."),
]
Login = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[^\s\x00-\x1f\x7f]+$", examples=["anna.reader"])]


class Sent(BaseModel):
    model_config = ConfigDict(extra="forbid")


class NewAccount(Sent):
    name: Login
    roles: Roles
    groups: Groups = []


class AccountChange(Sent):
    roles: Roles | None = None
    groups: Groups | None = None
    locked: bool | None = Field(None, examples=[True])


class NewToken(Sent):
    name: Login
    roles: Roles
    groups: Groups = []
    days: Annotated[int, Field(ge=1, le=3650, description="Until it expires.")] = 365


class Me(BaseModel):
    name: str
    roles: list[Role]
    groups: list[str]


class AccountOut(BaseModel):
    account_id: UUID
    name: str
    roles: list[Role]
    groups: list[str]
    is_of_hospital: bool
    has_password: bool
    is_locked: bool
    rests_until: datetime | None
    created_at: datetime
    last_login_at: datetime | None


class AccountAndLink(BaseModel):
    account: AccountOut
    link: str = Field(description="A one-time link by which the person chooses a password; shown here and never again.")


class TokenOut(BaseModel):
    model_config = ConfigDict(from_attributes=True)
    token_id: UUID
    name: str
    roles: list[Role]
    groups: list[str]
    created_by: str
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    revoked_at: datetime | None


class TokenAndSecret(BaseModel):
    token: TokenOut
    secret: str = Field(description="For `Authorization: Bearer ...`; shown here and never again.")


@router.get("/me", summary="Who am I?")
def get_me(web: WebContext) -> Me:
    """Return the caller's name, roles and groups."""
    known = sorted(web.caller.roles - {Role.PUBLIC})
    return Me(name=web.caller.name, roles=known, groups=sorted(web.caller.groups))


@router.get("/accounts", summary="List accounts", dependencies=ONLY_ADMIN)
def list_accounts(web: WebContext) -> list[AccountOut]:
    """Return everyone who may log in, by name."""
    with read_scope(web.engine) as session:
        return [_account_out(account) for account in accounts.list_accounts(session)]


@router.post("/accounts", summary="Add an account", status_code=201, dependencies=LETTING_IN)
def post_account(web: WebContext, wanted: NewAccount) -> AccountAndLink:
    """Add a person; the answer holds the one-time link by which they choose a password."""
    _know_groups(web, wanted.groups)
    with web.change() as session:
        try:
            account = accounts.add_account(
                session,
                wanted.name,
                roles=wanted.roles,
                groups=wanted.groups,
                actor=web.caller.actor,
                now=db_now(session),
            )
        except NameTaken as error:
            raise HTTPException(409, f"{error}.".capitalize()) from None
        return AccountAndLink(account=_account_out(account), link=invite(session, account.account_id, web.settings.web))


@router.patch("/accounts/{account_id}", summary="Change or lock an account", dependencies=LETTING_IN)
def patch_account(web: WebContext, account_id: UUID, change: AccountChange) -> AccountOut:
    """Change what is given, at once and wherever the person is logged in; locking logs them out everywhere. Audited.

    409 where it would leave no administrator, and for roles and groups of the hospital's people: its login says them.
    """
    _know_groups(web, change.groups or ())
    with web.change() as session:
        is_of_hospital = accounts.account_of(session, account_id).is_of_hospital
        if is_of_hospital and (change.roles is not None or change.groups is not None):
            raise HTTPException(409, "The hospital's login says, each time, what this person may do.")
        account = accounts.change_account(
            session,
            account_id,
            roles=change.roles,
            groups=change.groups,
            is_locked=change.locked,
            actor=web.caller.actor,
            now=db_now(session),
        )
        if not accounts.has_admin(session):
            raise HTTPException(409, "The last administrator stays one.")
        return _account_out(account)


@router.post("/accounts/{account_id}/link", summary="Make a new password link", dependencies=LETTING_IN)
def post_link(web: WebContext, account_id: UUID) -> AccountAndLink:
    """Return a new one-time link; an earlier one that was not used ends. Audited."""
    with web.change() as session:
        account = accounts.account_of(session, account_id)
        if account.is_of_hospital:
            raise HTTPException(409, "This person logs in with the hospital's account.")
        link = invite_again(session, account, web.settings.web, actor=web.caller.actor)
        return AccountAndLink(account=_account_out(account), link=link)


@router.get("/tokens", summary="List API tokens", dependencies=ONLY_ADMIN)
def list_tokens(web: WebContext) -> list[TokenOut]:
    """Return every token, the newest first; revoked ones stay listed."""
    with read_scope(web.engine) as session:
        return [_token_out(token) for token in credentials.list_tokens(session)]


@router.post("/tokens", summary="Make an API token", status_code=201, dependencies=LETTING_IN)
def post_token(web: WebContext, wanted: NewToken) -> TokenAndSecret:
    """Make a token for a program; its secret is in this answer alone."""
    _know_groups(web, wanted.groups)
    secret = new_secret(TOKEN_PREFIX)
    with web.change() as session:
        now = db_now(session)
        try:
            token = credentials.create_token(
                session,
                secret,
                wanted.name,
                roles=wanted.roles,
                groups=wanted.groups,
                expires_at=now + timedelta(days=wanted.days),
                actor=web.caller.actor,
                now=now,
            )
        except NameTaken as error:
            raise HTTPException(409, f"{error}.".capitalize()) from None
    return TokenAndSecret(token=_token_out(token), secret=secret)


@router.delete("/tokens/{token_id}", summary="Revoke an API token", dependencies=ONLY_ADMIN)
def delete_token(web: WebContext, token_id: UUID) -> TokenOut:
    """End a token at once."""
    with web.change() as session:
        return _token_out(credentials.revoke_token(session, token_id, actor=web.caller.actor, now=db_now(session)))


def _know_groups(web: Web, wanted: Iterable[str]) -> None:
    unknown = sorted(set(wanted) - {group.name for group in web.settings.web.groups})
    if unknown:
        raise HTTPException(422, f"The configuration has no [[web.groups]] named {', '.join(unknown)}.")


def _account_out(account: Account) -> AccountOut:
    own = {name: getattr(account, name) for name in AccountOut.model_fields if hasattr(account, name)}
    own |= {"roles": sorted(account.roles), "groups": sorted(account.groups)}
    return AccountOut(has_password=account.password_hash is not None, **own)


def _token_out(token: TokenFacts) -> TokenOut:
    own = {name: getattr(token, name) for name in TokenOut.model_fields}
    return TokenOut(**own | {"roles": sorted(token.roles), "groups": sorted(token.groups)})
