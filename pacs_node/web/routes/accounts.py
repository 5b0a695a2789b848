"""The door: log in, log out, choose a password by a one-time link.

Words are the same for a wrong password, an unknown name and a locked account, and so is the time that passes.
"""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import APIRouter, Form, Request
from fastapi.responses import RedirectResponse, Response

from db import audit
from db.audit import Action
from db.engine import Session, db_now, read_scope
from db.facts import accounts, credentials
from db.facts.accounts import Account, NameTaken
from db.facts.credentials import NoSuchLink
from db.tables import Role
from pacs_node.passwords import (
    LEAST_CHARACTERS,
    MOST_CHARACTERS,
    WeakPassword,
    check_password,
    hash_password,
    is_outdated,
    is_password,
    new_secret,
)
from pacs_node.web.access import requires
from pacs_node.web.context import Web, WebContext
from pacs_node.web.identify import drop_session, set_session

router = APIRouter(include_in_schema=False, dependencies=[requires(Role.PUBLIC)])

Name = Annotated[str, Form(max_length=64)]
Password = Annotated[str, Form(max_length=4 * MOST_CHARACTERS)]
Next = Annotated[str, Form(max_length=512)]
Link = Annotated[str, Form(max_length=128)]
DEAD_LINK = "This link was used already, or is too old. An administrator makes a new one: pacs-node users reset NAME."


@router.get("/login")
def show_login(web: WebContext, request: Request, next: str = "/", why: str = "") -> Response:
    """Show the form; who is logged in already goes on."""
    if web.caller.is_known or web.settings.web.authentication == "off":
        return RedirectResponse(local(next), status_code=303)
    return show_door(web, request, word="over" if why == "over" else "", next=next)


@router.post("/login")
def log_in(web: WebContext, request: Request, user: Name = "", password: Password = "", next: Next = "/") -> Response:
    """Let a person in, or show the form again with the reason."""
    request.state.is_noted = True  # told in the trail as a login, not as a refused address
    web.limits.take_login(web.caller.address)
    name = accounts.normal_name(user)
    is_right = is_password_of(web, name, password)
    secret = new_secret()
    with web.change() as session:
        rests_until, is_in = judge(web, session, name, is_right)
        if is_in is not None:
            if is_outdated(is_in.password_hash or ""):
                accounts.renew_hash(session, is_in.account_id, hash_password(password))
            enter(web, session, is_in, secret, how="password")
    if is_in is not None:
        return let_in(request, secret, next)
    if rests_until:
        return show_door(web, request, word="rests", next=next, status=401, rests_until=rests_until)
    return show_door(web, request, word="wrong", next=next, status=401)


def is_password_of(web: Web, name: str, password: str) -> bool:
    """Compare, which takes its time, before any transaction that writes."""
    with read_scope(web.engine) as session:
        account = accounts.find_account(session, name)
    return is_password(password, account.password_hash if account else None)


def judge(
    web: Web, session: Session, name: str, is_right: bool, *, actor: str = "anyone"
) -> tuple[str, Account | None]:
    """Decide in the transaction that counts, so that guesses side by side are not worth more than one by one.

    Returns until when the account rests (HH:MM), if so, and whose password it was; None = it is refused, and counted.
    """
    settings, now = web.settings.web, db_now(session)
    account = accounts.find_account(session, name)
    is_resting = account is not None and account.rests_until is not None and account.rests_until > now
    if account is not None and is_right and not is_resting and not account.is_locked:
        return "", account
    why = "rests" if is_resting else "locked" if account is not None and account.is_locked else "password"
    accounts.record_failed_login(
        session,
        account.account_id if account else None,
        actor=actor,
        why=why if account else "unknown name",
        tries=settings.login_tries,
        rest_s=60 * settings.login_rest_minutes,
        now=now,
    )
    if account is not None and is_resting and account.rests_until is not None:
        return f"{account.rests_until.astimezone():%H:%M}", None
    is_unheard = account is None or account.is_locked
    return (web.limits.take_unknown_name(name) if is_unheard else ""), None


@router.post("/logout")
def log_out(web: WebContext, request: Request) -> Response:
    """End the session here and in the browser."""
    if web.caller.session:
        with web.change() as session:
            credentials.close_session(session, web.caller.session)
            now, who = db_now(session), web.caller
            audit.append(session, Action.LOGGED_OUT, actor=who.actor, subject_id=who.account_id, now=now)
    answer = RedirectResponse("/login", status_code=303)
    drop_session(request, answer)
    return answer


@router.get("/setup")
def show_setup(web: WebContext, request: Request, link: str = "") -> Response:
    """Show the form behind a one-time link; looking does not use it."""
    web.limits.take_login(web.caller.address)
    with read_scope(web.engine) as session:
        try:
            account = credentials.link_of(session, link, now=db_now(session))
        except NoSuchLink:
            return _setup(web, request, fault=DEAD_LINK, status=404)
    return _setup(web, request, link=link, account=account)


@router.post("/setup")
def set_up(
    web: WebContext, request: Request, link: Link = "", user: Name = "", password: Password = "", again: Password = ""
) -> Response:
    """Keep the password that was chosen, make the first administrator if it is that link, and log in."""
    web.limits.take_login(web.caller.address)
    secret = new_secret()
    try:
        with read_scope(web.engine) as session:
            account = credentials.link_of(session, link, now=db_now(session))
        name = account.name if account else accounts.normal_name(user)
        fault = _fault_of(name, password, again)
        if fault:
            return _setup(web, request, link=link, account=account, fault=fault, status=422)
        password_hash = hash_password(password)
        with web.change() as session:
            _use(web, session, link, name, password_hash, secret)
    except NoSuchLink:
        return _setup(web, request, fault=DEAD_LINK, status=404)
    except NameTaken as error:
        return _setup(web, request, link=link, account=None, fault=f"{error}: choose another one.", status=422)
    return let_in(request, secret, "/")


def _use(web: Web, session: Session, link: str, name: str, password_hash: str, secret: str) -> None:
    now = db_now(session)
    account = credentials.link_of(session, link, now=now)
    if account is None:
        account = accounts.add_account(
            session, name, roles={Role.ADMIN, Role.RADIOLOGIST}, actor="set-up link", now=now
        )
    credentials.use_link(session, link)
    accounts.set_password(session, account.account_id, password_hash, actor=account.actor, now=now)
    enter(web, session, account, secret, how="link")


def _fault_of(name: str, password: str, again: str) -> str:
    if not name or any(sign.isspace() or not sign.isprintable() for sign in name):
        return "A user name has letters, digits and signs, without blanks."
    if password != again:
        return "The two passwords differ."
    try:
        check_password(password, name)
    except WeakPassword as error:
        return str(error)
    return ""


def enter(web: Web, session: Session, account: Account, secret: str, *, how: str) -> None:
    """Open a session under a new secret: a cookie that was there before the login is worth nothing after it."""
    now = db_now(session)
    if web.caller.session:
        credentials.close_session(session, web.caller.session)
    credentials.drop_old_sessions(session, longest_s=3600 * web.settings.web.session_hours, now=now)
    credentials.open_session(session, secret, account.account_id, now=now)
    accounts.record_login(session, account, how=how, now=now)


def let_in(request: Request, secret: str, next: str) -> Response:
    """Send the browser where it wanted to go, with its cookie."""
    answer = RedirectResponse(local(next), status_code=303)
    set_session(request, answer, secret)
    return answer


def local(address: str) -> str:
    """Return an address of this node, or the worklist for anything that leads elsewhere."""
    try:
        parts = urlsplit(address) if address.isprintable() else None
    except ValueError:
        return "/"
    if parts is None or parts.scheme or parts.netloc or "\\" in address:
        return "/"
    return address if address.startswith("/") and not address.startswith(("//", "/login", "/setup")) else "/"


def show_door(
    web: Web, request: Request, *, word: str, next: str, status: int = 200, rests_until: str = "", reason: str = ""
) -> Response:
    """Show the form with what is to be said above it."""
    settings = web.settings.web
    with read_scope(web.engine) as session:
        is_empty = not accounts.has_admin(session)
    context = {
        "word": "empty" if is_empty and not settings.oidc.issuer and not word else word,
        "next": local(next),
        "hospital": bool(settings.oidc.issuer),
        "tries": settings.login_tries,
        "rest_minutes": settings.login_rest_minutes,
        "idle_minutes": settings.session_idle_minutes,
        "rests_until": rests_until,
        "reason": reason,
        "most": MOST_CHARACTERS,
    }
    return web.templates.TemplateResponse(request, "login.html", context, status_code=status)


def _setup(
    web: Web, request: Request, *, link: str = "", account: Account | None = None, fault: str = "", status: int = 200
) -> Response:
    context: dict[str, Any] = {"link": link, "account": account, "fault": fault}
    context |= {"least": LEAST_CHARACTERS, "most": MOST_CHARACTERS}
    return web.templates.TemplateResponse(request, "setup.html", context, status_code=status)
