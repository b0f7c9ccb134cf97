"""A Python application as a service."""

from __future__ import annotations

import time

import pytest
from testinfra.host import Host

HOME = "/opt/lightbox/ui"
UNIT = "lightbox-ui.service"
URL = "http://127.0.0.1:5001/health"
SECRET = "molecule-secret-of-ui"


def main_pid(host: Host) -> str:
    """Return the process id of gunicorn's master."""
    return host.check_output(f"systemctl show --property=MainPID --value {UNIT}")


def eventually_well(host: Host, seconds: float = 10) -> None:
    """Wait until the service is well, or fail with its last words."""
    end = time.monotonic() + seconds
    while host.run(f"curl --silent --fail --max-time 2 {URL}").rc:
        if time.monotonic() > end:
            pytest.fail(host.check_output(f"journalctl --no-pager --unit {UNIT} --lines 60"))
        time.sleep(0.3)


def test_runs_the_current_release(host: Host) -> None:
    eventually_well(host)
    assert host.service("lightbox-ui").is_enabled
    release = host.file(f"{HOME}/current").linked_to
    assert release.startswith(f"{HOME}/releases/")
    assert host.file(f"{release}/release.json").exists
    assert host.check_output(f"tr '\\0' '\\n' < /proc/{main_pid(host)}/cmdline").startswith(f"{release}/bin/python")


def test_a_refused_release_is_not_current(host: Host) -> None:
    """The release that side_effect.yml brought is on the host and out of service."""
    current = host.file(f"{HOME}/current").linked_to
    releases = host.check_output(f"ls {HOME}/releases").split()
    assert len(releases) == 2
    refused = next(name for name in releases if not current.endswith(name))
    module = f"{HOME}/releases/{refused}/lib/python3*/site-packages/lightbox/ui/app.py"
    assert "broken on purpose" in host.check_output(f"cat {module}")


def test_environment_arrives_as_given(host: Host) -> None:
    environment = host.check_output(f"tr '\\0' '\\n' < /proc/{main_pid(host)}/environ").splitlines()
    assert 'GREETING=it said "100 %" \\ $HOME' in environment
    assert not [line for line in environment if SECRET in line]


def test_credentials_are_the_services_alone(host: Host) -> None:
    stored = host.file("/etc/lightbox/ui/credentials/molecule_secret")
    assert (stored.mode, stored.user) == (0o600, "root")
    assert host.file("/etc/lightbox/ui/credentials").mode == 0o700
    assert host.run("runuser -u nobody -- cat /etc/lightbox/ui/credentials/molecule_secret").rc != 0
    given = f"/run/credentials/{UNIT}/molecule_secret"
    assert host.run(f"runuser -u nobody -- cat {given}").rc != 0
    assert host.check_output(f"runuser -u lightbox-ui -- cat {given}") == SECRET
    assert SECRET not in host.check_output("journalctl --no-pager --boot")


def test_is_confined(host: Host) -> None:
    status = dict(line.split(":", 1) for line in host.check_output(f"cat /proc/{main_pid(host)}/status").splitlines())
    assert status["CapBnd"].strip() == "0" * 16
    assert status["NoNewPrivs"].strip() == "1"
    assert status["Uid"].split()[0] == str(host.user("lightbox-ui").uid)
    inside = f"nsenter --target {main_pid(host)} --mount setpriv --reuid lightbox-ui --regid lightbox-ui --clear-groups"
    assert host.run(f"{inside} touch /var/lib/lightbox/ui/mine").rc == 0
    assert "Read-only" in host.run(f"nsenter --target {main_pid(host)} --mount touch /etc/theirs").stderr


@pytest.mark.parametrize("victim", ["master", "worker"])
def test_comes_back_when_killed(host: Host, victim: str) -> None:
    eventually_well(host)
    master = main_pid(host)
    killed = master if victim == "master" else host.check_output(f"pgrep --parent {master} --oldest")
    host.check_output(f"kill -KILL {killed}")
    time.sleep(0.2)
    eventually_well(host)
    assert (main_pid(host) == master) == (victim == "worker")
    assert killed not in host.check_output(f"pgrep --parent {main_pid(host)}").split()


def test_a_reload_drops_no_request(host: Host) -> None:
    eventually_well(host)
    master = main_pid(host)
    workers = set(host.check_output(f"pgrep --parent {master}").split())
    ask = f"curl --silent --output /dev/null --write-out '%{{http_code}}\\n' {URL}"
    asked = host.check_output(
        f"(sleep 1; systemctl reload {UNIT}) & for i in $(seq 80); do {ask}; sleep 0.05; done; wait"
    )
    assert len(asked.split()) == 80
    assert set(asked.split()) == {"200"}
    assert main_pid(host) == master
    end = time.monotonic() + 15
    while workers & set(host.check_output(f"pgrep --parent {master}").split()):
        assert time.monotonic() < end, "old workers are still there"
        time.sleep(0.3)
