"""A host's measurements, from a process that can do nothing else."""

from __future__ import annotations

import time

import pytest
from testinfra.host import Host

URL = "http://127.0.0.1:9101/metrics"
UNIT = "prometheus-node-exporter"


def test_listens_on_the_given_address_only(host: Host) -> None:
    assert host.service(UNIT).is_enabled
    assert host.socket("tcp://127.0.0.1:9101").is_listening
    assert not host.socket("tcp://0.0.0.0:9101").is_listening
    assert not host.socket("tcp://:::9101").is_listening
    assert not host.socket("tcp://:::9100").is_listening


def test_measures(host: Host) -> None:
    host.check_output("echo 'lightbox_test 42' > /var/lib/prometheus/node-exporter/test.prom")
    page = host.check_output(f"curl --silent --fail {URL}")
    samples = dict(line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#"))
    assert float(samples["node_memory_MemTotal_bytes"]) > 1e8
    assert samples["lightbox_test"] == "42"
    assert samples['node_systemd_unit_state{name="ssh.service",state="active",type="notify"}'] == "1"
    assert any(name.startswith("node_filesystem_avail_bytes") and 'mountpoint="/"' in name for name in samples)
    failed = [
        name for name, value in samples.items() if name.startswith("node_scrape_collector_success") and value == "0"
    ]
    # A container shows no hardware; whatever a host of any kind has must be readable in the sandbox.
    for needed in ("cpu", "diskstats", "filesystem", "loadavg", "meminfo", "netdev", "systemd", "textfile"):
        assert f'node_scrape_collector_success{{collector="{needed}"}}' not in failed
    assert 'node_scrape_collector_success{collector="wifi"}' not in samples


def test_tells_whether_the_host_must_be_restarted(host: Host) -> None:
    assert host.service("lightbox-reboot-required.timer").is_enabled
    end = time.monotonic() + 15
    while host.run("test -e /var/lib/prometheus/node-exporter/reboot_required.prom").rc:
        assert time.monotonic() < end, "the timer told nothing"
        time.sleep(0.5)
    for command, told in (("touch", "1"), ("rm -f", "0")):
        host.check_output(f"{command} /run/reboot-required && systemctl start lightbox-reboot-required")
        assert f"\nnode_reboot_required {told}\n" in host.check_output(f"curl --silent --fail {URL}")


@pytest.mark.parametrize("place", ["/var/lib/prometheus/node-exporter", "/etc", "/home"])
def test_can_write_nowhere(host: Host, place: str) -> None:
    main = host.check_output(f"systemctl show --property=MainPID --value {UNIT}")
    assert "Read-only" in host.run(f"nsenter --target {main} --mount touch {place}/written").stderr
    status = host.file(f"/proc/{main}/status").content_string
    assert "CapBnd:\t0000000000000000" in status
    assert "NoNewPrivs:\t1" in status
    assert "Seccomp:\t2" in status


def test_a_mistake_would_be_refused(host: Host) -> None:
    """The trial that guards the file does find a mistake."""
    assert host.run("prometheus-node-exporter --collector.nothing --version").rc != 0
    assert host.run("prometheus-node-exporter --collector.systemd --version").rc == 0


def test_comes_back_when_killed(host: Host) -> None:
    before = host.check_output(f"systemctl show --property=MainPID --value {UNIT}")
    host.check_output(f"kill -KILL {before}")
    end = time.monotonic() + 10
    while host.run(f"curl --silent --fail {URL}").rc:
        assert time.monotonic() < end
        time.sleep(0.3)
    assert host.check_output(f"systemctl show --property=MainPID --value {UNIT}") != before
