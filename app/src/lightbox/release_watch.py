"""The watch over a release: whether the service answers as well as it should with the model that has just gone live.

``python -m lightbox.release_watch URL --seconds 60`` reads the service's own metrics once a second. It ends with 3 and
one line on standard error as soon as enough requests were answered and too many of them with an error, or too slowly;
it ends with 0 and one line on standard output when the time is over and neither was the case. What the monitor and the
release itself ask of the service does not count. A batch counts as one request, whatever becomes of its images.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

# Nobody waits for these; asked every few seconds, they would make up for any number of failed predictions.
PROBES = frozenset({"/health", "/ready", "/metrics", "/v1/health/live", "/v1/health/ready", "/v1/model"})
REQUESTS = "lightbox_http_requests_total"
LATENCY = "lightbox_http_request_seconds_bucket"
# Not 1, with which Python ends on an error of its own: that is no reason to go back.
TOO_BAD = 3


class WatchError(Exception):
    """The service does worse than it may; the text says by how much."""


@dataclass(frozen=True)
class Limits:
    """What a service may do.

    Attributes:
        errors: share of requests answered with a status of 500 or more, 0 to 1.
        p99: seconds within which 99 of 100 requests are answered.
        requests: how many requests must have been answered before either is judged.
    """

    errors: float
    p99: float
    requests: int


@dataclass
class Counts:
    """What a service has answered since it began, or between two looks.

    Attributes:
        requests: how many.
        failed: how many of them with a status of 500 or more.
        within: how many within a number of seconds, to that number; the last is infinite.
    """

    requests: float = 0
    failed: float = 0
    within: dict[float, float] = field(default_factory=dict)

    @classmethod
    def read(cls, text: str) -> Counts:
        """Read them from metrics in Prometheus' text format."""
        found = cls()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.labels.get("route") in PROBES:
                    continue
                if sample.name == REQUESTS:
                    found.requests += sample.value
                    found.failed += sample.value if sample.labels["status"] >= "500" else 0
                elif sample.name == LATENCY:
                    bound = float(sample.labels["le"])
                    found.within[bound] = found.within.get(bound, 0) + sample.value
        return found

    def since(self, before: Counts) -> Counts:
        """Return what was answered since an earlier look; a service that has begun anew since counts from nothing."""
        if self.requests < before.requests:
            return self
        return Counts(
            self.requests - before.requests,
            self.failed - before.failed,
            {bound: count - before.within.get(bound, 0) for bound, count in self.within.items()},
        )

    @property
    def p99(self) -> float:
        """Seconds within which 99 of 100 requests were answered."""
        return quantile(0.99, self.within)


def quantile(share: float, within: Mapping[float, float]) -> float:
    """Return the value below which a share of the observations lies, as Prometheus' histogram_quantile does; 0 without
    any.

    Args:
        share: from 0 to 1.
        within: upper bound of a bucket to the number of observations up to it, as a Prometheus histogram counts. Values
            spread evenly within a bucket; of what is beyond the last finite bound only that bound is known.
    """
    bounds = sorted(within)
    rank = share * within[bounds[-1]] if bounds else 0
    low, below = 0.0, 0.0
    for bound in bounds:
        if rank > 0 and within[bound] >= rank:
            if math.isinf(bound):
                return low
            return low + (bound - low) * (rank - below) / (within[bound] - below)
        low, below = bound, within[bound]
    return 0.0


def judge(seen: Counts, limits: Limits) -> str:
    """Return what was seen, in words.

    Raises:
        WatchError: it is worse than the limits let pass.
    """
    count = int(seen.requests)
    if count < limits.requests:
        return f"{count} requests seen, too few to judge by ({limits.requests})"
    share = seen.failed / seen.requests if seen.requests else 0.0
    told = f"{share:.1%} of {count} requests failed, 99 of 100 were answered within {seen.p99:.2f} s"
    if share > limits.errors:
        raise WatchError(f"{told}: more than {limits.errors:.1%} failed")
    if seen.p99 > limits.p99:
        raise WatchError(f"{told}: slower than {limits.p99:g} s")
    return told


def look(url: str) -> Counts:
    """Ask a service for its metrics.

    Raises:
        OSError: it does not answer.
    """
    # The host's way to the Internet is not the way to the service.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=5) as answer:
        return Counts.read(answer.read().decode())


def watch(url: str, seconds: float, limits: Limits, interval: float = 1.0) -> str:
    """Watch a service for a while; return what was seen, in words.

    Args:
        url: of the service's metrics.
        seconds: how long.
        limits: what it may do.
        interval: seconds between two looks.

    Raises:
        WatchError: it does worse than that, or has stopped answering when the time is over.
    """
    end = time.monotonic() + seconds
    before: Counts | None = None
    while True:
        silent = ""
        told = "nothing was seen"
        try:
            now = look(url)
            before = before or now
            told = judge(now.since(before), limits)
        except (OSError, ValueError) as error:
            silent = str(error)
        if (left := end - time.monotonic()) <= 0:
            break
        time.sleep(min(interval, left))
    if silent:
        raise WatchError(f"the service does not tell its metrics at {url}: {silent}")
    return told


def main(arguments: Iterable[str] | None = None) -> int:
    """Run the command line; the exit status is 0 when all is well, and `TOO_BAD` with one line on standard error when
    the service does worse than it may.
    """
    parser = argparse.ArgumentParser(prog="lightbox.release_watch", description="Watch a service after a release.")
    parser.add_argument("url", help="of the service's metrics")
    parser.add_argument("--seconds", type=float, default=60, help="how long (60)")
    parser.add_argument("--errors", type=float, default=0.05, help="share of requests that may fail with 5xx (0.05)")
    parser.add_argument("--p99", type=float, default=5, help="seconds within which 99 of 100 are answered (5)")
    parser.add_argument("--requests", type=int, default=20, help="how many requests it takes to judge (20)")
    options = parser.parse_args(None if arguments is None else list(arguments))
    try:
        told = watch(options.url, options.seconds, Limits(options.errors, options.p99, options.requests))
    except WatchError as error:
        sys.stderr.write(f"{error}\n")
        return TOO_BAD
    sys.stdout.write(f"{told}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
