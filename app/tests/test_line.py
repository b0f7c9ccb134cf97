"""The waiting line in front of the model."""

from __future__ import annotations

import asyncio
import threading

import pytest

from lightbox.api.line import BusyError, Line


class Doubler:
    """Doubles numbers once it may; refuses negative ones, fails on zero, and tells what it was given together."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.given: list[list[int]] = []

    def __call__(self, numbers: list[int]) -> list[int | Exception]:
        self.given.append(numbers)
        assert self.go.wait(20)
        if 0 in numbers:
            raise RuntimeError("nothing to double")
        return [2 * number if number > 0 else ValueError(str(number)) for number in numbers]


async def begun(doubler: Doubler) -> None:
    """Wait until the first turn has begun."""
    while not doubler.given:
        await asyncio.sleep(0.001)


def test_what_waits_is_taken_together_and_in_order() -> None:
    doubler = Doubler()

    async def talk() -> None:
        line = Line(doubler, places=1, longest=10, together=2)
        asked = [asyncio.create_task(line.run(number)) for number in (1,)]
        await begun(doubler)
        asked += [asyncio.create_task(line.run(number)) for number in (2, 3, 4)]
        await asyncio.sleep(0)
        doubler.go.set()
        assert await asyncio.gather(*asked) == [2, 4, 6, 8]

    asyncio.run(talk())
    assert doubler.given == [[1], [2, 3], [4]]


def test_an_error_is_raised_to_who_asked_and_to_nobody_else() -> None:
    doubler = Doubler()

    async def talk() -> None:
        line = Line(doubler, places=1, longest=10, together=2)
        asked = [asyncio.create_task(line.run(1))]
        await begun(doubler)
        asked += [asyncio.create_task(line.run(number)) for number in (-2, 3, 0, 5, 6)]
        await asyncio.sleep(0)
        doubler.go.set()
        first, refused, third, failed, beside, last = await asyncio.gather(*asked, return_exceptions=True)
        assert (first, third, last) == (2, 6, 12)
        assert isinstance(refused, ValueError)
        assert isinstance(failed, RuntimeError)
        assert isinstance(beside, RuntimeError), "a function that fails as a whole fails for all it was given"

    asyncio.run(talk())


def test_who_gave_up_waiting_takes_no_turn() -> None:
    doubler = Doubler()

    async def talk() -> None:
        line = Line(doubler, places=1, longest=2, together=1)
        asked = [asyncio.create_task(line.run(1))]
        await begun(doubler)
        asked += [asyncio.create_task(line.run(number)) for number in (2, 3)]
        await asyncio.sleep(0)
        assert line.full
        with pytest.raises(BusyError):
            await line.run(4)
        admitted = asyncio.create_task(line.run(5, admitted=True))
        asked[1].cancel()
        await asyncio.sleep(0)
        doubler.go.set()
        assert await asyncio.gather(asked[0], asked[2], admitted) == [2, 6, 10]
        assert len(line) == 0

    asyncio.run(talk())
    assert doubler.given == [[1], [3], [5]]
