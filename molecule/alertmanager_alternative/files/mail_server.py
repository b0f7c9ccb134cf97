#!/usr/bin/env python3
"""A mail server on port 2525 that wants STARTTLS and a login; every message becomes a file."""

from __future__ import annotations

import ssl
import threading
from pathlib import Path

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

RECEIVED = Path("/var/lib/received")
LOGIN = LoginPassword(b"lightbox", b"molecule-password-of-mail")


class Messages:
    """Keeps what comes, with who sent it."""

    async def handle_DATA(self, _server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        """Note a message, whole or not at all."""
        number = len(list(RECEIVED.glob("mail-*"))) + 1
        part = RECEIVED / "part"
        said = f"Login: {session.auth_data.login.decode()}\nTo: {', '.join(envelope.rcpt_tos)}\n".encode()
        part.write_bytes(said + envelope.content)
        part.rename(RECEIVED / f"mail-{number:04d}")
        return "250 taken"


def known(_server: SMTP, _session: Session, _envelope: Envelope, _mechanism: str, login: LoginPassword) -> AuthResult:
    """Return whether it is the one who may send."""
    return AuthResult(success=login == LOGIN, auth_data=login)


if __name__ == "__main__":
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain("/usr/local/share/ca-certificates/mail.crt", "/etc/ssl/private/mail.key")
    server = Controller(
        Messages(),
        hostname="127.0.0.1",
        port=2525,
        tls_context=context,
        require_starttls=True,
        auth_required=True,
        authenticator=known,
        auth_exclude_mechanism=["LOGIN"],  # its words for the two questions are not those that Alertmanager waits for
    )
    server.start()
    threading.Event().wait()
