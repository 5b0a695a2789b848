"""The web role: the application, built from what it is handed, and the server that runs it until it is told to stop.

The supervisor's other roles go on without it.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import fastapi_offline
import uvicorn
from fastapi import FastAPI, Response
from fastapi.middleware.cors import CORSMiddleware
from fastapi.staticfiles import StaticFiles
from fastapi.templating import Jinja2Templates

from db.engine import Engine, check_revision, make_engine
from models.registry import Registry
from pacs_node.errors import ConfigError
from pacs_node.settings import Settings
from pacs_node.settings.web import WebSettings
from pacs_node.store import ObjectStore
from pacs_node.web import problems
from pacs_node.web.access import caller, undeclared
from pacs_node.web.access_log import AccessLog
from pacs_node.web.context import Web
from pacs_node.web.feed import Feed
from pacs_node.web.hospital import HospitalLogin
from pacs_node.web.identify import csrf_token
from pacs_node.web.limits import Limits
from pacs_node.web.predictions import Predictions
from pacs_node.web.render import Renderer
from pacs_node.web.routes import (
    accounts,
    administration,
    audit,
    destinations,
    events,
    exports,
    hospital,
    images,
    models,
    node,
    pages,
    people,
    predict,
    quality,
    records,
    reference,
    reviews,
    session,
    studies,
    training,
    work,
)
from pacs_node.web.security import Gate
from pacs_node.web.training_export import TrainingExports
from pacs_node.wiring import registry_of

PAGES = Path(__file__).parent / "pages"
REFERENCE = Path(fastapi_offline.__file__).parent / "static"
"""Swagger UI and Redoc as that package carries them: no reader's browser asks another machine."""
KEEP_ALIVE_S = 15
DRAIN_S = 5
BACKLOG = 128
DESCRIPTION = """\
What the node received, judged and reported. Research software, not a medical device.

Addresses carry the node's own ids. Patient attributes appear in answers, never in an address:
search for a patient by `POST /api/v1/studies/search`. Errors are problem documents (RFC 9457).
"""
CORS: dict[str, Any] = {
    "allow_methods": ["GET", "POST", "PUT", "PATCH", "DELETE"],
    "allow_headers": ["Authorization", "Content-Type", "If-Match", "If-None-Match"],
    "expose_headers": ["ETag", "Retry-After", "VOI-Window", "X-Request-ID"],
}
"""For `web.cors_origins`: tokens, never cookies."""
TAGS = [
    {"name": "studies", "description": "One row per study, with its answer and where its report stands."},
    {"name": "images", "description": "One image: its state, its result, its picture."},
    {"name": "reviews", "description": "What readers said about an answer."},
    {"name": "records", "description": "Results, warnings, reports and deliveries as lists."},
    {"name": "models", "description": "Which versions of the model are known, and which answers."},
    {"name": "events", "description": "New and changed studies as they happen."},
    {"name": "quality", "description": "What readers and model said, counted by group."},
    {"name": "exports", "description": "Lists as CSV or NDJSON files, and training data; for administrators."},
    {"name": "audit", "description": "Who did what, when and to what; for administrators."},
    {"name": "destinations", "description": "Is a destination of reports there? For administrators."},
    {"name": "work", "description": "The queue, and what was put in quarantine."},
    {"name": "predict", "description": "One image in, one answer out: JPEG, PNG or DICOM, for no study."},
    {"name": "accounts", "description": "Who may log in, and API tokens; for administrators."},
    {"name": "node", "description": "Is it alive, can it work, what does it count, which model answers."},
]


def create_app(*, engine: Engine, store: ObjectStore, registry: Registry, settings: Settings) -> FastAPI:
    """Return the application; it owns nothing but its drawing processes."""
    templates = Jinja2Templates(PAGES / "templates")
    templates.env.trim_blocks = templates.env.lstrip_blocks = True
    renderer = Renderer()
    app = FastAPI(
        title="PACS node",
        version="1",
        description=DESCRIPTION,
        openapi_tags=TAGS,
        docs_url=None,
        redoc_url=None,
        lifespan=_lifespan,
        redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.web = Web(
        engine=engine,
        store=store,
        registry=registry,
        settings=settings,
        renderer=renderer,
        templates=templates,
        limits=Limits(settings.web),
        hospital=_hospital_login(settings),
        predictions=Predictions(engine, registry, settings),
        training=TrainingExports(settings),
    )
    app.state.feed = Feed(engine)
    templates.env.globals.update(
        model_line=app.state.web.model_line, node_name=settings.node.name, csrf_token=csrf_token, visitor=caller
    )
    if settings.web.cors_origins:
        app.add_middleware(CORSMiddleware, **CORS, allow_origins=settings.web.cors_origins)
    app.add_middleware(Gate)
    app.add_middleware(AccessLog)
    problems.install(app)
    for room in (
        accounts,
        hospital,
        people,
        session,
        studies,
        images,
        reviews,
        records,
        models,
        events,
        exports,
        training,
        audit,
        destinations,
        work,
        node,
        predict,
        reference,
        pages,
        quality,
        administration,
    ):
        app.include_router(room.router)
    app.mount("/static", _Files(directory=PAGES / "static"), name="static")
    app.mount("/reference", _Files(directory=REFERENCE), name="reference")
    if open_doors := undeclared(app):
        raise RuntimeError(f"routes that do not say which roles they take (see web.access): {', '.join(open_doors)}")
    return app


def _hospital_login(settings: Settings) -> HospitalLogin | None:
    """Return the hospital's login; its client secret is a file that `secrets_dir` holds."""
    oidc, path = settings.web.oidc, settings.node.secrets_dir / "oidc.secret"
    if not oidc.issuer or settings.web.authentication == "off":
        return None
    try:
        return HospitalLogin(oidc, path.read_text(encoding="utf-8").strip())
    except OSError as error:
        raise ConfigError(
            f"web.oidc: {path} cannot be read ({error.strerror}): put the client's secret there"
        ) from None


class _Files(StaticFiles):
    def file_response(self, *args: Any, **options: Any) -> Response:
        """Let browsers keep what names no patient, and ask whether it changed."""
        response = super().file_response(*args, **options)
        response.headers["Cache-Control"] = "no-cache"
        return response


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    web: Web = app.state.web
    await asyncio.to_thread(web.renderer.warm)
    if web.settings.predict.is_preloaded:
        web.predictions.warm()
    yield
    await asyncio.to_thread(web.renderer.close)
    await asyncio.to_thread(web.predictions.close)
    await asyncio.to_thread(web.training.close)


def run_web(settings: Settings, stop: threading.Event) -> None:
    """Serve page and API until `stop`, then finish what is being answered.

    Raises
    ------
    ConfigError
        The port is in use, or the address is not of this machine.
    SchemaMismatch
        The database has another revision.
    """
    engine = make_engine(settings.database_url)
    check_revision(engine)
    app = create_app(
        engine=engine, store=ObjectStore(settings.store_dir), registry=registry_of(settings), settings=settings
    )
    with _bound(settings.web) as listening:
        server = _server(app, settings.web)
        threading.Thread(target=_stop_on, args=(stop, server), name="stop-watch", daemon=True).start()
        server.run(sockets=[listening])
    engine.dispose()


def _bound(settings: WebSettings) -> socket.socket:
    """Bind before the server starts: it would print a traceback where one line is enough."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((settings.host, settings.port))
    except OSError as error:
        listening.close()
        why = (error.strerror or str(error)).lower()
        raise ConfigError(f"web: cannot listen on {settings.host}:{settings.port} ({why}): change web.port") from None
    return listening


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to `cli`, which sets `stop`."""
        yield


def _server(app: FastAPI, settings: WebSettings) -> _Server:
    config = uvicorn.Config(
        app,
        access_log=False,  # ours shows route templates, never a path
        log_config=None,  # the process's own
        server_header=False,
        proxy_headers=bool(settings.trusted_proxies),  # else a header must not decide where a request comes from
        forwarded_allow_ips=list(settings.trusted_proxies),
        ssl_certfile=settings.tls_certificate,
        ssl_keyfile=settings.tls_private_key,
        ssl_version=ssl.PROTOCOL_TLS_SERVER,
        ws="none",
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=DRAIN_S,
        backlog=BACKLOG,
    )
    return _Server(config)


def _stop_on(stop: threading.Event, server: uvicorn.Server) -> None:
    stop.wait()
    server.should_exit = True
