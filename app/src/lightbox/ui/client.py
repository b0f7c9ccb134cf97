"""The UI's way to the API: several addresses in turn, fail-over, one more try, time limits, checked answers."""

from __future__ import annotations

import asyncio
import itertools
import re
import socket
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx

from lightbox import web
from lightbox.ui import answers, canary
from lightbox.ui.answers import Case, CasesPage, Model, Prediction

# The request did not reach the API, or its connection broke before an answer: a worker was replaced, a host is down.
CONNECTION_ERRORS = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.RemoteProtocolError,
    httpx.ReadError,
    httpx.WriteError,
    httpx.CloseError,
)
# Answers that say this host cannot help while another might.
ELSEWHERE = frozenset({502, 503, 504})
# Seconds before the same address is tried again.
PAUSE = 0.15
# Seconds for which an address that failed is asked last.
SHUNNED = 5.0
MODEL_SECONDS = 5.0
# Seconds that a canary may take before the others are asked.
CANARY_SECONDS = 10.0
# A host that lost its power answers nothing at all: the connection counts as broken after 3 s without a sign of life,
# however long an answer may take.
SOCKET_OPTIONS = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 2),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 3000),
]
LIMITS = httpx.Limits(max_connections=64, max_keepalive_connections=16, keepalive_expiry=5.0)
RETRY_AFTER = re.compile(r"\d{1,4}")
IMAGES = frozenset({"image/jpeg", "image/png"})

T = TypeVar("T")


class ApiError(Exception):
    """The API gave no answer that can be shown. ``status`` is the page's; the text is for people.

    ``retry_after`` is the number of seconds after which it may be worth another try, where the API said so.
    """

    def __init__(self, status: int, kind: str, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.kind, self.retry_after = status, kind, retry_after


@dataclass(frozen=True)
class Picture:
    """An image of a case."""

    content: bytes
    media_type: str


class ApiClient:
    """Asks the API hosts in turn.

    A connection that fails or breaks is tried once more, at the next address (or the same, where there is one only);
    an answer of 502, 503 or 504 is taken to the next address. A time-out is not tried again: the API is busy. An
    address whose connection failed or that gave no answer in time is asked last for some seconds, so that a dead host
    costs the first requests time and not every second one. A request goes to two hosts with the same X-Request-ID, of
    which the API makes one case.

    While there is a canary (:mod:`lightbox.ui.canary`) its people's requests go there first and nobody else's before
    the last. Whatever it fails at, an error, nonsense or no answer in time, the others are asked.
    """

    def __init__(
        self,
        urls: Sequence[str],
        timeout: float = 30.0,
        connect_timeout: float = 1.0,
        transport: httpx.AsyncBaseTransport | None = None,
        canary_file: Path | None = None,
    ) -> None:
        """Make a client for ``urls`` (``http://host:port``); the limits are in seconds.

        Raises:
            ValueError: there is no address, or one is not http(s)://….
        """
        self.urls = [url.strip().rstrip("/") for url in urls if url.strip()]
        if not self.urls or not all(url.startswith(("http://", "https://")) for url in self.urls):
            raise ValueError("LIGHTBOX_API_URLS must hold addresses of the form http://host:port, comma separated")
        self._canary = canary.Watched(canary_file, self.urls)
        self._turns: Iterator[int] = itertools.cycle(range(len(self.urls)))
        self._failed: dict[str, float] = {}
        self._http = httpx.AsyncClient(
            timeout=httpx.Timeout(timeout, connect=connect_timeout, pool=timeout),
            transport=transport or httpx.AsyncHTTPTransport(limits=LIMITS, socket_options=SOCKET_OPTIONS),
            # Proxies are for the way out; the API is next door.
            trust_env=False,
            follow_redirects=False,
        )
        self._trial = httpx.Timeout(min(timeout, CANARY_SECONDS), connect=connect_timeout)
        self._logger = web.get_logger("ui")
        # By the address of the canary for its own people, and "" for everybody else.
        self._models: dict[str, tuple[float, Model | ApiError]] = {}
        self._model_lock = asyncio.Lock()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    def _order(self, tried: canary.Canary | None = None) -> list[str]:
        """Return the addresses of one request's tries: each once, from the next in turn, those that failed a moment
        ago last; a single one twice. A canary is the first for its own people, if it did not just fail, and the last
        for everybody else.
        """
        first = next(self._turns)
        order = self.urls[first:] + self.urls[:first]
        limit = time.monotonic() - SHUNNED
        order.sort(key=lambda url: self._failed.get(url, float("-inf")) > limit)
        if tried:
            own = tried.serves(canary.visitor.get()) and self._failed.get(tried.url, float("-inf")) <= limit
            order.sort(key=lambda url: (url == tried.url) != own)
        return order if len(order) > 1 else order * 2

    async def _ask(
        self,
        method: str,
        path: str,
        request_id: str,
        expected: Collection[int] = (200,),
        streamed: bool = False,
        without: str = "",
        **more: Any,
    ) -> httpx.Response:
        """Return an answer of an expected status; a streamed one still has its body to be read, and to be closed.

        The address ``without`` is not asked.

        Raises:
            ApiError: there is none.
        """
        problem: ApiError | None = None
        previous = None
        headers = {"X-Request-ID": request_id, "Accept": "application/json, application/problem+json, */*"}
        tried = self._canary.now()
        for url in self._order(tried):
            if url == without:
                continue
            if url == previous:
                if not (problem and problem.kind == "api_down"):
                    break
                await asyncio.sleep(PAUSE)
            # A canary that everybody else has refused is not held to more than they are.
            on_trial = tried is not None and url == tried.url and previous is None
            previous = url
            try:
                limits = self._trial if on_trial else self._http.timeout
                request = self._http.build_request(method, url + path, headers=headers, timeout=limits, **more)
                response = await self._http.send(request, stream=True)
                if response.status_code not in expected or not streamed:
                    try:
                        await response.aread()
                    finally:
                        await response.aclose()
            except httpx.HTTPError as error:
                problem = self._failure(url, path, request_id, error)
                if problem.kind != "api_down" and not on_trial:
                    raise problem from None
                continue
            self._failed.pop(url, None)
            if response.status_code in expected:
                return response
            problem = self._refusal(response)
            self._log(url, path, request_id, f"status {response.status_code}")
            if response.status_code not in ELSEWHERE and not (on_trial and response.status_code >= 500):
                break
        raise problem or ApiError(503, "api_down", "The prediction service cannot be reached.")

    async def _read(self, read: Callable[[Any], T], method: str, path: str, request_id: str, **more: Any) -> T:
        """Return what a request was answered with, understood.

        Raises:
            ApiError: there is no answer, or it is not what was agreed.
        """
        response = await self._ask(method, path, request_id, **more)
        try:
            return understood(response, read)
        except ApiError:
            tried = self._canary.now()
            if tried is None or not str(response.url).startswith(f"{tried.url}/"):
                raise
        self._log(tried.url, path, request_id, "an answer that is not what was agreed")
        return understood(await self._ask(method, path, request_id, without=tried.url, **more), read)

    def _failure(self, url: str, path: str, request_id: str, error: httpx.HTTPError) -> ApiError:
        """Return what a try without an answer means; an address that is down or too slow is asked last for a while."""
        self._log(url, path, request_id, type(error).__name__)
        if isinstance(error, CONNECTION_ERRORS):
            self._failed[url] = time.monotonic()
            return ApiError(503, "api_down", "The prediction service cannot be reached.")
        if isinstance(error, httpx.TimeoutException):
            self._failed[url] = time.monotonic()
            return ApiError(504, "api_timeout", "The prediction service took too long to answer.")
        return ApiError(502, "api_protocol", "The prediction service cannot be understood.")

    def _log(self, url: str, path: str, request_id: str, reason: str) -> None:
        fields = {"request_id": request_id, "api": url, "path": path, "reason": reason}
        self._logger.warning("the API did not answer with success", extra={"fields": fields})

    @staticmethod
    def _refusal(response: httpx.Response) -> ApiError:
        """Return the error a person sees for an answer of another status than was expected."""
        words = "The prediction service failed."
        try:
            body = answers.entry(response.json())
            words = answers.optional_text(body, "detail") or answers.optional_text(body, "title") or words
        except (ValueError, RecursionError):
            pass
        status = response.status_code if 400 <= response.status_code < 600 else 502
        pause = response.headers.get("retry-after", "")
        return ApiError(status, f"api_{status}", words[:300], int(pause) if RETRY_AFTER.fullmatch(pause) else None)

    async def predict(self, name: str, content: bytes, request_id: str) -> Prediction:
        """Have an image classified.

        Raises:
            ApiError: there is no verdict.
        """
        return await self._read(
            answers.read_prediction,
            "POST",
            "/v1/predictions",
            request_id,
            expected=(201,),
            params={"heatmap": "true"},
            files={"file": (name, content, "application/octet-stream")},
        )

    async def cases(self, query: Mapping[str, str], request_id: str) -> CasesPage:
        """Return the page of cases that a query asks for.

        Raises:
            ApiError: there is none.
        """
        return await self._read(answers.read_cases, "GET", "/v1/cases", request_id, params=dict(query))

    async def case(self, identity: str, request_id: str) -> Case:
        """Return a case.

        Raises:
            ApiError: it cannot be had; with status 404 there is none of that id.
        """
        return await self._read(answers.read_case, "GET", f"/v1/cases/{identity}", request_id)

    async def delete(self, identity: str, request_id: str) -> None:
        """Delete a case; one that is gone already, for example by a first try, is as good as deleted.

        Raises:
            ApiError: it was not deleted, or nobody knows.
        """
        await self._ask("DELETE", f"/v1/cases/{identity}", request_id, expected=(204, 404))

    async def give_feedback(self, identity: str, label: str, request_id: str) -> Case:
        """Say which label is right for a case; return the case.

        Raises:
            ApiError: it was not stored, or nobody knows.
        """
        path, body = f"/v1/cases/{identity}/feedback", {"label": label}
        return await self._read(answers.read_case, "PUT", path, request_id, json=body)

    async def withdraw_feedback(self, identity: str, request_id: str) -> Case:
        """Take back what was said of a case; return the case.

        Raises:
            ApiError: it was not taken back, or nobody knows.
        """
        return await self._read(answers.read_case, "DELETE", f"/v1/cases/{identity}/feedback", request_id)

    async def picture(self, identity: str, kind: str, request_id: str) -> Picture:
        """Return the ``image`` or the ``heatmap`` of a case.

        Raises:
            ApiError: there is none.
        """
        response = await self._ask("GET", f"/v1/cases/{identity}/{kind}", request_id)
        media_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type not in IMAGES:
            raise malformed()
        return Picture(response.content, media_type)

    @asynccontextmanager
    async def export(self, query: Mapping[str, str], request_id: str) -> AsyncIterator[AsyncIterator[bytes]]:
        """Give the table of all cases that a query asks for, as CSV in pieces.

        Raises:
            ApiError: there is none.
        """
        response = await self._ask("GET", "/v1/cases.csv", request_id, streamed=True, params=dict(query))
        try:
            if not response.headers.get("content-type", "").startswith("text/csv"):
                raise malformed()
            yield response.aiter_bytes()
        finally:
            await response.aclose()

    async def served_model(self, request_id: str) -> Model:
        """Return the model that the API serves, asked for every few seconds.

        Raises:
            ApiError: the API does not say.
        """
        tried = self._canary.now()
        side = tried.url if tried and tried.serves(canary.visitor.get()) else ""
        async with self._model_lock:
            told, known = self._models.get(side, (float("-inf"), None))
            if known is None or time.monotonic() - told > MODEL_SECONDS:
                try:
                    known = await self._read(answers.read_model, "GET", "/v1/model", request_id)
                except ApiError as problem:
                    known = problem
                self._models[side] = (time.monotonic(), known)
        if isinstance(known, ApiError):
            raise ApiError(known.status, known.kind, str(known), known.retry_after)
        return known

    async def model(self, request_id: str) -> Model | None:
        """Return the model that the API serves, or None when it does not say."""
        try:
            return await self.served_model(request_id)
        except ApiError:
            return None


def understood(response: httpx.Response, read: Callable[[Any], T]) -> T:
    """Return what an answer says.

    Raises:
        ApiError: it is not what was agreed.
    """
    try:
        return read(response.json())
    # Not JSON, not text, or not what was agreed: all are ValueErrors.
    except (ValueError, RecursionError):
        raise malformed() from None


def malformed() -> ApiError:
    """Return the error for an answer that is not what was agreed."""
    return ApiError(502, "api_malformed", "The prediction service gave an answer that this page does not understand.")
