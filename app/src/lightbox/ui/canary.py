"""Which API host serves whom while a new model is tried on some of the people.

The host of the pages has a file that says so, ``{"url": "http://10.0.2.4:5000", "percent": 10, "version": "…"}``: the
address in the form of ``LIGHTBOX_API_URLS``, the share of the people whom it serves, and the version that it tries. No
file: there is no canary. Whoever writes it replaces it in one step; nothing here has to be restarted.

A person is told by the cookie of the pages, a program that keeps none by its address. The same person is served by the
same version for as long as that version is tried; the next version is tried on others.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from lightbox import web

# Who asks, for as long as a request lasts; empty where nobody is known.
visitor: ContextVar[str] = ContextVar("visitor", default="")


@dataclass(frozen=True)
class Canary:
    """An address on which a version is tried, and the share of the people, 0 to 100, for whom it is."""

    url: str
    percent: float
    version: str = ""

    def serves(self, who: str) -> bool:
        """Return whether a person is one of its own; nobody is nobody's."""
        if not who:
            return False
        digest = hashlib.sha256(f"{self.version}\n{who}".encode()).digest()
        return int.from_bytes(digest[:8], "big") < self.percent / 100 * 2**64


def read(text: str) -> Canary:
    """Return what a file says.

    Raises:
        ValueError: it is not of the form above.
    """
    try:
        said = json.loads(text)
        canary = Canary(str(said["url"]).rstrip("/"), float(said["percent"]), str(said.get("version", "")))
    except (TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"not what was agreed: {error!r}") from None
    if not 0 <= canary.percent <= 100:
        raise ValueError(f"{canary.percent:g} is no share in per cent")
    return canary


class Watched:
    """The canary as its file has it now. A look costs one call of the system; the file is read when it has changed.

    A file that cannot be understood is as good as none, and is complained of once.
    """

    def __init__(self, path: Path | None, urls: Sequence[str]) -> None:
        """Watch a file (None: there is never a canary) for one of the addresses ``urls``."""
        self._path, self._urls = path, urls
        self._seen: tuple[int, int, int] | None = None
        self._canary: Canary | None = None

    def now(self) -> Canary | None:
        """Return the canary; None when there is none, or no other address that could serve the others."""
        if self._path is None or len(self._urls) < 2:
            return None
        try:
            found = self._path.stat()
        except OSError:
            self._seen = self._canary = None
            return None
        seen = (found.st_ino, found.st_mtime_ns, found.st_size)
        if seen != self._seen:
            self._seen, self._canary = seen, self._read(self._path)
        return self._canary

    def _read(self, path: Path) -> Canary | None:
        try:
            canary = read(path.read_text(encoding="utf-8"))
            if canary.url not in self._urls:
                raise ValueError(f"{canary.url} is not one of the API's addresses")
        except (OSError, ValueError) as error:
            fields = {"path": str(path), "reason": str(error)}
            web.get_logger("ui").warning("there is no canary, for its file says none", extra={"fields": fields})
            return None
        return canary
