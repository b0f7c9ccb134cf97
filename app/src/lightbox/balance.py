"""Connections spread evenly over gunicorn's workers.

The kernel gives a new connection to the worker that asks first, and one that is kept alive stays there: a worker may
hold all of them while another idles. Here a worker that holds more than another lets that one go first. It waits for a
moment only: a worker that hangs or was killed delays a connection, and keeps none from being accepted.
"""

from __future__ import annotations

import asyncio
import mmap
import socket
from collections.abc import Callable
from typing import Any

# Seconds that a worker leaves a connection to others.
PATIENCE = 0.03
# Seconds until the next attempt when the process can open no more files.
RETRY = 0.5
# Workers are numbered on and on; two that live at once are never this far apart.
SLOTS = 256


class Tally:
    """How many connections each worker holds, in memory that the master and its workers share."""

    def __init__(self) -> None:
        # One more than the worker holds; 0 stands for no worker.
        self._slots = memoryview(mmap.mmap(-1, 4 * SLOTS)).cast("I")

    def tell(self, worker: int, connections: int) -> None:
        """Say how many connections a worker holds."""
        self._slots[worker % SLOTS] = connections + 1

    def leave(self, worker: int) -> None:
        """Say that a worker accepts no more."""
        self._slots[worker % SLOTS] = 0

    def fewest(self, but: int) -> int | None:
        """Return the fewest connections that a worker holds, all workers but one considered; None without others."""
        own = but % SLOTS
        return min((held - 1 for slot, held in enumerate(self._slots) if held and slot != own), default=None)


# Of the gunicorn master that imports this, and of the workers it forks.
TALLY = Tally()


class Share:
    """The connections of one worker."""

    def __init__(self, worker: int, tally: Tally = TALLY) -> None:
        self._worker, self._tally, self._held = worker, tally, 0
        self._open = True
        self._tell()

    def take(self) -> None:
        """Count a connection in."""
        self._held += 1
        self._tell()

    def drop(self) -> None:
        """Count one out."""
        self._held -= 1
        self._tell()

    def leave(self) -> None:
        """Be no longer counted upon."""
        self._open = False
        self._tally.leave(self._worker)

    @property
    def large(self) -> bool:
        """Whether another worker holds fewer."""
        fewest = self._tally.fewest(but=self._worker)
        return fewest is not None and self._held > fewest

    def _tell(self) -> None:
        if self._open:
            self._tally.tell(self._worker, self._held)


class Acceptor:
    """Accepts the connections of one listening socket for one worker.

    Args:
        listener: a socket that listens and does not block.
        share: the worker's, which has ``take`` called here; the protocol calls ``drop`` when a connection is lost.
        protocol: makes the protocol of a connection.
        options: of ``connect_accepted_socket``, such as ``ssl``.
    """

    def __init__(
        self, listener: socket.socket, share: Share, protocol: Callable[[], asyncio.Protocol], **options: Any
    ) -> None:
        self._listener, self._share, self._protocol, self._options = listener, share, protocol, options
        self._loop = asyncio.get_running_loop()
        self._arriving: set[asyncio.Task[None]] = set()
        self._pause: asyncio.TimerHandle | None = None
        self._open = True
        self._watch()

    def close(self) -> None:
        """Accept no more; what has been accepted goes on."""
        if not self._open:
            return
        self._open = False
        self._share.leave()
        if self._pause is None:
            self._loop.remove_reader(self._listener.fileno())
        else:
            self._pause.cancel()

    async def wait_closed(self) -> None:
        """Wait until each connection that has been accepted is in the hands of its protocol."""
        if self._arriving:
            await asyncio.wait(self._arriving)

    def _watch(self) -> None:
        self._pause = None
        self._loop.add_reader(self._listener.fileno(), self._knock)

    def _wait(self, seconds: float, then: Callable[[], None]) -> None:
        # The socket stays readable meanwhile.
        self._loop.remove_reader(self._listener.fileno())
        self._pause = self._loop.call_later(seconds, then)

    def _knock(self) -> None:
        """Take a connection, or leave it to others for now."""
        if self._share.large:
            self._wait(PATIENCE, self._late)
        else:
            self._accept()

    def _late(self) -> None:
        """Take a connection that nobody else took."""
        self._watch()
        self._accept()

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return  # another worker was faster, or the client is gone
        except OSError:
            self._wait(RETRY, self._watch)
            return
        self._share.take()
        connection.setblocking(False)
        task = self._loop.create_task(self._welcome(connection))
        self._arriving.add(task)
        task.add_done_callback(self._arriving.discard)

    async def _welcome(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._protocol, connection, **self._options)
        except OSError:
            # The client is gone again.
            self._share.drop()
