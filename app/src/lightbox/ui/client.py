"""The UI's way to the API: several addresses in turn, fail-over, one more try, time limits, checked answers."""

from __future__ import annotations

import asyncio
import base64
import binascii
import itertools
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from lightbox import web

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
PERCENT = re.compile(r"(100\.00|\d{1,2}\.\d{2})%")
# Seconds before the same address is tried again.
PAUSE = 0.15
MODEL_SECONDS = 5.0


class ApiError(Exception):
    """The API gave no answer that can be shown. ``status`` is the page's; the text is for people."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.status, self.kind = status, kind


@dataclass(frozen=True)
class CaseRow:
    """A case as pages show it. ``finding`` is None when nobody can say which label is the finding."""

    filename: str
    label: str
    confidence: str
    created: str
    model_version: str
    source: str
    thumbnail: str
    finding: bool | None


@dataclass(frozen=True)
class Verdict:
    """The answer to an upload."""

    case: CaseRow
    synthetic: bool
    notice: str | None


@dataclass(frozen=True)
class ResultsPage:
    """One page of cases."""

    cases: tuple[CaseRow, ...]
    number: int
    pages: int
    total: int


@dataclass(frozen=True)
class Model:
    """What the pages say about the model: its version and whether it knows synthetic images only."""

    version: str
    synthetic: bool


class MalformedError(ValueError):
    """An answer lacks something or says something impossible."""


def _text(answer: Mapping[str, Any], name: str) -> str:
    value = answer.get(name)
    if not isinstance(value, str) or not value:
        raise MalformedError(name)
    return value


def _count(answer: Mapping[str, Any], name: str, least: int = 0) -> int:
    value = answer.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise MalformedError(name)
    return value


def _object(answer: Any) -> Mapping[str, Any]:
    if not isinstance(answer, dict):
        raise MalformedError("object")
    return answer


def _case(answer: Mapping[str, Any], positive: Any) -> CaseRow:
    confidence = _text(answer, "confidence")
    if not PERCENT.fullmatch(confidence):
        raise MalformedError("confidence")
    image = answer.get("image") or ""
    try:
        base64.b64decode(image, validate=True)
    except (binascii.Error, ValueError, TypeError):
        raise MalformedError("image") from None
    label = _text(answer, "prediction")
    return CaseRow(
        filename=_text(answer, "filename"),
        label=label,
        confidence=confidence,
        created=_text(answer, "created"),
        model_version=_text(answer, "model_version"),
        source=_text(answer, "source"),
        thumbnail=image,
        finding=label == positive if isinstance(positive, str) else None,
    )


def read_verdict(answer: Any) -> Verdict:
    """Return the verdict in an answer to an upload.

    Raises:
        MalformedError: the answer is not whole, or its confidence is not that of its label.
    """
    answer = _object(answer)
    case = _case(answer, answer.get("positive"))
    probabilities = _object(answer.get("probabilities"))
    share = probabilities.get(case.label)
    if not isinstance(share, int | float) or isinstance(share, bool) or not 0 <= share <= 1:
        raise MalformedError("probabilities")
    if abs(share * 100 - float(case.confidence[:-1])) > 0.0051:
        raise MalformedError("confidence")
    notice = answer.get("notice")
    return Verdict(
        case=case,
        # Silence about the data is not taken for real data.
        synthetic=answer.get("synthetic") is not False,
        notice=notice if isinstance(notice, str) and notice else None,
    )


def read_page(answer: Any) -> ResultsPage:
    """Return the page of cases in an answer.

    Raises:
        MalformedError: the answer is not whole.
    """
    answer = _object(answer)
    cases = answer.get("cases")
    if not isinstance(cases, list):
        raise MalformedError("cases")
    return ResultsPage(
        cases=tuple(_case(_object(case), answer.get("positive")) for case in cases),
        number=_count(answer, "page", 1),
        pages=_count(answer, "total_pages", 1),
        total=_count(answer, "total_keys"),
    )


def read_model(answer: Any) -> Model:
    """Return what a ``/v1/model`` answer says to the pages.

    Raises:
        MalformedError: the answer has no version.
    """
    answer = _object(answer)
    data = answer.get("data")
    return Model(
        version=_text(answer, "version"), synthetic=not (isinstance(data, dict) and data.get("synthetic") is False)
    )


class ApiClient:
    """Asks the API hosts in turn.

    A connection that fails or breaks is tried once more, at the next address (or the same, where there is one only);
    an answer of 502, 503 or 504 is taken to the next address. A time-out is not tried again: the API is busy.
    """

    def __init__(
        self,
        urls: Sequence[str],
        timeout: float = 30.0,
        connect_timeout: float = 2.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Make a client for ``urls`` (``http://host:port``); the limits are in seconds.

        Raises:
            ValueError: there is no address, or one is not http(s)://….
        """
        self.urls = [url.strip().rstrip("/") for url in urls if url.strip()]
        if not self.urls or not all(url.startswith(("http://", "https://")) for url in self.urls):
            raise ValueError("LIGHTBOX_API_URLS must hold addresses of the form http://host:port, comma separated")
        self._turns: Iterator[int] = itertools.cycle(range(len(self.urls)))
        self._http = httpx.AsyncClient(
            timeout=httpx.Timeout(timeout, connect=connect_timeout, pool=timeout),
            limits=httpx.Limits(max_connections=64, max_keepalive_connections=16, keepalive_expiry=5.0),
            transport=transport,
            # Proxies are for the way out; the API is next door.
            trust_env=False,
            follow_redirects=False,
        )
        self._logger = web.get_logger("ui")
        self._model: Model | None = None
        self._model_time = float("-inf")
        self._model_lock = asyncio.Lock()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    def _order(self) -> list[str]:
        """Return the addresses of one request's tries: each once, from the next in turn; a single one twice."""
        first = next(self._turns)
        order = self.urls[first:] + self.urls[:first]
        return order if len(order) > 1 else order * 2

    async def _ask(self, method: str, path: str, request_id: str, **more: Any) -> httpx.Response:
        problem: ApiError | None = None
        previous = None
        for url in self._order():
            if url == previous:
                if not (problem and problem.kind == "api_down"):
                    break
                await asyncio.sleep(PAUSE)
            previous = url
            try:
                response = await self._http.request(
                    method, url + path, headers={"X-Request-ID": request_id, "Accept": "application/json"}, **more
                )
            except CONNECTION_ERRORS as error:
                self._log(url, path, request_id, type(error).__name__)
                problem = ApiError(503, "api_down", "The prediction service cannot be reached.")
                continue
            except httpx.TimeoutException as error:
                self._log(url, path, request_id, type(error).__name__)
                raise ApiError(504, "api_timeout", "The prediction service took too long to answer.") from None
            except httpx.HTTPError as error:
                self._log(url, path, request_id, type(error).__name__)
                raise ApiError(502, "api_protocol", "The prediction service cannot be understood.") from None
            if response.status_code == 200:
                return response
            problem = self._refusal(response)
            self._log(url, path, request_id, f"status {response.status_code}")
            if response.status_code not in ELSEWHERE:
                break
        raise problem or ApiError(503, "api_down", "The prediction service cannot be reached.")

    def _log(self, url: str, path: str, request_id: str, reason: str) -> None:
        fields = {"request_id": request_id, "api": url, "path": path, "reason": reason}
        self._logger.warning("the API did not answer with success", extra={"fields": fields})

    @staticmethod
    def _refusal(response: httpx.Response) -> ApiError:
        """Return the error a person sees for an answer that is not 200."""
        try:
            words = _text(_object(response.json()), "error")[:300]
        except ValueError:
            words = "The prediction service failed."
        status = response.status_code if 400 <= response.status_code < 600 else 502
        return ApiError(status, f"api_{status}", words)

    async def predict(self, name: str, content: bytes, request_id: str) -> Verdict:
        """Have an image classified.

        Raises:
            ApiError: there is no verdict.
        """
        response = await self._ask(
            "POST", "/predict", request_id, files={"file": (name, content, "application/octet-stream")}
        )
        return self._read(response, read_verdict)

    async def predictions(self, page: str, request_id: str) -> ResultsPage:
        """Return a page of cases.

        Raises:
            ApiError: there is none.
        """
        return self._read(await self._ask("GET", "/predictions", request_id, params={"page": page}), read_page)

    async def model(self, request_id: str) -> Model | None:
        """Return the model that the API serves, asked for every few seconds; None when it does not say."""
        async with self._model_lock:
            if time.monotonic() - self._model_time > MODEL_SECONDS:
                try:
                    self._model = self._read(await self._ask("GET", "/v1/model", request_id), read_model)
                except ApiError:
                    self._model = None
                self._model_time = time.monotonic()
            return self._model

    @staticmethod
    def _read(response: httpx.Response, read: Any) -> Any:
        try:
            return read(response.json())
        # Not JSON, not text, or not what was agreed: all are ValueErrors.
        except (ValueError, RecursionError):
            raise ApiError(
                502, "api_malformed", "The prediction service gave an answer that this page does not understand."
            ) from None
