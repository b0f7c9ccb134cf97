"""A server behind the proxy: answers with what it was asked, as JSON. Usage: upstream.py PORT

``X-Break-Off: NAME TIMES`` makes it close the connection without an answer so many times; ``/run/broken-NAME`` then
holds the id of every try. ``X-Status: N`` makes it answer with that status.
"""

from __future__ import annotations

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Echo(BaseHTTPRequestHandler):
    """Answers every request with its path and headers."""

    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        """Read the body and tell what came."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if "X-Break-Off" in self.headers:
            name, times = self.headers["X-Break-Off"].split()
            tries = Path(f"/run/broken-{name}")
            with tries.open("a", encoding="ascii") as file:
                file.write(f"{self.headers['X-Request-ID']}\n")
            if len(tries.read_text(encoding="ascii").splitlines()) <= int(times):
                self.close_connection = True
                return
        said = {"port": self.server.server_port, "path": self.path, "bytes": len(body), "headers": dict(self.headers)}
        data = json.dumps(said).encode()
        self.send_response(int(self.headers.get("X-Status", 200)))
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_DELETE = answer  # noqa: N815


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Echo).serve_forever()
