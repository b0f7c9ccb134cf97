"""The status page through Nginx over TLS, as whoever is on call sees it."""

from __future__ import annotations

import base64
import urllib.error
import urllib.request

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, expect

from .conftest import System, shot, wait_until

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]

HOSTS = ("api", "monitor", "proxy", "trainer", "ui")
LOOKS = {
    "desk": {"viewport": {"width": 1280, "height": 900}},
    "phone": {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "color_scheme": "dark"},
}


def password(system: System) -> str:
    return (system.secrets / "status").read_text().strip()


def page(system: System, query: str = "", user: str = "operator", word: str | None = None) -> tuple[int, str]:
    """Return status and text of the page, asked for with a password."""
    pair = f"{user}:{password(system) if word is None else word}".encode()
    return system.fetch("/status" + query, headers={"Authorization": "Basic " + base64.b64encode(pair).decode()})


def test_the_page_is_for_whoever_has_the_password(system: System) -> None:
    status, text = system.fetch("/status")
    assert status == 401 and "pneumonia-api" not in text
    assert page(system, word="wrong")[0] == 401
    assert page(system, user="admin")[0] == 401
    assert page(system)[0] == 200
    version = system.model()["version"]
    # Prometheus hears of an API that has just begun within its interval.
    text = wait_until("the model is shown", lambda: version in (text := page(system)[1]) and text, 60)
    for host in HOSTS:
        assert f'<th scope="row">pneumonia-{host}</th>' in text
    # The page's own metrics are not for visitors, and the port is not for other hosts.
    assert "lightbox_http_requests_total" not in page(system, "/metrics")[1]
    address = system.instances()["monitor"]["PrivateIpAddress"]
    assert system.on("ui", f"curl -s -o /dev/null -m 3 http://{address}:5002/health; echo $?") == "28"


def test_plain_http_never_asks_for_the_password(system: System) -> None:
    class Stay(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *_: object) -> None:
            return None

    url = system.url.replace("https:", "http:") + "/status"
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.build_opener(Stay).open(url, timeout=10)
    assert caught.value.code == 308
    assert "WWW-Authenticate" not in caught.value.headers


def test_a_host_that_is_not_measured_is_named_and_forgotten_when_it_is_back(system: System) -> None:
    # What else needs a look is not asked: tests before this one may have left verdicts all of one kind, for instance.
    def named() -> bool:
        status, text = page(system)
        assert status == 200
        return "pneumonia-ui does not answer" in text and "<h1>Everything works.</h1>" not in text

    wait_until("the host is not named", lambda: not named(), 60)
    system.on("ui", "systemctl stop prometheus-node-exporter")
    try:
        wait_until("the page names the host", named, 60)
    finally:
        system.on("ui", "systemctl start prometheus-node-exporter")
    wait_until("the host is forgotten", lambda: not named(), 120)


def test_without_prometheus_the_page_says_what_to_type(system: System) -> None:
    system.on("monitor", "systemctl stop prometheus")
    try:
        wait_until("the page says so", lambda: page(system)[0] == 503, 30)
        assert "systemctl status prometheus" in page(system)[1]
    finally:
        system.on("monitor", "systemctl start prometheus")
    wait_until("the page is back", lambda: page(system)[0] == 200, 60)


def test_a_guesser_has_to_wait(system: System) -> None:
    answers = {page(system, word=f"guess-{number}")[0] for number in range(15)}
    assert answers == {401, 429}
    assert page(system)[0] == 429, "a guess that is not looked at tells nothing"
    wait_until("the operator is let in again", lambda: page(system)[0] == 200, 90)


def test_every_chart_has_data_and_the_page_is_readable(browser: Browser, system: System) -> None:
    def drawn() -> bool:
        # What is counted for the first time shows no increase yet: images come at different times.
        assert system.ready()
        status, text = page(system, "?range=6h")
        return status == 200 and "data-empty" not in text

    wait_until("every chart has data", drawn, 180)
    for name, look in LOOKS.items():
        context = browser.new_context(
            base_url=system.url, ignore_https_errors=True,
            http_credentials={"username": "operator", "password": password(system)}, **look,
        )  # fmt: skip
        opened = context.new_page()
        opened.goto("/status?range=6h&paused=1")
        expect(opened.locator("[data-state]")).to_be_visible()
        expect(opened.locator("[data-empty]")).to_have_count(0)
        shot(opened, f"status-{name}")
        assert opened.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
        grave = [item["id"] for item in Axe().run(opened).response["violations"]
                 if item["impact"] in ("serious", "critical")]  # fmt: skip
        assert grave == []
        context.close()
