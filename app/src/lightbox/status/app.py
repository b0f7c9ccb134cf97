"""The status page, ``lightbox.status.app:app``. Run it with::

    gunicorn --config python:lightbox.gunicorn_conf --bind 0.0.0.0:5002 --workers 1 lightbox.status.app:app

Environment (besides that of :mod:`lightbox.gunicorn_conf`):

``LIGHTBOX_PROMETHEUS_URL``        where Prometheus answers (default ``http://127.0.0.1:9090``)
``LIGHTBOX_PROMETHEUS_TIMEOUT``    seconds an answer of it may take (default 5)
``LIGHTBOX_TITLE``                 title of the page (default ``Lightbox``)
``LIGHTBOX_STATUS_USER``           who may see the page (default ``operator``)
``LIGHTBOX_STATUS_PASSWORD_FILE``  file with the password (default: ``$CREDENTIALS_DIRECTORY/password``)

The page is drawn on the server and needs no script. It loads itself anew by the header ``Refresh``, unless the visitor
pauses it. What was asked of Prometheus is kept for some seconds, so that many visitors ask as much as one. How often an
address may guess the password is counted in the process: run one worker.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import HTMLResponse, Response
from starlette.exceptions import HTTPException

from lightbox import web
from lightbox.pages import metrics, page_headers, templates, version_of
from lightbox.status.access import Door, read_password
from lightbox.status.prometheus import Prometheus, PrometheusError
from lightbox.status.queries import FIRST, RANGES, Range
from lightbox.status.view import Status, look

HERE = Path(__file__).parent
UI = HERE.parent / "ui"
HEADERS = page_headers("img-src 'self'")
# Seconds between two drawings, and for which an answer of Prometheus is kept.
REFRESH, KEPT = 30, 5.0
FILES = {"style.css": "text/css", "icon.svg": "image/svg+xml"}


@dataclass(frozen=True)
class Settings:
    """The page's environment, see the module's text."""

    prometheus_url: str = "http://127.0.0.1:9090"
    prometheus_timeout: float = 5.0
    title: str = "Lightbox"
    user: str = "operator"
    password: str = field(default_factory=read_password, repr=False)

    @classmethod
    def read(cls, environ: Mapping[str, str] = os.environ) -> Settings:
        """Return the settings in an environment.

        Raises:
            ValueError: an address or a number is not one, or there is no password.
        """
        url = environ.get("LIGHTBOX_PROMETHEUS_URL", "") or "http://127.0.0.1:9090"
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"LIGHTBOX_PROMETHEUS_URL must have the form http://host:port, not '{url}'")
        return cls(
            prometheus_url=url,
            prometheus_timeout=float(web.positive_int(environ, "LIGHTBOX_PROMETHEUS_TIMEOUT", 5)),
            title=environ.get("LIGHTBOX_TITLE", "") or "Lightbox",
            user=environ.get("LIGHTBOX_STATUS_USER", "") or "operator",
            password=read_password(environ),
        )


class Page:
    """Renders the page."""

    def __init__(self, settings: Settings, prometheus: Prometheus) -> None:
        self.settings, self.prometheus = settings, prometheus
        self.door = Door(settings.user, settings.password)
        self._locks = {key: asyncio.Lock() for key in RANGES}
        self._known: dict[str, tuple[float, Status | PrometheusError]] = {}
        self._templates = templates(
            HERE / "templates",
            UI / "templates",
            filters={},
            title=settings.title,
            assets=version_of([HERE / "static", UI / "static"]),
            ranges=list(RANGES.values()),
            refresh=REFRESH,
            host=socket.gethostname(),
        )

    async def status(self, drawn: Range) -> Status:
        """Return how the system is, or was a moment ago.

        Raises:
            PrometheusError: Prometheus cannot say.
        """
        async with self._locks[drawn.key]:
            begun, known = self._known.get(drawn.key, (float("-inf"), None))
            if known is None or time.monotonic() - begun > KEPT:
                try:
                    known = await look(self.prometheus, drawn)
                except PrometheusError as problem:
                    known = problem
                self._known[drawn.key] = time.monotonic(), known
        if isinstance(known, PrometheusError):
            # Raised anew each time, since a raised one keeps what it went through.
            raise PrometheusError(str(known), known.unreachable)
        return known

    def render(self, request: Request, template: str, status: int = 200, **values: object) -> Response:
        """Return a page."""
        context = {"request_id": request.state.request_id, **values}
        return self._templates.TemplateResponse(request, template, context, status_code=status, headers=HEADERS)

    def failure(self, request_id: str) -> Response:
        """Return the error card for a failure of the page itself."""
        problem = "Something went wrong on this page."
        text = self._templates.env.get_template("error.html").render(problem=problem, request_id=request_id)
        return HTMLResponse(text, status_code=500, headers=HEADERS)


router = APIRouter()


def page_of(request: Request) -> Page:
    """Return the page of an application."""
    page: Page = request.app.state.page
    return page


def refusal(request: Request) -> Response | None:
    """Return what somebody reads who is not let in; None for who is."""
    page, address = page_of(request), request.client.host if request.client else ""
    seconds = page.door.wait(address)
    if seconds:
        web.ERRORS.labels("status", "too_many_passwords").inc()
        problem = f"Too many wrong passwords came from this address. Please try again in {seconds} seconds."
        answer = page.render(request, "refused.html", 429, heading="Wait a moment", problem=problem)
        answer.headers["Retry-After"] = str(seconds)
        return answer
    header = request.headers.get("authorization", "")
    if page.door.knows(address, header):
        return None
    if header:
        web.ERRORS.labels("status", "wrong_password").inc()
    problem = (
        f"This page is for the user {page.settings.user}. The password is in the system's folder of secrets on the "
        "machine that configured it, in the file “status”."
    )
    answer = page.render(request, "refused.html", 401, heading="Password, please", problem=problem)
    answer.headers["WWW-Authenticate"] = 'Basic realm="Lightbox status", charset="UTF-8"'
    return answer


@router.get("/status")
async def status(request: Request) -> Response:
    """Show how the system is."""
    if refused := refusal(request):
        return refused
    page = page_of(request)
    drawn = RANGES.get(request.query_params.get("range", FIRST), RANGES[FIRST])
    paused = request.query_params.get("paused") == "1"
    try:
        shown = await page.status(drawn)
    except PrometheusError as problem:
        web.ERRORS.labels("status", "prometheus").inc()
        answer = page.render(request, "unknown.html", 503, reason=str(problem), range=drawn, paused=paused)
        answer.headers["Retry-After"] = str(REFRESH)
    else:
        answer = page.render(request, "status.html", shown=shown, range=drawn, paused=paused)
    if not paused:
        answer.headers["Refresh"] = str(REFRESH)
    return answer


@router.get("/status/{name}")
async def file(request: Request, name: str) -> Response:
    """Return a file that the page needs; the style sheet is that of the other pages, and what is this one's own."""
    if name not in FILES:
        raise HTTPException(404)
    found = (directory / "static" / name for directory in (UI, HERE))
    content = b"\n".join(path.read_bytes() for path in found if path.exists())
    headers = {"Cache-Control": "public, max-age=31536000, immutable", "X-Content-Type-Options": "nosniff"}
    return Response(content, media_type=FILES[name], headers=headers)


@router.get("/health")
async def health() -> dict[str, str]:
    """Say that the process answers; nothing else."""
    return {"status": "healthy"}


router.get("/metrics")(metrics)


async def http_error(request: Request, problem: Exception) -> Response:
    """Say that there is no such page."""
    code = problem.status_code if isinstance(problem, HTTPException) else 500
    words = {404: "There is no such page.", 405: "This page does not answer such a request."}
    said = words.get(code, "The request cannot be answered.")
    return page_of(request).render(request, "refused.html", code, heading="Error", problem=said)


def create_app(settings: Settings | None = None, prometheus: Prometheus | None = None) -> FastAPI:
    """Return the application; settings and client default to what the environment says."""
    settings = settings or Settings.read()
    client = prometheus or Prometheus(settings.prometheus_url, settings.prometheus_timeout)
    page = Page(settings, client)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await client.close()

    app = FastAPI(title="Lightbox status", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.page = page
    app.include_router(router)
    app.add_exception_handler(HTTPException, http_error)
    app.add_middleware(web.RequestGuard, name="status", max_body=0, failed=page.failure)
    return app


def __getattr__(name: str) -> FastAPI:
    """Make ``app`` when a server asks for it: tests import this module without a password in their environment."""
    if name == "app":
        globals()["app"] = made = create_app()
        return made
    raise AttributeError(name)
