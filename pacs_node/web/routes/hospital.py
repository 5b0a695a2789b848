"""Log in with the hospital's account: to its page, and back."""

from __future__ import annotations

import logging
from typing import Annotated

from fastapi import APIRouter, HTTPException, Query, Request
from fastapi.responses import RedirectResponse, Response

from db.engine import db_now
from db.facts import accounts
from db.facts.accounts import NameTaken
from db.tables import Role
from pacs_node.passwords import new_secret
from pacs_node.web.access import requires
from pacs_node.web.context import Web, WebContext
from pacs_node.web.hospital import HospitalLogin, HospitalRefuses, Person, Started
from pacs_node.web.routes.accounts import enter, let_in, local, show_door

logger = logging.getLogger(__name__)

router = APIRouter(prefix="/login/hospital", include_in_schema=False, dependencies=[requires(Role.PUBLIC)])

COOKIE = "pacs_node_hospital"
COOKIE_S = 600
LOCKED = "This account is locked here. An administrator can open it."


@router.get("")
def go_there(web: WebContext, request: Request, next: Annotated[str, Query(max_length=512)] = "/") -> Response:
    """Send the browser to the hospital's page, with a cookie that this login can be known by when it comes back."""
    web.limits.take_login(web.caller.address)
    try:
        address, started = _login(web).start(_back(request), local(next))
    except HospitalRefuses as refusal:
        return _refuse(web, request, refusal)
    answer = RedirectResponse(address, status_code=303)
    is_tls = request.scope.get("scheme") == "https"
    answer.set_cookie(COOKIE, started.packed(), max_age=COOKIE_S, httponly=True, samesite="lax", secure=is_tls)
    return answer


@router.get("/back")
def come_back(web: WebContext, request: Request) -> Response:
    """Let in whom the hospital names, if one of their groups may."""
    request.state.is_noted = True  # told in the trail as a login
    web.limits.take_login(web.caller.address)
    try:
        started = Started.unpacked(request.cookies.get(COOKIE, ""))
        person = _login(web).finish(_back(request), started, request.query_params)
        answer = let_in(request, _enter(web, person), started.next)
    except HospitalRefuses as refusal:
        answer = _refuse(web, request, refusal)
    answer.delete_cookie(COOKIE)
    return answer


def _enter(web: Web, person: Person) -> str:
    known = {group.name for group in web.settings.web.groups}
    secret = new_secret()
    with web.change() as session:
        try:
            account = accounts.hospital_account(
                session,
                person.hospital_id,
                person.name,
                roles=person.roles,
                groups=person.groups & known,
                now=db_now(session),
            )
        except NameTaken:
            raise HospitalRefuses("Another account of this node has your user name. Tell an administrator.") from None
        if account.is_locked:
            raise HospitalRefuses(LOCKED)
        enter(web, session, account, secret, how="hospital")
    return secret


def _refuse(web: Web, request: Request, refusal: HospitalRefuses) -> Response:
    logger.warning("A hospital login was refused", extra={"action": "hospital_login"}, exc_info=refusal.__cause__)
    settings = web.settings.web
    with web.change() as session:
        accounts.record_failed_login(
            session,
            None,
            why="hospital login",
            tries=settings.login_tries,
            rest_s=60 * settings.login_rest_minutes,
            now=db_now(session),
        )
    return show_door(web, request, word="hospital", next="/", status=401, reason=str(refusal))


def _login(web: Web) -> HospitalLogin:
    if web.hospital is None:
        raise HTTPException(404)
    return web.hospital


def _back(request: Request) -> str:
    """Return our own address; the gate has checked the Host header that it is made of."""
    return f"{request.url.scheme}://{request.headers['host']}/login/hospital/back"
