#!/usr/bin/env python3
"""A webhook on port 8081 and a mail server on port 2525, each noting down as a file what it is sent."""

from __future__ import annotations

import itertools
import socketserver
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

RECEIVED = Path("/var/lib/received")
NUMBERS = itertools.count(1)


def note(kind: str, content: bytes) -> None:
    """Keep what came, whole or not at all."""
    name = f"{kind}-{next(NUMBERS):04d}"
    part = RECEIVED / f"part-{name}"
    part.write_bytes(content)
    part.rename(RECEIVED / name)


class Webhook(BaseHTTPRequestHandler):
    """Takes what is posted to any path."""

    def do_POST(self) -> None:
        """Note path, token and body."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        token = self.headers.get("Authorization", "-")
        note("webhook", f"{self.path} {token}\n".encode() + body)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing: the journal is searched for secrets."""


class Mail(socketserver.StreamRequestHandler):
    """Speaks as much of SMTP as a sender without a login needs."""

    def handle(self) -> None:
        """Take messages until the sender has done."""
        self.wfile.write(b"220 receivers\r\n")
        while line := self.rfile.readline():
            word = line.split()[0].upper() if line.strip() else b""
            if word == b"DATA":
                self.wfile.write(b"354 go on\r\n")
                note("mail", b"".join(iter(self.rfile.readline, b".\r\n")))
            self.wfile.write(b"221 bye\r\n" if word == b"QUIT" else b"250 receivers\r\n")
            if word == b"QUIT":
                return


if __name__ == "__main__":
    socketserver.ThreadingTCPServer.allow_reuse_address = True
    mail = socketserver.ThreadingTCPServer(("127.0.0.1", 2525), Mail)
    threading.Thread(target=mail.serve_forever, daemon=True).start()
    ThreadingHTTPServer(("127.0.0.1", 8081), Webhook).serve_forever()
