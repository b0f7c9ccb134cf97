"""The waiting line: a few images are classified at once, a few more wait, and the rest is sent away at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from prometheus_client import Gauge

WAITING = Gauge("lightbox_waiting_requests", "Requests that wait to be classified.", multiprocess_mode="livesum")
# What a sender who finds the line full is told to wait, in seconds.
RETRY_AFTER = 1

T = TypeVar("T")


class BusyError(Exception):
    """Too many requests wait."""


class Line:
    """Runs functions in threads, ``places`` at once; at most ``longest`` calls wait. For one event loop.

    A thread takes the next call itself: between two images it does not wait for the event loop.
    """

    def __init__(self, places: int, longest: int) -> None:
        self._threads = ThreadPoolExecutor(places, thread_name_prefix="line")
        self._places, self._longest, self._inside = places, longest, 0

    @property
    def full(self) -> bool:
        """Whether one more call would be refused."""
        return self._inside >= self._places + self._longest

    async def run(self, function: Callable[[], T], admitted: bool = False) -> T:
        """Return what the function gives, once it is its turn.

        Args:
            function: what to run, in a thread.
            admitted: whether the request was let in before, so that it waits however long the line is.

        Raises:
            BusyError: the line is full.
        """
        if self.full and not admitted:
            raise BusyError
        self._inside += 1
        self._report()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, function)
        finally:
            self._inside -= 1
            self._report()

    def _report(self) -> None:
        WAITING.set(max(0, self._inside - self._places))
