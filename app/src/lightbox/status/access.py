"""Who may see the page: one operator, by HTTP's basic authentication, and how often somebody may guess."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path

from lightbox import web

LEAST = 16
# Wrong passwords that one address may send at once, and seconds after which it may send one more.
TRIES, PAUSE = 10, 6.0
# Addresses remembered.
MOST = 4096


def read_password(environ: Mapping[str, str] = os.environ) -> str:
    """Return the password in ``LIGHTBOX_STATUS_PASSWORD_FILE`` or ``$CREDENTIALS_DIRECTORY/password``.

    Raises:
        ValueError: there is none that can be read, or it is too short.
    """
    named, credentials = environ.get("LIGHTBOX_STATUS_PASSWORD_FILE"), environ.get("CREDENTIALS_DIRECTORY")
    if not named and not credentials:
        raise ValueError("the status page has no password: name a file that holds it in LIGHTBOX_STATUS_PASSWORD_FILE")
    path = Path(named) if named else Path(credentials or "") / "password"
    return web.read_secret(path, "password", LEAST)


def _digest(user: str, password: str) -> bytes:
    return hashlib.sha256(f"{user}\0{password}".encode()).digest()


def offered(header: str) -> tuple[str, str] | None:
    """Return user and password of an ``Authorization`` header, or None where there are none."""
    scheme, _, value = header.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        user, colon, password = base64.b64decode(value.strip(), validate=True).decode().partition(":")
    except (binascii.Error, ValueError):
        return None
    return (user, password) if colon else None


class Door:
    """Lets the operator in.

    An address that sent too many wrong passwords is not listened to for some seconds, whatever it sends: a guess that
    is not looked at tells nothing. Requests without a password cost nothing and are not counted, since every browser
    begins with one.
    """

    def __init__(self, user: str, password: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._expected, self._clock = _digest(user, password), clock
        # Wrong tries of an address, and when they were counted; they drain away with time.
        self._wrong: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait(self, address: str) -> int:
        """Return the seconds until this address is listened to again; 0 where it is."""
        over = self._level(address) - (TRIES - 1)
        return int(over * PAUSE) + 1 if over > 0 else 0

    def knows(self, address: str, header: str) -> bool:
        """Return whether this header is the operator's; a wrong one is counted."""
        pair = offered(header)
        # Digests are of one length, so that the time tells nothing.
        if pair and hmac.compare_digest(_digest(*pair), self._expected):
            return True
        if header:
            level = self._level(address) + 1
            self._wrong[address] = (level, self._clock())
            self._wrong.move_to_end(address)
            while len(self._wrong) > MOST:
                self._wrong.popitem(last=False)
        return False

    def _level(self, address: str) -> float:
        level, since = self._wrong.get(address, (0.0, 0.0))
        return max(0.0, level - (self._clock() - since) / PAUSE)
