"""Prometheus asks what it was told to ask, keeps it for a while, and answers those with a password."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from testinfra.host import Host

URL = "http://127.0.0.1:9191/prometheus"
# Takes what is posted to it, and appends it to a file.
LISTENER = """
from http.server import BaseHTTPRequestHandler, HTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        with open("/run/told", "ab") as told:
            told.write(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.end_headers()

HTTPServer(("127.0.0.1", 9393), Handler).serve_forever()
"""
DEFAULTS = Path(__file__).parents[3] / "roles/prometheus/defaults/main.yml"


def ask(host: Host, path: str) -> Any:
    """Return the data of an answer of Prometheus' API."""
    answer = host.check_output(
        f"curl --silent --fail --globoff --user operator:molecule-password '{URL}/api/v1/{path}'"
    )
    return json.loads(answer)["data"]


def eventually(true: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.5)


def health(host: Host) -> dict[str, str]:
    return {
        target["labels"]["instance"]: target["health"] for target in ask(host, "targets?state=active")["activeTargets"]
    }


def alerts(host: Host) -> set[str]:
    return {alert["labels"]["instance"] for alert in ask(host, "alerts")["alerts"]}


def test_listens_on_the_given_address_only(host: Host) -> None:
    assert host.service("prometheus").is_enabled
    assert host.socket("tcp://127.0.0.1:9191").is_listening
    assert not host.socket("tcp://0.0.0.0:9191").is_listening
    assert not host.socket("tcp://:::9191").is_listening
    assert not host.socket("tcp://:::9090").is_listening


def test_answers_those_with_a_password(host: Host) -> None:
    assert (
        host.check_output(f"curl --silent --output /dev/null --write-out '%{{http_code}}' {URL}/api/v1/targets")
        == "401"
    )
    assert ask(host, "status/flags")["storage.tsdb.retention.time"] == "1w"
    assert ask(host, "status/flags")["storage.tsdb.retention.size"] == "512MiB"
    assert ask(host, "status/flags")["web.external-url"] == "https://monitor.example.org/prometheus/"


def test_measures_and_notices_new_answers(host: Host) -> None:
    host.run("systemctl stop app")
    eventually(lambda: health(host) == {"monitor": "up", "app-1": "down", "app-2": "down"})
    host.check_output("mkdir --parents /srv/app && echo 'answers_total 42' > /srv/app/metrics")
    host.check_output(
        "systemd-run --collect --unit=app python3 -m http.server --directory /srv/app --bind 127.0.0.1 9292"
    )
    eventually(lambda: health(host)["app-1"] == "up")
    eventually(lambda: [sample["value"][1] for sample in ask(host, "query?query=answers_total")["result"]] == ["42"])
    eventually(lambda: alerts(host) & {"app-1", "app-2"} == {"app-2"})
    assert "system: molecule" in ask(host, "status/config")["yaml"]


def test_records_what_rules_say_and_tells_alertmanager(host: Host) -> None:
    host.check_output("mkdir --parents /srv/app && echo 'answers_total 42' > /srv/app/metrics")
    host.run("systemd-run --collect --unit=app python3 -m http.server --directory /srv/app --bind 127.0.0.1 9292")
    eventually(lambda: [sample["value"][1] for sample in ask(host, "query?query=job:answers:sum")["result"]] == ["42"])
    # One target never answers, so there is something to tell; whoever listens is sent it.
    host.check_output(f"systemd-run --collect --unit=listener python3 -c {shlex.quote(LISTENER)}")
    try:
        eventually(lambda: host.run("grep --quiet TargetDown /run/told").rc == 0)
    finally:
        host.check_output("systemctl stop listener")


def test_notices_new_targets_by_itself(host: Host) -> None:
    before = host.file("/etc/prometheus/targets/app.json").content_string
    host.check_output("sed --in-place 's/app-2/app-3/' /etc/prometheus/targets/app.json")
    try:
        eventually(lambda: "app-3" in health(host))
    finally:
        host.check_output(f"printf %s '{before}' > /etc/prometheus/targets/app.json")


def test_mistakes_would_be_refused(host: Host) -> None:
    """The checks that guard the files do find mistakes."""
    for kind, file, mistake in (
        ("config", "prometheus.yml", "s/scrape_interval: 4s/scrape_interval: often/"),
        ("rules", "rules/molecule.yml", "s/up == 0/up ==/"),
        ("web-config", "web.yml", "s/basic_auth_users/basic_auth_user/"),
    ):
        assert host.run(f"promtool check {kind} /etc/prometheus/{file}").rc == 0
        host.check_output(f"sed '{mistake}' /etc/prometheus/{file} > /tmp/mistaken")
        assert host.run(f"promtool check {kind} /tmp/mistaken").rc != 0


def test_by_default_a_target_of_a_unit_is_missed_only_while_the_unit_is_active(host: Host) -> None:
    rules = next(file for file in yaml.safe_load(DEFAULTS.read_text())["prometheus_rules"] if file["name"] == "hosts")
    state = 'node_systemd_unit_state{job="node", instance="trainer", name="train.service", state="active"}'
    missed = {"unit": "train.service", "instance": "trainer", "job": "training"}
    other = {"instance": "ui", "job": "ui"}

    def alert(labels: dict[str, str]) -> dict[str, Any]:
        summary = {"summary": "The target has not answered for two minutes"}
        return {"exp_labels": {**labels, "severity": "critical"}, "exp_annotations": summary}

    story = {
        "rule_files": ["hosts.yml"],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                # Idle for five minutes, then at work without an answer for five, then idle again.
                "input_series": [
                    {"series": 'up{job="training", instance="trainer", unit="train.service"}', "values": "0x15"},
                    {"series": state, "values": "0x4 1x4 0x5"},
                    {"series": 'up{job="node", instance="trainer"}', "values": "1x15"},
                    {"series": 'up{job="ui", instance="ui"}', "values": "1x4 0x10"},
                ],
                "alert_rule_test": [
                    {"eval_time": "4m", "alertname": "TargetDown"},
                    {"eval_time": "8m", "alertname": "TargetDown", "exp_alerts": [alert(missed), alert(other)]},
                    {"eval_time": "12m", "alertname": "TargetDown", "exp_alerts": [alert(other)]},
                ],
            }
        ],
    }
    host.check_output("mkdir --parents /tmp/rules")
    for name, content in (("hosts", {"groups": rules["groups"]}), ("story", story)):
        host.check_output(f"printf %s {shlex.quote(json.dumps(content))} > /tmp/rules/{name}.yml")
    assert "SUCCESS" in host.check_output("promtool test rules /tmp/rules/story.yml")


def test_writes_nothing_but_its_data(host: Host) -> None:
    main = host.check_output("systemctl show --property=MainPID --value prometheus")
    assert "Read-only" in host.run(f"nsenter --target {main} --mount touch /etc/written").stderr
    assert host.run(f"nsenter --target {main} --mount touch /var/lib/prometheus/written").rc == 0
    assert "CapBnd:\t0000000000000000" in host.file(f"/proc/{main}/status").content_string


def test_secrets_are_for_prometheus_alone(host: Host) -> None:
    assert host.file("/etc/prometheus/credentials/self").mode == 0o640
    assert host.file("/etc/prometheus/credentials").mode == 0o750
    assert host.file("/etc/prometheus/web.yml").mode == 0o640
    found = host.run("grep -rl molecule-password /etc /var/log /run/log").stdout.split()
    assert [name for name in found if "journal" not in name] == ["/etc/prometheus/credentials/self"]
    assert host.run("journalctl --boot | grep --quiet molecule-password").rc != 0


def test_comes_back_when_killed_with_its_data(host: Host) -> None:
    before = host.check_output("systemctl show --property=MainPID --value prometheus")
    host.check_output(f"kill -KILL {before}")
    eventually(lambda: host.run(f"curl --silent --fail --user operator:molecule-password {URL}/-/ready").rc == 0)
    assert host.check_output("systemctl show --property=MainPID --value prometheus") != before
    assert ask(host, "query?query=count_over_time(answers_total[1h])")["result"] != []
