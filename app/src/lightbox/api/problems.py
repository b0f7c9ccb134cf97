"""Errors as the API words them: ``application/problem+json`` (RFC 9457) under ``/v1``, ``{"error": "…"}`` elsewhere.

No answer holds the text of an exception.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from lightbox import web
from lightbox.api.schemas import Problem

MEDIA_TYPE = "application/problem+json"
TITLES = {
    "blank": "Nothing on the picture",
    "busy": "Too many requests are waiting",
    "empty": "Empty file",
    "internal": "Internal error",
    "label": "Unknown label",
    "malformed": "Malformed upload",
    "method": "Method not allowed",
    "model": "The model failed",
    "no_file": "No file",
    "no_model": "No model is loaded",
    "not_found": "Not found",
    "page": "No such page",
    "pixels": "Too many pixels",
    "store": "The case store failed",
    "too_large": "Too large",
    "too_many": "Too many files",
    "type": "Unsupported type of file",
    "unreadable": "Unreadable image",
    "unsupported": "Unsupported kind of image",
    "validation": "Invalid request",
}
# What an image that is not accepted is answered with under /v1; elsewhere it is 400.
IMAGE_STATUS = {"type": 415, "unsupported": 415, "pixels": 413}
INTERNAL = "Internal error; it is logged under request id {}"


class RefusalError(Exception):
    """A request that is answered with an error: its status, its kind, and words for people.

    ``legacy`` is the status outside ``/v1``, where it is another.
    """

    def __init__(
        self,
        status: int,
        kind: str,
        message: str,
        legacy: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.legacy, self.headers = status, kind, legacy or status, headers


def problem(status: int, kind: str, detail: str, request_id: str) -> Problem:
    """Return a problem's fields."""
    return Problem(
        type=f"urn:lightbox:{kind}",
        title=TITLES[kind],
        status=status,
        detail=detail,
        instance=f"urn:lightbox:request:{request_id}",
        kind=kind,
    )


def answer(scope: Scope, status: int, kind: str, detail: str, headers: Mapping[str, str] | None = None) -> Response:
    """Return an error in the form that the path asked for has."""
    if not scope["path"].startswith("/v1/"):
        return JSONResponse({"error": detail}, status, dict(headers or {}))
    body = problem(status, kind, detail, scope["state"]["request_id"])
    return JSONResponse(body.model_dump(), status, dict(headers or {}), MEDIA_TYPE)


async def refused(request: Request, refusal: Exception) -> Response:
    """Answer a request that cannot be granted."""
    if not isinstance(refusal, RefusalError):
        raise TypeError(type(refusal).__name__)
    web.ERRORS.labels("api", refusal.kind).inc()
    status = refusal.status if request.url.path.startswith("/v1/") else refusal.legacy
    return answer(request.scope, status, refusal.kind, str(refusal), refusal.headers)


async def http_error(request: Request, error: Exception) -> Response:
    """Answer a request that the framework refused."""
    if not isinstance(error, HTTPException):
        raise TypeError(type(error).__name__)
    if isinstance(error.__cause__, web.BodyTooLargeError):
        return await refused(request, RefusalError(413, "too_large", "The request is too large"))
    kind, words = {404: ("not_found", "Not found"), 405: ("method", "Method not allowed")}.get(
        error.status_code, ("validation", "The request cannot be answered")
    )
    return answer(request.scope, error.status_code, kind, words, error.headers)


async def invalid(request: Request, error: Exception) -> Response:
    """Answer a request whose parameters or body are not what is documented, naming the first fault."""
    if not isinstance(error, RequestValidationError):
        raise TypeError(type(error).__name__)
    web.ERRORS.labels("api", "validation").inc()
    fault = error.errors()[0]
    place = " ".join(str(part) for part in fault["loc"])
    return answer(request.scope, 422, "validation", f"{place}: {fault['msg']}")


class Failure:
    """Answers a request during which the application failed."""

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer."""
        await answer(scope, 500, "internal", INTERNAL.format(self.request_id))(scope, receive, send)


def documented(**kinds: str) -> dict[int | str, dict[str, Any]]:
    """Return the documentation of problems, ``documented(_404="There is no such case")``."""
    schema = {"schema": {"$ref": "#/components/schemas/Problem"}}
    return {
        int(status.lstrip("_")): {
            "description": words,
            "content": {MEDIA_TYPE: schema},
            **({"headers": RETRY_AFTER} if status == "_503" else {}),
        }
        for status, words in kinds.items()
    }


RETRY_AFTER = {
    "Retry-After": {
        "description": "Seconds after which to try again; given when too many requests wait.",
        "schema": {"type": "integer"},
    }
}
