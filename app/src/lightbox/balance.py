"""Connections spread evenly over gunicorn's workers.

The kernel gives a new connection to the worker that asks first, and one that is kept alive stays there: a worker may
hold all of them while another idles. Here a worker that holds more than another lets that one go first. It waits for a
moment only: a worker that hangs or was killed delays a connection, and keeps none from being accepted.
"""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import socket
from collections.abc import Callable
from typing import Any

# Seconds that a worker leaves a connection to others.
PATIENCE = 0.02
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


class Acceptor:
    """Accepts the connections of one listening socket for one worker.

    Args:
        listener: a socket that listens and does not block.
        protocol: makes the protocol of a connection.
        held: tells how many connections the worker holds, without those that are being taken over here.
        worker: number of the worker.
        tally: where workers tell how many they hold.
        options: of ``connect_accepted_socket``, such as ``ssl``.
    """

    def __init__(
        self,
        listener: socket.socket,
        protocol: Callable[[], asyncio.Protocol],
        held: Callable[[], int],
        worker: int,
        tally: Tally = TALLY,
        **options: Any,
    ) -> None:
        self._listener, self._protocol, self._held = listener, protocol, held
        self._worker, self._tally, self._options = worker, tally, options
        self._loop = asyncio.get_running_loop()
        self._arriving: set[asyncio.Task[None]] = set()
        self._pause: asyncio.TimerHandle | None = None
        self._open = True
        self._watch()

    def report(self) -> int:
        """Tell the others how many connections the worker holds; return it."""
        count = self._held() + len(self._arriving)
        if self._open:
            self._tally.tell(self._worker, count)
        return count

    def close(self) -> None:
        """Accept no more; what has been accepted goes on."""
        if not self._open:
            return
        self._open = False
        self._tally.leave(self._worker)
        if self._pause is None:
            self._loop.remove_reader(self._listener.fileno())
        else:
            self._pause.cancel()

    def _watch(self) -> None:
        self._pause = None
        self.report()
        self._loop.add_reader(self._listener.fileno(), self._knock)

    def _wait(self, seconds: float, then: Callable[[], None]) -> None:
        # The socket stays readable meanwhile.
        self._loop.remove_reader(self._listener.fileno())
        self._pause = self._loop.call_later(seconds, then)

    def _knock(self) -> None:
        """Take a connection, or leave it to others for now."""
        fewest = self._tally.fewest(but=self._worker)
        if fewest is not None and self.report() > fewest:
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
        connection.setblocking(False)
        task = self._loop.create_task(self._welcome(connection))
        self._arriving.add(task)
        task.add_done_callback(self._arrived)
        self.report()

    async def _welcome(self, connection: socket.socket) -> None:
        # A client that is gone again is nobody's trouble.
        with contextlib.suppress(OSError):
            await self._loop.connect_accepted_socket(self._protocol, connection, **self._options)

    def _arrived(self, task: asyncio.Task[None]) -> None:
        self._arriving.discard(task)
        self.report()
