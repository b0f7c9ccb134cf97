"""A host whose source of Grafana is out of reach goes without it, and nothing else suffers."""

from __future__ import annotations

from testinfra.host import Host


def test_grafana_is_not_there(host: Host) -> None:
    assert not host.package("grafana").is_installed
    assert not host.file("/etc/grafana").exists
    assert not host.file("/etc/systemd/system/grafana-server.service.d").exists
    assert host.run("ls /etc/apt/keyrings/grafana-*.asc").rc != 0


def test_its_repository_is_not_in_the_way(host: Host) -> None:
    assert not host.file("/etc/apt/sources.list.d/grafana.list").exists
    assert host.run("apt-get update --quiet --error-on=any").rc == 0
    assert host.run("apt-get install --yes --quiet --no-install-recommends --simulate less").rc == 0
