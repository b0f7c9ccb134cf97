"""Stands in for the artefact store on loopback: store.py DIRECTORY serves its files as the objects of one bucket.

Answers what a download asks: the list of a prefix, an object's head, and the object, whole or in part.
"""

from __future__ import annotations

import hashlib
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit
from xml.sax.saxutils import escape

ROOT = Path(sys.argv[1])


class Store(BaseHTTPRequestHandler):
    """One bucket, whatever its name."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer a list, a head or an object."""
        parts = urlsplit(self.path)
        _, _, key = parts.path.lstrip("/").partition("/")
        query = parse_qs(parts.query)
        if "list-type" in query:
            prefix = query.get("prefix", [""])[0]
            files = sorted(path for path in ROOT.rglob("*") if path.is_file())
            names = [(str(path.relative_to(ROOT)), path.stat().st_size) for path in files]
            items = "".join(
                f"<Contents><Key>{escape(name)}</Key><Size>{size}</Size></Contents>"
                for name, size in names
                if name.startswith(prefix)
            )
            self.say(200, f"<ListBucketResult><IsTruncated>false</IsTruncated>{items}</ListBucketResult>".encode())
            return
        path = ROOT / key
        if not path.is_file():
            self.say(404, b"<Error><Code>NoSuchKey</Code></Error>")
            return
        content = path.read_bytes()
        if part := self.headers.get("Range"):
            first, _, last = part.removeprefix("bytes=").partition("-")
            end = int(last) + 1 if last else len(content)
            where = {"Content-Range": f"bytes {first}-{end - 1}/{len(content)}"}
            self.say(206, content[int(first) : end], where)
            return
        self.say(200, content)

    do_HEAD = do_GET  # noqa: N815

    def say(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        """Send an answer, without its body to who asked for the head only."""
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", 9000), Store).serve_forever()
