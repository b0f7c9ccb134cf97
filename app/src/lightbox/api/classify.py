"""From an upload to an outcome, with refusals in place of exceptions: what all routes that classify share."""

from __future__ import annotations

import contextlib

import anyio.to_thread
from fastapi import Request

from lightbox import web
from lightbox.api.line import RETRY_AFTER, BusyError, Line
from lightbox.api.problems import IMAGE_STATUS, RefusalError
from lightbox.api.service import Examined, NoModelError, Outcome, Service, Upload
from lightbox.images import ImageError
from lightbox.serving import ServingError

Waiting = Line[Upload, Examined]


def service_of(request: Request) -> Service:
    """Return the service behind an application."""
    service: Service = request.app.state.service
    return service


def no_model() -> RefusalError:
    """Return the refusal of what needs a model."""
    return RefusalError(503, "no_model", "No model is loaded, so no image can be classified now")


def busy() -> RefusalError:
    """Return the refusal of a request too many."""
    return RefusalError(
        503,
        "busy",
        "Too many images are waiting to be classified. Try again in a moment.",
        headers={"Retry-After": str(RETRY_AFTER)},
    )


async def admit(request: Request) -> None:
    """Send a request away before its body is examined when it could not be served.

    Raises:
        RefusalError: the waiting line is full, or no model is loaded.
    """
    line: Waiting = request.app.state.line
    refusal = busy() if line.full else no_model() if service_of(request).engine is None else None
    if refusal:
        # Who still sends would not read an answer.
        with contextlib.suppress(web.BodyTooLargeError):
            async for _ in request.stream():
                pass
        raise refusal


async def classify(request: Request, name: str, content: bytes, admitted: bool = False) -> Outcome:
    """Classify one file when it is its turn; ``admitted`` as in :meth:`lightbox.api.line.Line.run`.

    The next file's turn comes before the case is stored: Redis may take its time.

    Raises:
        RefusalError: there is no verdict; it says why.
    """
    service, request_id = service_of(request), request.state.request_id
    line: Waiting = request.app.state.line
    try:
        found = await line.run(Upload(content, name, request_id), admitted)
    except BusyError:
        raise busy() from None
    except NoModelError:
        raise no_model() from None
    except ImageError as error:
        raise RefusalError(IMAGE_STATUS.get(error.kind, 400), error.kind, str(error), legacy=400) from None
    except ServingError as error:
        service.logger.error("no verdict", extra={"fields": {"request_id": request_id, "reason": str(error)}})
        raise RefusalError(500, "model", "The model could not classify this image") from None
    return await anyio.to_thread.run_sync(service.keep, found, request_id)
