"""What exporters tell of a real Redis, a real Nginx and a page; and that they can do nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from testinfra.host import Host

ADDRESS = {"redis": "127.0.0.1:9221", "nginx": "127.0.0.1:9113", "blackbox": "127.0.0.1:9115"}
OWN_PORTS = {"redis": 9121, "nginx": 9113, "blackbox": 9115}
PROBE = f"http://{ADDRESS['blackbox']}/probe?module=page&target="


def unit(kind: str) -> str:
    return f"prometheus-{kind}-exporter"


def samples(host: Host, url: str) -> dict[str, float]:
    """Return what a page of metrics says; nothing when nobody answers."""
    page = host.run(f"curl --silent --fail --max-time 20 '{url}'").stdout
    lines = (line.rsplit(" ", 1) for line in page.splitlines() if line and not line.startswith("#"))
    return {name: float(value) for name, value in lines}


def eventually(what: str, true: Callable[[], Any], seconds: float = 30) -> Any:
    end = time.monotonic() + seconds
    while not (answer := true()):
        assert time.monotonic() < end, what
        time.sleep(0.5)
    return answer


@pytest.mark.parametrize("kind", ADDRESS)
def test_listens_on_the_given_address_only(host: Host, kind: str) -> None:
    assert host.service(unit(kind)).is_enabled
    assert host.socket(f"tcp://{ADDRESS[kind]}").is_listening
    for address in ("0.0.0.0", "::"):
        assert not host.socket(f"tcp://{address}:{OWN_PORTS[kind]}").is_listening


def test_redis_is_measured_and_missed(host: Host) -> None:
    url = f"http://{ADDRESS['redis']}/metrics"
    found = samples(host, url)
    assert found["redis_up"] == 1
    assert found["redis_memory_max_bytes"] == 64 * 1024 * 1024
    for name in ("redis_rdb_last_bgsave_status", "redis_aof_last_write_status", "redis_aof_last_bgrewrite_status"):
        assert found[name] == 1
    host.check_output("systemctl stop redis-server")
    try:
        eventually("Redis is missed", lambda: samples(host, url).get("redis_up") == 0)
    finally:
        host.check_output("systemctl start redis-server")
    eventually("Redis is back", lambda: samples(host, url).get("redis_up") == 1)


def test_who_measures_redis_may_read_and_write_nothing(host: Host) -> None:
    login = "REDISCLI_AUTH=molecule-password-of-exporter redis-cli --user exporter"
    assert "redis_version" in host.check_output(f"{login} info server")
    for command in ("get lightbox:x", "set lightbox:x 1", "keys '*'", "config get dir", "flushall", "acl list"):
        assert "NOPERM" in host.run(f"{login} {command}").stdout, command


def test_nginx_is_measured(host: Host) -> None:
    url = f"http://{ADDRESS['nginx']}/metrics"
    before = samples(host, url)
    assert before["nginx_up"] == 1
    for _ in range(5):
        host.run("curl --silent --insecure https://127.0.0.1/")
    assert samples(host, url)["nginx_http_requests_total"] >= before["nginx_http_requests_total"] + 5


def test_an_nginx_that_starts_later_is_measured(host: Host) -> None:
    """Both start with the host, in any order."""
    host.check_output("systemctl stop nginx; systemctl restart prometheus-nginx-exporter")
    host.check_output("systemctl start nginx")
    eventually("Nginx is measured", lambda: samples(host, f"http://{ADDRESS['nginx']}/metrics").get("nginx_up") == 1)


def test_a_page_and_its_certificate_are_probed(host: Host) -> None:
    found = samples(host, f"{PROBE}https://127.0.0.1/")
    assert found["probe_success"] == 1
    left = (found["probe_ssl_earliest_cert_expiry"] - time.time()) / 86400
    assert 7 < left < 10
    assert samples(host, f"{PROBE}https://127.0.0.1:9/")["probe_success"] == 0
    assert samples(host, f"{PROBE}http://127.0.0.1:8089/other")["probe_success"] == 0, "without TLS"


def test_the_password_is_for_the_exporter_alone(host: Host) -> None:
    kept = host.file("/etc/prometheus/redis-exporter/passwords")
    assert (kept.mode, kept.user) == (0o600, "root")
    assert host.file("/etc/prometheus/redis-exporter").mode == 0o700
    main = host.check_output(f"systemctl show --property=MainPID --value {unit('redis')}")
    shown = host.check_output(f"cat /proc/{main}/cmdline /proc/{main}/environ | tr '\\0' '\\n'")
    shown += host.check_output(f"systemctl cat {unit('redis')}; journalctl --boot --no-pager; cat /etc/default/*")
    assert "molecule-password-of-exporter" not in shown


@pytest.mark.parametrize("kind", ADDRESS)
def test_can_write_nowhere(host: Host, kind: str) -> None:
    main = host.check_output(f"systemctl show --property=MainPID --value {unit(kind)}")
    for place in ("/etc", "/var/lib/prometheus"):
        assert "Read-only" in host.run(f"nsenter --target {main} --mount touch {place}/written").stderr
    status = host.file(f"/proc/{main}/status").content_string
    assert "CapBnd:\t0000000000000000" in status
    assert "NoNewPrivs:\t1" in status
    assert "Seccomp:\t2" in status


def test_mistakes_would_be_refused(host: Host) -> None:
    """The check that guards the file does find mistakes."""
    check = "prometheus-blackbox-exporter --config.check --config.file="
    assert host.run(f"{check}/etc/prometheus/blackbox.yml").rc == 0
    host.check_output("sed 's/prober: http/probe: http/' /etc/prometheus/blackbox.yml > /tmp/mistaken")
    assert host.run(f"{check}/tmp/mistaken").rc != 0


@pytest.mark.parametrize("kind", ADDRESS)
def test_comes_back_when_killed(host: Host, kind: str) -> None:
    before = host.check_output(f"systemctl show --property=MainPID --value {unit(kind)}")
    host.check_output(f"kill -KILL {before}")
    eventually("back", lambda: samples(host, f"http://{ADDRESS[kind]}/metrics"), 15)
    assert host.check_output(f"systemctl show --property=MainPID --value {unit(kind)}") != before
