"""What the API and the UI have in common: request ids, the log of requests, body limits, metrics."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_UPLOAD_BYTES = 20 * 1024 * 1024
# What a multipart form adds to the file in it.
FORM_OVERHEAD = 64 * 1024
# How much of a refused body is read and thrown away, so that its sender gets to read the answer.
DRAIN_BYTES = 256 * 1024 * 1024
REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{8,128}")
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

REQUESTS = Counter("lightbox_http_requests_total", "Requests answered.", ["app", "method", "route", "status"])
LATENCY = Histogram("lightbox_http_request_seconds", "Time to answer a request.", ["app", "route"], buckets=BUCKETS)
ERRORS = Counter("lightbox_errors_total", "Failures by kind.", ["app", "kind"])

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})


class BodyTooLargeError(Exception):
    """The request's body is larger than the limit."""


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, message and what was passed as ``extra={"fields": …}``."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        moment = datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {"time": moment, "level": record.levelname.lower(), "message": record.getMessage()}
        line.update(getattr(record, "fields", {}))
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def get_logger(name: str) -> logging.Logger:
    """Return the application's logger, which writes JSON lines to standard error."""
    logger = logging.getLogger(f"lightbox.{name}")
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(JsonLines())
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
    return logger


def positive_int(environ: Mapping[str, str], name: str, default: int) -> int:
    """Return a setting that must be a whole number above zero.

    Raises:
        ValueError: it is not; the text names the variable.
    """
    text = environ.get(name, "").strip()
    if not text:
        return default
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{name} must be a whole number above zero, not '{text}'")
    return int(text)


def read_secret(path: Path, what: str, least: int) -> str:
    """Return the secret in a file.

    Args:
        path: of the file.
        what: the secret's name, for errors.
        least: characters that it must have.

    Raises:
        ValueError: it cannot be read, or is too short.
    """
    try:
        secret = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ValueError(f"the {what} cannot be read from {path}: {error.strerror}") from None
    if len(secret) < least:
        raise ValueError(f"the {what} in {path} is shorter than {least} characters")
    return secret


def metrics_response() -> Response:
    """Return the metrics of all workers."""
    registry = REGISTRY
    if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        registry = CollectorRegistry()
        MultiProcessCollector(registry)
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


class RequestGuard:
    """ASGI middleware around an application.

    Gives every request an id (``X-Request-ID``: the client's where it is well formed, else a new one; in
    ``request.state.request_id`` and in the answer), logs and counts it, and limits its body: a body over ``max_body``
    bytes (which may depend on the request) makes reading it raise :class:`BodyTooLargeError`, after the rest was read
    and dropped. Whatever the application fails with is logged, and answered with ``failed(request_id)``.
    """

    def __init__(
        self, app: ASGIApp, name: str, max_body: int | Callable[[Scope], int], failed: Callable[[str], ASGIApp]
    ) -> None:
        self.app, self.name, self.max_body, self.failed = app, name, max_body, failed
        self.logger = get_logger(name)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        offered = headers.get("x-request-id", "")
        request_id = offered if REQUEST_ID.fullmatch(offered) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        status = 0
        begun = time.monotonic()

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
            await send(message)

        try:
            await self.app(scope, self._limited(scope, receive, headers), send_with_id)
        except ClientDisconnect:
            # Nobody is left to read an answer; it is counted as 499.
            pass
        except Exception:
            ERRORS.labels(self.name, "internal").inc()
            self.logger.exception("request failed", extra={"fields": {"request_id": request_id}})
            if status:
                raise
            await self.failed(request_id)(scope, receive, send_with_id)
        finally:
            self._account(scope, status or 499, time.monotonic() - begun, request_id)

    def _limited(self, scope: Scope, receive: Receive, headers: Headers) -> Receive:
        declared = headers.get("content-length", "")
        received = 0
        max_body = self.max_body if isinstance(self.max_body, int) else self.max_body(scope)
        refused = declared.isdecimal() and int(declared) > max_body

        async def limited() -> Message:
            nonlocal received, refused
            message = await receive()
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                refused = refused or received > max_body
                if refused:
                    while message.get("more_body") and received < DRAIN_BYTES:
                        message = await receive()
                        received += len(message.get("body", b""))
                    raise BodyTooLargeError
            return message

        return limited

    def _account(self, scope: Scope, status: int, seconds: float, request_id: str) -> None:
        route = getattr(scope.get("route"), "path", None) or "other"
        method = scope["method"] if scope["method"] in METHODS else "other"
        REQUESTS.labels(self.name, method, route, str(status)).inc()
        LATENCY.labels(self.name, route).observe(seconds)
        quiet = route in ("/health", "/ready", "/metrics") and status < 400
        client = scope.get("client")
        self.logger.log(
            logging.DEBUG if quiet else logging.INFO,
            "%s %s %d",
            scope["method"],
            scope["path"],
            status,
            extra={
                "fields": {
                    "request_id": request_id,
                    "method": scope["method"],
                    "path": scope["path"],
                    "status": status,
                    "seconds": round(seconds, 4),
                    "client": client[0] if client else None,
                }
            },
        )
