"""``POST /predict/``: a drawing as a data URL, as the first page for digits sends it, answered with the bare label."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any
from urllib.parse import unquote_to_bytes

import anyio.to_thread
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from lightbox import web
from lightbox.api import schemas
from lightbox.api.classify import admit, classify, service_of
from lightbox.api.legacy import errors
from lightbox.api.problems import RefusalError
from lightbox.api.service import Outcome, percent
from lightbox.api.uploads import too_large
from lightbox.images import JPEG_START

PATH = "/predict/"
# What precedes the picture: at most the field of a form, a quotation mark, and the URL's own head.
HEAD = re.compile(rb"""\s*(?:[\w.-]{1,64}=)?["']?data:[\w.+/;=-]{0,100};base64,""")
LONGEST_HEAD = 256
# Where the picture ends: another field of the form, or the quotation mark.
END = re.compile(rb"""[&"']""")
JSON, TEXT = "application/json", ("text/plain", "text/html", "text/*")

router = APIRouter(tags=["original"], responses=errors(_500="A failure inside; the log has it."))


def largest_body(limit: int) -> int:
    """Return the bytes that a body with a file of up to ``limit`` may have.

    Base64 makes four bytes of three; where ``+`` and ``/``, every 32nd of them, are written as ``%2B`` and ``%2F``, it
    is a sixteenth more. What is left over is for pictures of few colours, in which they come more often.
    """
    return 2 * limit + web.FORM_OVERHEAD


def picture_of(body: bytes, limit: int) -> bytes:
    """Return the file in a data URL.

    A body that says it is a form often is none: the first page sent the bare URL so. What a form does to base64 on its
    way is undone: ``%2B`` is ``+`` again, and so is a space. Line breaks and missing padding do not matter.

    Args:
        body: the request's body.
        limit: most bytes that the file may have.

    Raises:
        RefusalError: it is no data URL in base64, or the file is empty or too large.
    """
    if not body.strip():
        raise RefusalError(400, "no_file", "Nothing was sent: send the drawing as data:image/png;base64,…")
    if b"%" in body:
        body = unquote_to_bytes(body)
    head = HEAD.match(body[:LONGEST_HEAD])
    if head is None:
        raise RefusalError(
            400, "malformed", "This is no data URL: send the drawing as data:image/png;base64,… and nothing else"
        )
    end = END.search(body, head.end())
    text = body[head.end() : end.start() if end else None]
    text = b"".join(text.replace(b" ", b"+").split()).rstrip(b"=")
    if len(text) * 3 // 4 > limit:
        raise too_large(limit)
    try:
        content = base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise RefusalError(400, "malformed", "The data URL is damaged: what follows base64, is not base64") from None
    if not content:
        raise RefusalError(400, "empty", "The data URL holds no picture: nothing follows base64,")
    return content


def wants_json(accept: str) -> bool:
    """Return whether an ``Accept`` header asks for JSON, and for it no less than for text."""
    shares: dict[str, float] = {}
    for item in accept.lower().split(","):
        kind, *parameters = (part.strip() for part in item.split(";"))
        given = [part[2:] for part in parameters if part.startswith("q=")]
        shares[kind] = float(given[0]) if given and re.fullmatch(r"[01](\.\d{0,3})?", given[0]) else 1.0
    # */* says nothing: browsers and libraries add it to what they want.
    text = max(shares.get(kind, 0.0) for kind in TEXT)
    return shares.get(JSON, 0.0) > 0 and shares[JSON] >= text


def fields(outcome: Outcome) -> dict[str, Any]:
    """Return the answer as JSON."""
    case = outcome.case
    return {
        "digit": case.label,
        "confidence": case.confidence,
        "confidence_text": percent(case.confidence),
        "probabilities": case.probabilities,
        "uncertain": case.uncertain,
        "unfamiliar": case.unfamiliar,
        "model_version": case.model_version,
        "synthetic": outcome.engine.synthetic,
        "id": case.id,
        "stored": outcome.notice is None,
        "notice": outcome.notice,
    }


BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "A data URL. Its type may be called anything, a form too; the picture is known by its content.",
        "content": {
            "text/plain": {
                "schema": {
                    "type": "string",
                    "pattern": "^data:image/(png|jpeg);base64,[A-Za-z0-9+/]+={0,2}$",
                    "example": "data:image/png;base64,iVBORw0KGgo…",
                }
            }
        },
    },
    "parameters": [
        {
            "name": "Accept",
            "in": "header",
            "description": "`application/json` for more than the bare label.",
            "schema": {"type": "string"},
        }
    ],
}


@router.post(
    PATH,
    summary="Classify a drawing",
    response_model=schemas.DrawnPrediction,
    responses={
        200: {
            "description": "The label alone; as JSON with its confidence and all probabilities.",
            "content": {"text/plain": {"schema": {"type": "string", "example": "4"}}},
        },
        **errors(
            _400="There is no data URL, or no picture that is accepted in it.",
            _413="The picture is too large.",
            _503="No model is loaded, or too many requests wait.",
        ),
    },
    openapi_extra=BODY,
)
async def predict(request: Request) -> Response:
    """Classify the picture in a data URL, and keep the case. Errors are JSON whatever was asked for."""
    await admit(request)
    limit = service_of(request).settings.max_upload_bytes
    try:
        body = await request.body()
    except web.BodyTooLargeError:
        raise too_large(limit) from None
    # A large one takes a while, during which others are answered.
    content = await anyio.to_thread.run_sync(picture_of, body, limit)
    name = "drawing.jpeg" if content.startswith(JPEG_START) else "drawing.png"
    outcome = await classify(request, name, content)
    vary = {"Vary": "Accept"}
    if wants_json(request.headers.get("accept", "")):
        return JSONResponse(schemas.DrawnPrediction(**fields(outcome)).model_dump(), headers=vary)
    return PlainTextResponse(outcome.case.label, headers=vary)
