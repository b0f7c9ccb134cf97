"""People are told what is wrong, and that it is over, and otherwise nothing; no panel is empty.

What is told arrives outside of the system, at a webhook of this process: the monitor reaches it as if on the Internet.
"""

from __future__ import annotations

import json
import shlex
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.dashboards import queries

from .conftest import ROOT, System, wait_until
from .test_pneumonia import alerts, films, measured

pytestmark = [pytest.mark.system, pytest.mark.timeout(1800)]

TOKEN = "token-of-the-system-test"
# Two minutes are promised with the times that a test can wait for; the stories prove the real ones.
SECONDS = 120
TIMES = {
    "alert_soon": "5s", "alert_later": "5s", "alert_window": "1m", "alert_requests": 10,
    "drift_window": "1m", "drift_verdicts": 10, "drift_tolerance": 0.2, "drift_past_verdicts": 1_000_000,
    "alertmanager_group_wait": "10s", "alertmanager_group_interval": "5s",
    "prometheus_scrape_interval": "5s", "prometheus_scrape_timeout": "4s", "prometheus_evaluation_interval": "5s",
}  # fmt: skip


class Receiver:
    """A webhook that remembers what it was told."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.tokens: set[str] = set()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                receiver.tokens.add(self.headers.get("Authorization", ""))
                receiver.messages.append(body)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        # This machine, as the lab's hosts see it.
        network = yaml.safe_load((ROOT / "inventories/lab/group_vars/all/main.yml").read_text())["admin_cidrs"][0]
        self.server = ThreadingHTTPServer((network.split("/")[0], 0), Handler)
        self.url = f"http://{self.server.server_address[0]}:{self.server.server_address[1]}/alerts"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def alerts(self, status: str, since: int = 0, **labels: str) -> list[dict[str, Any]]:
        """Return the alerts with a status (firing or resolved) and labels, in what came after ``since`` messages."""
        return [
            alert
            for message in self.messages[since:]
            for alert in message["alerts"]
            if alert["status"] == status and labels.items() <= alert["labels"].items()
        ]


@pytest.fixture(scope="module")
def receiver(system: System) -> Iterator[Receiver]:
    """A receiver that the monitor tells, at once."""
    receiver = Receiver()
    given = {**TIMES, "alertmanager_webhook_url": receiver.url, "alertmanager_webhook_token": TOKEN}
    done = system.play("playbooks/configure.yml", "--tags", "monitor", "-e", json.dumps(given))
    assert done.returncode == 0, done.stdout[-8000:]
    assert TOKEN not in done.stdout
    yield receiver
    done = system.play("playbooks/configure.yml", "--tags", "monitor")
    assert done.returncode == 0, done.stdout[-8000:]
    receiver.server.shutdown()


@dataclass
class Trouble:
    """Something to go wrong: how it comes about, how it is repaired, and the labels of the alert that tells it."""

    provoke: Callable[[], object]
    repair: Callable[[], object]
    labels: dict[str, str]


def told_and_told_the_end(receiver: Receiver, *troubles: Trouble) -> list[dict[str, Any]]:
    """Provoke alerts, several at once, and repair what is wrong; return the alerts as they arrived."""
    since = len(receiver.messages)
    found = []
    try:
        for trouble in troubles:
            trouble.provoke()
        for trouble in troubles:
            here = partial(receiver.alerts, "firing", since, **trouble.labels)
            found.append(dict(wait_until(f"{trouble.labels} arrives", here, SECONDS)[0]))
    finally:
        for trouble in troubles:
            trouble.repair()
    for trouble, alert in zip(troubles, found, strict=True):
        over = partial(receiver.alerts, "resolved", since, **trouble.labels)
        wait_until(f"{trouble.labels} is over", over, SECONDS)
        assert alert["annotations"]["summary"] and alert["annotations"]["description"]
        assert alert["annotations"]["runbook_url"].endswith(f"/docs/runbooks/{trouble.labels['alertname']}.md")
    return found


def test_a_quiet_time_sends_nothing(system: System, receiver: Receiver) -> None:
    try:
        wait_until("no alert fires or is about to", lambda: not alerts(system), 180)
    except pytest.fail.Exception as error:
        pytest.fail(f"{error}: {alerts(system)}")
    time.sleep(15)  # for what is told of the time before
    since = len(receiver.messages)
    time.sleep(90)
    assert receiver.messages[since:] == []


def test_a_service_a_disk_a_certificate_and_a_training_are_told(system: System, receiver: Receiver) -> None:
    tls = "cd /etc/nginx/tls && certificate=$(ls self_signed-*.crt | head -n 1)"
    settings = "/etc/lightbox/train.json"
    _, disk, _, _ = told_and_told_the_end(
        receiver,
        Trouble(
            lambda: system.on("ui", "systemctl stop lightbox-ui"),
            lambda: system.on("ui", "systemctl start lightbox-ui"),
            {"alertname": "TargetDown", "job": "ui", "instance": "pneumonia-ui"},
        ),
        Trouble(
            lambda: system.on("api", "mkdir -p /srv/full && mount -t tmpfs -o size=20m full /srv/full"
                                     " && head -c 19M /dev/zero > /srv/full/filling"),
            lambda: system.on("api", "umount /srv/full && rmdir /srv/full"),
            {"alertname": "DiskFilling", "instance": "pneumonia-api", "mountpoint": "/srv/full"},
        ),
        Trouble(
            lambda: system.on("proxy", f"{tls} && cp -p $certificate kept && openssl req -x509 -key self_signed.key"
                                       " -days 2 -subj /CN=soon -out $certificate && systemctl reload nginx"),
            lambda: system.on("proxy", f"{tls} && mv kept $certificate && systemctl reload nginx"),
            {"alertname": "CertificateExpiring"},
        ),
        Trouble(
            lambda: system.on("trainer", f"cp -p {settings} {settings}.kept"
                                         f" && echo '{{\"epochs\": \"many\"}}' > {settings}"
                                         " && systemctl start --no-block lightbox-train"),
            lambda: system.on("trainer", f"mv {settings}.kept {settings}; systemctl reset-failed lightbox-train"),
            {"alertname": "TrainingFailed", "instance": "pneumonia-trainer"},
        ),
    )  # fmt: skip
    assert receiver.tokens == {f"Bearer {TOKEN}"}
    assert disk["annotations"]["description"].startswith("5% of /srv/full on pneumonia-api is free")


def test_a_host_that_is_down_is_told_once_and_errors_with_their_cause(system: System, receiver: Receiver) -> None:
    ec2, instance = system.client("ec2"), system.instances()["ui"]["InstanceId"]
    address = system.instances()["api"]["PrivateIpAddress"]
    since = len(receiver.messages)

    def stop() -> None:
        ec2.stop_instances(InstanceIds=[instance])
        ec2.get_waiter("instance_stopped").wait(InstanceIds=[instance], WaiterConfig={"Delay": 1, "MaxAttempts": 60})

    def fail() -> None:
        system.on("api", "systemctl stop redis-server")
        asked = f"curl -s -o /dev/null -m 5 http://{address}:5000/v1/cases"
        system.on("monitor", f"for i in $(seq 40); do {asked}; sleep 0.5; done")

    told_and_told_the_end(
        receiver,
        Trouble(
            stop, lambda: ec2.start_instances(InstanceIds=[instance]),
            {"alertname": "HostDown", "instance": "pneumonia-ui"},
        ),
        Trouble(
            fail, lambda: system.on("api", "systemctl start redis-server"), {"alertname": "ManyErrors", "app": "api"}
        ),
    )  # fmt: skip
    assert receiver.alerts("firing", since, alertname="TargetDown", instance="pneumonia-ui") == []
    assert receiver.alerts("firing", since, alertname="CaseStoreDown", instance="pneumonia-api")
    wait_until("an upload is answered", system.ready, 90)


def test_uploads_without_a_verdict_are_told(system: System, receiver: Receiver) -> None:
    image = system.smoke()

    def upload() -> None:
        system.on("api", "systemctl stop lightbox-api")
        for _ in range(12):
            status, text = system.upload(image)
            assert "data-verdict=" not in text, status
            time.sleep(2)

    told_and_told_the_end(
        receiver,
        Trouble(upload, lambda: system.on("api", "systemctl start lightbox-api"), {"alertname": "NoPredictions"}),
    )
    wait_until("an upload is answered", system.ready, 60)


def test_verdicts_that_drift_are_told(system: System, receiver: Receiver, tmp_path: Path) -> None:
    (baseline,) = measured(system, "lightbox:finding:baseline")
    wanted = "NORMAL" if float(baseline["value"][1]) > 0.5 else "PNEUMONIA"
    images = [file for file in films(tmp_path / "films", 80, seed=7).rglob("*.png") if file.parent.name == wanted]
    assert len(images) >= 20

    def drift() -> None:
        for image in images[:30]:
            assert system.upload(image.read_bytes())[0] == 200
            time.sleep(0.5)

    # Nothing is to be repaired: a minute later these verdicts are of the past.
    told_and_told_the_end(receiver, Trouble(drift, lambda: None, {"alertname": "VerdictsDrifted"}))


def test_the_doctor_tells_which_alerts_fire(system: System, receiver: Receiver, tmp_path: Path) -> None:
    system.on("ui", "touch /run/reboot-required && systemctl start lightbox-reboot-required")
    try:
        wait_until(
            "it fires", lambda: [one for one in alerts(system, "RebootRequired") if one["state"] == "firing"], 60
        )
        system.play("playbooks/verify.yml", "-e", f"verify_out={tmp_path}/report.json", "-e", "verify_configure=false")
        found = {one["name"]: one for one in json.loads((tmp_path / "report.json").read_text())["checks"]}
        assert "RebootRequired (warning): pneumonia-ui must be restarted" in found["alerts"]["detail"]
        assert found["Prometheus rules"]["ok"] and found["Alertmanager"]["ok"]
    finally:
        system.on("ui", "rm -f /run/reboot-required; systemctl start lightbox-reboot-required")


def over_time(system: System, panels: list[str], hours: int = 3) -> list[list[dict[str, Any]]]:
    """Return what panels of Grafana would draw, given their queries; the host is called once for all of them."""
    now = int(time.time())
    calls = []
    for query in panels:
        asked = {"query": query, "start": str(now - hours * 3600), "end": str(now), "step": "30"}
        fields = " ".join(f"--data-urlencode {shlex.quote(f'{name}={value}')}" for name, value in asked.items())
        calls.append(f"curl -sS --get {fields} http://127.0.0.1:9090/api/v1/query_range && echo")
    answers = [json.loads(line) for line in system.on("monitor", " && ".join(calls)).splitlines()]
    for query, answer in zip(panels, answers, strict=True):
        assert answer["status"] == "success", (query, answer)
    return [answer["data"]["result"] for answer in answers]


def test_no_panel_is_empty(system: System, receiver: Receiver) -> None:
    """Somebody uploads and says what is right; a training was watched when the system was brought up."""
    case = json.loads(system.on("api", "curl -sS 'http://127.0.0.1:5000/v1/cases?size=1'"))["cases"][0]["id"]
    for label in ("Normal", "Pneumonia") * 4:
        assert system.fetch(f"/cases/{case}/feedback", f"label={label}".encode())[0] == 200
        system.upload(system.smoke())
        time.sleep(2)

    def empty() -> list[tuple[str, str, str]]:
        panels = list(queries())
        drawn = over_time(system, [query for _, _, query in panels])
        return [
            panel
            for panel, found in zip(panels, drawn, strict=True)
            if not any(value != "NaN" for series in found for _, value in series["values"])
        ]

    deadline = time.monotonic() + 120
    while empty() and time.monotonic() < deadline:
        time.sleep(5)
    assert empty() == []
