"""What the page asks Prometheus: as data, so that a test can put every question to a real one.

``$window`` stands for the time over which a rate is taken; it fits the range that is shown. Metrics are those of
:mod:`lightbox.web`, :mod:`lightbox.api`, :mod:`lightbox.telemetry` and of node_exporter; jobs are called ``node``,
``api``, ``ui`` and ``training``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Unit = Literal["rate", "per minute", "share", "seconds", "number"]


@dataclass(frozen=True)
class Range:
    """A stretch of time that ends now, and how finely it is drawn (seconds)."""

    key: str
    words: str
    seconds: int
    step: int
    window: str
    tick: int


# The window of a rate is longer than a step, so that nothing falls between, and than four scrapes of 15 s.
RANGES = {
    one.key: one
    for one in (
        Range("1h", "1 hour", 3600, 30, "2m", 900),
        Range("6h", "6 hours", 21600, 180, "5m", 7200),
        Range("24h", "24 hours", 86400, 720, "15m", 21600),
    )
}
FIRST = "1h"


@dataclass(frozen=True)
class Line:
    """A question that gives one line, or one for each value of a label: ``{label}`` in the name stands for it.

    Where the lines of a panel differ in the label ``apart``, their names are followed by it.
    """

    query: str
    name: str
    apart: str = ""


@dataclass(frozen=True)
class Panel:
    """A chart: its lines, their unit, the top of its axis where that is fixed, and what it says when there are none.

    ``job`` names the targets without which there is nothing to see; empty where they come and go.
    Of too many lines the ``worst`` are drawn.
    """

    key: str
    title: str
    unit: Unit
    lines: Sequence[Line]
    empty: str
    job: str = ""
    top: float | None = None
    note: str = ""
    worst: Literal["highest", "lowest"] = "highest"


# What machines ask to see whether somebody is there is no visit, nor is a look at this page, nor what the pages ask for
# with every look at them: the model, which is refused until there is one.
VISITS = 'app!="status",route!~"/health|/ready|/metrics|/v1/health/.*|/v1/model"'
ANSWERED = f"sum by (app) (rate(lightbox_http_requests_total{{{VISITS}}}[$window]))"
FAILED = f'sum by (app) (rate(lightbox_http_requests_total{{status=~"5..",{VISITS}}}[$window]))'
# Where nothing was asked there is no share.
ERRORS = f"({FAILED} or 0 * {ANSWERED}) / ({ANSWERED} > 0)"
CPU = '1 - avg by (instance) (rate(node_cpu_seconds_total{mode="idle"}[$window]))'
MEMORY = "max by (instance) (1 - node_memory_MemAvailable_bytes / node_memory_MemTotal_bytes)"
DISK = (
    'max by (instance) (node_filesystem_avail_bytes{mountpoint="/"} / (node_filesystem_size_bytes{mountpoint="/"} > 0))'
)


def _quantile(share: float, metric: str, chosen: str = "") -> str:
    return f"histogram_quantile({share}, sum by (le) (rate({metric}_bucket{{{chosen}}}[$window])))"


def _paged(share: float) -> str:
    return _quantile(share, "lightbox_http_request_seconds", f'app="ui",{VISITS}')


SERVICE = (
    Panel(
        "requests", "Requests", "rate", [Line(ANSWERED, "{app}")],
        "Nothing yet: nobody has asked the pages or the API anything in this time.", "ui",
    ),
    Panel(
        "errors", "Failed requests", "share", [Line(ERRORS, "{app}")],
        "Nothing yet: without requests there is no share of failed ones.", "ui",
        note="Answers with status 500 and above, of all answers.",
    ),
    Panel(
        "latency", "Time to answer", "seconds",
        [Line(_paged(0.5), "half of the pages within"), Line(_paged(0.99), "99 of 100 within")],
        "Nothing yet: no page has been asked for in this time.", "ui",
    ),
    Panel(
        "inference", "Time to read an image", "seconds",
        [
            Line(_quantile(0.5, "lightbox_inference_seconds"), "half of the images within"),
            Line(_quantile(0.99, "lightbox_inference_seconds"), "99 of 100 within"),
        ],
        "Nothing yet: no image has been classified in this time.", "api",
    ),
    Panel(
        "verdicts", "Predictions", "per minute",
        [Line("60 * sum by (label) (rate(lightbox_predictions_total[$window]))", "{label}")],
        "Nothing yet: no image has been classified since the API hosts started.", "api",
    ),
    Panel(
        "shares", "Share of each verdict", "share",
        [
            Line(
                "sum by (label) (increase(lightbox_predictions_total[1h]))"
                " / ignoring (label) group_left () (sum(increase(lightbox_predictions_total[1h])) > 0)",
                "{label}",
            )
        ],
        "Nothing yet: no image has been classified in this time.", "api", top=1.0,
        note="Of the hour before each point.",
    ),
)  # fmt: skip
HOSTS = (
    Panel(
        "cpu", "Processor in use", "share", [Line(CPU, "{instance}")],
        "Nothing yet: a share needs two measurements of a host.", "node", top=1.0,
    ),
    Panel(
        "memory", "Memory in use", "share", [Line(MEMORY, "{instance}")],
        "Nothing yet: no host was measured in this time.", "node", top=1.0,
    ),
    Panel(
        "disk", "Disk free", "share", [Line(DISK, "{instance}")],
        "Nothing yet: no host was measured in this time.", "node", top=1.0, worst="lowest",
    ),
)  # fmt: skip
NO_TRAINING = "Nothing yet: nothing was trained in this time."
TRAINING = (
    Panel(
        "loss", "Loss", "number",
        [
            Line("max by (instance) (last_over_time(lightbox_training_loss[$window]))", "training", "instance"),
            Line(
                "max by (instance) (last_over_time(lightbox_training_validation_loss[$window]))",
                "validation", "instance",
            ),
        ],
        NO_TRAINING,
    ),
    Panel(
        "accuracy", "Accuracy", "share",
        [
            Line("max by (instance) (last_over_time(lightbox_training_accuracy[$window]))", "training", "instance"),
            Line(
                "max by (instance) (last_over_time(lightbox_training_validation_accuracy[$window]))",
                "validation", "instance",
            ),
        ],
        NO_TRAINING, top=1.0,
    ),
    Panel(
        "speed", "Images trained on", "rate",
        [Line("max by (instance) (last_over_time(lightbox_training_images_per_second[$window]))", "{instance}")],
        NO_TRAINING,
    ),
)  # fmt: skip
PANELS = (*SERVICE, *HOSTS, *TRAINING)

# What is asked for one value now.
UP = "up"
# As the alert TargetDown: a target with the label `unit` answers while that unit of its host is active, and only then.
DOWN = (
    'up{unit=""} == 0 or up{unit!=""} == 0 and on (instance, unit)'
    ' label_replace(node_systemd_unit_state{state="active"} == 1, "unit", "$1", "name", "(.*)")'
)
FACTS = {
    "model": "count by (name, version, synthetic) (lightbox_model_info)",
    "store": "min by (instance) (lightbox_store_up)",
    "waiting": "sum(lightbox_waiting_requests)",
    "requests": f'sum(rate(lightbox_http_requests_total{{app="ui",{VISITS}}}[5m]))',
    "errors": ERRORS.replace("$window", "5m"),
    "p99": _paged(0.99).replace("$window", "5m"),
    "verdicts": "sum by (label) (increase(lightbox_predictions_total[1h]))",
    "cpu": CPU.replace("$window", "2m"),
    "memory": MEMORY,
    "disk": DISK,
    "disk_bytes": 'max by (instance) (node_filesystem_avail_bytes{mountpoint="/"})',
    "uptime": "max by (instance) (time() - node_boot_time_seconds)",
    "state": "lightbox_training_state == 1",
    "epoch": "max by (instance) (lightbox_training_epoch)",
    "epochs": "max by (instance) (lightbox_training_epochs)",
    "left": "max by (instance) (lightbox_training_eta_seconds)",
    # When a training was seen last, in seconds since 1970; one that began a moment ago lies between two steps.
    "trained": (
        "max by (run, architecture, instance) (max_over_time(timestamp(lightbox_training_info)[7d:30s]))"
        " or max by (run, architecture, instance) (timestamp(lightbox_training_info))"
    ),
}  # fmt: skip
