"""The digits, brought up beside the pneumonia system, drawn in a browser, and taken away again."""

from __future__ import annotations

import base64
import io
import json
import os
import socket
import ssl
import sys
from typing import Any

import pytest
from playwright.sync_api import Browser, CDPSession, Page, expect

from .conftest import ROOT, System, opened, shot, wait_until
from .test_pneumonia import changed

# The same templates are pictures in the app's own tests and movements here.
sys.path.insert(0, str(ROOT / "app/tests"))
from drawing_kit import Drawing, drawings, render

pytestmark = [pytest.mark.system, pytest.mark.timeout(1800)]

# The images of people take minutes to train on; drawn ones do for everything but the accuracy.
DATA = os.environ.get("LIGHTBOX_MNIST", "")
# Of so many drawings people may be misunderstood in one of twenty.
RECOGNISED = 0.95


@pytest.fixture(scope="module")
def digits() -> System:
    """The digits."""
    return System("mnist")


def footprint(system: System) -> dict[str, Any]:
    """Return what a neighbour must not change: the hosts, where they are, since when they run, what is live."""
    return {
        "hosts": {name: (one["InstanceId"], one["PrivateIpAddress"]) for name, one in system.instances().items()},
        "services": {
            host: system.on(host, f"systemctl show --property=MainPID,ActiveEnterTimestampMonotonic {unit}")
            for host, unit in {"api": "lightbox-api", "ui": "lightbox-ui", "proxy": "nginx"}.items()
        },
        "model": system.model()["version"],
        "secrets": {
            file.name: file.read_bytes()
            for file in sorted(system.secrets.iterdir())
            if file.is_file() and file.name != "known_hosts"  # ssh adds to it by itself
        },
    }


def reachable(address: str, port: int) -> bool:
    """Return whether a connection from this machine, where the administrators are, is accepted."""
    try:
        socket.create_connection((address, port), timeout=3).close()
    except OSError:
        return False
    return True


def data_url(drawing: Drawing) -> bytes:
    """Return a drawing as the original's page sent it."""
    stream = io.BytesIO()
    render(drawing).save(stream, "PNG")
    return b"data:image/png;base64," + base64.b64encode(stream.getvalue())


def test_make_up_touches_no_other_system(system: System, digits: System) -> None:
    before = footprint(system)
    output = digits.make("up", *([f"DATA={DATA}"] if DATA else []))
    assert f"Handwritten digits: {digits.url}" in output
    assert "  FAIL  " not in output, output[-4000:]
    assert set(digits.instances()) == {"frontend", "backend", "training"}
    assert footprint(system) == before
    assert system.ready() and digits.ready()
    accuracy = digits.model("backend")["metrics"]["test"]["accuracy"]
    assert accuracy >= (0.992 if DATA else 0.95), accuracy


def test_a_second_run_changes_nothing(digits: System) -> None:
    done = digits.play("site.yml", *(["-e", f"data={DATA}"] if DATA else []))
    assert done.returncode == 0, done.stdout[-8000:]
    assert set(changed(done.stdout)) == {"localhost", "mnist-frontend", "mnist-backend", "mnist-training"}
    assert set(changed(done.stdout).values()) == {0}, done.stdout[-8000:]


def test_what_is_served_was_trained_here(digits: System) -> None:
    served = digits.model("backend")["loaded_sha256"]["best_model.keras"]
    newest = "$(ls -d /var/lib/lightbox/runs/*/bundle | head -n 1)"
    assert digits.on("training", f"sha256sum {newest}/best_model.keras").split()[0] == served
    live = digits.on("backend", "cat /var/lib/lightbox/model/current/best_model.keras | sha256sum").split()[0]
    assert live == served


def test_only_what_must_be_is_open(system: System, digits: System) -> None:
    hosts = {name: one["PublicIpAddress"] for name, one in digits.instances().items()}
    accepting = {name: [port for port in (22, 80, 443, 5000, 5001, 6379, 8888, 9100) if reachable(address, port)]
              for name, address in hosts.items()}  # fmt: skip
    # This machine is an administrator's: it gets to the bastion, the page and the notebooks.
    assert accepting == {"frontend": [22, 80, 443], "backend": [], "training": [8888]}
    # A host of another system is anybody.
    asked = f"curl -s -k -o /dev/null -m 3 https://{hosts['training']}:8888/; echo $?"
    assert system.on("ui", asked) != "0"


def test_notebooks_ask_for_the_password(digits: System) -> None:
    url = f"https://{digits.instances()['training']['PublicIpAddress']}:8888"
    trusted = ssl.create_default_context(cafile=str(digits.secrets / "mnist-training.crt"))
    assert "version" in json.loads(digits.fetch("/api", url=url, context=trusted)[1])
    assert digits.fetch("/api/kernels", url=url, context=trusted)[0] == 403
    assert "password" in digits.fetch("/lab", url=url, context=trusted)[1].lower()


def test_the_original_page_would_still_be_answered(digits: System) -> None:
    some = drawings(seed=7, each=1)[::6]
    plain = {"Content-Type": "application/x-www-form-urlencoded"}
    found = [digits.fetch("/predict/", data_url(one), plain) for one in some]
    assert [status for status, _ in found] == [200] * len(some)
    assert all(text.strip() in "0123456789" for _, text in found)
    status, text = digits.fetch("/predict/", data_url(some[0]), {**plain, "Accept": "application/json"})
    told = json.loads(text)
    assert status == 200 and len(told["probabilities"]) == 10 and told["model_version"]
    for body in (
        b"",
        b"data:image/png;base64,",
        b"data:image/png;base64,!!!!",
        b"hello",
        b"data:image/gif;base64,R0lGODlh",
    ):
        status, text = digits.fetch("/predict/", body, plain)
        assert 400 <= status < 500 and text.strip(), (body, status)


def test_many_at_once_are_answered_as_one_by_one(digits: System) -> None:
    """On the API host: the proxy lets one address have so many requests a second."""
    some = drawings(seed=11, each=1)[:50]
    address = digits.instances()["backend"]["PrivateIpAddress"]
    script = f"cd /tmp && curl -sS --data-binary @drawing-$1 http://{address}:5000/predict/"
    for number, one in enumerate(some):
        digits.on("backend", f"printf %s '{data_url(one).decode()}' > /tmp/drawing-{number}")
    alone = digits.on("backend", f"for i in $(seq 0 49); do set -- $i; {script}; done")
    beside = digits.on(
        "backend", f"seq 0 49 | xargs -P 16 -I N sh -c 'set -- N; {script} > answer-N'; cd /tmp; "
                   "for i in $(seq 0 49); do cat answer-$i; done; rm -f answer-* drawing-*"
    )  # fmt: skip
    assert len(alone) == 50 and beside == alone


def draw_with_mouse(page: Page, drawing: Drawing) -> None:
    """Draw as with a mouse."""
    box = page.locator("#canvas").bounding_box()
    assert box
    scale = box["width"] / 280
    for stroke in drawing.strokes:
        for number, (x, y) in enumerate(stroke):
            page.mouse.move(box["x"] + x * scale, box["y"] + y * scale)
            if number == 0:
                page.mouse.down()
        page.mouse.up()


def draw_with_finger(page: Page, touch: CDPSession, drawing: Drawing) -> None:
    """Draw as with a finger."""
    box = page.locator("#canvas").bounding_box()
    assert box
    scale = box["width"] / 280
    for stroke in drawing.strokes:
        for number, (x, y) in enumerate(stroke):
            points = [{"x": box["x"] + x * scale, "y": box["y"] + y * scale}]
            kind = "touchMove" if number else "touchStart"
            touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
        touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})


@pytest.mark.parametrize("way", ["mouse", "finger"])
def test_what_people_draw_is_recognised(browser: Browser, digits: System, way: str) -> None:
    finger = way == "finger"
    some = drawings(seed=30 + finger, each=1)
    look = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True} if finger else {}
    missed = []
    for page in opened(browser, digits, **look):
        page.goto("/predict")
        touch = page.context.new_cdp_session(page)
        page.locator("#canvas").scroll_into_view_if_needed()
        for one in some:
            page.get_by_role("button", name="Clear").click()
            expect(page.locator("[data-verdict]")).to_have_count(0)
            page.get_by_label("Pen width").fill(str(one.pen))
            page.locator("#canvas").scroll_into_view_if_needed()
            if finger:
                draw_with_finger(page, touch, one)
            else:
                draw_with_mouse(page, one)
            page.get_by_role("button", name="Predict").click()
            card = page.locator("[data-verdict]")
            expect(card).to_have_count(1)
            said = card.get_attribute("data-label") or card.get_attribute("data-verdict")
            if said != str(one.digit):
                missed.append((one.digit, one.manner, said))
        shot(page, f"digits-{way}")
    assert len(missed) <= (1 - RECOGNISED) * len(some), missed


def test_a_dead_api_is_said_on_the_page(browser: Browser, digits: System) -> None:
    for page in opened(browser, digits):
        page.goto("/predict")
        draw_with_mouse(page, drawings(seed=1, each=1)[0])
        digits.on("backend", "systemctl stop lightbox-api")
        try:
            page.get_by_role("button", name="Predict").click()
            expect(page.locator("[data-error]").first).to_be_visible()
            expect(page.locator("[data-verdict]")).to_have_count(0)
            shot(page, "digits-without-api")
        finally:
            digits.on("backend", "systemctl start lightbox-api")
    wait_until("a drawing is answered", digits.ready, 60)


def test_it_comes_back_after_a_kill_and_a_restart(digits: System) -> None:
    digits.on("backend", "systemctl kill --signal=KILL --kill-whom=all lightbox-api")
    wait_until("a drawing is answered", digits.ready, 60)
    ec2, instance = digits.client("ec2"), digits.instances()["backend"]["InstanceId"]
    ec2.stop_instances(InstanceIds=[instance])
    ec2.get_waiter("instance_stopped").wait(InstanceIds=[instance], WaiterConfig={"Delay": 1, "MaxAttempts": 60})
    assert not digits.ready()
    ec2.start_instances(InstanceIds=[instance])
    wait_until("a drawing is answered", digits.ready, 90)


def test_there_is_nobody_to_collect_logs(digits: System) -> None:
    done = digits.play("playbooks/logs.yml")
    assert done.returncode != 0 and "monitor" in done.stdout


@pytest.mark.skipif(bool(os.environ.get("LIGHTBOX_KEEP")), reason="LIGHTBOX_KEEP is set")
def test_destroy_leaves_the_other_system(system: System, digits: System) -> None:
    before = footprint(system)
    digits.make("destroy")
    assert digits.instances() == {}
    assert footprint(system) == before
    assert system.ready()
