"""Which pages of other origins may use the API from a browser: none, unless ``LIGHTBOX_CORS_ORIGINS`` names them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

VARIABLE = "LIGHTBOX_CORS_ORIGINS"
# Scheme, host and port, as browsers send it: lower case, no path.
ORIGIN = re.compile(r"https?://(\[[0-9a-f:.]+\]|[a-z0-9.-]+)(:[0-9]{1,5})?")
# Seconds for which a browser need not ask again.
MAX_AGE = 600


def read_origins(environ: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Return the origins that the environment names, separated by commas.

    Raises:
        ValueError: one of them is none; ``*`` too, for every page that a person opens could then use the API in their
            name, from inside their network.
    """
    origins = tuple(part for part in (part.strip() for part in environ.get(VARIABLE, "").split(",")) if part)
    for origin in origins:
        if not ORIGIN.fullmatch(origin):
            raise ValueError(
                f"{VARIABLE} must name origins such as https://digits.example.org, separated by commas, not '{origin}'"
            )
    return origins


def allow(app: FastAPI, origins: Sequence[str]) -> None:
    """Let pages of some origins send drawings and files and read the answers, errors too; cookies play no part.

    To be added last, around everything else: an error that a page may not read is no error to it.
    """
    if origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Content-Type", "X-Request-ID"],
            expose_headers=["X-Request-ID", "Retry-After", "Location"],
            max_age=MAX_AGE,
        )
