"""Fixtures that the tests share."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from serving_kit import Gunicorn, RedisServer, Start, write_bundle

# On a machine that is busy otherwise, the time one example takes says nothing.
hypothesis.settings.register_profile("busy", deadline=None)
hypothesis.settings.load_profile("busy")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A good bundle."""
    return write_bundle(tmp_path / "bundle")


@pytest.fixture(scope="session")
def shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    if not shutil.which("redis-server"):
        raise RuntimeError("these tests need redis-server: install Debian's package of that name")
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def redis_server(shared_redis: RedisServer) -> Iterator[RedisServer]:
    """An empty Redis; a test may stop it."""
    if shared_redis.process is None or shared_redis.process.poll() is not None:
        shared_redis.start()
    with shared_redis.client() as client:
        client.flushall()
    yield shared_redis
    if shared_redis.process is None:
        shared_redis.start()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start an application: ``start("lightbox.api.app:app", {"LIGHTBOX_…": "…"})``; stopped when the test ends."""
    started: list[Gunicorn] = []

    def begin(module: str, environment: dict[str, str], workers: int = 2, wait: bool = True) -> Gunicorn:
        log = tmp_path / f"gunicorn-{len(started)}.log"
        started.append(Gunicorn(module, log, environment, workers))
        return started[-1].wait() if wait else started[-1]

    yield begin
    for server in started:
        server.stop()
