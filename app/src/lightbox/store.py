"""The case store: every image that was classified, in Redis.

Schema, all under one prefix so that a Redis user can be confined to ``lightbox:*``:

``lightbox:case:<id>``
    hash: ``id``, ``filename``, ``label`` (the label shown), ``confidence`` (probability of that label, 0 to 1),
    ``scores`` (JSON list, one score per model output), ``model_version``, ``source`` (``upload`` or
    ``batch``), ``created`` (ISO 8601, UTC), ``thumbnail`` (base64 of a JPEG, may be empty); since version 0.2 also
    ``probabilities`` (JSON object), ``uncertain`` (``1`` or ``0``), ``unfamiliar`` (words, or empty), ``heat``
    (base64 of :func:`lightbox.heat.pack`'s bytes, or empty), ``heat_label``, and once a person said what they see,
    ``feedback_label`` and ``feedback_created``.
``lightbox:image:<id>``
    the picture in a size fit for looking at, a JPEG file as it is; uploads only.
``lightbox:cases``
    sorted set of ids by time in seconds since 1970. Pages are cut from it, so their order does not change.
``lightbox:feedback``
    sorted set of the ids that have feedback, by the time it was given.

A case's hash is written before its entry in the index, and goes after it, so that a reader who finds the entry finds
the case. Nothing is written inside MULTI: where the default user is off, Redis 7 refuses the transactions in its own
append-only file when it starts, and the cases in them are lost. No KEYS, no scripts.

A Redis that does not answer in time is left alone for a moment (``PAUSE``), so that requests fail at once instead of
waiting one after the other; a single one tries whether it is back.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Literal

import redis
from redis.backoff import NoBackoff
from redis.client import NEVER_DECODE
from redis.retry import Retry

PREFIX = "lightbox"
INDEX = f"{PREFIX}:cases"
FEEDBACK = f"{PREFIX}:feedback"
PAGE_SIZE = 25
# Hashes outlive their entry in the index by this much, so that a page never names a case that is gone.
SLACK = timedelta(hours=1)
# Cases sent at once by add_many.
BATCH = 200
# Cases whose small fields are read at once when all are looked through.
CHUNK = 1000
# Seconds in which a Redis that did not answer in time is not asked again.
PAUSE = 2.0
# What a case is called whose scores lie in the band in which the bundle declares no verdict to be safe.
UNCERTAIN = "Uncertain"

Source = Literal["upload", "batch"]
Sort = Literal["created", "filename", "confidence", "label"]


class StoreError(Exception):
    """Redis did not do what was asked; the text says why in a few words and holds no secret."""


class PageError(ValueError):
    """The page asked for does not exist."""


@dataclass(frozen=True)
class Feedback:
    """What a person says a case shows, and when they said so."""

    label: str
    created: datetime


@dataclass(frozen=True)
class Case:
    """One classified image.

    Attributes:
        confidence: the probability of ``label``, from 0 to 1.
        scores: one calibrated score per model output.
        thumbnail: a JPEG file, or empty.
        probabilities: label -> probability, 0 to 1; empty for cases of before version 0.2.
        uncertain: whether no verdict is safe.
        unfamiliar: why the image is unlike those the model was trained on, or None.
        heat: where the image speaks for ``heat_label``, as :func:`lightbox.heat.pack` writes it, or empty.
        feedback: what a person said, or None. Given with :meth:`CaseStore.set_feedback`, not by storing the case.
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
    probabilities: dict[str, float] = field(default_factory=dict)
    uncertain: bool = False
    unfamiliar: str | None = None
    heat: bytes = b""
    heat_label: str | None = None
    feedback: Feedback | None = None

    def __post_init__(self) -> None:
        if not self.id or not self.label:
            raise ValueError("a case needs an id and a label")
        if not (math.isfinite(self.confidence) and 0 <= self.confidence <= 1):
            raise ValueError(f"confidence {self.confidence} is not between 0 and 1")
        if self.created.tzinfo is None:
            raise ValueError("the time of a case needs a time zone")

    @property
    def verdict(self) -> str:
        """The label, or ``Uncertain``."""
        return UNCERTAIN if self.uncertain else self.label


@dataclass(frozen=True)
class Query:
    """Which cases to list, and in which order; equal ones are ordered newest first.

    Attributes:
        verdict: a label or ``Uncertain``; None takes all.
        search: part of the file name, whatever its case.
        source: ``upload`` or ``batch``; None takes both.
        feedback: ``any``, ``none``, ``agree`` or ``disagree`` (with the label shown); None takes all.
        sort: what to sort by.
        descending: whether the largest or newest comes first.
    """

    verdict: str | None = None
    search: str = ""
    source: Source | None = None
    feedback: Literal["any", "none", "agree", "disagree"] | None = None
    sort: Sort = "created"
    descending: bool = True

    @property
    def whole(self) -> bool:
        """Whether no case is left out."""
        return not (self.verdict or self.search or self.source or self.feedback)

    def takes(self, row: Row) -> bool:
        """Return whether a case is one of those asked for."""
        if self.verdict and self.verdict != (UNCERTAIN if row.uncertain else row.label):
            return False
        if self.source and self.source != row.source:
            return False
        if self.search and self.search.casefold() not in row.filename.casefold():
            return False
        return self.feedback is None or self.feedback in row.feedback_kinds


@dataclass(frozen=True)
class Row:
    """The small fields of a case, by which cases are chosen and sorted."""

    id: str
    filename: str
    label: str
    confidence: float
    source: str
    uncertain: bool
    feedback: str | None

    @property
    def feedback_kinds(self) -> tuple[str, ...]:
        """The values of :attr:`Query.feedback` that this case fits."""
        if self.feedback is None:
            return ("none",)
        return ("any", "agree" if self.feedback == self.label else "disagree")


ROW_FIELDS = ("filename", "label", "confidence", "source", "uncertain", "feedback_label")


@dataclass(frozen=True)
class Page:
    """Cases ``(number - 1) * size`` to ``number * size`` of the order asked for, of ``total`` on ``pages`` pages."""

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


def _image_key(case_id: str) -> str:
    return f"{PREFIX}:image:{case_id}"


def _moment(moment: datetime) -> str:
    return moment.astimezone(timezone.utc).isoformat(timespec="milliseconds")


def _to_hash(case: Case) -> dict[str, str]:
    return {
        "id": case.id,
        "filename": case.filename,
        "label": case.label,
        "confidence": repr(float(case.confidence)),
        "scores": json.dumps([float(score) for score in case.scores]),
        "model_version": case.model_version,
        "source": case.source,
        "created": _moment(case.created),
        "thumbnail": base64.b64encode(case.thumbnail).decode("ascii"),
        "probabilities": json.dumps(case.probabilities),
        "uncertain": "1" if case.uncertain else "0",
        "unfamiliar": case.unfamiliar or "",
        "heat": base64.b64encode(case.heat).decode("ascii"),
        "heat_label": case.heat_label or "",
    }


def _from_hash(fields: Mapping[str, str]) -> Case | None:
    """Return the case a hash holds, or None when it is not one that this module wrote."""
    try:
        feedback = None
        if fields.get("feedback_label"):
            feedback = Feedback(fields["feedback_label"], datetime.fromisoformat(fields["feedback_created"]))
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
            probabilities={
                str(label): float(share) for label, share in json.loads(fields.get("probabilities") or "{}").items()
            },
            uncertain=fields.get("uncertain") == "1",
            unfamiliar=fields.get("unfamiliar") or None,
            heat=base64.b64decode(fields.get("heat", ""), validate=True),
            heat_label=fields.get("heat_label") or None,
            feedback=feedback,
        )
    except (KeyError, ValueError, TypeError, AttributeError, binascii.Error):
        return None


def _to_row(case_id: str, values: Sequence[str | None]) -> Row | None:
    """Return the small fields of a case in the order of ``ROW_FIELDS``, or None when they are not those of one."""
    filename, label, confidence, source, uncertain, feedback = values
    try:
        if filename is None or not label or source is None:
            return None
        return Row(case_id, filename, label, float(confidence or ""), source, uncertain == "1", feedback or None)
    except ValueError:
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


class _Breaker:
    """Lets nobody ask a Redis that did not answer in time, but for one at a time, after a pause.

    A connection that is refused costs no time, so it is tried anew every time.
    """

    def __init__(self) -> None:
        self._closed_until = 0.0
        self._lock = threading.Lock()

    def check(self) -> None:
        """Raise StoreError while the pause lasts."""
        with self._lock:
            now = time.monotonic()
            if now < self._closed_until:
                raise StoreError("Redis does not answer in time")
            if self._closed_until:
                self._closed_until = now + PAUSE

    def record(self, error: Exception | None) -> None:
        """Take note of how a command went."""
        if error is None and not self._closed_until:
            return
        with self._lock:
            late = isinstance(error, redis.exceptions.TimeoutError)
            self._closed_until = time.monotonic() + PAUSE if late else 0.0


class CaseStore:
    """Cases in one Redis; safe to share between threads.

    Args:
        client: a Redis client that decodes responses to text.
        retention: how long a case is kept; None keeps it until it is deleted.
    """

    def __init__(self, client: redis.Redis, retention: timedelta | None = None) -> None:
        self._redis: Any = client
        self._breaker = _Breaker()
        self.retention = retention if retention and retention > timedelta() else None

    @classmethod
    def connect(
        cls,
        host: str = "127.0.0.1",
        port: int = 6379,
        user: str | None = None,
        password: str | None = None,
        retention: timedelta | None = None,
        timeout: float = 1.0,
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
            # One more try covers a pooled connection that a restart of Redis has closed; one for a Redis that does not
            # answer in time would double the wait.
            retry=Retry(NoBackoff(), 1, supported_errors=(redis.exceptions.ConnectionError,)),
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

    @contextmanager
    def _asking(self, anyway: bool = False) -> Iterator[Any]:
        """Give the client; turn what goes wrong into a StoreError. ``anyway`` asks even during a pause."""
        if not anyway:
            self._breaker.check()
        try:
            yield self._redis
        except redis.RedisError as error:
            self._breaker.record(error)
            raise StoreError(_why(error)) from error
        except PageError:
            self._breaker.record(None)
            raise
        self._breaker.record(None)

    def ping(self) -> None:
        """Ask Redis whether it answers.

        Raises:
            StoreError: it does not.
        """
        with self._asking(anyway=True) as client:
            client.ping()

    def add(self, case: Case, picture: bytes = b"") -> None:
        """Store a case, and the picture to look at, a JPEG file, if there is one; a case with the same id is replaced.

        Feedback that the replaced case has stays.

        Raises:
            StoreError: the case will not be listed.
        """
        with self._asking() as client:
            self._write(client, [case], picture)

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
                done += self._add(waiting)
                waiting = []
        return done + (self._add(waiting) if waiting else 0)

    def _add(self, cases: list[Case]) -> int:
        with self._asking() as client:
            self._write(client, cases)
        return len(cases)

    def _write(self, client: Any, cases: list[Case], picture: bytes = b"") -> None:
        """Write cases in one round trip; the picture is that of the first."""
        with client.pipeline(transaction=False) as pipe:
            if picture:
                pipe.set(_image_key(cases[0].id), picture, exat=self._end(cases[0]))
            for case in cases:
                pipe.hset(_case_key(case.id), mapping=_to_hash(case))
                if end := self._end(case):
                    pipe.expireat(_case_key(case.id), end)
            pipe.zadd(INDEX, {case.id: case.created.timestamp() for case in cases})
            self._trim(pipe)
            pipe.execute()

    def _end(self, case: Case) -> int | None:
        """Return when a case is forgotten, in seconds since 1970; None for never."""
        return math.ceil((case.created + self.retention + SLACK).timestamp()) if self.retention else None

    def _trim(self, pipe: Any) -> None:
        """Take the entries of cases past the retention out of the index."""
        if self.retention:
            oldest = (datetime.now(timezone.utc) - self.retention).timestamp()
            pipe.zremrangebyscore(INDEX, "-inf", f"({oldest}")

    def page(self, number: int = 1, size: int = PAGE_SIZE) -> Page:
        """Return one page of cases, newest first; cases of the same moment are ordered by id. Page 1 always exists.

        Raises:
            PageError: there is no such page.
            StoreError: Redis failed.
        """
        return self._cut(INDEX, number, size, descending=True)

    def with_feedback(self, number: int = 1, size: int = PAGE_SIZE) -> Page:
        """Return one page of the cases that have feedback, in the order in which it was given.

        Raises:
            PageError: there is no such page.
            StoreError: Redis failed.
        """
        return self._cut(FEEDBACK, number, size, descending=False)

    def _cut(self, index: str, number: int, size: int, descending: bool) -> Page:
        """Cut a page from an index. Entries whose hash is gone or not ours are taken out, and it is cut again."""
        if number < 1:
            raise PageError("Page must be 1 or more")
        with self._asking() as client:
            for _ in range(100):
                with client.pipeline(transaction=False) as pipe:
                    self._trim(pipe)
                    pipe.zcard(index)
                    pipe.zrange(index, (number - 1) * size, number * size - 1, desc=descending)
                    total, ids = pipe.execute()[-2:]
                pages = _pages(total, number, size)
                found = self._read(client, ids)
                lost = [case_id for case_id, case in zip(ids, found, strict=True) if case is None]
                if not lost:
                    return Page(tuple(case for case in found if case), number, size, total, pages)
                client.zrem(index, *lost)
        raise StoreError("the index of cases does not settle")

    @staticmethod
    def _read(client: Any, ids: Sequence[str]) -> list[Case | None]:
        if not ids:
            return []
        with client.pipeline(transaction=False) as pipe:
            for case_id in ids:
                pipe.hgetall(_case_key(case_id))
            return [_from_hash(fields) for fields in pipe.execute()]

    def find(self, query: Query, number: int = 1, size: int = PAGE_SIZE) -> Page:
        """Return one page of the cases asked for. Page 1 always exists.

        Newest first without a filter costs a page; any other list looks through the small fields of all cases.

        Raises:
            PageError: there is no such page.
            StoreError: Redis failed.
        """
        if query == Query():
            return self.page(number, size)
        if number < 1:
            raise PageError("Page must be 1 or more")
        ids = self.ids(query)
        pages = _pages(len(ids), number, size)
        with self._asking() as client:
            found = self._read(client, ids[(number - 1) * size : number * size])
        return Page(tuple(case for case in found if case), number, size, len(ids), pages)

    def ids(self, query: Query) -> list[str]:
        """Return the ids of the cases asked for, in order.

        Raises:
            StoreError: Redis failed.
        """
        rows: list[Row] = []
        with self._asking() as client:
            with client.pipeline(transaction=False) as pipe:
                self._trim(pipe)
                pipe.zrange(INDEX, 0, -1, desc=True)
                ids = pipe.execute()[-1]
            if query.whole and query.sort == "created":
                return list(ids if query.descending else reversed(ids))
            for first in range(0, len(ids), CHUNK):
                chunk = ids[first : first + CHUNK]
                with client.pipeline(transaction=False) as pipe:
                    for case_id in chunk:
                        pipe.hmget(_case_key(case_id), ROW_FIELDS)
                    read = map(_to_row, chunk, pipe.execute())
                    rows += [row for row in read if row is not None and query.takes(row)]
        if query.sort == "created":
            return [row.id for row in (rows if query.descending else reversed(rows))]
        # Sorting is stable, also in reverse: equal ones stay newest first.
        keys: dict[str, Any] = {
            "filename": lambda row: row.filename.casefold(),
            "confidence": lambda row: row.confidence,
            "label": lambda row: UNCERTAIN if row.uncertain else row.label,
        }
        return [row.id for row in sorted(rows, key=keys[query.sort], reverse=query.descending)]

    def read_many(self, ids: Sequence[str]) -> list[Case]:
        """Return the cases of some ids, without those that are gone.

        Raises:
            StoreError: Redis failed.
        """
        with self._asking() as client:
            return [case for case in self._read(client, ids) if case]

    def get(self, case_id: str) -> Case | None:
        """Return a case, or None when there is none of that id.

        Raises:
            StoreError: Redis failed.
        """
        with self._asking() as client:
            return _from_hash(client.hgetall(_case_key(case_id)))

    def picture(self, case_id: str) -> bytes:
        """Return the picture of a case to look at, a JPEG file; empty when there is none.

        Raises:
            StoreError: Redis failed.
        """
        with self._asking() as client:
            return client.execute_command("GET", _image_key(case_id), **{NEVER_DECODE: True}) or b""

    def set_feedback(self, case_id: str, feedback: Feedback | None) -> Case | None:
        """Keep what a person says of a case, or forget it; return the case, or None when there is none of that id.

        Raises:
            StoreError: Redis failed.
        """
        key = _case_key(case_id)
        with self._asking() as client:
            if not client.exists(key):
                return None
            with client.pipeline(transaction=False) as pipe:
                if feedback:
                    fields = {"feedback_label": feedback.label, "feedback_created": _moment(feedback.created)}
                    pipe.hset(key, mapping=fields)
                    pipe.zadd(FEEDBACK, {case_id: feedback.created.timestamp()})
                else:
                    pipe.zrem(FEEDBACK, case_id)
                    pipe.hdel(key, "feedback_label", "feedback_created")
                pipe.hgetall(key)
                case = _from_hash(pipe.execute()[-1])
            if case is None:
                # The case was deleted in between; what was just written is a hash of feedback alone.
                client.zrem(FEEDBACK, case_id)
                client.delete(key)
            return case

    def delete(self, case_id: str) -> bool:
        """Delete a case with its picture; return whether it was there.

        Raises:
            StoreError: Redis failed.
        """
        with self._asking() as client, client.pipeline(transaction=False) as pipe:
            pipe.zrem(INDEX, case_id)
            pipe.zrem(FEEDBACK, case_id)
            pipe.delete(_image_key(case_id))
            pipe.delete(_case_key(case_id))
            return bool(pipe.execute()[-1])

    def close(self) -> None:
        """Give the connections back."""
        self._redis.close()


def _pages(total: int, number: int, size: int) -> int:
    """Return how many pages there are; raise PageError when ``number`` is beyond the last."""
    pages = max(1, math.ceil(total / size))
    if number > pages:
        raise PageError(f"Page must be {pages} or less")
    return pages
