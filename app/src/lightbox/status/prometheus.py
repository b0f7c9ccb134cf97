"""Prometheus' HTTP API, as far as the page needs it: values now, values over time, and the alerts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import httpx

Labels = Mapping[str, str]


class PrometheusError(Exception):
    """A query was not answered; the text says why. Where ``unreachable``, no other would be either."""

    def __init__(self, message: str, unreachable: bool = False) -> None:
        super().__init__(message)
        self.unreachable = unreachable


@dataclass(frozen=True)
class Sample:
    """A value now."""

    labels: Labels
    value: float


@dataclass(frozen=True)
class Series:
    """Values over time: pairs of a time in seconds since 1970 and a value, in order."""

    labels: Labels
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Alert:
    """An alert that fires, and since when where that is known."""

    labels: Labels
    annotations: Labels
    since: datetime | None


def _number(text: Any) -> float | None:
    """Return a value as Prometheus writes it; None where it stands for none: NaN, or no end."""
    try:
        value = float(text)
    except (TypeError, ValueError, OverflowError):
        return None
    return value if math.isfinite(value) else None


def _texts(found: Any) -> dict[str, str]:
    return {str(name): str(value) for name, value in found.items()} if isinstance(found, dict) else {}


def _pair(found: Any) -> tuple[float, float] | None:
    if not isinstance(found, list) or len(found) != 2 or isinstance(found[0], str):
        return None
    time, value = _number(found[0]), _number(found[1])
    return None if time is None or value is None else (time, value)


def _results(data: Any, kind: str) -> Iterator[Mapping[str, Any]]:
    if not isinstance(data, dict) or data.get("resultType") != kind or not isinstance(data.get("result"), list):
        raise PrometheusError("Prometheus gave an answer that this page does not understand.")
    for one in data["result"]:
        if not isinstance(one, dict):
            raise PrometheusError("Prometheus gave an answer that this page does not understand.")
        yield one


def read_samples(data: Any) -> list[Sample]:
    """Return the values in the ``data`` of an answer; what is NaN or infinite is left out.

    Raises:
        PrometheusError: it is not what was agreed.
    """
    found = ((one.get("metric"), _pair(one.get("value"))) for one in _results(data, "vector"))
    return [Sample(_texts(labels), pair[1]) for labels, pair in found if pair]


def read_series(data: Any) -> list[Series]:
    """Return the series in the ``data`` of an answer; what is NaN or infinite leaves a gap, a series of gaps nothing.

    Raises:
        PrometheusError: it is not what was agreed.
    """
    series = []
    for one in _results(data, "matrix"):
        values = one.get("values")
        pairs = [_pair(value) for value in values] if isinstance(values, list) else []
        if points := sorted({pair[0]: pair[1] for pair in pairs if pair}.items()):
            series.append(Series(_texts(one.get("metric")), points))
    return series


def read_alerts(data: Any) -> list[Alert]:
    """Return the alerts that fire, of the ``data`` of an answer.

    Raises:
        PrometheusError: it is not what was agreed.
    """
    found = data.get("alerts") if isinstance(data, dict) else None
    if not isinstance(found, list):
        raise PrometheusError("Prometheus gave an answer that this page does not understand.")
    alerts = []
    for one in found:
        if isinstance(one, dict) and one.get("state") == "firing":
            alerts.append(
                Alert(_texts(one.get("labels")), _texts(one.get("annotations")), _moment(one.get("activeAt")))
            )
    return alerts


def _moment(text: Any) -> datetime | None:
    # Python 3.10 reads neither a Z nor nanoseconds.
    try:
        return datetime.strptime(str(text)[:19], "%Y-%m-%dT%H:%M:%S").replace(tzinfo=timezone.utc)
    except ValueError:
        return None


class Prometheus:
    """Asks one Prometheus, a few questions at a time."""

    def __init__(self, url: str, timeout: float, transport: httpx.AsyncBaseTransport | None = None) -> None:
        """Make a client for ``url`` (``http://host:port``); an answer may take ``timeout`` seconds."""
        self.url = url.rstrip("/")
        self._http = httpx.AsyncClient(
            base_url=self.url,
            timeout=httpx.Timeout(timeout, connect=2.0, pool=None),
            limits=httpx.Limits(max_connections=4),
            transport=transport,
            # Proxies are for the way out; Prometheus is on this host.
            trust_env=False,
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def _ask(self, path: str, form: Mapping[str, str] | None = None) -> Any:
        """Return the ``data`` of an answer.

        Raises:
            PrometheusError: there is none.
        """
        try:
            # By POST, since some queries are long.
            response = await self._http.request("POST" if form else "GET", path, data=form)
        except httpx.TimeoutException:
            raise PrometheusError("Prometheus did not answer in time.", unreachable=True) from None
        except httpx.HTTPError as error:
            words = "refuses the connection" if isinstance(error, httpx.ConnectError) else "breaks the connection off"
            raise PrometheusError(f"Prometheus {words}.", unreachable=True) from None
        try:
            answer = response.json()
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict) or answer.get("status") not in ("success", "error"):
            starting = response.status_code == 503
            words = "is starting" if starting else f"answered {response.status_code} without words"
            raise PrometheusError(f"Prometheus {words}.", unreachable=True)
        if answer["status"] == "error":
            raise PrometheusError(str(answer.get("error"))[:300])
        return answer.get("data")

    async def samples(self, query: str) -> list[Sample]:
        """Return what a query gives now.

        Raises:
            PrometheusError: nothing.
        """
        return read_samples(await self._ask("/api/v1/query", {"query": query}))

    async def series(self, query: str, start: float, end: float, step: int) -> list[Series]:
        """Return what a query gives from ``start`` to ``end`` (seconds since 1970), every ``step`` seconds.

        Raises:
            PrometheusError: nothing.
        """
        form = {"query": query, "start": f"{start:.3f}", "end": f"{end:.3f}", "step": str(step)}
        return read_series(await self._ask("/api/v1/query_range", form))

    async def alerts(self) -> list[Alert]:
        """Return the alerts that fire.

        Raises:
            PrometheusError: nobody knows.
        """
        return read_alerts(await self._ask("/api/v1/alerts"))
