"""Alertmanager tells every way it was given, keeps its secrets, and holds back what another alert explains.

Each test uses hosts of its own in its alerts, in each run others: what was told before is none of its business.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any
from uuid import uuid4

from testinfra.host import Host

URL = "http://127.0.0.1:9193/alerts"
UNIT = "prometheus-alertmanager"
SECRETS = ("molecule-secret-url", "molecule-secret-token")


def eventually(what: str, true: Callable[[], Any], seconds: float = 60) -> Any:
    end = time.monotonic() + seconds
    while not (answer := true()):
        assert time.monotonic() < end, what
        time.sleep(0.5)
    return answer


def post(host: Host, *alerts: dict[str, str], over: bool = False) -> None:
    """Send alerts as Prometheus does; ``over`` says that they are."""
    end = datetime.now(timezone.utc) + timedelta(seconds=-1 if over else 600)
    body = [
        {"labels": labels, "annotations": {"summary": f"Summary of {labels['instance']}"}, "endsAt": end.isoformat()}
        for labels in alerts
    ]
    host.check_output(f"curl --silent --fail --json {shlex.quote(json.dumps(body))} {URL}/api/v2/alerts")


def received(host: Host, kind: str, *words: str) -> list[str]:
    """Return what came one way and holds all words."""
    listing = host.check_output(f"find /var/lib/received -name '{kind}-*' | sort").split()
    # Long lines of a mail are folded.
    found = [host.file(name).content_string.replace("=\r\n", "").replace("=\n", "") for name in listing]
    return [text for text in found if all(word in text for word in words)]


def test_listens_on_the_given_address_only(host: Host) -> None:
    assert host.service(UNIT).is_enabled
    assert host.socket("tcp://127.0.0.1:9193").is_listening
    for address in ("0.0.0.0:9193", ":::9193", ":::9093", "0.0.0.0:9094", ":::9094"):
        assert not host.socket(f"tcp://{address}").is_listening, address


def test_every_way_is_told_and_told_when_it_is_over(host: Host) -> None:
    name = f"ways-{uuid4().hex}"
    # A name of its own, for alerts of one name are one message.
    labels = {"alertname": f"Told{uuid4().hex}", "instance": name, "severity": "critical"}
    post(host, labels)
    (plain, *_) = eventually("webhook", lambda: received(host, "webhook", "/plain ", name))
    head, body = plain.split("\n", 1)
    assert head == "/plain Bearer molecule-secret-token"
    assert json.loads(body)["status"] == "firing"
    assert json.loads(body)["alerts"][0]["labels"] == labels
    (slack, *_) = eventually("Slack", lambda: received(host, "webhook", "/slack/molecule-secret-url", name))
    sent = json.loads(slack.split("\n", 1)[1])
    assert sent["channel"] == "#on-call"
    assert sent["attachments"][0]["title"] == f"FIRING: {labels['alertname']} (1)"
    assert f"Summary of {name}" in sent["attachments"][0]["text"]
    (mail, *_) = eventually("mail", lambda: received(host, "mail", f"Summary of {name}"))
    assert "To: on-call@example.org, second@example.org" in mail
    post(host, labels, over=True)
    for kind, words in (("webhook", ('"status":"resolved"', "/plain ")), ("webhook", ("RESOLVED", "/slack")),
                        ("mail", ("Resolved",))):  # fmt: skip
        eventually(f"{kind} is told the end", lambda k=kind, w=words: received(host, k, name, *w))


def test_a_host_that_is_down_holds_its_other_alerts_back(host: Host) -> None:
    gone, there = f"gone-{uuid4().hex}", f"there-{uuid4().hex}"
    post(
        host,
        {"alertname": "HostDown", "instance": gone},
        {"alertname": "TargetDown", "instance": gone},
        {"alertname": "TargetDown", "instance": there},
    )
    eventually("the host", lambda: received(host, "webhook", "/plain ", "HostDown", gone))
    (told, *_) = eventually("the other host", lambda: received(host, "webhook", "/plain ", "TargetDown", there))
    assert f"Summary of {gone}" not in told
    active = json.loads(host.check_output(f"curl --silent --fail {URL}/api/v2/alerts"))
    states = {(one["labels"]["alertname"], one["labels"]["instance"]): one["status"]["state"] for one in active}
    assert states[("TargetDown", gone)] == "suppressed"
    assert states[("TargetDown", there)] == "active"


def test_secrets_are_for_alertmanager_alone(host: Host) -> None:
    assert host.file("/etc/prometheus/alertmanager").mode == 0o700
    for name in ("slack_url", "webhook_token"):
        kept = host.file(f"/etc/prometheus/alertmanager/{name}")
        assert (kept.mode, kept.user) == (0o600, "root")
    assert host.file("/etc/prometheus/alertmanager.yml").mode == 0o640
    main = host.check_output(f"systemctl show --property=MainPID --value {UNIT}")
    shown = host.check_output(f"cat /proc/{main}/cmdline /proc/{main}/environ | tr '\\0' '\\n'")
    shown += host.check_output(f"systemctl cat {UNIT}; journalctl --boot --no-pager")
    shown += host.check_output("cat /etc/prometheus/alertmanager.yml")
    for secret in SECRETS:
        assert secret not in shown


def test_mistakes_would_be_refused(host: Host) -> None:
    """The check that guards the file does find mistakes."""
    assert host.run("amtool check-config /etc/prometheus/alertmanager.yml").rc == 0
    host.check_output("sed 's/group_wait: 1s/group_wait: soon/' /etc/prometheus/alertmanager.yml > /tmp/mistaken")
    assert host.run("amtool check-config /tmp/mistaken").rc != 0


def test_writes_nothing_but_its_data(host: Host) -> None:
    main = host.check_output(f"systemctl show --property=MainPID --value {UNIT}")
    assert "Read-only" in host.run(f"nsenter --target {main} --mount touch /etc/written").stderr
    assert host.run(f"nsenter --target {main} --mount touch /var/lib/prometheus/alertmanager/written").rc == 0
    status = host.file(f"/proc/{main}/status").content_string
    assert "CapBnd:\t0000000000000000" in status
    assert "NoNewPrivs:\t1" in status


def test_keeps_silences_when_it_is_restarted_and_comes_back_when_killed(host: Host) -> None:
    host.check_output(f"amtool --alertmanager.url={URL} silence add instance=quiet --comment=test --author=test")
    host.check_output(f"systemctl restart {UNIT}")
    eventually("ready", lambda: host.run(f"curl --silent --fail {URL}/-/ready").rc == 0)
    assert 'instance="quiet"' in host.check_output(f"amtool --alertmanager.url={URL} silence query")
    before = host.check_output(f"systemctl show --property=MainPID --value {UNIT}")
    host.check_output(f"kill -KILL {before}")
    eventually("back", lambda: host.run(f"curl --silent --fail {URL}/-/ready").rc == 0)
    assert host.check_output(f"systemctl show --property=MainPID --value {UNIT}") != before
