"""What Prometheus sees of a healthy system that is used: every ten seconds a value of all that alerts ask for."""

from __future__ import annotations

import random
from collections.abc import Callable

STEP = 10
HOUR = 3600 // STEP
MINUTE = 60 // STEP
DAY = 86400
HOSTS = ("proxy", "ui", "api", "trainer", "monitor")
# Where a value is missing from here on, and where it is still missing.
GONE, STILL = "stale", "_"


class Series:
    """Series under names, in promtool's notation."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.values: dict[str, str] = {}

    def add(self, name: str, value: Callable[[int], float | None], /, **labels: str) -> None:
        """Add a series.

        Args:
            name: Name of the metric.
            value: What it is at a step; ``None`` where it is not there.
            labels: Its labels.
        """
        words: list[str] = []
        there = False
        for step in range(self.steps):
            number = value(step)
            words.append(f"{number:.10g}" if number is not None else GONE if there else STILL)
            there = number is not None
        named = ",".join(f'{label}="{content}"' for label, content in labels.items())
        self.values[f"{name}{{{named}}}"] = " ".join(words)

    def count(self, name: str, events: list[int], restart: range, since: int = 0, /, **labels: str) -> None:
        """Add a counter, which is gone while its service restarts and begins anew.

        Args:
            name: Name of the metric.
            events: What happened in each step.
            restart: Steps in which its service does not answer.
            since: First step at which it is there, as a status that was never answered has no series.
            labels: Its labels.
        """
        total, totals = 0, []
        for step, happened in enumerate(events):
            total = 0 if step in restart else total + happened
            totals.append(None if step in restart or step < since else total)
        self.add(name, lambda step: totals[step], **labels)


def system(hours: int, uploads: float, at: int, down: int = 2, answers: bool = False) -> dict[str, str]:
    """Return the series of a used system whose API restarts once.

    A training runs from the fifth to the twenty-fifth minute of the last hour.

    Args:
        hours: How long it was watched.
        uploads: Images per minute, on average.
        at: Step from which the API does not answer, as when it restarts with a new model.
        down: Steps in which it does not.
        answers: Whether it is there all the same, and fails whatever it is asked.

    Returns:
        Values, in promtool's notation, by series.
    """
    steps = hours * HOUR + 1
    series = Series(steps)
    chance = random.Random(20)  # noqa: S311 - not for secrets
    failing = range(at, at + down)
    restart = range(0) if answers else failing
    asked = [
        round(uploads / MINUTE) if uploads >= MINUTE else int(chance.random() < uploads / MINUTE) for _ in range(steps)
    ]
    good = [0 if step in failing else number for step, number in enumerate(asked)]
    bad = [number if step in failing else 0 for step, number in enumerate(asked)]
    finding = [sum(chance.random() < 0.6 for _ in range(number)) for number in good]

    add_hosts(series, restart)
    for app, route, status, events, gone in (
        ("ui", "/upload_predict", "200", good, range(0)),
        ("ui", "/upload_predict", "400", [int(step % 90 == 7) for step in range(steps)], range(0)),
        ("ui", "/results", "200", [int(step % 3 == 0) for step in range(steps)], range(0)),
        ("ui", "/cases/{case}", "404", [int(step % 400 == 9) for step in range(steps)], range(0)),
        ("api", "/v1/predictions", "201", good, restart),
        ("api", "/v1/cases", "200", [int(step % 3 == 0) for step in range(steps)], restart),
        ("api", "/ready", "200", [1] * steps, restart),
    ):
        method = "POST" if "pred" in route else "GET"
        labels = {"job": app, "instance": app, "role": app, "app": app, "method": method, "route": route}
        series.count("lightbox_http_requests_total", events, gone, **labels, status=status)
    failed = next((step for step in failing if step < steps and bad[step]), steps)
    for app, route in (("ui", "/upload_predict"), *((("api", "/v1/predictions"),) if answers else ())):
        labels = {"job": app, "instance": app, "role": app, "app": app, "method": "POST", "route": route}
        series.count("lightbox_http_requests_total", bad, range(0), failed, **labels, status="503")
    for app, gone in (("ui", range(0)), ("api", restart)):
        route = "/upload_predict" if app == "ui" else "/v1/predictions"
        answered = [x + y for x, y in zip(good, bad, strict=True)] if app == "ui" or answers else good
        # One of three hundred takes seconds, and so does whatever waits for a service that is not there.
        slow = [y + int(x > 0 and step % 300 == 11) for step, (x, y) in enumerate(zip(good, bad, strict=True))]
        for le, events in (
            ("0.5", [max(0, x - y) for x, y in zip(answered, slow, strict=True)]),
            ("5", [max(0, x - y) for x, y in zip(answered, slow, strict=True)]),
            ("10", answered),
            ("+Inf", answered),
        ):
            labels = {"job": app, "instance": app, "role": app, "app": app, "route": route}
            series.count("lightbox_http_request_seconds_bucket", events, gone, **labels, le=le)
    add_model(
        series, [("Pneumonia", finding), ("Normal", [x - y for x, y in zip(good, finding, strict=True)])], restart
    )
    add_training(series, (hours - 1) * HOUR + 5 * MINUTE, (hours - 1) * HOUR + 25 * MINUTE)
    add_watch(series)
    return series.values


def add_hosts(series: Series, restart: range) -> None:
    """Add what every host and every exporter tells; ``restart`` are the steps in which the API does not answer."""
    for number, host in enumerate(HOSTS):
        labels = {"job": "node", "instance": host, "role": host}
        disk = {**labels, "device": "/dev/root", "fstype": "ext4", "mountpoint": "/"}
        series.add("up", lambda step: 1, **labels)
        # Between 30 and 70 % free, a little less with every hour, and up and down with every few minutes.
        series.add(
            "node_filesystem_avail_bytes",
            lambda step, number=number: (30 + 10 * number - step / HOUR / 50 - step % 30 / 100) * 1e9,
            **disk,
        )
        series.add("node_filesystem_size_bytes", lambda step: 100e9, **disk)
        series.add("node_memory_MemAvailable_bytes", lambda step: (3 + step % 7 / 10) * 1e9, **labels)
        series.add("node_memory_MemTotal_bytes", lambda step: 8e9, **labels)
        series.add("node_time_seconds", lambda step, number=number: step * STEP + number / 10, **labels)
        series.add("node_reboot_required", lambda step: 0, **labels)
        series.add(
            "lightbox_host_certificate_expiry_timestamp_seconds",
            lambda step, number=number: (70 + 40 * number) * DAY,
            **labels,
        )
        series.add("node_systemd_unit_state", lambda step: 0, **labels, name="ssh.service", state="failed")
    for job, host in (
        ("ui", "ui"), ("redis", "api"), ("nginx", "proxy"), ("status", "monitor"), ("alertmanager", "monitor"),
        ("blackbox", "monitor"), ("prometheus", "monitor"),
    ):  # fmt: skip
        series.add("up", lambda step: 1, job=job, instance=host, role=host)
    series.add("up", lambda step: int(step not in restart), job="api", instance="api", role="api")
    for state, there in (("active", 1), ("failed", 0)):
        series.add(
            "node_systemd_unit_state", lambda step, there=there: there, job="node", instance="api", role="api",
            name="lightbox-api.service", state=state,
        )  # fmt: skip


def add_model(series: Series, verdicts: list[tuple[str, list[int]]], restart: range) -> None:
    """Add what the API tells of its model, and Redis of its cases."""
    api = {"job": "api", "instance": "api", "role": "api"}
    for label, events in verdicts:
        series.count("lightbox_predictions_total", events, restart, **api, label=label, model_version="1")
    told: dict[str, tuple[float, dict[str, str]]] = {
        "lightbox_model_created_timestamp_seconds": (-30 * DAY, {}),
        "lightbox_expected_share": (0.62, {"label": "Pneumonia", "model_version": "1"}),
    }
    for name, (value, labels) in told.items():
        series.add(name, lambda step, value=value: None if step in restart else value, **api, **labels)
    redis = {"job": "redis", "instance": "api", "role": "api"}
    for name in ("up", "rdb_last_bgsave_status", "aof_last_write_status", "aof_last_bgrewrite_status"):
        series.add(f"redis_{name}", lambda step: 1, **redis)
    series.add("redis_memory_used_bytes", lambda step: 4e8 + 1e4 * step, **redis)
    series.add("redis_memory_max_bytes", lambda step: 1e9, **redis)


def add_training(series: Series, begins: int, ends: int) -> None:
    """Add one training; what it tells begins half a minute after its unit; it and what is told of it end together."""
    host = {"instance": "trainer", "role": "trainer"}
    unit = {"job": "node", **host, "name": "lightbox-train.service"}
    told = range(begins + 3, ends)
    for state, value in (("active", 1), ("failed", 0)):
        series.add(
            "node_systemd_unit_state",
            lambda step, value=value: value if begins <= step < ends else None,
            **unit,
            state=state,
        )
    series.add("up", lambda step: int(step in told), job="training", **host, unit="lightbox-train.service")
    series.add(
        "lightbox_training_progress_timestamp_seconds",
        lambda step: step * STEP - 3 if step in told else None,
        job="training",
        **host,
        unit="lightbox-train.service",
    )


def add_watch(series: Series) -> None:
    """Add the page as visitors meet it, and what watches."""
    page = {"job": "probe", "instance": "https://192.0.2.1/"}
    series.add("probe_success", lambda step: 1, **page)
    series.add("probe_ssl_earliest_cert_expiry", lambda step: 80 * DAY, **page)
    for integration in ("email", "slack", "webhook"):
        series.add(
            "alertmanager_notifications_failed_total", lambda step: 0, job="alertmanager", instance="monitor",
            role="monitor", integration=integration,
        )  # fmt: skip
    for group in ("recorded_hosts", "hosts", "service", "model"):
        series.add(
            "prometheus_rule_evaluation_failures_total", lambda step: 0, job="prometheus", instance="monitor",
            role="monitor", rule_group=f"/etc/prometheus/rules/{group}.yml;{group}",
        )  # fmt: skip
