"""The waiting line: a few images are classified at once, a few more wait, and the rest is sent away at once."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

from prometheus_client import Gauge

WAITING = Gauge("lightbox_waiting_requests", "Requests that wait to be classified.", multiprocess_mode="livesum")
# What a sender who finds the line full is told to wait, in seconds.
RETRY_AFTER = 1

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class BusyError(Exception):
    """Too many requests wait."""


class Line(Generic[Item, Answer]):
    """Hands what waits to a function in threads, ``places`` at once; at most ``longest`` wait. For one event loop.

    The function gets up to ``together`` items: those that wait when a thread is free. It gives an answer for each, or
    the exception that is raised to who asked. A thread takes the next items itself: between two turns it does not wait
    for the event loop.
    """

    def __init__(
        self,
        function: Callable[[list[Item]], Sequence[Answer | Exception]],
        places: int,
        longest: int,
        together: int = 1,
    ) -> None:
        self._function = function
        self._threads = ThreadPoolExecutor(places, thread_name_prefix="line")
        self._places, self._longest, self._together, self._inside = places, longest, together, 0
        self._waiting: deque[tuple[Item, asyncio.Future[Answer]]] = deque()

    def __len__(self) -> int:
        """Return how many are being answered or wait."""
        return self._inside

    @property
    def full(self) -> bool:
        """Whether one more call would be refused."""
        return self._inside >= self._places + self._longest

    async def run(self, item: Item, admitted: bool = False) -> Answer:
        """Return the function's answer to an item, once it is its turn.

        Args:
            item: what the function is to take.
            admitted: whether the request was let in before, so that it waits however long the line is.

        Raises:
            BusyError: the line is full.
            Exception: the one that the function gave for the item, or raised.
        """
        if self.full and not admitted:
            raise BusyError
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Answer] = loop.create_future()
        self._inside += 1
        self._report()
        try:
            self._waiting.append((item, answer))
            self._threads.submit(self._turn, loop)
            return await answer
        finally:
            self._inside -= 1
            self._report()

    def _turn(self, loop: asyncio.AbstractEventLoop) -> None:
        """Take what waits, have it answered, and wake who asked. There is one turn for each item, so some find none."""
        taken: list[tuple[Item, asyncio.Future[Answer]]] = []
        with contextlib.suppress(IndexError):
            while len(taken) < self._together:
                one = self._waiting.popleft()
                # Who no longer waits for an answer is given none.
                if not one[1].cancelled():
                    taken.append(one)
        if not taken:
            return
        answers: Sequence[Answer | Exception]
        try:
            answers = self._function([item for item, _ in taken])
        # Whatever it is, it is raised to who asked.
        except Exception as error:
            answers = [error] * len(taken)
        asked = [answer for _, answer in taken]
        # The loop is closed when the process ends in the middle of a turn: then nobody waits.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(_give, asked, answers)

    def _report(self) -> None:
        WAITING.set(max(0, self._inside - self._places))


def _give(asked: list[asyncio.Future[Answer]], answers: Sequence[Answer | Exception]) -> None:
    for future, answer in zip(asked, answers, strict=True):
        if future.done():
            continue
        if isinstance(answer, Exception):
            future.set_exception(answer)
        else:
            future.set_result(answer)
