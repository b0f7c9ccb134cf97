"""What the tests of the status page share: a real Prometheus, with what it scrapes or with a written past."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from serving_kit import free_port, wait_for

from lightbox import web

OPERATOR = "operator"
SECRET = "a-password-that-nobody-guesses"
HOSTS = ("pneumonia-api", "pneumonia-monitor", "pneumonia-proxy", "pneumonia-trainer", "pneumonia-ui")


def needed(program: str, package: str) -> str:
    path = shutil.which(program)
    if not path:
        raise RuntimeError(f"these tests need {program}: install Debian's package {package}")
    return path


class PrometheusServer:
    """A Prometheus of our own on a loopback port.

    ``jobs`` maps the name of a job to its targets, each an address with labels; ``past`` is text in the OpenMetrics
    format, which becomes its data.
    """

    def __init__(self, directory: Path, jobs: Mapping[str, Any] | None = None, rules: str = "", past: str = "") -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory, self.port = directory, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        scraped = [
            {"job_name": name, "static_configs": [{"targets": [address], "labels": labels} for address, labels in all_]}
            for name, all_ in (jobs or {}).items()
        ]
        timing = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
        (directory / "rules.yml").write_text(rules)
        # JSON is YAML.
        (directory / "prometheus.yml").write_text(
            json.dumps({"global": timing, "rule_files": ["rules.yml"], "scrape_configs": scraped})
        )
        if past:
            (directory / "past.om").write_text(past)
            subprocess.run(
                [needed("promtool", "prometheus"), "tsdb", "create-blocks-from", "openmetrics", "past.om", "data"],
                cwd=directory, check=True, capture_output=True,
            )  # fmt: skip
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> PrometheusServer:
        with (self.directory / "prometheus.log").open("ab") as log:
            self.process = subprocess.Popen(
                [needed("prometheus", "prometheus"), "--config.file=prometheus.yml", "--storage.tsdb.path=data",
                 f"--web.listen-address=127.0.0.1:{self.port}"],
                cwd=self.directory, stdout=log, stderr=log,
            )  # fmt: skip
        wait_for("Prometheus is ready", lambda: httpx.get(f"{self.url}/-/ready").status_code == 200)
        return self

    def stop(self) -> None:
        if self.process:
            self.process.terminate()
            self.process.wait(20)
            self.process = None


class NodeExporter:
    """A node exporter of our own on a loopback port."""

    def __init__(self, log: Path) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        with log.open("ab") as stream:
            self.process = subprocess.Popen(
                [needed("prometheus-node-exporter", "prometheus-node-exporter"), f"--web.listen-address={self.address}",
                 "--collector.filesystem.fs-types-exclude=^(proc|sysfs|tmpfs)$"],
                stdout=stream, stderr=stream,
            )  # fmt: skip

    def stop(self) -> None:
        self.process.kill()
        self.process.wait(5)


def past(now: float, hours: float = 24.5, down: tuple[str, ...] = (), step: int = 60) -> str:
    """Return a day of a system in the OpenMetrics format: quiet nights, a training of 40 minutes three hours ago, and
    some failures an hour and a half ago. Hosts in ``down`` stopped ten minutes ago.
    """
    chance = np.random.default_rng(7)
    end = now // step * step
    begin = end - hours * 3600 // step * step
    lines: list[str] = []
    totals: dict[str, float] = {}

    def put(series: str, time: float, value: float) -> None:
        lines.append(f"{series} {value:.12g} {time:.0f}")

    def count(series: str, time: float, more: float) -> None:
        totals[series] = totals.get(series, 0.0) + more
        put(series, time, round(totals[series]))

    for moment in range(int(begin), int(end) + 1, step):
        time = float(moment)
        day = 0.5 - 0.5 * math.cos(2 * math.pi * ((time - end) / 86400 + 0.6))
        visits = step * (0.15 + 1.6 * day) * chance.uniform(0.7, 1.3)
        for number, host in enumerate(HOSTS):
            alive = host not in down or time < end - 600
            put(f'up{{instance="{host}",job="node"}}', time, float(alive))
            if not alive:
                continue
            training = host == "pneumonia-trainer" and end - 10800 <= time < end - 8400
            busy = 0.97 if training else 0.02 + 0.06 * number * day + chance.uniform(0, 0.02)
            count(f'node_cpu_seconds_total{{instance="{host}",cpu="0",mode="idle"}}', time, step * (1 - busy))
            total = (4, 2, 1, 16, 1)[number] * 1.024e9
            free = total * (0.35 if training else 0.75 - 0.08 * number - chance.uniform(0, 0.02))
            put(f'node_memory_MemTotal_bytes{{instance="{host}"}}', time, total)
            put(f'node_memory_MemAvailable_bytes{{instance="{host}"}}', time, free)
            mounted = f'{{instance="{host}",mountpoint="/",device="/dev/root",fstype="ext4"}}'
            put(f"node_filesystem_size_bytes{mounted}", time, 20e9)
            put(f"node_filesystem_avail_bytes{mounted}", time, 20e9 * (0.8 - 0.1 * number) - (time - begin) * 2e3)
            put(f'node_boot_time_seconds{{instance="{host}"}}', time, begin - 86400 * (3 + number))
        for app, host in (("api", "pneumonia-api"), ("ui", "pneumonia-ui")):
            alive = host not in down or time < end - 600
            put(f'up{{instance="{host}",job="{app}"}}', time, float(alive))
            if not alive:
                continue
            broken = 0.12 if end - 5700 <= time < end - 5100 else 0.0
            labels = f'app="{app}",instance="{host}",method="GET",route="/"'
            count(f'lightbox_http_requests_total{{{labels},status="200"}}', time, visits * (1 - broken))
            count(f'lightbox_http_requests_total{{{labels},status="503"}}', time, visits * broken)
            slow = 1.6 if broken else 1.0
            for bucket in (*web.BUCKETS, math.inf):
                share = 1 - math.exp(-((bucket / (0.09 * slow * (1 + day))) ** 2)) if bucket < math.inf else 1
                name = "+Inf" if bucket == math.inf else f"{bucket:g}"
                found = f'{{app="{app}",instance="{host}",route="/",le="{name}"}}'
                count(f"lightbox_http_request_seconds_bucket{found}", time, visits * share)
                if app == "api":
                    count(f'lightbox_inference_seconds_bucket{{instance="{host}",le="{name}"}}', time, visits * share)
            if app == "api":
                for label, share in (("Normal", 0.72), ("Pneumonia", 0.28)):
                    found = f'{{instance="{host}",label="{label}",model_version="20261121T110000Z-1a2b3c4d"}}'
                    count(f"lightbox_predictions_total{found}", time, visits * 0.4 * share)
                put(f'lightbox_store_up{{instance="{host}"}}', time, 1)
                put(f'lightbox_waiting_requests{{instance="{host}"}}', time, 0)
                put(
                    f'lightbox_model_info{{instance="{host}",name="pneumonia",synthetic="false",'
                    'version="20261121T110000Z-1a2b3c4d"}',
                    time,
                    1,
                )
        done = (time - (end - 10800)) / 2400
        if 0 <= done < 1:
            place = '{instance="pneumonia-trainer"}'
            put(f"lightbox_training_loss{place}", time, 0.62 * math.exp(-2.6 * done) + 0.08)
            put(f"lightbox_training_validation_loss{place}", time, 0.6 * math.exp(-2.1 * done) + 0.11)
            put(f"lightbox_training_accuracy{place}", time, 0.97 - 0.4 * math.exp(-4 * done))
            put(f"lightbox_training_validation_accuracy{place}", time, 0.96 - 0.4 * math.exp(-3.5 * done))
            put(f"lightbox_training_images_per_second{place}", time, 182 + chance.uniform(-8, 8))
            told = 'instance="pneumonia-trainer",run="3f2a9c10",architecture="compact"'
            put(f"lightbox_training_info{{{told}}}", time, 1)
        put('up{instance="pneumonia-trainer",job="training",unit="lightbox-train.service"}', time, float(0 <= done < 1))
        active = '{instance="pneumonia-trainer",name="lightbox-train.service",state="active"}'
        put(f"node_systemd_unit_state{active}", time, float(0 <= done < 1))
    # promtool wants what belongs together side by side.
    return "\n".join(sorted(lines, key=lambda line: line.partition(" ")[0])) + "\n# EOF\n"
