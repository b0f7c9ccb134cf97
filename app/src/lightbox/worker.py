"""The gunicorn worker: uvicorn, which lets requests on connections just accepted arrive before it stops."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from typing import Any, ClassVar

from gunicorn.arbiter import Arbiter
from uvicorn.server import Server
from uvicorn_worker import UvicornWorker

# Seconds between the end of accepting and the end of reading.
LINGER = 0.5


class LingeringServer(Server):
    """Stops accepting first, then waits for the requests of connections it has accepted, then stops."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop as uvicorn does, a moment later."""
        for server in self.servers:
            server.close()
        logging.getLogger("uvicorn.error").info("No longer accepting connections")
        # Every further answer says that the connection ends with it.
        self.server_state.default_headers.append((b"connection", b"close"))
        await asyncio.sleep(LINGER)
        await super().shutdown(sockets=sockets)


class GracefulWorker(UvicornWorker):
    """An ASGI worker that loses no request when it is replaced."""

    CONFIG_KWARGS: ClassVar[dict[str, Any]] = {
        "loop": "uvloop",
        "http": "httptools",
        "access_log": False,
        "server_header": False,
    }

    async def _serve(self) -> None:
        self.config.app = self.wsgi
        server = LingeringServer(config=self.config)
        self._install_sigquit_handler()
        await server.serve(sockets=self.sockets)
        if not server.started:
            sys.exit(Arbiter.WORKER_BOOT_ERROR)
