"""What `make logs` asks journalctl for, and what it makes of the answer."""

from __future__ import annotations

import json
import subprocess
from types import SimpleNamespace

import pytest
from ansible.errors import AnsibleActionFail
from test_plugins import PLUGINS, doctor, load

lines = load("action/journal_lines.py")

HOSTS = {"ip-10-0-1-4": "p-proxy", "ip-10-0-2-5": "p-ui", "ip-10-0-2-6": "p-api"}
ID = "5f4dcc3b5aa765d61d8327deb882cf99"
NOTHING = {"service": "", "id": "", "since": ""}


def entry(hostname, unit, message, microseconds, **more):
    """Return a line of ``journalctl --output=json``."""
    return json.dumps({
        "__REALTIME_TIMESTAMP": str(microseconds), "__MONOTONIC_TIMESTAMP": str(microseconds), "_BOOT_ID": hostname,
        "_HOSTNAME": hostname, "_SYSTEMD_UNIT": unit, "MESSAGE": message, **more,
    })  # fmt: skip


def request_of(hostname, unit, ended, seconds, **fields):
    about = {"method": "POST", "path": "/x", "status": 200, "seconds": seconds, **fields}
    return entry(hostname, unit, json.dumps(about), int(ended * 1e6))


def test_a_query_names_what_is_asked_for():
    asked = lines.query("/d", {"service": "nginx", "id": ID, "since": "-2d"}, "ip-10-0-1-4")
    assert asked[:2] == ["journalctl", "--directory=/d"]
    assert "--since=-2d" in asked
    assert f"--grep={ID}" in asked
    assert " ".join(asked[-8:]) == (
        "_HOSTNAME=ip-10-0-1-4 _SYSTEMD_UNIT=nginx.service + _HOSTNAME=ip-10-0-1-4 UNIT=nginx.service"
        " + _HOSTNAME=ip-10-0-1-4 SYSLOG_IDENTIFIER=nginx"
    )
    plain = lines.query("/d", NOTHING, "")
    assert not [word for word in plain if word.startswith(("--since", "--grep", "_"))]
    assert "_SYSTEMD_UNIT=logrotate.timer" in lines.query("/d", {**NOTHING, "service": "logrotate.timer"}, "")


def test_a_requests_lines_stand_in_the_order_in_which_it_was_passed_on():
    # Whoever is asked last is done first, and is logged first.
    output = "\n".join([
        request_of("ip-10-0-2-6", "lightbox-api.service", 1700000000.900, 0.05, request_id=ID),
        request_of("ip-10-0-2-5", "lightbox-ui.service", 1700000000.910, 0.0653, request_id=ID),
        request_of("ip-10-0-1-4", "nginx.service", 1700000000.911, 0.066, id=ID, upstream="10.0.2.5:5001"),
    ])  # fmt: skip
    found = lines.entries(output, HOSTS)
    shown = list(lines.table(found, "begun"))
    assert [line.split()[2:4] for line in shown] == [
        ["p-proxy", "nginx"],
        ["p-ui", "lightbox-ui"],
        ["p-api", "lightbox-api"],
    ]
    assert shown[0].startswith("2023-11-14 22:13:20.843  p-proxy  nginx         POST /x 200")
    assert [line.split()[2] for line in lines.table(found)] == ["p-api", "p-ui", "p-proxy"]


def test_a_busy_hosts_late_journal_does_not_change_the_order():
    output = "\n".join([
        request_of("ip-10-0-2-6", "a.service", 1700000000.900, 0.005, time="2023-11-14T22:13:20.898+00:00"),
        request_of("ip-10-0-2-5", "b.service", 1700000000.990, 0.0126, time="2023-11-14T22:13:20.901+00:00"),
    ])  # fmt: skip
    shown = list(lines.table(lines.entries(output, HOSTS), "begun"))
    assert [line.split()[1:4] for line in shown] == [
        ["22:13:20.888", "p-ui", "b"],
        ["22:13:20.893", "p-api", "a"],
    ]


@pytest.mark.parametrize(
    "told",
    [
        "2023-11-14T22:13:21.500+00:00",
        "2023-11-14T21:13:20.100+00:00",
        "2023-11-14T22:13:20+00:00",
        "yesterday",
        7,
        None,
    ],
)
def test_a_time_that_cannot_be_or_says_less_is_not_believed(told):
    output = request_of("ip-10-0-2-5", "b.service", 1700000000.5, 0, time=told)
    (line,) = lines.table(lines.entries(output, HOSTS))
    assert line.split()[1] == "22:13:20.500"


def test_lines_of_all_kinds_are_shown_on_one_line_each():
    output = "\n".join([
        entry("elsewhere", "a.service", "two\nlines", 1),
        entry("ip-10-0-2-6", "b.service", list(b"no \xff text"), 2),
        entry("ip-10-0-2-6", None, None, 3, SYSLOG_IDENTIFIER="sudo"),
        entry("ip-10-0-2-6", None, "{not json", 4),
        entry("ip-10-0-2-6", "init.scope", "Started c", 4, UNIT="c.service", SYSLOG_IDENTIFIER="systemd"),
        entry("ip-10-0-2-6", "session-1.scope", "opened", 4, SYSLOG_IDENTIFIER="sudo"),
        entry("ip-10-0-2-6", "c.service", '{"time": "x", "level": "error", "message": "no model", "reason": "y"}', 5),
        "-- No entries --",
    ])  # fmt: skip
    shown = [line.split("  ", 1)[1] for line in lines.table(lines.entries(output, HOSTS))]
    assert [" ".join(line.split()) for line in shown] == [
        "elsewhere a two lines",
        "p-api b no \ufffd text",
        "p-api sudo",
        "p-api kernel {not json",
        "p-api c Started c",
        "p-api sudo opened",
        "p-api c no model reason=y",
    ]


def test_a_line_that_came_twice_is_shown_once():
    twice = [entry("ip-10-0-2-6", "a.service", "the same", 7), entry("ip-10-0-2-6", "a.service", "another", 7)] * 2
    assert len(lines.entries("\n".join(twice), HOSTS)) == 2


def action(journal, **args):
    """Return the plugin as a task calls it, in front of a host whose shell gives these answers."""
    plugin = lines.ActionModule.__new__(lines.ActionModule)
    plugin._task = SimpleNamespace(args={"directory": "/d", "hosts": HOSTS, **args}, check_mode=False, async_val=0)
    plugin._low_level_execute_command = lambda command, executable: journal
    return plugin


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"host": "p-nobody"}, "There is no host p-nobody; there are p-api, p-proxy, p-ui."),
        ({"id": "x; reboot"}, "is no request id"),
        ({"id": ID}, f"No line with the id {ID} was collected."),
        ({"service": "nginxx"}, "No line of nginxx since -1h was collected."),
        ({"host": "p-ui", "since": "-2d"}, "No line of p-ui since -2d was collected."),
    ],
)
def test_what_there_is_not_is_said(args, words, monkeypatch):
    monkeypatch.setattr(lines.ActionBase, "run", lambda *_: {})
    result = action({"rc": 1, "stdout": "", "stderr": ""}, **args).run()
    assert result["failed"]
    assert words in result["msg"]


def test_a_journal_that_cannot_be_read_is_no_empty_one(monkeypatch):
    monkeypatch.setattr(lines.ActionBase, "run", lambda *_: {})
    with pytest.raises(AnsibleActionFail, match="Failed to parse timestamp: nonsense"):
        action({"rc": 1, "stdout": "", "stderr": "Failed to parse timestamp: nonsense"}, since="nonsense").run()


def test_the_newest_lines_are_shown_oldest_first(monkeypatch):
    monkeypatch.setattr(lines.ActionBase, "run", lambda *_: {})
    said = []
    monkeypatch.setattr(lines.display, "display", said.append)
    output = "\n".join(entry("ip-10-0-2-6", "a.service", f"line {number}", number) for number in (9, 8, 7))
    assert action({"rc": 0, "stdout": output, "stderr": ""}).run()["count"] == 3
    assert [line.split()[-1] for line in said] == ["7", "8", "9"]


def test_a_search_does_not_find_itself(monkeypatch):
    monkeypatch.setattr(lines.ActionBase, "run", lambda *_: {})
    ran = []
    plugin = action({}, id=ID)
    plugin._low_level_execute_command = lambda command, executable: ran.append(command) or {"rc": 0, "stdout": ""}
    plugin.run()
    assert ran and ID not in ran[0]


def test_make_passes_on_what_is_asked_for_and_nothing_of_the_shells_own():
    make = ["make", "--dry-run", "--always-make", "logs"]
    with_shell = subprocess.run(
        ["env", "HOST=some-shell", *make], cwd=PLUGINS.parent, capture_output=True, text=True, check=False
    ).stdout
    assert "some-shell" not in with_shell
    asked = subprocess.run(
        [*make, "HOST=p-api", "SINCE=2 hours ago"], cwd=PLUGINS.parent, capture_output=True, text=True, check=False
    ).stdout
    assert """playbooks/logs.yml -e '{"host": "p-api"}'""" in asked
    assert """-e '{"since": "2 hours ago"}'""" in asked


def test_the_doctor_tells_which_hosts_journal_is_late():
    known = {"ip-1": "p-a", "ip-2": "p-b"}
    good = doctor.journal_ages(["ip-1 3", "ip-2 7"], known, 120)
    assert good == {"ok": True, "detail": "2 hosts, newest line at most 7 s old"}
    late = doctor.journal_ages(["ip-1 300", "ip-2 "], known, 120)
    assert late == {"ok": False, "detail": "p-a: newest line 300 s old, p-b: no line"}
    assert not doctor.journal_ages([], known, 120)["ok"]


def test_only_what_journalctl_complains_of_is_a_failure():
    assert lines.complaints("Shared connection to 10.0.2.4 closed.\r\n\n") == ""
    assert lines.complaints('{"MESSAGE": "a line"}\r\n{"MESSAGE": "Failed"}\r\n') == ""
    assert (
        lines.complaints("Shared connection to a closed.\nFailed to parse timestamp: x\r\n")
        == "Failed to parse timestamp: x"
    )
