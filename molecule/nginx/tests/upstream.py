"""A server behind the proxy: answers with what it was asked, as JSON. Usage: upstream.py PORT"""

from __future__ import annotations

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Echo(BaseHTTPRequestHandler):
    """Answers every request with its path and headers."""

    def answer(self) -> None:
        """Read the body and tell what came."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        said = {"port": self.server.server_port, "path": self.path, "bytes": len(body), "headers": dict(self.headers)}
        data = json.dumps(said).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = answer  # noqa: N815


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Echo).serve_forever()
