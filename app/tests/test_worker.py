"""The gunicorn worker sends answers whole."""

from __future__ import annotations

import asyncio
import socket
from urllib.parse import urlsplit

from serving_kit import Start, wait_for

from lightbox.worker import HELD, OneWrite


class Kernel:
    """Stands in for a transport; remembers what it was given."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        self.writes.append(data)

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed


def test_what_is_written_in_one_turn_leaves_at_once() -> None:
    async def conversation() -> Kernel:
        kernel = Kernel()
        transport = OneWrite(kernel)  # type: ignore[arg-type]
        transport.write(b"head ")
        transport.write(memoryview(b"body"))
        assert kernel.writes == []
        await asyncio.sleep(0)
        assert kernel.writes == [b"head body"]
        transport.write(b"last words")
        transport.close()
        assert transport.is_closing()
        await asyncio.sleep(0)
        return kernel

    assert asyncio.run(conversation()).writes == [b"head body", b"last words"]


def test_a_long_stream_does_not_pile_up() -> None:
    async def conversation() -> Kernel:
        kernel = Kernel()
        transport = OneWrite(kernel)  # type: ignore[arg-type]
        for _ in range(10):
            transport.write(bytes(HELD))
        assert sum(map(len, kernel.writes)) >= 9 * HELD
        await asyncio.sleep(0)
        return kernel

    assert sum(map(len, asyncio.run(conversation()).writes)) == 10 * HELD


def test_head_and_body_of_an_answer_arrive_together(start: Start) -> None:
    address = urlsplit(start("lightbox.ui.app:app", {"LIGHTBOX_API_URLS": "http://127.0.0.1:9"}).url)
    for _ in range(50):
        with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            assert b'"status":"healthy"' in connection.recv(65536)


def test_workers_that_are_replaced_or_stopped_end_well(start: Start) -> None:
    server = start("lightbox.ui.app:app", {"LIGHTBOX_API_URLS": "http://127.0.0.1:9"})
    first = set(server.workers())
    server.reload()
    wait_for("other workers answer", lambda: len(server.workers()) == 2 and not first & set(server.workers()), 30)
    server.stop()
    said = server.log.read_text()
    assert server.process.returncode == 0
    assert "Traceback" not in said, said[-3000:]
    assert "exited with code" not in said, said[-3000:]
