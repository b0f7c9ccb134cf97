"""Prometheus without a password on loopback, with jobs in its own words, and the rules that the role brings."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from testinfra.host import Host

URL = "http://127.0.0.1:9090"


def ask(host: Host, path: str) -> Any:
    """Return the data of an answer of Prometheus' API."""
    return json.loads(host.check_output(f"curl --silent --fail --globoff '{URL}/api/v1/{path}'"))["data"]


def values(host: Host, query: str) -> list[float]:
    """Return what a query comes to at the moment."""
    return [float(one["value"][1]) for one in ask(host, f"query?query={query}")["result"]]


def eventually(true: Callable[[], Any], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.5)


def test_listens_on_loopback_alone(host: Host) -> None:
    for port in (9090, 9100):
        assert host.socket(f"tcp://127.0.0.1:{port}").is_listening
        assert not host.socket(f"tcp://0.0.0.0:{port}").is_listening
        assert not host.socket(f"tcp://:::{port}").is_listening


def test_a_proxy_may_leave_its_path_off(host: Host) -> None:
    flags = ask(host, "status/flags")
    assert flags["web.external-url"] == "http://monitor.example.org/watch/"
    assert flags["web.route-prefix"] == "/"
    assert flags["query.max-samples"] == "1000000"


def test_asks_what_was_given_in_its_own_words_and_not_itself(host: Host) -> None:
    eventually(lambda: values(host, "up") == [1.0])
    (target,) = ask(host, "targets?state=active")["activeTargets"]
    assert target["labels"] == {"instance": "here", "job": "hosts"}


def test_the_exporter_measures_what_it_was_told_to(host: Host) -> None:
    host.check_output("echo 'measured_elsewhere 7' > /var/lib/measured/test.prom")
    eventually(lambda: values(host, "measured_elsewhere") == [7.0])
    assert values(host, "node_processes_pids")[0] > 0
    assert values(host, "node_network_receive_bytes_total{device=%22lo%22}") == []
    assert values(host, "node_network_receive_bytes_total") != []
    assert values(host, "node_filesystem_size_bytes{fstype=%22tmpfs%22}") == []
    assert values(host, "node_filesystem_size_bytes{mountpoint=%22/%22}")[0] > 0


def test_the_roles_own_rules_see_a_unit_fail(host: Host) -> None:
    def pending() -> set[tuple[str, str]]:
        found = ask(host, "alerts")["alerts"]
        return {(alert["labels"]["alertname"], alert["labels"].get("name", "")) for alert in found}

    assert host.run("systemd-run --unit=broken --wait false").rc != 0
    try:
        eventually(lambda: ("UnitFailed", "broken.service") in pending())
    finally:
        host.check_output("systemctl reset-failed broken")
    eventually(lambda: ("UnitFailed", "broken.service") not in pending())


def test_a_target_that_is_gone_is_noticed(host: Host) -> None:
    host.check_output("systemctl stop prometheus-node-exporter")
    try:
        eventually(lambda: "TargetDown" in {alert["labels"]["alertname"] for alert in ask(host, "alerts")["alerts"]})
    finally:
        host.check_output("systemctl start prometheus-node-exporter")
    eventually(lambda: values(host, "up") == [1.0])
