"""The pages, ``lightbox.ui.app:app``. Run them with::

    gunicorn --config python:lightbox.gunicorn_conf --bind 0.0.0.0:5001 lightbox.ui.app:app

Environment (besides that of :mod:`lightbox.gunicorn_conf`):

``LIGHTBOX_API_URLS``          addresses of the API hosts, comma separated (default ``http://127.0.0.1:5000``)
``LIGHTBOX_API_TIMEOUT``       seconds an answer of the API may take (default 30)
``LIGHTBOX_MAX_UPLOAD_BYTES``  largest file accepted (default 20 MiB); the API has the last word
``LIGHTBOX_TITLE``             title of the pages (default ``Pneumonia Detection``)

Pages work without JavaScript. With it, forms and links marked ``data-partial`` ask for a part of the page (header
``X-Partial: 1``), which is shown whatever its status; parts carry the header ``X-Lightbox-Part``, so that a proxy's own
error page is never taken for one.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import anyio.to_thread
from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import HTMLResponse, Response
from fastapi.staticfiles import StaticFiles
from fastapi.templating import Jinja2Templates
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from lightbox import web
from lightbox.ui.client import ApiClient, ApiError

HERE = Path(__file__).parent
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Pages hold patients' images.
    "Cache-Control": "no-store",
}


@dataclass(frozen=True)
class Settings:
    """The UI's environment, see the module's text."""

    api_urls: tuple[str, ...]
    api_timeout: float = 30.0
    max_upload_bytes: int = web.MAX_UPLOAD_BYTES
    title: str = "Pneumonia Detection"

    @classmethod
    def read(cls, environ: Mapping[str, str] = os.environ) -> Settings:
        """Return the settings in an environment.

        Raises:
            ValueError: a number is not one.
        """
        return cls(
            api_urls=tuple(environ.get("LIGHTBOX_API_URLS", "http://127.0.0.1:5000").split(",")),
            api_timeout=float(web.positive_int(environ, "LIGHTBOX_API_TIMEOUT", 30)),
            max_upload_bytes=web.positive_int(environ, "LIGHTBOX_MAX_UPLOAD_BYTES", web.MAX_UPLOAD_BYTES),
            title=environ.get("LIGHTBOX_TITLE", "") or "Pneumonia Detection",
        )


def page_numbers(current: int, last: int) -> list[int | None]:
    """Return the pages to link to: all of up to nine, else the ends and the neighbours, None for a gap."""
    if last <= 9:
        return list(range(1, last + 1))
    near = {1, 2, last - 1, last, *range(current - 2, current + 3)}
    shown: list[int | None] = []
    for number in sorted(number for number in near if 1 <= number <= last):
        if shown and shown[-1] is not None and number - shown[-1] > 1:
            shown.append(None)
        shown.append(number)
    return shown


def moment(text: str) -> str:
    """Return an ISO time as people read it, in UTC."""
    try:
        return datetime.fromisoformat(text).astimezone(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
    except ValueError:
        return text


def asset_version() -> str:
    """Return a digest of the static files: their addresses change when they do."""
    digest = hashlib.sha256()
    for path in sorted((HERE / "static").iterdir()):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


async def uploaded(request: Request, limit: int) -> tuple[str, bytes]:
    """Return name and content of the form field ``file``.

    Raises:
        ApiError: there is none that could be sent on.
    """
    # A page elsewhere must not file cases in a visitor's name.
    if request.headers.get("sec-fetch-site") in ("cross-site", "same-site"):
        raise ApiError(403, "cross_site", "Uploads are accepted from this site's own pages only.")
    too_large = ApiError(413, "too_large", f"The file is larger than {limit / 2**20:.0f} MB.")
    try:
        async with request.form(max_files=1, max_fields=20) as form:
            file = form.get("file")
            if not isinstance(file, UploadFile):
                raise ApiError(400, "no_file", "No file uploaded. Choose a PNG or JPEG image.")
            if not file.filename:
                raise ApiError(400, "no_file", "No file selected. Choose a PNG or JPEG image.")
            content = await file.read()
            name = file.filename
    except web.BodyTooLargeError:
        raise too_large from None
    except HTTPException:
        raise ApiError(400, "malformed", "The upload is malformed.") from None
    if len(content) > limit:
        raise too_large
    if not content:
        raise ApiError(400, "empty", "The file is empty.")
    return name, content


class Pages:
    """Renders pages and parts of them."""

    def __init__(self, settings: Settings, api: ApiClient) -> None:
        self.settings, self.api = settings, api
        self._templates = Jinja2Templates(HERE / "templates")
        self._templates.env.filters["moment"] = moment
        self._templates.env.globals.update(
            title=settings.title, assets=asset_version(), max_bytes=settings.max_upload_bytes, page_numbers=page_numbers
        )

    async def page(self, request: Request, template: str, status: int = 200, **values: Any) -> Response:
        """Return a whole page around a template."""
        values.update(model=await self.api.model(request.state.request_id), body=template)
        return self._render(request, "page.html", status, values)

    def part(self, request: Request, template: str, status: int = 200, **values: Any) -> Response:
        """Return a template alone, marked as ours."""
        response = self._render(request, template, status, values)
        response.headers["X-Lightbox-Part"] = template.removesuffix(".html")
        return response

    def _render(self, request: Request, template: str, status: int, values: dict[str, Any]) -> Response:
        context = {"request_id": request.state.request_id, **values}
        return self._templates.TemplateResponse(request, template, context, status_code=status, headers=HEADERS)

    def failure(self, request_id: str) -> Response:
        """Return the error card for a failure of the pages themselves."""
        problem = ApiError(500, "internal", "Something went wrong on this page.")
        text = self._templates.env.get_template("error.html").render(problem=problem, request_id=request_id)
        return HTMLResponse(text, status_code=500, headers={**HEADERS, "X-Lightbox-Part": "error"})


router = APIRouter()


def pages_of(request: Request) -> Pages:
    """Return the pages of an application."""
    pages: Pages = request.app.state.pages
    return pages


@router.get("/")
async def index(request: Request, page: str = "1") -> Response:
    """Show the results."""
    pages = pages_of(request)
    try:
        found = await pages.api.predictions(page, request.state.request_id)
    except ApiError as problem:
        return await pages.page(request, "results.html", problem.status, tab="results", **unable(problem, page))
    return await pages.page(request, "results.html", tab="results", results=found)


@router.get("/table")
async def table(request: Request, page: str = "1") -> Response:
    """Return the table of results alone."""
    pages = pages_of(request)
    try:
        found = await pages.api.predictions(page, request.state.request_id)
    except ApiError as problem:
        return pages.part(request, "error.html", problem.status, **unable(problem, page))
    return pages.part(request, "table.html", results=found)


def unable(problem: ApiError, page: str) -> dict[str, Any]:
    """Count a failure to get results; return what the error card says."""
    web.ERRORS.labels("ui", problem.kind).inc()
    # A page that does not exist would not exist the next time either.
    number = page if page.isdecimal() and problem.status >= 500 else "1"
    return {"problem": problem, "heading": "Unable to fetch data from API", "retry": number}


@router.get("/predict")
async def predict(request: Request) -> Response:
    """Show the upload form."""
    return await pages_of(request).page(request, "predict.html", tab="predict")


@router.post("/upload_predict")
async def upload_predict(request: Request) -> Response:
    """Classify the uploaded image and show the verdict, or an error and no verdict."""
    pages = pages_of(request)
    partial = request.headers.get("x-partial") == "1"
    try:
        name, content = await uploaded(request, pages.settings.max_upload_bytes)
        verdict = await pages.api.predict(name, content, request.state.request_id)
    except ApiError as problem:
        web.ERRORS.labels("ui", problem.kind).inc()
        values = {"problem": problem, "heading": "No prediction"}
        if partial:
            return pages.part(request, "error.html", problem.status, **values)
        return await pages.page(request, "predict.html", problem.status, tab="predict", **values)
    if partial:
        return pages.part(request, "result.html", verdict=verdict)
    return await pages.page(request, "predict.html", tab="predict", verdict=verdict)


@router.get("/health")
async def health() -> dict[str, str]:
    """Say that the process answers; nothing else."""
    return {"status": "healthy", "timestamp": datetime.now(timezone.utc).isoformat(timespec="seconds")}


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Return the metrics of all workers, for Prometheus; not through the proxy, whose visitors are no monitors."""
    if "x-forwarded-for" in request.headers:
        raise HTTPException(404)
    return await anyio.to_thread.run_sync(web.metrics_response)


async def http_error(request: Request, problem: Exception) -> Response:
    """Show that there is no such page."""
    if not isinstance(problem, HTTPException):
        raise TypeError(type(problem).__name__)
    words = {404: "There is no such page.", 405: "This page does not answer such a request."}
    shown = ApiError(problem.status_code, "http", words.get(problem.status_code, "The request cannot be answered."))
    return await pages_of(request).page(request, "error.html", shown.status, problem=shown)


def create_app(settings: Settings | None = None, client: ApiClient | None = None) -> FastAPI:
    """Return the pages; settings and client default to what the environment says."""
    settings = settings or Settings.read()
    api = client or ApiClient(settings.api_urls, settings.api_timeout)
    pages = Pages(settings, api)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await api.close()

    app = FastAPI(title="Lightbox UI", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.pages = pages
    app.mount("/static", StaticFiles(directory=HERE / "static"), name="static")
    app.include_router(router)
    app.add_exception_handler(HTTPException, http_error)
    app.add_middleware(
        web.RequestGuard,
        name="ui",
        max_body=settings.max_upload_bytes + web.FORM_OVERHEAD,
        failed=pages.failure,
    )
    return app


app = create_app()
