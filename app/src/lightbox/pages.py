"""What every application that shows pages has in common: headers, templates, addresses of files."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio.to_thread
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.templating import Jinja2Templates

from lightbox import web


def page_headers(*allowed: str) -> dict[str, str]:
    """Return the headers of a page that may use what ``allowed`` says, in words of a content security policy."""
    policy = ("default-src 'none'", "style-src 'self'", *allowed, "base-uri 'none'", "frame-ancestors 'none'")
    return {
        "Content-Security-Policy": "; ".join(policy),
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        # What pages hold is for those who asked.
        "Cache-Control": "no-store",
    }


def version_of(directories: Sequence[Path]) -> str:
    """Return a digest of static files: their addresses change when they do."""
    digest = hashlib.sha256()
    for directory in directories:
        for path in sorted(directory.iterdir()):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def templates(*directories: Path, filters: dict[str, Any], **values: Any) -> Jinja2Templates:
    """Return templates, searched for in these directories in turn, with filters and values that all of them know."""
    found = Jinja2Templates(list(directories))
    found.env.filters.update(filters)
    found.env.globals.update(values)
    return found


async def metrics(request: Request) -> Response:
    """Return the metrics of all workers, for Prometheus; not through the proxy, whose visitors are no monitors."""
    if "x-forwarded-for" in request.headers:
        raise HTTPException(404)
    return await anyio.to_thread.run_sync(web.metrics_response)
