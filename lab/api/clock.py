"""The time that the API believes in: now, or, while the journal is replayed, the time of the request."""

from __future__ import annotations

import datetime
import time
from typing import Any

from lab.api.patching import replace

_frozen: float | None = None


def freeze(seconds: float | None) -> None:
    """Let the API believe it is ``seconds`` since the epoch; None returns it to the present."""
    global _frozen  # noqa: PLW0603
    _frozen = seconds


def now() -> float:
    """Return the API's time in seconds since the epoch."""
    return time.time() if _frozen is None else _frozen


def utcnow() -> datetime.datetime:
    """Return the API's time in UTC, without a zone, as moto keeps it."""
    return datetime.datetime.fromtimestamp(now(), datetime.timezone.utc).replace(tzinfo=None)


def install() -> None:
    """Give moto this clock; it must run before moto's services are imported, for they copy the name."""
    import moto.core.utils as target

    def make(_original: Any) -> Any:
        return utcnow

    replace(target, "utcnow", make, parameters="")
