"""Another application as a service, with other settings than the role's own, after two new releases."""

from __future__ import annotations

import time

from testinfra.host import Host

HOME = "/opt/lightbox/watch"
UNIT = "lightbox-watch.service"
URL = "http://127.0.0.1:5102"


def main_pid(host: Host) -> str:
    """Return the process id of gunicorn's master."""
    return host.check_output(f"systemctl show --property=MainPID --value {UNIT}")


def test_runs_the_last_release_and_keeps_the_one_before_alone(host: Host) -> None:
    releases = host.check_output(f"ls {HOME}/releases").split()
    assert len(releases) == 2, "the way back stays, whatever is to be kept"
    current = host.file(f"{HOME}/current").linked_to
    assert current.rpartition("/")[2] in releases
    assert host.file(f"{current}/bin/python").linked_to == "/usr/bin/python3.13"
    assert host.check_output(f"tr '\\0' '\\n' < /proc/{main_pid(host)}/cmdline").startswith(f"{current}/bin/python")


def test_answers_where_and_as_it_was_told_to(host: Host) -> None:
    assert host.check_output(f"curl --silent --fail {URL}/metrics").startswith("#")
    assert host.check_output(f"curl --silent --output /dev/null --write-out '%{{http_code}}' {URL}/status") == "401"
    # There is no Prometheus, and the page says so, to whoever may see it.
    ask = f"curl --silent --user operator:molecule-password-of-status --write-out '%{{http_code}}' {URL}/status"
    page = host.check_output(ask)
    assert "Molecule" in page
    assert not page.endswith("401")
    assert not host.socket("tcp://0.0.0.0:5102").is_listening


def test_arguments_reach_gunicorn(host: Host) -> None:
    command = host.check_output(f"tr '\\0' ' ' < /proc/{main_pid(host)}/cmdline")
    assert "--workers 1" in command
    assert "--timeout 33" in command
    # The one process is replaced after some requests, and none of them fails for it.
    first = host.check_output(f"pgrep --parent {main_pid(host)}")
    codes = host.check_output(f"curl --silent --output /dev/null --write-out '%{{http_code}} ' '{URL}/health?[1-12]'")
    assert set(codes.split()) == {"200"}
    end = time.monotonic() + 40
    while first in host.check_output(f"pgrep --parent {main_pid(host)}").split():
        assert time.monotonic() < end, "the process is still there"
        time.sleep(0.5)


def test_its_user_is_in_the_given_groups(host: Host) -> None:
    assert host.user("lightbox-watch").groups == ["lightbox-watch", "adm"]
    groups = host.check_output(f"grep ^Groups: /proc/{main_pid(host)}/status").split()[1:]
    assert str(host.group("adm").gid) in groups
