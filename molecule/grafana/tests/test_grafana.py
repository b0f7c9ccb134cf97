"""The role grafana, on a package that stands in for Grafana.

The side effect has brought another version from a file, another password and one dashboard only.
"""

from __future__ import annotations

import json
import time
from typing import Any

from testinfra.host import Host

URL = "http://127.0.0.1:3001/grafana"
UNIT = "grafana-server"
PASSWORD = "molecule-password-2"


def ask(host: Host, path: str, password: str = PASSWORD) -> tuple[int, Any]:
    """Ask as the administrator; return status and answer."""
    answer = host.check_output(f"curl --silent --user keeper:{password} --write-out '\\n%{{http_code}}' {URL}{path}")
    body, _, status = answer.rpartition("\n")
    return int(status), json.loads(body)


def test_what_is_installed_says_what_it_is(host: Host) -> None:
    package = host.package("grafana")
    assert package.version == "0.0.2+standin"
    assert "Stand-in" in host.check_output("dpkg-query --show --showformat='${Description}' grafana")


def test_listens_on_the_given_address_only(host: Host) -> None:
    assert host.service(UNIT).is_enabled
    assert host.socket("tcp://127.0.0.1:3001").is_listening
    assert not host.socket("tcp://0.0.0.0:3001").is_listening


def test_nobody_comes_in_without_the_password(host: Host) -> None:
    assert host.check_output(f"curl --silent --output /dev/null --write-out '%{{http_code}}' {URL}/api/user") == "401"
    assert ask(host, "/api/user", "molecule-password-1")[0] == 401
    assert ask(host, "/api/user", "admin")[0] == 401
    assert ask(host, "/api/user") == (200, {"login": "keeper"})


def test_the_password_is_nowhere_else(host: Host) -> None:
    kept = host.file("/etc/grafana/credentials/admin_password")
    assert (kept.mode, kept.user) == (0o600, "root")
    found = host.run(
        "grep --recursive --files-with-matches molecule-password /etc /var/lib/grafana /var/log --exclude-dir=journal"
    ).stdout.split()
    assert found == ["/etc/grafana/credentials/admin_password"]
    assert host.run("journalctl --boot | grep --quiet molecule-password").rc != 0
    main = host.check_output(f"systemctl show --property=MainPID --value {UNIT}")
    assert "molecule-password" not in host.check_output(
        f"cat /proc/{main}/environ /proc/{main}/cmdline | tr '\\0' '\\n'"
    )


def test_provides_sources_and_dashboards(host: Host) -> None:
    status, sources = ask(host, "/api/datasources")
    assert status == 200
    assert [(source["uid"], source["url"]) for source in sources] == [("prometheus", "http://127.0.0.1:9090")]
    assert ask(host, "/api/search") == (200, ["Hosts"])
    dashboard = json.loads(host.file("/etc/grafana/dashboards/hosts.json").content_string)
    assert {target["datasource"]["uid"] for panel in dashboard["panels"] for target in panel["targets"]} == {
        "prometheus"
    }


def test_settings(host: Host) -> None:
    lines = host.file("/etc/grafana/grafana.ini").content_string.splitlines()
    for line in (
        "root_url = https://monitor.example.org/grafana/",
        "serve_from_sub_path = true",
        "cookie_secure = true",
        "default_theme = dark",
        "allow_sign_up = false",
    ):
        assert line in lines
    assert host.file("/etc/grafana/grafana.ini").mode == 0o640


def test_the_repository_is_signed_and_in_order(host: Host) -> None:
    assert "signed-by=/etc/apt/keyrings/grafana-" in host.file("/etc/apt/sources.list.d/grafana.list").content_string
    assert host.run("apt-get update --quiet --error-on=any").rc == 0
    assert not host.run("ls /var/cache/apt/archives/grafana-*.deb").stdout


def test_can_write_its_data_only(host: Host) -> None:
    main = host.check_output(f"systemctl show --property=MainPID --value {UNIT}")
    assert "Read-only" in host.run(f"nsenter --target {main} --mount touch /etc/grafana/written").stderr
    assert host.run(f"nsenter --target {main} --mount touch /var/lib/grafana/written").rc == 0


def test_comes_back_when_killed(host: Host) -> None:
    before = host.check_output(f"systemctl show --property=MainPID --value {UNIT}")
    host.check_output(f"kill -KILL {before}")
    end = time.monotonic() + 30
    while host.run(f"curl --silent --fail {URL}/api/health").rc:
        assert time.monotonic() < end
        time.sleep(0.3)
    assert host.check_output(f"systemctl show --property=MainPID --value {UNIT}") != before
