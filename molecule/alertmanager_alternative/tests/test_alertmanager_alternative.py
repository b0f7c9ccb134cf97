"""Alertmanager tells people by a mail server that wants TLS and a login."""

from __future__ import annotations

import json
import shlex
import time
from uuid import uuid4

from testinfra.host import Host

URL = "http://127.0.0.1:9093"
PASSWORD = "molecule-password-of-mail"


def post(host: Host, *alerts: dict[str, str]) -> None:
    """Send alerts as Prometheus does."""
    body = [{"labels": labels, "annotations": {"summary": labels["instance"]}} for labels in alerts]
    host.check_output(f"curl --silent --fail --json {shlex.quote(json.dumps(body))} {URL}/api/v2/alerts")


def mails(host: Host, word: str, seconds: float = 60) -> list[str]:
    """Return the messages with a word, once there are some."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        names = host.run(f"grep --files-with-matches {word} /var/lib/received/mail-*").stdout.split()
        if names:
            return [host.file(name).content_string for name in names]
        time.sleep(0.5)
    said = host.check_output("journalctl --no-pager --unit prometheus-alertmanager --unit mail-server --lines 20")
    raise AssertionError(said)


def test_the_mail_server_takes_it_after_a_login(host: Host) -> None:
    name = f"login-{uuid4().hex}"
    post(host, {"alertname": "Told", "instance": name, "service": name})
    (mail, *_) = mails(host, name)
    assert mail.startswith("Login: lightbox\nTo: on-call@example.org\n")


def test_alerts_of_one_service_are_one_message(host: Host) -> None:
    service = f"service-{uuid4().hex}"
    alerts = [{"alertname": name, "instance": f"{service}-{name}", "service": service} for name in ("First", "Second")]
    post(host, *alerts)
    (mail,) = mails(host, f"{service}-First")
    assert f"{service}-Second" in mail.replace("=\r\n", "").replace("=\n", "")


def test_arguments_reach_the_process(host: Host) -> None:
    command = host.check_output("tr '\\0' ' ' < /proc/$(pidof prometheus-alertmanager)/cmdline")
    assert "--data.retention=48h" in command
    assert "--alerts.gc-interval=10m" in command


def test_the_password_is_for_root_alone(host: Host) -> None:
    # The mail server, which knows it too, is the test's own.
    where = host.run(f"grep -rl {PASSWORD} /etc /var/log /var/lib/prometheus").stdout.split()
    assert where
    for name in where:
        assert (host.file(name).user, host.file(name).mode) == ("root", 0o600)
    assert PASSWORD not in host.check_output("journalctl --no-pager --boot")
    assert PASSWORD not in host.check_output("ps -eo args")
