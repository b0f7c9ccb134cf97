"""Connections are spread evenly over the workers, and a worker that is not there delays none for long."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from serving_kit import Gunicorn, Start, wait_for

from lightbox.balance import SLOTS, Acceptor, Share, Tally


def held(server: Gunicorn) -> list[int]:
    """Return how many connections each worker of a server has open, fewest first."""
    port, established = server.port, "01"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    names = {f"socket:[{row[9]}]" for row in rows if int(row[1].split(":")[1], 16) == port and row[3] == established}
    return sorted(
        sum(str(one.readlink()) in names for one in Path(f"/proc/{pid}/fd").iterdir()) for pid in server.workers()
    )


@pytest.fixture
def visitors() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def visit(server: Gunicorn, stack: ExitStack, count: int) -> list[socket.socket]:
    """Open connections, each answered once and then kept open."""
    address, opened = urlsplit(server.url), []
    for _ in range(count):
        connection = stack.enter_context(socket.create_connection((address.hostname, address.port), timeout=10))
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
        assert b'"status":"healthy"' in connection.recv(65536)
        opened.append(connection)
    return opened


@pytest.fixture
def ui(start: Start) -> Gunicorn:
    """Return a server both of whose workers accept."""
    server = start("lightbox.ui.app:app", {"LIGHTBOX_API_URLS": "http://127.0.0.1:9"})

    def both() -> bool:
        with ExitStack() as stack:
            visit(server, stack, 2)
            return held(server) == [1, 1]

    wait_for("both workers accept", both, 30)
    wait_for("both are free again", lambda: held(server) == [0, 0])
    return server


def test_connections_that_stay_are_spread_evenly(ui: Gunicorn, visitors: ExitStack) -> None:
    opened = visit(ui, visitors, 9)
    few, many = held(ui)
    # One more than half where a worker was so busy that it let 30 ms pass.
    assert few + many == 9 and few >= 3, (few, many)
    # Those that end make room where they were.
    for connection in opened[:6]:
        connection.close()
    wait_for("they are gone", lambda: sum(held(ui)) == 3)
    visit(ui, visitors, 7)
    few, many = held(ui)
    assert few + many == 10 and few >= 4, (few, many)


def test_a_worker_that_hangs_or_was_killed_keeps_no_connection_waiting(ui: Gunicorn, visitors: ExitStack) -> None:
    hanging, other = ui.workers()
    os.kill(hanging, signal.SIGSTOP)
    begin = time.monotonic()
    visit(ui, visitors, 20)
    assert time.monotonic() - begin < 5
    os.kill(hanging, signal.SIGKILL)
    wait_for("the killed one is gone", lambda: hanging not in ui.workers())
    visit(ui, visitors, 5)
    # The worker that replaces it has none: from when it accepts, the next are its.
    for _ in range(200):
        visit(ui, visitors, 1)
        if held(ui)[0] >= 3:
            break
        time.sleep(0.1)
    before = max(held(ui))
    visit(ui, visitors, 4)
    assert max(held(ui)) <= before + 1
    assert other in ui.workers()


def test_the_fewest_is_that_of_the_other_workers_that_accept() -> None:
    tally = Tally()
    assert tally.fewest(but=1) is None
    tally.tell(1, 0)
    tally.tell(2, 5)
    tally.tell(3 + SLOTS, 4)
    assert (tally.fewest(but=1), tally.fewest(but=3)) == (4, 0)
    tally.leave(1)
    assert tally.fewest(but=3) == 5


def test_a_share_is_large_when_another_worker_holds_fewer() -> None:
    tally = Tally()
    first, second = Share(1, tally), Share(2, tally)
    first.take()
    assert (first.large, second.large) == (True, False)
    second.take()
    assert (first.large, second.large) == (False, False)
    first.drop()
    assert (first.large, second.large) == (False, True)
    first.leave()
    first.drop()
    assert not second.large


def test_an_acceptor_that_is_closed_takes_nothing_more() -> None:
    async def connections() -> tuple[int, int | None]:
        tally, taken = Tally(), []

        class Taken(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                taken.append(transport)

        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setblocking(False)
            acceptor = Acceptor(listener, Share(1, tally), Taken)
            with socket.create_connection(listener.getsockname()):
                while not taken:
                    await asyncio.sleep(0.01)
                assert tally.fewest(but=2) == 1
                acceptor.close()
                acceptor.close()
                with socket.create_connection(listener.getsockname()):
                    await asyncio.sleep(0.05)
            for transport in taken:
                transport.close()
        return len(taken), tally.fewest(but=2)

    assert asyncio.run(connections()) == (1, None)
