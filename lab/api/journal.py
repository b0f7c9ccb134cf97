"""The journal: every request that changes something is on disk before it is answered, and a replay restores it all.

One lock serialises the calls of the application. Before each journaled call moto's random numbers are seeded with the
call's sequence number, and the clock is set to the call's time; ids, addresses and times are thus a function of the
journal. What the lab itself changes (an instance runs now, a quota was raised) is journaled as an *event* among the
requests. Requests that only read are neither seeded nor journaled.

The journal is a file of one JSON object per line; bodies above a threshold are files of their own, named by their
SHA-256 digest. Credentials may be among them: everything is readable by its owner alone.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import parse_qs

from lab.api import clock

log = logging.getLogger(__name__)

INLINE_BYTES = 32 * 1024
CHUNK = 1024 * 1024
READING = re.compile(
    r"(Describe|Get|List|Head|BatchGet|Search|Lookup|Query|Scan|Simulate|Validate|Filter|Decode|Select|Check|Preview)"
)
# Requests that read by their name and leave credentials behind.
WRITING = {"GetSessionToken", "GetFederationToken"}
# The keys of a WSGI environment that a call is made of, beside its HTTP headers and its body.
KEPT = (
    "REQUEST_METHOD", "SCRIPT_NAME", "PATH_INFO", "QUERY_STRING", "RAW_URI", "REQUEST_URI", "SERVER_NAME",
    "SERVER_PORT", "SERVER_PROTOCOL", "CONTENT_TYPE", "wsgi.url_scheme", "wsgi.input_terminated",
)  # fmt: skip

StartResponse = Callable[..., Any]
Application = Callable[[dict[str, Any], StartResponse], Iterable[bytes]]


class JournalError(RuntimeError):
    """The journal on disk cannot be read or written; the message names the file and what to do."""


@dataclass(frozen=True)
class Answer:
    """A complete HTTP answer."""

    status: str
    headers: list[tuple[str, str]]
    body: bytes

    @property
    def code(self) -> int:
        """The status as a number."""
        return int(self.status.split()[0])


class Journal:
    """Serialises, records and replays the calls of a WSGI application.

    Args:
        directory: where the journal is kept; made when missing.
        application: the application whose state is to be kept.
        handlers: what the lab's own events do, by name; they are called with the event's arguments.
        seed: called with the sequence number before each journaled call.
    """

    def __init__(
        self,
        directory: Path,
        application: Application,
        handlers: dict[str, Callable[..., Any]],
        seed: Callable[[int], None],
    ) -> None:
        self._directory = directory
        self._bodies = directory / "bodies"
        self._file = directory / "journal.jsonl"
        self._application = application
        self._handlers = handlers
        self._seed = seed
        self._sequence = 0
        self._stream: IO[bytes] | None = None
        self._lock = threading.RLock()
        self._changed = threading.Condition()
        self._version = 0

    def open(self) -> int:
        """Replay what is on disk and get ready for calls; return the number of entries replayed.

        Raises:
            JournalError: the journal is damaged elsewhere than in its last, unfinished line.
        """
        self._bodies.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._directory.chmod(0o700)
        replayed = 0
        with self._lock:
            for entry in self._entries():
                self._replay(entry)
                replayed += 1
            clock.freeze(None)
            descriptor = os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            self._stream = os.fdopen(descriptor, "ab")
        return replayed

    def close(self) -> None:
        """Finish; no call may follow."""
        with self._lock:
            if self._stream is not None:
                self._stream.close()
                self._stream = None

    # --- calls ------------------------------------------------------------------------------------------------------

    def call(self, environ: dict[str, Any]) -> Answer:
        """Make a call of the application, journaled if it may change something."""
        body = self._receive(environ)
        try:
            if not writes(environ, body.head()):
                with self._lock:
                    return _run(self._application, environ, body)
            with self._lock:
                number, moment = self._begin()
                try:
                    answer = _run(self._application, environ, body)
                finally:
                    clock.freeze(None)
                # An answer of "forbidden" changed nothing, and whether it is given depends on how the lab was started.
                if answer.code not in (401, 403):
                    self._append(
                        {
                            "n": number,
                            "t": moment,
                            "status": answer.code,
                            "environ": _kept(environ),
                            **body.record(self._bodies),
                        }
                    )
        finally:
            body.discard()
        self._announce()
        return answer

    def perform(self, event: str, **arguments: Any) -> Any:
        """Let one of the lab's own events happen, and keep it; return what its handler returns."""
        with self._lock:
            number, moment = self._begin()
            try:
                result = self._handlers[event](**arguments)
            finally:
                clock.freeze(None)
            self._append({"n": number, "t": moment, "event": event, "arguments": arguments})
        self._announce()
        return result

    def read(self, reader: Callable[[], Any]) -> Any:
        """Call ``reader`` while nothing changes."""
        with self._lock:
            return reader()

    # --- waiting ----------------------------------------------------------------------------------------------------

    @property
    def version(self) -> int:
        """A number that grows with every change."""
        return self._version

    def wait_beyond(self, version: int, seconds: float) -> bool:
        """Wait, without stopping others, until something changed since ``version``; False when time ran out."""
        with self._changed:
            return self._changed.wait_for(lambda: self._version > version, timeout=max(0.0, seconds))

    def _announce(self) -> None:
        with self._changed:
            self._version += 1
            self._changed.notify_all()

    # --- the file ---------------------------------------------------------------------------------------------------

    def _begin(self) -> tuple[int, float]:
        if self._stream is None:
            raise JournalError("the journal is closed: the lab is stopping")
        number, moment = self._sequence + 1, round(time.time(), 3)
        self._seed(number)
        clock.freeze(moment)
        return number, moment

    def _append(self, entry: dict[str, Any]) -> None:
        assert self._stream is not None  # noqa: S101
        line = json.dumps(entry, separators=(",", ":")).encode() + b"\n"
        try:
            self._stream.write(line)
            self._stream.flush()
            os.fsync(self._stream.fileno())
        except OSError as error:
            raise JournalError(
                f"{self._file} cannot be written ({error}); free the disk and start the lab again"
            ) from error
        self._sequence = entry["n"]

    def _entries(self) -> Iterator[dict[str, Any]]:
        """Read the journal; cut off a last line that a crash left unfinished."""
        if not self._file.exists():
            return
        good = 0
        with self._file.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                try:
                    if not line.endswith(b"\n"):
                        raise ValueError("it does not end")
                    entry = json.loads(line)
                except ValueError as error:
                    if stream.read(1):
                        raise JournalError(
                            f"line {number} of {self._file} is damaged ({error}); 'lab down' starts afresh"
                        ) from error
                    log.warning("the last line of the journal was unfinished and is dropped")
                    break
                yield entry
                good += len(line)
        os.truncate(self._file, good)

    def _replay(self, entry: dict[str, Any]) -> None:
        self._sequence = entry["n"]
        clock.freeze(entry["t"])
        self._seed(entry["n"])
        if "event" in entry:
            self._handlers[entry["event"]](**entry["arguments"])
            return
        body = Body.restored(entry, self._bodies)
        try:
            answer = _run(self._application, dict(entry["environ"]), body)
        finally:
            body.discard()
        if (answer.code < 400) != (entry["status"] < 400):
            log.error(
                "replaying call %d (%s %s) answered %d, not %d", entry["n"], entry["environ"]["REQUEST_METHOD"],
                entry["environ"]["PATH_INFO"], answer.code, entry["status"],
            )  # fmt: skip

    def _receive(self, environ: dict[str, Any]) -> Body:
        """Read the body of a call from the network, before anyone else has to wait for it."""
        terminated = bool(environ.get("wsgi.input_terminated")) and "chunked" in environ.get(
            "HTTP_TRANSFER_ENCODING", ""
        )
        length = None if terminated else int(environ.get("CONTENT_LENGTH") or 0)
        return Body.received(environ["wsgi.input"], length, self._bodies)


class Body:
    """The body of a call: in memory when small, a file when large."""

    def __init__(self, data: bytes = b"", path: Path | None = None, digest: str = "", size: int = 0) -> None:
        self._data = data
        self._path = path
        self._digest = digest
        self.size = size if path else len(data)
        self._streams: list[IO[bytes]] = []

    @classmethod
    def received(cls, stream: IO[bytes], length: int | None, directory: Path) -> Body:
        """Read ``length`` bytes, or all there are, from the network."""
        data = _read(stream, INLINE_BYTES + 1 if length is None else min(length, INLINE_BYTES + 1))
        if len(data) <= INLINE_BYTES:
            return cls(data)
        path = directory / f"{os.getpid()}-{threading.get_ident()}-{time.monotonic_ns()}.part"
        digest, size = hashlib.sha256(data), len(data)
        try:
            with path.open("xb") as copy:
                copy.write(data)
                while chunk := stream.read(CHUNK if length is None else min(CHUNK, length - size)):
                    digest.update(chunk)
                    copy.write(chunk)
                    size += len(chunk)
                copy.flush()
                os.fsync(copy.fileno())
        except OSError:
            path.unlink(missing_ok=True)
            raise
        return cls(path=path, digest=digest.hexdigest(), size=size)

    @classmethod
    def restored(cls, entry: dict[str, Any], directory: Path) -> Body:
        """Take the body of a journaled call from the journal."""
        if "blob" not in entry:
            return cls(base64.b64decode(entry.get("body", "")))
        path = directory / entry["blob"]
        if not path.exists():
            raise JournalError(f"{path} is missing, the body of call {entry['n']}; 'lab down' starts afresh")
        return cls(path=path, digest=entry["blob"], size=path.stat().st_size)

    def record(self, directory: Path) -> dict[str, Any]:
        """Make the body durable and return how the journal refers to it."""
        if self._path is None:
            return {"body": base64.b64encode(self._data).decode()} if self._data else {}
        kept = directory / self._digest
        self._path.replace(kept)
        self._path = kept
        return {"blob": self._digest}

    def head(self) -> bytes:
        """Return the body, if it is small; enough to tell what a request wants."""
        return self._data

    def open(self) -> IO[bytes]:
        """Return a stream over the body."""
        stream: IO[bytes] = io.BytesIO(self._data) if self._path is None else self._path.open("rb")
        self._streams.append(stream)
        return stream

    def discard(self) -> None:
        """Close what was opened, and remove a file that the journal does not need."""
        for stream in self._streams:
            stream.close()
        if self._path is not None and self._path.suffix == ".part":
            self._path.unlink(missing_ok=True)


def _read(stream: IO[bytes], size: int) -> bytes:
    """Read up to ``size`` bytes, however small the pieces are in which they come."""
    pieces = []
    while size > 0 and (piece := stream.read(size)):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def _run(application: Application, environ: dict[str, Any], body: Body) -> Answer:
    """Call a WSGI application and collect its whole answer."""
    started: list[Any] = []
    written: list[bytes] = []

    def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], Any]:
        del exc_info
        started[:] = [status, headers]
        return written.append

    environ = {
        **environ,
        "wsgi.version": (1, 0),
        "wsgi.input": body.open(),
        "wsgi.errors": _Errors(),
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
        "CONTENT_LENGTH": str(body.size),
    }
    chunks = application(environ, start_response)
    try:
        pieces = [*written, *chunks]
    finally:
        close = getattr(chunks, "close", None)
        if close is not None:
            close()
    return Answer(started[0], list(started[1]), b"".join(pieces))


class _Errors(io.TextIOBase):
    """Takes what an application writes to its error stream into the log."""

    def write(self, text: str) -> int:
        if text.strip():
            log.warning("%s", text.rstrip())
        return len(text)


def _kept(environ: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a WSGI environment with which the call can be made again."""
    return {
        key: value
        for key, value in environ.items()
        if (key in KEPT or key.startswith("HTTP_") or isinstance(value, dict)) and _plain(value)
    }


def _plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and isinstance(item, str) for key, item in value.items())
    return isinstance(value, str | bool | int)


def action(environ: dict[str, Any], body: bytes) -> str:
    """Return the name of the action that a request of one of AWS's query or JSON protocols wants; '' for others."""
    target = environ.get("HTTP_X_AMZ_TARGET")
    if target:
        return str(target).rpartition(".")[2]
    query = parse_qs(environ.get("QUERY_STRING", ""))
    if "Action" in query:
        return query["Action"][0]
    if environ.get("CONTENT_TYPE", "").startswith("application/x-www-form-urlencoded"):
        return parse_qs(body.decode(errors="replace")).get("Action", [""])[0]
    return ""


def writes(environ: dict[str, Any], body: bytes) -> bool:
    """Say whether a request may change something."""
    name = action(environ, body)
    if name:
        return name in WRITING or READING.match(name) is None
    return environ["REQUEST_METHOD"] not in ("GET", "HEAD", "OPTIONS")
