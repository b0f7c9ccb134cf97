"""Protection against forged requests: a signed token in every form, bound to a cookie of the visitor's.

Somebody who lures a visitor to a page elsewhere can make the visitor's browser send a form here, but can neither read
our pages nor, thus, the token that belongs to the visitor's cookie. The token is the cookie's value signed with a
secret that all workers and all hosts of the UI share; nothing is kept on the server. See docs/decisions/0006-csrf.md.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path

from itsdangerous import BadSignature, Signer
from starlette.requests import Request
from starlette.responses import Response

from lightbox import web
from lightbox.ui.client import ApiError

FIELD = "csrf_token"
NONCE = re.compile(r"[A-Za-z0-9_-]{32}")
# Every browser of the last years sends at least one of these with a POST, a forged one included. What sends none and
# has no cookie is a program, which acts for itself: there is no visitor whose name it could misuse.
BROWSER_HEADERS = ("origin", "referer", "sec-fetch-site", "sec-fetch-mode")
LEAST = 32


def read_secret(environ: Mapping[str, str] = os.environ) -> str:
    """Return the secret in ``LIGHTBOX_CSRF_SECRET_FILE`` or ``$CREDENTIALS_DIRECTORY/csrf_secret``, else a random one.

    A random one holds for the life of the process that made it and of the workers that were forked from it.

    Raises:
        ValueError: the file that was named cannot be read, or its secret is shorter than 32 characters.
    """
    named, credentials = environ.get("LIGHTBOX_CSRF_SECRET_FILE"), environ.get("CREDENTIALS_DIRECTORY")
    if named:
        path = Path(named)
    elif credentials and (Path(credentials) / "csrf_secret").exists():
        path = Path(credentials) / "csrf_secret"
    else:
        return secrets.token_urlsafe(32)
    return web.read_secret(path, "CSRF secret", LEAST)


def cookie_name(request: Request) -> str:
    """Return the cookie's name: over TLS one that browsers let no neighbouring host and no plain HTTP set."""
    return "__Host-lightbox" if request.url.scheme == "https" else "lightbox"


def from_browser(request: Request) -> bool:
    """Return whether a request may come from a browser."""
    return cookie_name(request) in request.cookies or any(name in request.headers for name in BROWSER_HEADERS)


class Guard:
    """Gives tokens and checks them."""

    def __init__(self, secret: str) -> None:
        self._signer = Signer(secret, salt="lightbox.csrf", key_derivation="hmac", digest_method=hashlib.sha256)

    def nonce(self, request: Request) -> str:
        """Return the visitor's cookie, or a new value for it."""
        value = request.cookies.get(cookie_name(request), "")
        return value if NONCE.fullmatch(value) else secrets.token_urlsafe(24)

    def token(self, nonce: str) -> str:
        """Return what the forms of a visitor carry."""
        return self._signer.sign(nonce).decode()

    def remember(self, request: Request, response: Response, nonce: str) -> None:
        """Set the visitor's cookie where it is not set; programs that do not read pages get none."""
        name = cookie_name(request)
        if request.cookies.get(name) == nonce or not (request.method == "GET" or from_browser(request)):
            return
        # Lax, not Strict: with Strict a link in a mail would arrive without the cookie and get a new one, and the pages
        # open in other tabs would stop working. Neither is sent along with a POST from elsewhere.
        response.set_cookie(name, nonce, path="/", secure=name.startswith("__Host-"), httponly=True, samesite="lax")

    def check_origin(self, request: Request) -> None:
        """Refuse what a browser says comes from another site; needs no body.

        Raises:
            ApiError: it does.
        """
        if request.headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            raise ApiError(403, "cross_site", "This is accepted from this site's own pages only.")

    def check(self, request: Request, token: object) -> None:
        """Let a form pass that carries the token of its visitor, or that no browser sent.

        Raises:
            ApiError: it does not.
        """
        self.check_origin(request)
        if not from_browser(request):
            return
        nonce = request.cookies.get(cookie_name(request), "")
        try:
            signed = self._signer.unsign(token).decode() if isinstance(token, str) else ""
        except (BadSignature, UnicodeError):
            signed = ""
        if not NONCE.fullmatch(nonce) or not secrets.compare_digest(signed, nonce):
            raise ApiError(403, "csrf", "This page has expired, nothing was done. Reload the page and try again.")
