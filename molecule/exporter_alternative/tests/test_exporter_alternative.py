"""Exporters with other ports, other names of what they measure, and Blackbox's own way of asking."""

from __future__ import annotations

import time

import pytest
from testinfra.host import Host

ADDRESS = {"redis": "127.0.0.1:9121", "nginx": "127.0.0.1:9313", "blackbox": "127.0.0.1:9315"}


def samples(host: Host, url: str) -> dict[str, float]:
    """Return what a page of metrics says."""
    page = host.check_output(f"curl --silent --fail --max-time 20 '{url}'")
    lines = (line.rsplit(" ", 1) for line in page.splitlines() if line and not line.startswith("#"))
    return {name: float(value) for name, value in lines}


@pytest.mark.parametrize("kind", ADDRESS)
def test_listens_on_loopback_alone(host: Host, kind: str) -> None:
    shown = host.check_output("ss --listening --tcp --numeric --no-header --processes")
    main = host.check_output(f"systemctl show --property=MainPID --value prometheus-{kind}-exporter")
    assert [line.split()[3] for line in shown.splitlines() if f"pid={main}," in line] == [ADDRESS[kind]]


def test_redis_is_measured_under_the_given_name(host: Host) -> None:
    found = samples(host, f"http://{ADDRESS['redis']}/metrics")
    assert found["shelf_up"] == 1
    assert not [name for name in found if name.startswith("redis_")]


def test_nginx_is_measured_where_it_tells(host: Host) -> None:
    assert samples(host, f"http://{ADDRESS['nginx']}/metrics")["nginx_up"] == 1


def test_the_exporter_waits_for_an_nginx_that_starts_later(host: Host) -> None:
    """Both start with the host, in any order."""
    host.check_output("systemctl stop nginx; systemctl restart prometheus-nginx-exporter")
    host.check_output("systemctl start nginx")
    end = time.monotonic() + 30
    while host.run(f"curl --silent --max-time 5 http://{ADDRESS['nginx']}/metrics | grep '^nginx_up 1'").rc:
        assert time.monotonic() < end, host.check_output("journalctl --unit prometheus-nginx-exporter --no-pager")
        time.sleep(0.5)


def test_pages_are_asked_for_as_the_default_says(host: Host) -> None:
    probe = f"http://{ADDRESS['blackbox']}/probe?module=http_2xx&target="
    assert samples(host, f"{probe}http://127.0.0.1:9090/status")["probe_success"] == 1
    assert samples(host, f"{probe}http://127.0.0.1:9/")["probe_success"] == 0
