"""The caller's own session: whether it owes the password, and showing it anew before what reaches far."""

from __future__ import annotations

from fastapi import APIRouter, HTTPException, Request
from pydantic import Field, SecretStr

from db.engine import db_now
from db.facts import accounts, credentials
from db.tables import Role
from pacs_node.passwords import MOST_CHARACTERS
from pacs_node.web.access import EVERYONE, requires
from pacs_node.web.context import WebContext
from pacs_node.web.problems import documented
from pacs_node.web.routes import API
from pacs_node.web.routes.accounts import is_password_of, judge
from pacs_node.web.schemas import Body, Schema

router = APIRouter(
    prefix=f"{API}/session",
    tags=["accounts"],
    responses=documented(),
    dependencies=[requires(*EVERYONE - {Role.PUBLIC})],
)

NO_PASSWORD = "No password of this node stands behind this request, so none is wanted."
WRONG = "This is not your password. After {tries} wrong tries an account rests for {minutes:g} minutes."
RESTS = "This account rests until {until} after {tries} wrong tries. Another administrator can open it sooner."


class ShownPassword(Body):
    """What the person typed; it is compared and forgotten."""

    password: SecretStr = Field(max_length=4 * MOST_CHARACTERS, description="The one of the login.")


class PasswordStanding(Schema):
    """Whether what reaches far has to wait for the password."""

    is_wanted: bool = Field(description="`false` for a while after it was shown, and where there is none to show.")


@router.get("/password", summary="Is my password wanted?")
def get_password_standing(web: WebContext) -> PasswordStanding:
    """Return whether the caller has to show their password anew before what reaches far."""
    return PasswordStanding(is_wanted=web.caller.owes_password)


@router.post("/password", summary="Show the password anew", responses=documented(409, 422, 429))
def show_password(web: WebContext, request: Request, shown: ShownPassword) -> PasswordStanding:
    """Open, for `web.password_minutes` and this session alone, what reaches far. Audited.

    403 for a wrong one, which counts as at the login: the account rests after some. 409 for who has no password here:
    a token, the hospital's login, a node without logins.
    """
    caller, settings = web.caller, web.settings.web
    if caller.session is None or not caller.has_password:
        raise HTTPException(409, NO_PASSWORD)
    request.state.is_noted = True  # told in the trail as a login that failed, not as a refused address
    web.limits.take_login(caller.address)
    is_right = is_password_of(web, caller.name, shown.password.get_secret_value())
    with web.change() as session:
        until, account = judge(web, session, caller.name, is_right, actor=caller.actor)
        if account is not None:
            now = db_now(session)
            credentials.confirm_session(session, caller.session, now=now)
            accounts.record_shown_password(session, account, now=now)
    if account is None:  # after the commit: a try that is not counted is a free one
        words = RESTS if until else WRONG
        told = {"until": until, "tries": settings.login_tries, "minutes": settings.login_rest_minutes}
        raise HTTPException(403, words.format(**told))
    return PasswordStanding(is_wanted=False)
