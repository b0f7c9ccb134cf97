"""The pages, ``lightbox.ui.app:app``. Run them with::

    gunicorn --config python:lightbox.gunicorn_conf --bind 0.0.0.0:5001 lightbox.ui.app:app

Environment (besides that of :mod:`lightbox.gunicorn_conf`):

``LIGHTBOX_API_URLS``          addresses of the API hosts, comma separated (default ``http://127.0.0.1:5000``)
``LIGHTBOX_API_TIMEOUT``       seconds an answer of the API may take (default 30)
``LIGHTBOX_CANARY_FILE``       file that says which of them only some people are served by (default: there is none),
                               see :mod:`lightbox.ui.canary`
``LIGHTBOX_MAX_UPLOAD_BYTES``  largest file accepted (default 20 MiB); the API has the last word
``LIGHTBOX_TITLE``             title of the pages (default ``Pneumonia Detection``)
``LIGHTBOX_SUBJECT``           what an image should show, with its article (default ``a chest X-ray``)
``LIGHTBOX_CSRF_SECRET_FILE``  file with a secret of at least 32 characters that all UI hosts share (default:
                               ``$CREDENTIALS_DIRECTORY/csrf_secret``, else a random one, which one host alone knows)

Pages work without JavaScript. With it, links and forms marked ``data-partial`` ask for a part of the page (header
``X-Partial: 1``), which is shown whatever its status; parts carry the header ``X-Lightbox-Part``, so that a proxy's own
error page is never taken for one. Every form carries a token, see :mod:`lightbox.ui.csrf`.
"""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException

from lightbox import web
from lightbox.pages import metrics, page_headers, templates, version_of
from lightbox.ui import canary, csrf
from lightbox.ui.answers import Case, Model, Prediction, Scale, moment, scale, tone
from lightbox.ui.card import read_card
from lightbox.ui.client import ApiClient, ApiError
from lightbox.ui.query import COLUMNS, Query
from lightbox.ui.words import words_of

HERE = Path(__file__).parent
HEADERS = page_headers("script-src 'self'", "img-src 'self' data:", "connect-src 'self'", "form-action 'self'")

CASE_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
# The words that a page may be left with, by the value of a cookie that lasts until the next page.
NOTICES = {"deleted": "The case was deleted.", "feedback": "Your feedback was saved.",
           "withdrawn": "Your feedback was withdrawn."}  # fmt: skip
NOTICE = "lightbox_notice"


@dataclass(frozen=True)
class Settings:
    """The UI's environment, see the module's text."""

    api_urls: tuple[str, ...]
    api_timeout: float = 30.0
    max_upload_bytes: int = web.MAX_UPLOAD_BYTES
    title: str = "Pneumonia Detection"
    subject: str = "a chest X-ray"
    canary_file: Path | None = None
    csrf_secret: str = field(default_factory=csrf.read_secret, repr=False)

    @classmethod
    def read(cls, environ: Mapping[str, str] = os.environ) -> Settings:
        """Return the settings in an environment.

        Raises:
            ValueError: a number is not one, or the secret that was named cannot be had.
        """
        return cls(
            api_urls=tuple(environ.get("LIGHTBOX_API_URLS", "http://127.0.0.1:5000").split(",")),
            api_timeout=float(web.positive_int(environ, "LIGHTBOX_API_TIMEOUT", 30)),
            max_upload_bytes=web.positive_int(environ, "LIGHTBOX_MAX_UPLOAD_BYTES", web.MAX_UPLOAD_BYTES),
            title=environ.get("LIGHTBOX_TITLE", "") or "Pneumonia Detection",
            subject=environ.get("LIGHTBOX_SUBJECT", "") or "a chest X-ray",
            canary_file=Path(named) if (named := environ.get("LIGHTBOX_CANARY_FILE", "")) else None,
            csrf_secret=csrf.read_secret(environ),
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


async def form_of(request: Request, pages: Pages) -> FormData:
    """Return a form that was filled in on one of our pages.

    Raises:
        ApiError: it was not, or is not a form.
    """
    pages.guard.check_origin(request)
    limit = pages.settings.max_upload_bytes
    try:
        form = await request.form(max_files=1, max_fields=20)
    except web.BodyTooLargeError:
        raise too_large(limit) from None
    except HTTPException:
        raise ApiError(400, "malformed", "The upload is malformed.") from None
    # The files of a refused form are closed by nobody else.
    try:
        pages.guard.check(request, form.get(csrf.FIELD))
    except ApiError:
        await form.close()
        raise
    return form


def too_large(limit: int) -> ApiError:
    """Return the error for a file of more than ``limit`` bytes."""
    return ApiError(413, "too_large", f"The file is larger than {limit / 2**20:.0f} MB.")


async def uploaded(form: FormData, limit: int) -> tuple[str, bytes]:
    """Return name and content of the form field ``file``.

    Raises:
        ApiError: there is none that could be sent on.
    """
    file = form.get("file")
    if not isinstance(file, UploadFile):
        raise ApiError(400, "no_file", "No file uploaded. Choose a PNG, JPEG or DICOM image.")
    if not file.filename:
        raise ApiError(400, "no_file", "No file selected. Choose a PNG, JPEG or DICOM image.")
    content = await file.read()
    if len(content) > limit:
        raise too_large(limit)
    if not content:
        raise ApiError(400, "empty", "The file is empty.")
    return file.filename, content


class Pages:
    """Renders pages and parts of them."""

    def __init__(self, settings: Settings, api: ApiClient) -> None:
        self.settings, self.api, self.guard = settings, api, csrf.Guard(settings.csrf_secret)
        self._templates = templates(
            HERE / "templates",
            filters={"moment": moment},
            title=settings.title,
            subject=settings.subject,
            assets=version_of([HERE / "static"]),
            max_bytes=settings.max_upload_bytes,
            page_numbers=page_numbers,
            tone=tone,
            columns=COLUMNS,
        )

    async def page(self, request: Request, template: str, status: int = 200, **values: Any) -> Response:
        """Return a whole page around a template."""
        values.setdefault("model", await self.api.model(request.state.request_id))
        values.update(body=template, flash=NOTICES.get(request.cookies.get(NOTICE, "")))
        response = self._render(request, "page.html", status, values)
        if NOTICE in request.cookies:
            response.delete_cookie(NOTICE)
        return response

    async def part(self, request: Request, template: str, status: int = 200, **values: Any) -> Response:
        """Return a template alone, marked as ours."""
        values.setdefault("model", await self.api.model(request.state.request_id))
        response = self._render(request, template, status, values)
        response.headers["X-Lightbox-Part"] = template.removesuffix(".html")
        return response

    def _render(self, request: Request, template: str, status: int, values: dict[str, Any]) -> Response:
        nonce = self.guard.nonce(request)
        context = {
            "request_id": request.state.request_id,
            "csrf_token": self.guard.token(nonce),
            "words": words_of(values["model"]),
            **values,
        }
        response = self._templates.TemplateResponse(request, template, context, status_code=status, headers=HEADERS)
        self.guard.remember(request, response, nonce)
        problem = values.get("problem")
        if isinstance(problem, ApiError) and problem.retry_after is not None:
            response.headers["Retry-After"] = str(problem.retry_after)
        return response

    def failure(self, request_id: str) -> Response:
        """Return the error card for a failure of the pages themselves."""
        problem = ApiError(500, "internal", "Something went wrong on this page.")
        text = self._templates.env.get_template("error.html").render(problem=problem, request_id=request_id)
        return HTMLResponse(text, status_code=500, headers={**HEADERS, "X-Lightbox-Part": "error"})


async def know_visitor(request: Request) -> None:
    """Keep in mind who asks: a canary serves the same people throughout."""
    address = request.client.host if request.client else ""
    canary.visitor.set(request.cookies.get(csrf.cookie_name(request)) or address)


router = APIRouter(dependencies=[Depends(know_visitor)])


def pages_of(request: Request) -> Pages:
    """Return the pages of an application."""
    pages: Pages = request.app.state.pages
    return pages


def partial(request: Request) -> bool:
    """Return whether the page's script asks, for a part of the page."""
    return request.headers.get("x-partial") == "1"


def failed(problem: ApiError, heading: str, **more: Any) -> dict[str, Any]:
    """Count a failure; return what the error card says."""
    web.ERRORS.labels("ui", problem.kind).inc()
    return {"problem": problem, "heading": heading, **more}


def checked_id(identity: str) -> str:
    """Return the id of a case that the API may be asked for.

    Raises:
        ApiError: it cannot be one.
    """
    if not CASE_ID.fullmatch(identity):
        raise ApiError(404, "not_found", "There is no such case.")
    return identity


# --- results ---


async def results(request: Request) -> dict[str, Any]:
    """Return what the table of results shows: a page of cases, or an error."""
    pages, query = pages_of(request), Query.read(request.query_params)
    try:
        if not query.page.isdecimal() or int(query.page) < 1:
            raise ApiError(400, "page", "Page must be a whole number from 1 on.")
        found = await pages.api.cases(query.parameters(), request.state.request_id)
    except ApiError as problem:
        # A page that does not exist would not exist the next time either.
        retry = query.address(page=query.page if problem.status >= 500 else "1")
        return {"query": query, **failed(problem, "Unable to fetch data from API", retry=retry)}
    return {"query": query, "results": found}


def status_of(values: Mapping[str, Any]) -> int:
    """Return the status of a page that shows these values."""
    problem = values.get("problem")
    return problem.status if isinstance(problem, ApiError) else 200


@router.get("/")
async def index(request: Request) -> Response:
    """Show the results."""
    values = await results(request)
    return await pages_of(request).page(request, "results.html", status_of(values), tab="results", **values)


@router.get("/index.html")
async def first_page() -> Response:
    """Lead from the address of the first version's page to the pages."""
    return RedirectResponse("/", status_code=308, headers=HEADERS)


@router.get("/table")
async def table(request: Request) -> Response:
    """Return the table of results alone."""
    values = await results(request)
    template = "error.html" if "problem" in values else "table.html"
    return await pages_of(request).part(request, template, status_of(values), **values)


@router.get("/export.csv")
async def export(request: Request) -> Response:
    """Pass the table of all cases that a query asks for through, as CSV."""
    pages, query = pages_of(request), Query.read(request.query_params)
    stack = AsyncExitStack()
    try:
        lines = await stack.enter_async_context(
            pages.api.export(query.parameters(page=False), request.state.request_id)
        )
    except ApiError as problem:
        values = failed(problem, "No export", retry=query.address())
        return await pages.page(request, "results.html", problem.status, tab="results", query=query, **values)

    async def pieces() -> AsyncIterator[bytes]:
        async with stack:
            async for piece in lines:
                yield piece

    name = f"cases-{datetime.now(timezone.utc):%Y%m%dT%H%M%SZ}.csv"
    headers = {**HEADERS, "Content-Disposition": f'attachment; filename="{name}"'}
    return StreamingResponse(pieces(), media_type="text/csv; charset=utf-8", headers=headers)


# --- prediction ---


@router.get("/predict")
async def predict(request: Request) -> Response:
    """Show the upload form, or the canvas."""
    return await pages_of(request).page(request, "predict.html", tab="predict")


def verdict_of(prediction: Prediction, model: Model | None) -> dict[str, Any]:
    """Return what the card of a new case shows."""
    below = model.below if model and model.version == prediction.case.model_version else None
    return {
        "prediction": prediction,
        "case": prediction.case,
        "positive": prediction.positive,
        "scale": scale(
            prediction.case, prediction.positive, prediction.threshold, prediction.low, prediction.high, below
        ),
    }


@router.post("/upload_predict")
async def upload_predict(request: Request) -> Response:
    """Classify the uploaded image and show the verdict, or an error and no verdict."""
    pages, name = pages_of(request), None
    try:
        form = await form_of(request, pages)
        async with AsyncExitStack() as stack:
            stack.push_async_callback(form.close)
            name = getattr(form.get("file"), "filename", None)
            name, content = await uploaded(form, pages.settings.max_upload_bytes)
        prediction = await pages.api.predict(name, content, request.state.request_id)
    except ApiError as problem:
        values = failed(problem, "No prediction", filename=name)
        if partial(request):
            return await pages.part(request, "error.html", problem.status, **values)
        return await pages.page(request, "predict.html", problem.status, tab="predict", **values)
    values = verdict_of(prediction, await pages.api.model(request.state.request_id))
    if partial(request):
        return await pages.part(request, "result.html", **values)
    return await pages.page(request, "predict.html", tab="predict", **values)


# --- one case ---


def limits_of(case: Case, model: Model | None) -> Scale | None:
    """Return where a stored case's score lies, by the limits of the model that gave it while that one is served."""
    if model is None or model.version != case.model_version:
        return None
    return scale(case, model.positive, model.threshold, model.low, model.high, model.below)


async def no_case(request: Request, problem: ApiError, heading: str) -> Response:
    """Show why something about a case was not done."""
    values = failed(problem, heading)
    if partial(request):
        return await pages_of(request).part(request, "error.html", problem.status, **values)
    return await pages_of(request).page(request, "error.html", problem.status, **values)


def leave(address: str, notice: str) -> Response:
    """Lead on to a page that says what was done."""
    response = RedirectResponse(address, status_code=303, headers=HEADERS)
    response.set_cookie(NOTICE, notice, max_age=60, httponly=True, samesite="lax")
    return response


@router.get("/cases/{identity}")
async def show_case(request: Request, identity: str) -> Response:
    """Show one case."""
    pages = pages_of(request)
    try:
        case = await pages.api.case(checked_id(identity), request.state.request_id)
    except ApiError as problem:
        return await no_case(request, problem, "The case cannot be shown")
    model = await pages.api.model(request.state.request_id)
    positive = model.positive if model else None
    return await pages.page(request, "case.html", case=case, positive=positive, scale=limits_of(case, model))


async def pass_on(request: Request, identity: str, kind: str) -> Response:
    """Return an image of a case as the API has it."""
    try:
        found = await pages_of(request).api.picture(checked_id(identity), kind, request.state.request_id)
    except ApiError as problem:
        web.ERRORS.labels("ui", problem.kind).inc()
        return Response(status_code=problem.status, headers=HEADERS)
    return Response(found.content, media_type=found.media_type, headers=HEADERS)


@router.get("/cases/{identity}/image")
async def image(request: Request, identity: str) -> Response:
    """Pass the image of a case through."""
    return await pass_on(request, identity, "image")


@router.get("/cases/{identity}/heatmap")
async def heatmap(request: Request, identity: str) -> Response:
    """Pass the heat map of a case through."""
    return await pass_on(request, identity, "heatmap")


@router.get("/cases/{identity}/delete")
async def ask_before_deletion(request: Request, identity: str) -> Response:
    """Ask whether a case shall be deleted."""
    pages = pages_of(request)
    try:
        case = await pages.api.case(checked_id(identity), request.state.request_id)
    except ApiError as problem:
        return await no_case(request, problem, "The case cannot be deleted")
    back = Query.read(dict(parse_qsl(request.query_params.get("back", "")))).here
    if partial(request):
        return await pages.part(request, "confirm.html", case=case, back=back)
    return await pages.page(request, "confirm.html", case=case, back=back)


@router.post("/cases/{identity}/delete")
async def delete_case(request: Request, identity: str) -> Response:
    """Delete a case and lead back to the results."""
    pages = pages_of(request)
    try:
        form = await form_of(request, pages)
        await pages.api.delete(checked_id(identity), request.state.request_id)
    except ApiError as problem:
        return await no_case(request, problem, "The case was not deleted")
    back = form.get("back")
    query = Query.read(dict(parse_qsl(back.partition("?")[2] if isinstance(back, str) else "")))
    try:
        await pages.api.cases(query.parameters(), request.state.request_id)
    except ApiError:
        # It was the last case on its page.
        return leave(query.address(), "deleted")
    return leave(query.here, "deleted")


@router.post("/cases/{identity}/feedback")
async def give_feedback(request: Request, identity: str) -> Response:
    """Say which label is right for a case, or, with an empty label, take that back."""
    pages = pages_of(request)
    try:
        form = await form_of(request, pages)
        label = form.get("label")
        if not isinstance(label, str):
            raise ApiError(400, "no_label", "The right label is missing.")
        if label:
            case = await pages.api.give_feedback(checked_id(identity), label, request.state.request_id)
        else:
            case = await pages.api.withdraw_feedback(checked_id(identity), request.state.request_id)
    except ApiError as problem:
        return await no_case(request, problem, "The feedback was not saved")
    notice = "feedback" if label else "withdrawn"
    if partial(request):
        return await pages.part(request, "feedback.html", case=case, said=NOTICES[notice])
    return leave(f"/cases/{case.id}", notice)


# --- the model and the pages themselves ---


@router.get("/model")
async def model_card(request: Request) -> Response:
    """Show what is known about the model that is served."""
    pages = pages_of(request)
    try:
        model = await pages.api.served_model(request.state.request_id)
    except ApiError as problem:
        values = failed(problem, "The model is not known at the moment")
        return await pages.page(request, "error.html", problem.status, tab="model", **values)
    return await pages.page(request, "model.html", tab="model", model=model, card=read_card(model))


@router.get("/health")
async def health() -> dict[str, str]:
    """Say that the process answers; nothing else."""
    return {"status": "healthy", "timestamp": datetime.now(timezone.utc).isoformat(timespec="seconds")}


router.get("/metrics")(metrics)


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
    api = client or ApiClient(settings.api_urls, settings.api_timeout, canary_file=settings.canary_file)
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
