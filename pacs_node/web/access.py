"""Who may do what: the roles, how a route says which of them it takes, and who is asking.

How a route is written
----------------------
Every router declares the roles it takes; a route of it may ask for fewer (both are checked, so declare the widest on
the router). A test walks all routes and fails if one has none.

>>> router = APIRouter(prefix=f"{API}/studies", dependencies=[requires(Role.RADIOLOGIST, Role.ADMIN, Role.SERVICE)])
>>> @router.post("/{study_id}/rerun", dependencies=[requires(Role.ADMIN)])

===========  =========================================================================================================
role         who
===========  =========================================================================================================
public       anyone who reaches the node, without a login; `requires(Role.PUBLIC)` alone
radiologist  people who read studies: worklist, reading, reviews, quality
admin        people who run the node: all of that, jobs, models, users, tokens, audit trail, exports
service      programs with an API token: reading studies and results, predictions, metrics
===========  =========================================================================================================

`requires_off_loopback(Role.SERVICE, ...)` is public to callers on this machine and asks for the roles beyond it
(`/ready`, `/metrics`); `/predict` uses `requires_to_predict()`, which follows `web.predict_without_login`.

Who is asking
-------------
`web.caller` of every route that takes `WebContext` (or the `Caller` dependency alone) is a `Visitor`:
``actor`` for the audit trail ("user:name", "token:name"), ``name`` for people, ``roles``, ``groups``, ``address``.
`web.note_view`, `web.note_search` and `web.note` write it into the audit trail by themselves; hand ``web.caller.actor``
to facts that take ``actor`` or ``reviewer``.

Which studies they may see
--------------------------
``web.caller.visible`` is None (all), or the senders and institutions of the caller's groups: hand it as ``visible=`` to
each function of `db.facts` that lists or searches. A path with one of `SUBJECTS` (``{study_id}``,
``{instance_id}``, ``{report_id}``, ...) is checked here before the route runs: what another
group sees is a 404. Where a study's id stands in a body or in a query, call `web.require_visible(study_id=...)` first.

The program refuses to start with a route that declares nothing.

What reaches far
----------------
Which model answers, what is taken back, closed or carried out, and who is let in: `requires(Role.ADMIN, password=True)`
wants of a person, beside the role, the password anew, so that a desk that was left is not enough. `PasswordWanted` says
so; a page answers it by asking and `POST /api/v1/session/password`, which holds for `web.password_minutes`. Programs
with a token, people of the hospital's login and a node without logins have no password here, and are not asked.

Writes from pages
-----------------
A request with a session cookie that changes something carries the token of `csrf_token(request)` (templates: the
global of that name, in ``<meta name="csrf-token" content="{{ csrf_token(request) }}">``) as header ``X-CSRF-Token``,
or as the field ``csrf_token`` of an urlencoded form. `security.Gate` checks it; requests with an API token need none.
Templates know who is asking by ``visitor(request)`` (``.name``, ``.may("admin")``). What a page asks by itself, without
the person (polling), carries the header ``X-Background: 1``, and does not keep the login alive; nor do event streams,
which have to end after a minute, so that a login that ended ends them too. 401 to a script means: go to ``/login``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any
from urllib.parse import urlencode
from uuid import UUID

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.routing import iter_route_contexts
from starlette.routing import Mount
from starlette.types import Scope

from db.facts import Visible
from db.tables import Role
from pacs_node.settings.section import is_loopback
from pacs_node.settings.web import WebSettings

__all__ = [
    "EVERYONE",
    "Caller",
    "PasswordWanted",
    "Requires",
    "Role",
    "Visitor",
    "declarations",
    "require_password",
    "requires",
    "requires_off_loopback",
    "requires_to_predict",
]

EVERYONE = frozenset(Role)
NO_LOGIN = "Log in, or send an API token (Authorization: Bearer ...)."
BEARER = {"WWW-Authenticate": "Bearer"}
NOT_YOURS = "This is not among what your account may do: it wants the role {roles}."
OPEN_MOUNTS = frozenset({"/static", "/reference", "/openapi.json"})
"""Files of this program and the description of its API: nothing of a patient, and the login page needs them."""
SUBJECTS = (
    *("study_id", "instance_id", "prediction_id", "warning_id"),
    *("report_id", "delivery_id", "review_id", "job_id"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Visitor:
    """Who sent this request."""

    actor: str
    """In the audit trail: `user:name`, `token:name`, `anyone` before a login, `web` where logins are off."""
    name: str
    """For people."""
    roles: frozenset[Role] = frozenset({Role.PUBLIC})
    groups: frozenset[str] = frozenset()
    address: str = ""
    is_on_loopback: bool = False
    """The request came from this machine, and no proxy on it says that it came from elsewhere."""
    account_id: UUID | None = None
    """None for tokens, and where nobody is logged in."""
    is_token: bool = False
    visible: Visible | None = None
    """The studies that may be seen; None = all."""
    session: str | None = field(default=None, repr=False)
    """The session cookie that the request came with, once it was found genuine."""
    has_password: bool = False
    """A person with a password of this node; neither a token nor the hospital's login is one."""
    has_shown_password: bool = False
    """Anew, in the last `web.password_minutes`."""
    is_background: bool = False
    """The page asked by itself; nobody need be there who sees the answer."""

    @property
    def is_known(self) -> bool:
        """Tell whether somebody logged in, or showed a token."""
        return self.account_id is not None or self.is_token

    @property
    def owes_password(self) -> bool:
        """Tell whether the caller has to show their password before what reaches far."""
        return self.has_password and not self.has_shown_password

    def may(self, *roles: Role) -> bool:
        """Tell whether one of these roles is the caller's; for templates that leave out what would be refused."""
        return not self.roles.isdisjoint(roles)


class PasswordWanted(HTTPException):
    """The caller may do this, and has to show their password first."""

    problem_type = "urn:pacs-node:password-wanted"

    def __init__(self) -> None:
        super().__init__(403, "This wants your password anew: POST /api/v1/session/password, then try again.")


NOBODY = Visitor(actor="web", name="nobody")


def caller_of(scope: Scope) -> Visitor:
    """Return who `security.Gate` found to be asking."""
    caller: Visitor = scope.get("state", {}).get("caller", NOBODY)
    return caller


def caller(request: Request) -> Visitor:
    """Return who is asking; templates call it as `visitor(request)`."""
    return caller_of(request.scope)


Caller = Annotated[Visitor, Depends(caller)]


@dataclass(frozen=True)  # no slots: FastAPI looks at it as at any callable
class Requires:
    """The declaration of one route, and the check that it stands for."""

    roles: frozenset[Role]
    is_open_on_loopback: bool = False
    is_prediction: bool = False
    wants_password: bool = False

    def __call__(self, request: Request) -> None:
        """Let the request pass.

        Raises
        ------
        HTTPException
            401 nobody is logged in; 403 the caller has none of the roles; 404 the study belongs to another group.
        PasswordWanted
            403 the roles are enough, and the password was not shown anew.
        """
        caller, web = caller_of(request.scope), request.app.state.web
        if not self.takes(caller, web.settings.web):
            if caller.is_known:
                raise HTTPException(403, NOT_YOURS.format(roles=" or ".join(sorted(self.roles - {Role.PUBLIC}))))
            raise _to_login(request) if is_page(request) else HTTPException(401, NO_LOGIN, BEARER)
        if self.wants_password:
            require_password(caller)
        for name in SUBJECTS if caller.visible is not None and caller.is_known else ():
            if name in request.path_params:
                web.of(caller).require_visible(**{name: request.path_params[name]})

    def takes(self, caller: Visitor, settings: WebSettings) -> bool:
        """Tell whether the caller's roles, or where they call from, are enough."""
        if not self.roles.isdisjoint(caller.roles):
            return True
        if self.is_prediction:
            return may_predict(caller, settings)
        return self.is_open_on_loopback and caller.is_on_loopback


def may_predict(caller: Visitor, settings: WebSettings) -> bool:
    """Tell whether the caller may ask for predictions: with an account or token, else as the settings say."""
    if caller.may(Role.RADIOLOGIST, Role.ADMIN, Role.SERVICE) or settings.predict_without_login == "everyone":
        return True
    return settings.predict_without_login == "loopback" and caller.is_on_loopback


def is_page(request: Request) -> bool:
    """Tell whether a person waits for a page, rather than a program for data."""
    wants_page = "text/html" in request.headers.get("accept", "")
    return wants_page and request.method == "GET" and not request.url.path.startswith("/api/")


def _to_login(request: Request) -> HTTPException:
    """Return the way to the login page, which leads back to where the person wanted to go."""
    request.scope["state"]["refusal"] = "no login"
    path, query = request.url.path, request.url.query
    wanted = {"next": path + (f"?{query}" if query else "")} | ({"why": "over"} if request.cookies else {})
    return HTTPException(303, NO_LOGIN, {"Location": f"/login?{urlencode(wanted)}"})


def require_password(caller: Visitor) -> None:
    """Let a caller go on who owes no password.

    Raises
    ------
    PasswordWanted
        It was not shown anew.
    """
    if caller.owes_password:
        raise PasswordWanted


def requires(*roles: Role, password: bool = False) -> Any:
    """Declare the roles of a router or a route: one of them is enough, with the password anew where that is wanted."""
    return Depends(Requires(frozenset(roles), wants_password=password))


def requires_off_loopback(*roles: Role) -> Any:
    """Declare a route that everyone on this machine may ask, and from elsewhere who has one of the roles."""
    return Depends(Requires(frozenset(roles), is_open_on_loopback=True))


def requires_to_predict() -> Any:
    """Declare `/predict`: for every account and token, and without one as `web.predict_without_login` says."""
    known = EVERYONE - {Role.PUBLIC}
    return Depends(Requires(known, is_prediction=True))


def declarations(app: FastAPI) -> dict[str, list[Requires]]:
    """Return what every route declares, by method and path: several declarations are all checked."""
    found: dict[str, list[Requires]] = {}
    for route in iter_route_contexts(app.routes):
        if isinstance(route.original_route, Mount) or route.path in OPEN_MOUNTS:
            continue
        dependencies = getattr(getattr(route, "dependant", None), "dependencies", [])
        name = f"{' '.join(sorted(getattr(route, 'methods', None) or []))} {route.path}"
        found[name] = [one.call for one in dependencies if isinstance(one.call, Requires)]
    return found


def undeclared(app: FastAPI) -> list[str]:
    """Return the routes, and the mounted folders, of which nobody said who may ask for them."""
    mounts = {str(route.path) for route in app.routes if isinstance(route, Mount)}
    return sorted({name for name, declared in declarations(app).items() if not declared} | (mounts - OPEN_MOUNTS))


def visitor_address(scope: Scope) -> tuple[str, bool]:
    """Return the address a request came from, and whether that is this machine itself.

    A proxy on this machine is not this machine: its requests name another host, or say for whom they come.
    """
    client = scope.get("client")
    address = str(client[0]) if client else ""
    names = {name.lower() for name, _ in scope.get("headers", ())}
    is_forwarded = not names.isdisjoint({b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-real-ip", b"via"})
    server = scope.get("server")
    is_own = server is not None and address == server[0]  # this machine by its address in the network
    return address, (is_loopback(address) or is_own) and not is_forwarded
