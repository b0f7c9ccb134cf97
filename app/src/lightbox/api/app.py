"""The API, ``lightbox.api.app:app``. Run it with::

    gunicorn --config python:lightbox.gunicorn_conf --bind 0.0.0.0:5000 lightbox.api.app:app

Environment (besides that of :mod:`lightbox.gunicorn_conf`):

``LIGHTBOX_BUNDLE``               the bundle's directory or a link to it (default ``/var/lib/lightbox/model/current``);
                                  may be absent: the API runs, and ``/ready`` answers 503
``LIGHTBOX_REDIS_HOST``, ``_PORT``, ``_USER``  the case store (default 127.0.0.1, 6379, the default user)
``LIGHTBOX_REDIS_PASSWORD_FILE``  file with its password; else ``$CREDENTIALS_DIRECTORY/redis_password``
``LIGHTBOX_RETENTION_DAYS``       days a case is kept (default: until it is deleted)
``LIGHTBOX_MAX_UPLOAD_BYTES``     largest file accepted (default 20 MiB)
``LIGHTBOX_MAX_PIXELS``           largest picture decoded, in pixels (default 50 million)
``LIGHTBOX_CONCURRENCY``          images decoded and scored at once by one worker (default 2)
``LIGHTBOX_THREADS``              threads of one prediction (default 1)

Every error is answered with ``{"error": "…"}`` and holds no text of an exception.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timezone
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import anyio.to_thread
from anyio import CapacityLimiter
from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from lightbox import web
from lightbox.api.service import NoModelError, Service, Settings, case_fields, percent
from lightbox.images import ImageError
from lightbox.serving import ServingError
from lightbox.store import CaseStore, PageError, StoreError

SUFFIXES = (".png", ".jpg", ".jpeg")


class RefusalError(Exception):
    """A request that is answered with an error: its status, its kind for the metrics, and words for people."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.status, self.kind = status, kind


def error(status: int, message: str) -> JSONResponse:
    """Return an error as the API words it."""
    return JSONResponse({"error": message}, status_code=status)


def plain_name(name: str) -> str:
    """Return a file's bare name, without folders and control characters, at most 200 characters."""
    bare = PurePosixPath(name.replace("\\", "/")).name
    return re.sub(r"[\x00-\x1f\x7f\u202a-\u202e\u2066-\u2069]", "", bare).strip()[-200:]


async def uploaded(request: Request, limit: int) -> tuple[str, bytes]:
    """Return name and content of the form field ``file``.

    Raises:
        RefusalError: there is none, or it is too large or of the wrong type by its name.
    """
    too_large = RefusalError(413, "too_large", f"The file is larger than {limit / 2**20:.0f} MB")
    try:
        async with request.form(max_files=1, max_fields=20) as form:
            file = form.get("file")
            if not isinstance(file, UploadFile):
                raise RefusalError(400, "no_file", "No file uploaded")
            name = plain_name(file.filename or "")
            if not name:
                raise RefusalError(400, "no_file", "No file selected")
            if not name.lower().endswith(SUFFIXES):
                raise RefusalError(400, "type", "Invalid file type: choose a PNG or JPEG image")
            content = await file.read()
    except web.BodyTooLargeError:
        raise too_large from None
    except HTTPException:
        raise RefusalError(
            400, "malformed", "The upload is malformed: send one file in the form field 'file'"
        ) from None
    if len(content) > limit:
        raise too_large
    return name, content


router = APIRouter()


def service_of(request: Request) -> Service:
    """Return the service behind an application."""
    service: Service = request.app.state.service
    return service


def now() -> str:
    """Return the time, in UTC."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


@router.get("/health")
async def health() -> dict[str, str]:
    """Say that the process answers; nothing else."""
    return {"status": "healthy", "timestamp": now()}


@router.get("/ready")
async def ready(request: Request) -> Response:
    """Say whether a prediction would be answered and stored, check by check."""
    passed, report = await anyio.to_thread.run_sync(service_of(request).ready)
    return JSONResponse(report, status_code=200 if passed else 503)


@router.get("/v1/model")
async def model(request: Request) -> dict[str, Any]:
    """Return the loaded model's contract, and the digests of the files as they were loaded."""
    try:
        return service_of(request).model()
    except NoModelError:
        raise RefusalError(503, "no_model", "No model is loaded") from None


@router.get("/metrics")
async def metrics() -> Response:
    """Return the metrics of all workers, for Prometheus."""
    return await anyio.to_thread.run_sync(web.metrics_response)


@router.post("/predict")
async def predict(request: Request) -> dict[str, Any]:
    """Classify the image in the form field ``file``."""
    service = service_of(request)
    name, content = await uploaded(request, service.settings.max_upload_bytes)
    try:
        outcome = await anyio.to_thread.run_sync(
            partial(service.classify, content, name, request.state.request_id), limiter=request.app.state.limiter
        )
    except NoModelError:
        raise RefusalError(503, "no_model", "No model is loaded, so no image can be classified now") from None
    except ImageError as problem:
        raise RefusalError(400, problem.kind, str(problem)) from None
    except ServingError as problem:
        fields = {"request_id": request.state.request_id, "reason": str(problem)}
        service.logger.error("no verdict", extra={"fields": fields})
        raise RefusalError(500, "model", "The model could not classify this image") from None
    return {
        **case_fields(outcome.case),
        "timestamp": outcome.case.created.isoformat(timespec="seconds"),
        "probabilities": outcome.probabilities,
        "positive": outcome.positive,
        "synthetic": outcome.synthetic,
        "stored": outcome.notice is None,
        "notice": outcome.notice,
    }


@router.get("/predictions")
async def predictions(request: Request, page: str = "1") -> dict[str, Any]:
    """Return one page of cases, newest first.

    ``cases`` holds them all, in order; ``data`` holds them by file name, the newest where a name occurs twice.
    """
    service = service_of(request)
    if not page.isascii() or not page.isdecimal() or len(page) > 9:
        raise RefusalError(400, "page", "Page must be 1 or more")
    try:
        found = await anyio.to_thread.run_sync(service.store.page, int(page))
    except PageError as problem:
        raise RefusalError(400, "page", str(problem)) from None
    except StoreError as problem:
        raise RefusalError(503, "store", f"Database error: {problem}") from None
    return {
        "data": {
            case.filename: {"prediction": case.label, "confidence": percent(case.confidence)}
            for case in reversed(found.cases)
        },
        "cases": [case_fields(case) for case in found.cases],
        "positive": service.engine.positive if service.engine else None,
        "page": found.number,
        "total_keys": found.total,
        "items_per_page": found.size,
        "total_pages": found.pages,
    }


async def refused(_: Request, refusal: Exception) -> Response:
    """Answer a request that cannot be granted."""
    if not isinstance(refusal, RefusalError):
        raise TypeError(type(refusal).__name__)
    web.ERRORS.labels("api", refusal.kind).inc()
    return error(refusal.status, str(refusal))


async def http_error(_: Request, problem: Exception) -> Response:
    """Answer a request that the framework refused."""
    if not isinstance(problem, HTTPException):
        raise TypeError(type(problem).__name__)
    words = {404: "Not found", 405: "Method not allowed"}
    answer = error(problem.status_code, words.get(problem.status_code, "The request cannot be answered"))
    answer.headers.update(problem.headers or {})
    return answer


def create_app(settings: Settings | None = None, store: CaseStore | None = None) -> FastAPI:
    """Return the API; settings and store default to what the environment says. The model is loaded when it starts."""
    settings = settings or Settings.read()
    service = Service(settings, store or CaseStore.from_environment())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.limiter = CapacityLimiter(settings.concurrency)
        await anyio.to_thread.run_sync(service.load)
        yield
        service.store.close()

    # Interactive pages would load scripts from elsewhere.
    app = FastAPI(title="Lightbox API", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.service = service
    app.include_router(router)
    app.add_exception_handler(RefusalError, refused)
    app.add_exception_handler(HTTPException, http_error)
    app.add_middleware(
        web.RequestGuard,
        name="api",
        max_body=settings.max_upload_bytes + web.FORM_OVERHEAD,
        failed=lambda request_id: error(500, f"Internal error; it is logged under request id {request_id}"),
    )
    return app


app = create_app()
