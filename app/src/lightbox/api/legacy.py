"""The routes of the original contract, whose shapes stay: ``/health``, ``/ready``, ``/predict``, ``/predictions``."""

from __future__ import annotations

import base64
from typing import Any

import anyio.to_thread
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from lightbox import web
from lightbox.api import schemas, v1
from lightbox.api.classify import admit, classify, service_of
from lightbox.api.problems import RefusalError
from lightbox.api.service import percent
from lightbox.api.uploads import content, files, form_of, plain_name, too_large
from lightbox.store import Case, PageError, StoreError

SUFFIXES = (".png", ".jpg", ".jpeg", ".dcm", ".dicom")


def errors(**kinds: str) -> dict[int | str, dict[str, Any]]:
    """Return the documentation of errors, ``errors(_400="…")``."""
    return {int(status.lstrip("_")): {"model": schemas.Error, "description": words} for status, words in kinds.items()}


router = APIRouter(tags=["original"], responses=errors(_500="A failure inside; the log has it."))


def case_fields(case: Case) -> dict[str, Any]:
    """Return a case as these routes give it; ``image`` is the thumbnail, a JPEG in base64."""
    return {
        "id": case.id,
        "filename": case.filename,
        "prediction": case.label,
        "confidence": percent(case.confidence),
        "model_version": case.model_version,
        "source": case.source,
        "created": case.created.isoformat(timespec="seconds"),
        "image": base64.b64encode(case.thumbnail).decode("ascii"),
    }


# The same answers as under /v1, at their first addresses.
router.get("/health", **v1.LIVE)(v1.live)
router.get("/ready", **v1.READY)(v1.ready)


@router.get(
    "/metrics",
    summary="Metrics for Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "The metrics."}},
)
async def metrics() -> Response:
    """Return the metrics of all workers, for Prometheus."""
    return await anyio.to_thread.run_sync(web.metrics_response)


@router.post(
    "/predict",
    summary="Classify an image",
    response_model=schemas.LegacyPrediction,
    responses=errors(
        _400="There is no file, or it is not an image that is accepted.",
        _413="The file is too large.",
        _503="No model is loaded, or too many requests wait.",
    ),
    openapi_extra=form_of("file"),
)
async def predict(request: Request) -> Response:
    """Classify the image in the form field ``file``."""
    await admit(request)
    limit = service_of(request).settings.max_upload_bytes
    async with files(request, "file", 1, too_large(limit)) as sent:
        name = plain_name(sent[0].filename or "")
        if not name:
            raise RefusalError(400, "no_file", "No file selected")
        if not name.lower().endswith(SUFFIXES):
            raise RefusalError(400, "type", "Invalid file type: choose a PNG, JPEG or DICOM image")
        data = await content(sent[0], limit)
    outcome = await classify(request, name, data)
    case = outcome.case
    fields = {
        **case_fields(case),
        "timestamp": case.created.isoformat(timespec="seconds"),
        "probabilities": case.probabilities,
        "uncertain": case.uncertain,
        "positive": outcome.engine.positive,
        "synthetic": outcome.engine.synthetic,
        "stored": outcome.notice is None,
        "notice": outcome.notice,
    }
    return JSONResponse(fields)


PAGE = {
    "parameters": [
        {
            "name": "page",
            "in": "query",
            "description": "Number of the page, from 1.",
            "schema": {"type": "integer", "minimum": 1, "default": 1},
        }
    ]
}


@router.get(
    "/predictions",
    summary="Cases, newest first",
    response_model=schemas.LegacyPage,
    responses=errors(_400="There is no such page.", _503="The case store failed."),
    openapi_extra=PAGE,
)
async def predictions(request: Request) -> dict[str, Any]:
    """Return one page of cases, newest first.

    ``cases`` holds them all, in order; ``data`` holds them by file name, the newest where a name occurs twice.
    """
    service, page = service_of(request), request.query_params.get("page", "1")
    if not page.isascii() or not page.isdecimal() or len(page) > 9:
        raise RefusalError(400, "page", "Page must be 1 or more")
    try:
        found = await anyio.to_thread.run_sync(service.store.page, int(page))
    except PageError as error:
        raise RefusalError(400, "page", str(error)) from None
    except StoreError as error:
        raise RefusalError(503, "store", f"Database error: {error}") from None
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
