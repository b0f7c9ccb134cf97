"""The gunicorn worker: uvicorn, for answers that come whole or not at all, however a worker ends."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from collections.abc import Callable
from typing import Any, ClassVar

from gunicorn.arbiter import Arbiter
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import Server
from uvicorn_worker import UvicornWorker

from lightbox.balance import Acceptor, Share

# Seconds between the end of accepting and the end of reading.
LINGER = 0.5
# Bytes of a request's line and header; as h11 and nginx have it, give or take.
LARGEST_HEADER = 64 * 1024
# Bytes that wait for the end of the event loop's turn; more leave at once.
HELD = 128 * 1024


class OneWrite:
    """A transport that hands to the kernel at once what is written in one turn of the event loop.

    Head and body of an answer then leave together. A worker that is killed has sent all of an answer or none of it, and
    of what it has seen nothing, a proxy in front can ask another worker.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport, self._loop = transport, asyncio.get_running_loop()
        self._held = bytearray()
        self._due = False

    def __getattr__(self, name: str) -> Any:
        """Be the transport in everything else."""
        return getattr(self._transport, name)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send soon."""
        self._held += data
        if len(self._held) > HELD:
            self._flush()
        elif not self._due:
            self._due = True
            self._loop.call_soon(self._turn)

    def close(self) -> None:
        """Send what was written, then close."""
        self._flush()
        self._transport.close()

    def _turn(self) -> None:
        self._due = False
        self._flush()

    def _flush(self) -> None:
        if self._held:
            self._transport.write(bytes(self._held))
            self._held.clear()


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's fast protocol, which would keep the header of a request however long it gets.

    ``lost`` is called when the connection is no more.
    """

    def __init__(self, *args: Any, lost: Callable[[], None], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lost = lost
        self._in_header, self._received = True, 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin a conversation, with each answer in one write."""
        super().connection_made(OneWrite(transport))  # type: ignore[arg-type]

    def connection_lost(self, exc: Exception | None) -> None:
        """End it."""
        super().connection_lost(exc)
        self._lost()

    def data_received(self, data: bytes) -> None:
        """Take what arrived; end the connection when its header does not end."""
        super().data_received(data)
        if self._in_header and not self.transport.is_closing():
            self._received += len(data)
            if self._received > LARGEST_HEADER:
                self.send_400_response("The request's header is too large.")

    def on_message_begin(self) -> None:
        """Begin a request."""
        self._in_header, self._received = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Begin its body."""
        self._in_header = False
        super().on_headers_complete()


class LingeringServer(Server):
    """Shares connections with the other workers; stops accepting first, then waits for the requests of connections it
    has accepted, then stops.
    """

    servers: list[Acceptor]  # type: ignore[assignment]

    def __init__(self, config: Config, worker: int) -> None:
        super().__init__(config)
        self._worker = worker

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start as uvicorn does, but accept connections here."""
        await super().startup(sockets=[])
        share = Share(self._worker)

        def protocol() -> asyncio.Protocol:
            return BoundedProtocol(
                config=self.config,
                server_state=self.server_state,
                app_state=self.lifespan.state,
                lost=share.drop,
            )

        self.servers = [Acceptor(listener, share, protocol, ssl=self.config.ssl) for listener in sockets or []]

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
        "access_log": False,
        "server_header": False,
    }

    async def _serve(self) -> None:
        self.config.app = self.wsgi
        server = LingeringServer(self.config, self.age)
        self._install_sigquit_handler()
        await server.serve(sockets=self.sockets)
        if not server.started:
            sys.exit(Arbiter.WORKER_BOOT_ERROR)
