"""The role grafana with nearly every setting changed, on a package that stands in for Grafana."""

from __future__ import annotations

import json
from typing import Any

from testinfra.host import Host

URL = "http://127.0.0.1:3002"
PASSWORDS = "molecule-password-of-"


def ask(host: Host, path: str, user: str = "") -> Any:
    """Return an answer, by default one that anybody gets."""
    return json.loads(host.check_output(f"curl --silent --fail {user and f'--user {user}'} {URL}{path}"))


def test_the_package_came_from_the_web(host: Host) -> None:
    assert host.package("grafana").version == "0.0.2+standin"
    assert "http://127.0.0.1:8800/flat ./" in host.file("/etc/apt/sources.list.d/grafana.list").content_string
    assert host.run("apt-get update --quiet --error-on=any").rc == 0


def test_it_listens_where_it_was_said(host: Host) -> None:
    assert host.socket("tcp://0.0.0.0:3002").is_listening
    assert not host.socket("tcp://127.0.0.1:3000").is_listening


def test_the_settings_of_the_caller_hold(host: Host) -> None:
    lines = host.file("/etc/grafana/grafana.ini").content_string.splitlines()
    section = lines.index("[auth.anonymous]")
    assert "enabled = true" in lines[section : lines.index("", section)]
    assert "reporting_enabled = true" in lines
    assert ask(host, "/api/user", f"watcher:{PASSWORDS}watcher") == {"login": "watcher"}


def test_sources_and_dashboards(host: Host) -> None:
    sources = {source["uid"]: source["url"] for source in ask(host, "/api/datasources")}
    assert sources == {"near": "http://127.0.0.1:9095", "far": "https://far.example.org"}
    assert ask(host, "/api/search") == ["Model", "Own"]


def test_passwords_are_where_they_belong(host: Host) -> None:
    found = host.run(
        f"grep --recursive --files-with-matches {PASSWORDS} /etc /var/lib/grafana /var/log --exclude-dir=journal"
    ).stdout.split()
    sources = "/etc/grafana/provisioning/datasources/lightbox.yml"
    assert sorted(found) == ["/etc/grafana/credentials/admin_password", sources]
    assert (host.file(sources).mode, host.file(sources).group) == (0o640, "grafana")
    assert host.run(f"journalctl --boot | grep --quiet {PASSWORDS}").rc != 0
