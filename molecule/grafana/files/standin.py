#!/usr/bin/python3
"""Not Grafana: a stand-in for tests of the role, where Grafana itself cannot be had.

It listens, reads grafana.ini and what the role provides, knows one administrator, and does nothing else.
``grafana server --config=FILE`` serves; ``grafana cli … admin reset-admin-password --password-from-stdin`` sets the
administrator's password.
"""

from __future__ import annotations

import base64
import configparser
import hashlib
import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

PASSWORD = Path("/var/lib/grafana/administrator")


def option(name: str) -> str:
    """Return the value of --name=VALUE on the command line."""
    return next(word.partition("=")[2] for word in sys.argv if word.startswith(f"--{name}="))


def keep(password: str) -> None:
    """Remember a password by its digest."""
    PASSWORD.write_text(hashlib.sha256(password.encode()).hexdigest())


def value(file: Path, name: str) -> str:
    """Return what follows `name:` on a line of a YAML file."""
    return next(
        line.partition(":")[2].strip() for line in file.read_text().splitlines() if line.strip().startswith(f"{name}:")
    )


def serve() -> None:
    """Answer until stopped."""
    settings = configparser.RawConfigParser()
    settings.read(option("config"))
    server = settings["server"]
    prefix = urlsplit(server["root_url"]).path.rstrip("/") if server["serve_from_sub_path"] == "true" else ""
    provisioning = Path(settings["paths"]["provisioning"])
    if not PASSWORD.exists():
        keep(Path(os.environ["GF_SECURITY_ADMIN_PASSWORD__FILE"]).read_text())
    user = settings["security"]["admin_user"]

    class Standin(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            """Answer a request of Grafana's API."""
            path = urlsplit(self.path).path
            kind, _, token = self.headers.get("Authorization", "").partition(" ")
            name, _, password = base64.b64decode(token).decode().partition(":") if kind == "Basic" else ("", "", "")
            known = name == user and hashlib.sha256(password.encode()).hexdigest() == PASSWORD.read_text()
            if path == f"{prefix}/api/health":
                self.say(200, {"database": "ok", "standin": True})
            elif not known and settings["auth.anonymous"]["enabled"] != "true":
                self.say(401, {"message": "Unauthorized"})
            elif path == f"{prefix}/api/user":
                self.say(200, {"login": user})
            elif path == f"{prefix}/api/datasources":
                self.say(200, json.loads(value(provisioning / "datasources/lightbox.yml", "datasources")))
            elif path == f"{prefix}/api/search":
                folder = Path(value(provisioning / "dashboards/lightbox.yml", "path"))
                self.say(200, [json.loads(file.read_text())["title"] for file in sorted(folder.iterdir())])
            else:
                self.say(404, {"message": "Not found"})

        def say(self, status: int, what: object) -> None:
            """Send JSON."""
            body = json.dumps(what).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    ThreadingHTTPServer((server["http_addr"], int(server["http_port"])), Standin).serve_forever()


if sys.argv[1] == "server":
    serve()
elif sys.argv[1] == "cli" and sys.argv[-3:] == ["admin", "reset-admin-password", "--password-from-stdin"]:
    keep(sys.stdin.read())
else:
    sys.exit(f"not understood: {sys.argv[1:]}")
