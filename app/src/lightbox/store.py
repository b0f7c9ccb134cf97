"""The case store: every image that was classified, in Redis.

Schema, all under one prefix so that a Redis user can be confined to ``lightbox:*``:

``lightbox:case:<id>``
    hash: ``id``, ``filename``, ``label`` (the label shown), ``confidence`` (probability of that label, 0 to 1),
    ``scores`` (JSON list, one score per model output), ``model_version``, ``source`` (``upload`` or
    ``batch``), ``created`` (ISO 8601, UTC), ``thumbnail`` (base64 of a JPEG, may be empty).
``lightbox:cases``
    sorted set of ids by time in seconds since 1970. Pages are cut from it, so their order does not change.

A case's hash is written before its entry in the index, and goes after it, so that a reader who finds the entry finds
the case. Nothing is written inside MULTI: where the default user is off, Redis 7 refuses the transactions in its own
append-only file when it starts, and the cases in them are lost. No KEYS, no scripts.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Literal

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

PREFIX = "lightbox"
INDEX = f"{PREFIX}:cases"
PAGE_SIZE = 25
# Hashes outlive their entry in the index by this much, so that a page never names a case that is gone.
SLACK = timedelta(hours=1)
# Cases sent at once by add_many.
BATCH = 200

Source = Literal["upload", "batch"]


class StoreError(Exception):
    """Redis did not do what was asked; the text says why in a few words and holds no secret."""


class PageError(ValueError):
    """The page asked for does not exist."""


@dataclass(frozen=True)
class Case:
    """One classified image.

    ``confidence`` is the probability of ``label``, from 0 to 1; ``scores`` holds one calibrated score per model output;
    ``thumbnail`` is a JPEG file or empty.
    """

    id: str
    filename: str
    label: str
    confidence: float
    scores: tuple[float, ...]
    model_version: str
    source: Source
    created: datetime
    thumbnail: bytes = b""

    def __post_init__(self) -> None:
        if not self.id or not self.label:
            raise ValueError("a case needs an id and a label")
        if not (math.isfinite(self.confidence) and 0 <= self.confidence <= 1):
            raise ValueError(f"confidence {self.confidence} is not between 0 and 1")
        if self.created.tzinfo is None:
            raise ValueError("the time of a case needs a time zone")


@dataclass(frozen=True)
class Page:
    """Cases ``(number - 1) * size`` to ``number * size``, newest first, of ``total`` cases on ``pages`` pages."""

    cases: tuple[Case, ...]
    number: int
    size: int
    total: int
    pages: int


def identity(*parts: str | bytes) -> str:
    """Return an id that is the same for the same parts: storing a case twice keeps one.

    Batch inference passes what makes a case one of a kind, for example the file's name and its content.
    """
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()[:32]


def read_password(environ: Mapping[str, str] = os.environ) -> str | None:
    """Return the Redis password from ``LIGHTBOX_REDIS_PASSWORD_FILE`` or ``$CREDENTIALS_DIRECTORY/redis_password``.

    Raises:
        StoreError: the file was named but cannot be read.
    """
    named = environ.get("LIGHTBOX_REDIS_PASSWORD_FILE")
    credentials = environ.get("CREDENTIALS_DIRECTORY")
    if named:
        path = Path(named)
    elif credentials and (Path(credentials) / "redis_password").exists():
        path = Path(credentials) / "redis_password"
    else:
        return None
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise StoreError(f"the Redis password file {path} cannot be read: {error.strerror}") from error


def _case_key(case_id: str) -> str:
    return f"{PREFIX}:case:{case_id}"


def _to_hash(case: Case) -> dict[str, str]:
    return {
        "id": case.id,
        "filename": case.filename,
        "label": case.label,
        "confidence": repr(float(case.confidence)),
        "scores": json.dumps([float(score) for score in case.scores]),
        "model_version": case.model_version,
        "source": case.source,
        "created": case.created.astimezone(timezone.utc).isoformat(timespec="milliseconds"),
        "thumbnail": base64.b64encode(case.thumbnail).decode("ascii"),
    }


def _from_hash(fields: Mapping[str, str]) -> Case | None:
    """Return the case a hash holds, or None when it is not one that this module wrote."""
    try:
        return Case(
            id=fields["id"],
            filename=fields["filename"],
            label=fields["label"],
            confidence=float(fields["confidence"]),
            scores=tuple(float(score) for score in json.loads(fields["scores"])),
            model_version=fields["model_version"],
            source="batch" if fields["source"] == "batch" else "upload",
            created=datetime.fromisoformat(fields["created"]),
            thumbnail=base64.b64decode(fields.get("thumbnail", ""), validate=True),
        )
    except (KeyError, ValueError, TypeError, binascii.Error):
        return None


def _why(error: Exception) -> str:
    """Return a few words about a Redis error that hold no address, command or password."""
    if isinstance(error, redis.exceptions.AuthenticationError | redis.exceptions.NoPermissionError):
        return "Redis refused the user or password"
    if isinstance(error, redis.exceptions.TimeoutError):
        return "Redis does not answer in time"
    if isinstance(error, redis.exceptions.ConnectionError):
        return "Redis cannot be reached"
    if isinstance(error, redis.exceptions.OutOfMemoryError):
        return "Redis has no memory left for cases"
    return f"Redis refused the command ({type(error).__name__})"


class CaseStore:
    """Cases in one Redis; safe to share between threads.

    Args:
        client: a Redis client that decodes responses to text.
        retention: how long a case is kept; None keeps it until it is deleted.
    """

    def __init__(self, client: redis.Redis, retention: timedelta | None = None) -> None:
        self._redis: Any = client
        self.retention = retention if retention and retention > timedelta() else None

    @classmethod
    def connect(
        cls,
        host: str = "127.0.0.1",
        port: int = 6379,
        user: str | None = None,
        password: str | None = None,
        retention: timedelta | None = None,
        timeout: float = 2.0,
    ) -> CaseStore:
        """Return a store on the Redis at ``host:port``. Nothing is sent until it is used; ``timeout`` is in seconds."""
        client = redis.Redis(
            host=host,
            port=port,
            username=user or None,
            password=password or None,
            decode_responses=True,
            socket_connect_timeout=min(timeout, 1.0),
            socket_timeout=timeout,
            # One more try covers a pooled connection that a restart of Redis has closed.
            retry=Retry(NoBackoff(), 1),
        )
        return cls(client, retention)

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> CaseStore:
        """Return the store that ``LIGHTBOX_REDIS_HOST/PORT/USER`` and ``LIGHTBOX_RETENTION_DAYS`` name.

        Raises:
            StoreError: the password file cannot be read.
        """
        return cls.connect(
            host=environ.get("LIGHTBOX_REDIS_HOST", "127.0.0.1"),
            port=int(environ.get("LIGHTBOX_REDIS_PORT", "6379")),
            user=environ.get("LIGHTBOX_REDIS_USER"),
            password=read_password(environ),
            retention=timedelta(days=float(environ.get("LIGHTBOX_RETENTION_DAYS", "0") or "0")),
        )

    def ping(self) -> None:
        """Ask Redis whether it answers.

        Raises:
            StoreError: it does not.
        """
        try:
            self._redis.ping()
        except redis.RedisError as error:
            raise StoreError(_why(error)) from error

    def add(self, case: Case) -> None:
        """Store a case; one with the same id is replaced.

        Raises:
            StoreError: the case will not be listed.
        """
        self.add_many([case])

    def add_many(self, cases: Iterable[Case]) -> int:
        """Store cases, many at once; return how many.

        Raises:
            StoreError: Redis failed; some of the cases may be stored.
        """
        done = 0
        waiting: list[Case] = []
        for case in cases:
            waiting.append(case)
            if len(waiting) == BATCH:
                done += self._write(waiting)
                waiting = []
        return done + (self._write(waiting) if waiting else 0)

    def _write(self, cases: list[Case]) -> int:
        try:
            with self._redis.pipeline(transaction=False) as pipe:
                for case in cases:
                    pipe.hset(_case_key(case.id), mapping=_to_hash(case))
                    if self.retention:
                        end = case.created + self.retention + SLACK
                        pipe.expireat(_case_key(case.id), math.ceil(end.timestamp()))
                pipe.zadd(INDEX, {case.id: case.created.timestamp() for case in cases})
                pipe.execute()
            self._trim()
        except redis.RedisError as error:
            raise StoreError(_why(error)) from error
        return len(cases)

    def _trim(self) -> None:
        if self.retention:
            oldest = (datetime.now(timezone.utc) - self.retention).timestamp()
            self._redis.zremrangebyscore(INDEX, "-inf", f"({oldest}")

    def page(self, number: int = 1, size: int = PAGE_SIZE) -> Page:
        """Return one page of cases, newest first; cases of the same moment are ordered by id. Page 1 always exists.

        Raises:
            PageError: there is no such page.
            StoreError: Redis failed.
        """
        if number < 1:
            raise PageError("Page must be 1 or more")
        try:
            # Entries whose hash is gone or not ours are taken out of the index and the page is cut again.
            self._trim()
            for _ in range(100):
                with self._redis.pipeline(transaction=True) as pipe:
                    pipe.zcard(INDEX)
                    pipe.zrevrange(INDEX, (number - 1) * size, number * size - 1)
                    total, ids = pipe.execute()
                pages = max(1, math.ceil(total / size))
                if number > pages:
                    raise PageError(f"Page must be {pages} or less")
                with self._redis.pipeline(transaction=False) as pipe:
                    for case_id in ids:
                        pipe.hgetall(_case_key(case_id))
                    found = [_from_hash(fields) for fields in pipe.execute()] if ids else []
                lost = [case_id for case_id, case in zip(ids, found, strict=True) if case is None]
                if not lost:
                    return Page(tuple(case for case in found if case), number, size, total, pages)
                self._redis.zrem(INDEX, *lost)
        except redis.RedisError as error:
            raise StoreError(_why(error)) from error
        raise StoreError("the index of cases does not settle")

    def get(self, case_id: str) -> Case | None:
        """Return a case, or None when there is none of that id.

        Raises:
            StoreError: Redis failed.
        """
        try:
            return _from_hash(self._redis.hgetall(_case_key(case_id)))
        except redis.RedisError as error:
            raise StoreError(_why(error)) from error

    def delete(self, case_id: str) -> bool:
        """Delete a case; return whether it was there.

        Raises:
            StoreError: Redis failed.
        """
        try:
            self._redis.zrem(INDEX, case_id)
            removed = self._redis.delete(_case_key(case_id))
        except redis.RedisError as error:
            raise StoreError(_why(error)) from error
        return bool(removed)

    def close(self) -> None:
        """Give the connections back."""
        self._redis.close()
