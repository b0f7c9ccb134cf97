"""Every host's log in one place: found by a request's id, whole after an outage, and silent about patients."""

from __future__ import annotations

import json
import os
import re
import struct
import time
import urllib.error
import urllib.request
import uuid

import pytest

from .conftest import System, wait_until
from .test_pneumonia import measured, secrets

pytestmark = [pytest.mark.system, pytest.mark.timeout(1200)]

COLLECTED = "journalctl --directory=/var/log/journal/remote --quiet --no-pager"
# How long the monitor host is away; five minutes were tried too.
AWAY_SECONDS = float(os.environ.get("LIGHTBOX_AWAY_SECONDS", "30"))
LINE = re.compile(r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3})\s+(pneumonia-\S+|ip-\S+)\s+(\S+)\s+(.*)$", re.MULTILINE)
# Letters that nothing else writes, not even the command line that looks for them.
CANARY = f"canary{uuid.uuid4().hex}"


def ask(system: System, path: str, data: bytes | None = None, **headers: str) -> tuple[str, str]:
    """Ask the page; return the request's id and the text."""
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(system.url + path, data=data, headers=given)
    try:
        with urllib.request.urlopen(request, context=system.context(), timeout=30) as answer:
            return answer.headers["X-Request-ID"], answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.headers["X-Request-ID"], error.read().decode()


def upload(system: System, content: bytes, name: str, **headers: str) -> tuple[str, str]:
    """Upload a file; return the request's id and the text."""
    head = f'--{CANARY}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'
    body = head.encode() + content + f"\r\n--{CANARY}--\r\n".encode()
    return ask(system, "/upload_predict", body, Content_Type=f"multipart/form-data; boundary={CANARY}", **headers)


def shown(system: System, *words: str) -> list[tuple[str, str, str, str]]:
    """Return time, host, service and message of what `make logs` shows."""
    return LINE.findall(system.make("logs", *words))


def collected(system: System, tag: str) -> set[str]:
    """Return the lines of a tag that the monitor host has."""
    return set(system.on("monitor", f"{COLLECTED} --identifier={tag} --output=cat || true").splitlines())


def test_a_requests_id_shows_its_way_through_nginx_pages_and_api(system: System) -> None:
    identity, text = upload(system, system.smoke(), "xray.png", X_Request_ID="forged-by-a-client")
    assert "data-verdict=" in text
    assert re.fullmatch("[0-9a-f]{32}", identity), "the id is the proxy's own"

    def services() -> list[str]:
        done = system.play("playbooks/logs.yml", "-e", f"id={identity}")
        return [service for _, _, service, _ in LINE.findall(done.stdout)]

    wait_until("all three tell of it", lambda: {"nginx", "lightbox-ui", "lightbox-api"} <= set(services()), 60)
    lines = shown(system, f"ID={identity}")
    order = list(dict.fromkeys(service for _, _, service, _ in lines))
    assert order[:3] == ["nginx", "lightbox-ui", "lightbox-api"], lines
    assert [moment for moment, *_ in lines] == sorted(moment for moment, *_ in lines)
    assert lines[0][1] == "pneumonia-proxy"
    assert lines[0][3].startswith("POST /upload_predict 200")
    assert all(identity in message for *_, message in lines)


def test_who_reads_of_an_error_finds_it_by_its_reference(system: System) -> None:
    _, text = ask(system, f"/cases/{'0' * 32}")
    (identity,) = re.findall(r"Reference: <code>([0-9a-f]{32})</code>", text)
    wait_until("it is found", lambda: "404" in system.play("playbooks/logs.yml", "-e", f"id={identity}").stdout, 60)


def test_lines_are_chosen_by_host_service_and_time(system: System) -> None:
    names = list(system.instances())
    for name in names:
        system.on(name, f"logger -t roll-call {name} is here")

    def present() -> set[tuple[str, str]]:
        done = system.play("playbooks/logs.yml", "-e", "service=roll-call", "-e", "since=-10min")
        return {(host, message) for _, host, _, message in LINE.findall(done.stdout)}

    wait_until("all are here", lambda: present() == {(f"pneumonia-{name}", f"{name} is here") for name in names}, 60)
    ours = shown(system, "HOST=pneumonia-ui", "SERVICE=lightbox-ui", "SINCE=-2d")
    assert {(host, service) for _, host, service, _ in ours} == {("pneumonia-ui", "lightbox-ui")}


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("host=pneumonia-nobody", "There is no host pneumonia-nobody; there are pneumonia-api, "),
        (f"id={'0' * 31}7", f"No line with the id {'0' * 31}7 was collected."),
        ("service=lightbox-nothing", "No line of lightbox-nothing since -1h was collected."),
    ],
)
def test_what_there_is_not_is_said(system: System, word: str, sentence: str) -> None:
    done = system.play("playbooks/logs.yml", "-e", word)
    assert done.returncode != 0
    assert sentence in done.stdout


def test_no_line_is_lost_while_the_monitor_host_is_away(system: System) -> None:
    tag = f"numbered-{uuid.uuid4().hex[:8]}"
    write = "for i in $(seq %d %d); do logger -t " + tag + ' "line $i"; sleep 0.2; done'
    system.on("ui", write % (1, 10))
    wait_until("lines arrive", lambda: len(collected(system, tag)) == 10, 60)
    monitor = system.instances()["monitor"]["InstanceId"]
    ec2 = system.client("ec2")
    ec2.stop_instances(InstanceIds=[monitor])
    try:
        ec2.get_waiter("instance_stopped").wait(InstanceIds=[monitor], WaiterConfig={"Delay": 1, "MaxAttempts": 60})
        begun = time.monotonic()
        system.on("ui", write % (11, 110))
        time.sleep(max(0.0, AWAY_SECONDS - (time.monotonic() - begun)))
        system.on("ui", write % (111, 120))
    finally:
        ec2.start_instances(InstanceIds=[monitor])
    wait_until("the monitor host is back", lambda: system.on("monitor", "echo back", check=False) == "back", 90)
    wanted = {f"line {number}" for number in range(1, 121)}
    # A connection that had died unnoticed is given up after at most three minutes.
    wait_until("every line is there", lambda: collected(system, tag) == wanted, 240)
    wait_until("alerts are looked for", lambda: measured(system, "time() - timestamp(up{job='node'}) < 30"), 60)


def test_no_log_tells_of_a_patient_or_a_secret(system: System) -> None:
    element = struct.pack("<HH2sH", 0x0010, 0x0010, b"PN", len(CANARY)) + CANARY.encode()
    dicom = b"\0" * 128 + b"DICM" + element
    session = {"Cookie": f"session={CANARY}; lightbox={CANARY}"}
    ids = [
        upload(system, system.smoke(), f"{CANARY}.png", **session)[0],
        upload(system, dicom, f"{CANARY}.dcm", **session)[0],
        ask(system, f"/?search={CANARY}", **session)[0],
        ask(system, f"/table?search={CANARY}", Referer=f"{system.url}/?search={CANARY}")[0],
        # More than is accepted: the proxy itself refuses it, and says why in its log.
        ask(system, f"/upload_predict?patient={CANARY}", b"x" * 30_000_000, **session)[0],
    ]

    def everything() -> str:
        return system.on("monitor", f"{COLLECTED} --output=json --output-fields=MESSAGE,_CMDLINE")

    logged = wait_until(
        "all of it is logged", lambda: (text := everything()) and all(one in text for one in ids) and text, 120
    )
    assert len(logged.splitlines()) > 1000
    assert json.loads(logged.splitlines()[-1])["MESSAGE"]
    assert CANARY not in logged
    for number, secret in enumerate(secrets(system)):
        assert secret not in logged, f"password {number} is in a log"
    assert "BEGIN PRIVATE KEY" not in logged
