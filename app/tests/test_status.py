"""The status page, against a real Prometheus: with a written past, and with one that scrapes the real services.

``LIGHTBOX_SCREENSHOTS=DIR`` keeps a picture of the page in its states.
"""

from __future__ import annotations

import base64
import math
import re
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import httpx
import pytest
from browser_kit import DESK, PHONE, accessible, fits, launched, shot
from hypothesis import given
from hypothesis import strategies as st
from playwright.sync_api import Browser, Page, expect
from serving_kit import Gunicorn, RedisServer, free_port, png, wait_for, write_bundle
from starlette.testclient import TestClient
from status_kit import HOSTS, OPERATOR, SECRET, NodeExporter, PrometheusServer, past

from lightbox import telemetry
from lightbox.status import figures
from lightbox.status.access import MOST, TRIES, Door, offered, read_password
from lightbox.status.app import Settings, create_app
from lightbox.status.chart import HEIGHT, LEFT, TOP, WIDTH, ceiling, draw
from lightbox.status.prometheus import Prometheus, PrometheusError, Series, read_alerts, read_samples, read_series
from lightbox.status.queries import DOWN, FACTS, PANELS, RANGES, SERVICE, UP, Panel
from lightbox.status.view import Answers, put_together

AUTH = (OPERATOR, SECRET)
RULES = """
groups:
  - name: test
    rules:
      - alert: TargetDown
        expr: up{job="gone"} == 0
        labels: {severity: critical}
        annotations: {summary: The target has not answered, runbook_url: "https://runbooks.example/TargetDown"}
      - alert: DiskFilling
        expr: vector(1)
        labels: {severity: warning, instance: pneumonia-api}
        annotations: {summary: The disk is filling}
      - alert: Heartbeat
        expr: vector(1)
        labels: {severity: none}
"""


# --- figures and geometry ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (figures.plain(0), "0"), (figures.plain(0.00004), "4e-5"), (figures.plain(0.25), "0.25"),
        (figures.plain(1.5), "1.5"), (figures.plain(99.96), "100"), (figures.plain(12345.6), "12,346"),
        (figures.percent(0), "0 %"), (figures.percent(1), "100 %"), (figures.percent(0.0004), "under 0.1 %"),
        (figures.percent(0.9999), "over 99.9 %"), (figures.percent(0.0312), "3.1 %"), (figures.percent(0.5), "50 %"),
        (figures.percent(0.995), "99.5 %"), (figures.seconds(0.0042), "4.2 ms"), (figures.seconds(0.3204), "320 ms"),
        (figures.seconds(1.234), "1.23 s"), (figures.size(999), "999 B"), (figures.size(15.84e9), "15.8 GB"),
        (figures.size(2e15), "2,000 TB"), (figures.span(0.2), "0 seconds"), (figures.span(61), "1 minute"),
        (figures.span(7300), "2 hours"), (figures.span(86400 * 3.9), "3 days"),
        (figures.shown(2, "rate"), "2 per second"),
    ],
)  # fmt: skip
def test_numbers_have_their_units(found: str, expected: str) -> None:
    assert found == expected


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_an_axis_holds_what_it_must_with_few_lines(most: float) -> None:
    top, step = ceiling(most)
    assert 0 < step <= top < math.inf
    assert round(top / step) in range(1, 7)
    assert most < 1e-9 or most >= 1e300 or top >= most * (1 - 1e-6)


ODD = st.one_of(
    st.sampled_from(["NaN", "+Inf", "-Inf", "0", "-0", "1e309", "1e308", "5e-324", "x", ""]),
    st.floats().map(repr),
    st.none(), st.integers(), st.booleans(), st.lists(st.integers(), max_size=2),
)  # fmt: skip
TIMES = st.one_of(st.floats(min_value=1.7e9, max_value=1.7e9 + 3600), ODD)
LABELS = st.one_of(st.dictionaries(st.text(max_size=4), st.text(max_size=4), max_size=3), ODD)
VALUE = st.one_of(st.tuples(TIMES, ODD).map(list), ODD)
ENTRY = st.one_of(st.fixed_dictionaries({"metric": LABELS, "value": VALUE, "values": st.lists(VALUE, max_size=6)}), ODD)
RESULT = st.fixed_dictionaries(
    {"resultType": st.sampled_from(["vector", "matrix", "scalar"]), "result": st.lists(ENTRY, max_size=4)}
)


@given(st.one_of(RESULT, ODD))
def test_odd_answers_are_errors_or_numbers(data: Any) -> None:
    for read in (read_samples, read_series, read_alerts):
        try:
            found = read(data)
        except PrometheusError:
            continue
        for one in found:
            if isinstance(one, Series):
                assert one.points
                assert all(math.isfinite(part) for point in one.points for part in point)
            elif hasattr(one, "value"):
                assert math.isfinite(one.value)


FINITE = st.floats(allow_nan=False, allow_infinity=False)
CURVE = st.lists(
    st.tuples(st.floats(min_value=1.7e9 - 3600, max_value=1.7e9), FINITE), max_size=40, unique_by=lambda p: p[0]
)


@given(st.lists(CURVE, max_size=12), st.sampled_from(PANELS))
def test_whatever_was_measured_is_drawn_inside_the_picture(curves: list[Any], panel: Panel) -> None:
    named = [(f"host-{n:02}", Series({}, sorted(points))) for n, points in enumerate(curves)]
    chart = draw(panel, named, RANGES["1h"], 1.7e9)
    if chart is None:
        assert not any(curves)
        return
    assert chart.words and chart.rows and len(chart.lines) <= 8
    assert bool(chart.more) == (sum(map(bool, curves)) > 8)
    places = [tuple(map(float, place)) for one in chart.lines for path in one.paths
              for place in re.findall(r"([-\d.e+]+),([-\d.e+]+)", path)]  # fmt: skip
    places += [dot for one in chart.lines for dot in one.dots]
    assert places and all(LEFT <= x <= WIDTH and TOP <= y <= HEIGHT for x, y in places)


def test_a_gap_breaks_a_line_and_a_lone_point_is_a_dot() -> None:
    points = [(1000.0, 1.0), (1030.0, 2.0), (1300.0, 5.0)]
    chart = draw(SERVICE[0], [("api", Series({}, points))], RANGES["1h"], 3600.0)
    assert chart and len(chart.lines[0].paths) == 1 and len(chart.lines[0].dots) == 1
    # What is long ago says so.
    assert chart.lines[0].last == "5 per second at 00:21"


def test_a_page_of_nothing_says_why_everywhere() -> None:
    status = put_together(Answers([], [], []), RANGES["1h"], 1.7e9)
    assert [thing.title for thing in status.things] == ["Nothing is measured"]
    shown = [*status.service, *status.machines, *status.training]
    assert len(shown) == len(PANELS)
    assert all(one.chart is None and one.reason.startswith("Nothing") for one in shown)


# --- the door ---------------------------------------------------------------------------------------------------------


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def test_guesses_are_few_and_a_wait_ends() -> None:
    now = [0.0]
    door = Door(OPERATOR, SECRET, clock=lambda: now[0])
    for _ in range(TRIES):
        assert door.wait("a") == 0
        assert not door.knows("a", basic(OPERATOR, "wrong"))
    assert 0 < door.wait("a") <= 7
    assert door.wait("b") == 0 and door.knows("b", basic(OPERATOR, SECRET))
    now[0] += 7
    assert door.wait("a") == 0 and door.knows("a", basic(OPERATOR, SECRET))
    for number in range(MOST + 50):
        door.knows(str(number), basic("x", "y"))
    assert len(door._wrong) == MOST


@given(st.text())
def test_only_the_right_header_opens(header: str) -> None:
    assert not Door(OPERATOR, SECRET).knows("a", header)
    assert not Door(OPERATOR, SECRET).knows("a", "Basic " + header)


def test_a_password_may_hold_anything() -> None:
    assert offered(basic("operator", "a:b ü")) == ("operator", "a:b ü")
    assert offered("Bearer abc") is None and offered("Basic !!") is None and offered("Basic YQ==") is None


def test_without_a_good_password_nothing_starts(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no password"):
        read_password({})
    with pytest.raises(ValueError, match="cannot be read"):
        read_password({"CREDENTIALS_DIRECTORY": str(tmp_path)})
    (tmp_path / "password").write_text("short\n")
    with pytest.raises(ValueError, match="shorter than 16") as caught:
        read_password({"CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert "short\n" not in str(caught.value)
    (tmp_path / "password").write_text(SECRET + "\n")
    settings = Settings.read({"CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert settings.password == SECRET and SECRET not in repr(settings)
    with pytest.raises(ValueError, match="LIGHTBOX_PROMETHEUS_URL"):
        Settings.read({"CREDENTIALS_DIRECTORY": str(tmp_path), "LIGHTBOX_PROMETHEUS_URL": "localhost"})


def client_of(url: str, timeout: float = 5.0) -> TestClient:
    return TestClient(create_app(Settings(prometheus_url=url, prometheus_timeout=timeout, password=SECRET)))


def test_the_password_is_asked_for_before_anything_else(capfd: pytest.CaptureFixture[str]) -> None:
    with client_of("http://127.0.0.1:1") as client:
        asked = client.get("/status")
        assert asked.status_code == 401 and asked.headers["WWW-Authenticate"].startswith("Basic ")
        assert "Password, please" in asked.text
        assert client.get("/status", auth=(OPERATOR, "wrong")).status_code == 401
        assert client.get("/status", auth=("root", SECRET)).status_code == 401
        assert client.get("/status", auth=AUTH).status_code == 503
        for _ in range(TRIES):
            client.get("/status", auth=(OPERATOR, "wrong"))
        refused = client.get("/status", auth=AUTH)
        assert refused.status_code == 429 and int(refused.headers["Retry-After"]) > 0
        # What machines ask is no secret, but for the proxy's visitors.
        assert client.get("/health").json() == {"status": "healthy"}
        assert "lightbox_http_requests_total" in client.get("/metrics").text
        assert client.get("/metrics", headers={"X-Forwarded-For": "203.0.113.1"}).status_code == 404
        for path in ("/status/secret", "/status/..%2fapp.py", "/statusquo"):
            assert client.get(path).status_code == 404
        assert client.post("/status", auth=AUTH).status_code == 405
        assert "--s1" in client.get("/status/style.css").text
    said = capfd.readouterr()
    assert (
        SECRET not in said.out + said.err and base64.b64encode(f"{OPERATOR}:{SECRET}".encode()).decode() not in said.err
    )


# --- Prometheus that does not answer ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (httpx.ConnectError("refused"), "refuses the connection"),
        (httpx.ReadTimeout("late"), "did not answer in time"),
        (httpx.RemoteProtocolError("cut"), "breaks the connection off"),
        (httpx.Response(503, text="Service Unavailable"), "is starting"),
        (httpx.Response(200, text="<html>"), "answered 200 without words"),
        (httpx.Response(200, json=[]), "answered 200 without words"),
        (httpx.Response(200, json={"status": "success", "data": {}}), "does not understand"),
        (
            httpx.Response(422, json={"status": "error", "error": "query processing would load too many samples"}),
            "too many",
        ),
    ],
)
def test_when_nobody_knows_the_page_says_so_and_what_to_type(answer: Any, words: str) -> None:
    def handle(_: httpx.Request) -> httpx.Response:
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(answer.status_code, content=answer.content)

    prometheus = Prometheus("http://prometheus", 1.0, httpx.MockTransport(handle))
    with TestClient(create_app(Settings(password=SECRET), prometheus)) as client:
        page = client.get("/status", auth=AUTH)
    assert page.status_code == 503 and words in page.text
    assert "Nobody knows" in page.text and "Everything works" not in page.text
    assert "systemctl status prometheus" in page.text and page.headers["Refresh"] == "30"


# --- a written past ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrometheusServer]:
    server = PrometheusServer(tmp_path_factory.mktemp("history"), past=past(time.time())).start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def outage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrometheusServer]:
    written = past(time.time(), hours=2, down=("pneumonia-api",))
    server = PrometheusServer(tmp_path_factory.mktemp("outage"), past=written).start()
    yield server
    server.stop()


def answers(server: PrometheusServer, query: str, **more: Any) -> list[Any]:
    path = "/api/v1/query_range" if more else "/api/v1/query"
    answer = httpx.post(server.url + path, data={"query": query, **more})
    assert answer.status_code == 200, f"{query}\n{answer.text}"
    return list(answer.json()["data"]["result"])


@pytest.mark.parametrize("key", RANGES)
def test_every_chart_has_data_of_a_day(history: PrometheusServer, key: str) -> None:
    drawn, now = RANGES[key], time.time()
    for panel in PANELS:
        for one in panel.lines:
            found = answers(history, one.query.replace("$window", drawn.window),
                            start=now - drawn.seconds, end=now, step=drawn.step)  # fmt: skip
            # The training was three hours ago.
            assert bool(found) == (key != "1h" or "training" not in one.query), one.query


def test_the_page_has_the_figures_that_were_written(history: PrometheusServer) -> None:
    with client_of(history.url) as client:
        page = client.get("/status?range=6h", auth=AUTH)
    assert page.status_code == 200 and page.headers["Refresh"] == "30"
    text = page.text
    assert "<h1>Everything works.</h1>" in text and "7 of 8 targets answer" in text
    assert "data-empty" not in text and "not known" not in text
    for host in HOSTS:
        assert text.count(f'<th scope="row">{host}</th><td><span class="badge clear">up') == 1
    assert "Pneumonia 28 %" in text and "20261121T110000Z-1a2b3c4d" in text and "Last seen 2 hours ago: compact" in text
    age = datetime.now(timezone.utc) - datetime(2026, 11, 21, 11, tzinfo=timezone.utc)
    assert f"{figures.span(age.total_seconds())} old" in text
    # 12 % of the requests failed for ten minutes; a window of five minutes lies within them.
    peak = re.search(r"api: 0 %; between 0 % and (\d+) %", text)
    assert peak and 10 <= int(peak[1]) <= 14
    assert "nan" not in re.sub(r"[Ff]inance|predominan", "", text).lower()


def test_a_chart_without_a_training_says_so(history: PrometheusServer) -> None:
    with client_of(history.url) as client:
        page = client.get("/status?range=1h&paused=1", auth=AUTH)
    assert page.text.count("nothing was trained in this time") == page.text.count("data-empty") == 3
    assert "Refresh" not in page.headers and "Paused" in page.text


def test_a_host_that_is_down_is_one_thing(outage: PrometheusServer) -> None:
    with client_of(outage.url) as client:
        text = client.get("/status?range=anything", auth=AUTH).text
    assert "<h1>1 thing needs a look.</h1>" in text and 'data-state="bad"' in text
    assert "pneumonia-api does not answer" in text and "Prometheus gets nothing from api, node" in text
    assert '<span class="badge finding">down' in text


def test_a_hundred_visitors_ask_as_much_as_one(history: PrometheusServer) -> None:
    asked = []
    transport = httpx.AsyncHTTPTransport()

    class Counting(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            asked.append(request)
            return await transport.handle_async_request(request)

    prometheus = Prometheus(history.url, 5.0, Counting())
    with TestClient(create_app(Settings(password=SECRET), prometheus)) as client:
        assert {client.get("/status", auth=AUTH).status_code for _ in range(20)} == {200}
    assert len(asked) == 3 + len(FACTS) + sum(len(panel.lines) for panel in PANELS)


# --- a Prometheus that scrapes the real services ----------------------------------------------------------------------


class Watched:
    """The services, a training and a host, the Prometheus that scrapes them, and the page."""

    def __init__(self, directory: Path, redis: RedisServer) -> None:
        bundle = write_bundle(directory / "bundle", version="20261101T000000Z-aaaaaaaa", synthetic=True)
        self.api = Gunicorn("lightbox.api.app:app", directory / "api.log",
                            {"LIGHTBOX_BUNDLE": str(bundle), **redis.environment}, workers=1)  # fmt: skip
        self.ui = Gunicorn("lightbox.ui.app:app", directory / "ui.log", {"LIGHTBOX_API_URLS": self.api.url}, workers=1)
        self.node = NodeExporter(directory / "node.log")
        fields = {"state": "training", "updated": "2026-01-31T12:00:00Z", "run": "3f2a9c10", "epoch": 2, "epochs": 12,
                  "step": 3, "steps": 20, "loss": 0.3,
                  "images_per_second": 181.5, "eta_seconds": 200.0, "accuracy": 0.9, "val_loss": 0.4,
                  "val_accuracy": 0.88, "val_auroc": 0.93}  # fmt: skip
        training = free_port()
        self.end_training = telemetry.serve("127.0.0.1", training, fields, "compact", pytest.fail)
        (directory / "password").write_text(SECRET + "\n")
        port = free_port()
        jobs = {
            "api": [(self.api.url.removeprefix("http://"), {"instance": "pneumonia-api"})],
            "ui": [(self.ui.url.removeprefix("http://"), {"instance": "pneumonia-ui"})],
            "node": [(self.node.address, {"instance": "pneumonia-monitor"})],
            "training": [
                (f"127.0.0.1:{training}", {"instance": "pneumonia-trainer", "unit": "lightbox-train.service"})
            ],
            "status": [(f"127.0.0.1:{port}", {"instance": "pneumonia-monitor"})],
            "gone": [("127.0.0.1:1", {"instance": "pneumonia-gone"})],
        }
        self.prometheus = PrometheusServer(directory / "prometheus", jobs, RULES).start()
        self.page = Gunicorn(
            "lightbox.status.app:app", directory / "status.log", workers=1, port=port,
            environment={"LIGHTBOX_PROMETHEUS_URL": self.prometheus.url, "LIGHTBOX_TITLE": "Pneumonia detection",
                         "LIGHTBOX_STATUS_PASSWORD_FILE": str(directory / "password")},
        )  # fmt: skip

    def wait(self) -> None:
        for service in (self.api, self.ui, self.page):
            service.wait()

    def use(self) -> bool:
        """Upload an image; return whether the page has drawn everything by now."""
        for level in (10, 240):
            files = {"file": ("a.png", png(level), "image/png")}
            assert httpx.post(f"{self.ui.url}/upload_predict", files=files).status_code == 200
        page = httpx.get(f"{self.page.url}/status", auth=AUTH, timeout=15)
        return page.status_code == 200 and "data-empty" not in page.text

    def stop(self) -> None:
        self.page.stop()
        self.prometheus.stop()
        self.node.stop()
        self.end_training()
        self.ui.stop()
        self.api.stop()


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, shared_redis: RedisServer) -> Iterator[Watched]:
    services = Watched(tmp_path_factory.mktemp("watched"), shared_redis)
    try:
        services.wait()
        wait_for("every chart has data", services.use, 90)
        yield services
    finally:
        services.stop()


def test_every_metric_that_is_asked_for_is_measured(watched: Watched) -> None:
    names = set(httpx.get(f"{watched.prometheus.url}/api/v1/label/__name__/values").json()["data"])
    queries = [UP, DOWN, *FACTS.values(), *(one.query for panel in PANELS for one in panel.lines)]
    wanted = {name for query in queries for name in re.findall(r"\b(?:lightbox|node)_\w+", query)}
    # Of node_exporter's collectors, this one needs a systemd that runs.
    assert wanted - names - {"node_systemd_unit_state"} == set()
    # The page's own are among them.
    found = answers(watched.prometheus, 'lightbox_http_requests_total{app="status",route="/status",status="200"}')
    assert found and found[0]["metric"]["job"] == "status"
    # They are no visits.
    shown = answers(watched.prometheus, SERVICE[0].lines[0].query.replace("$window", "2m"))
    assert {one["metric"]["app"] for one in shown} == {"api", "ui"}


def test_every_fact_is_known(watched: Watched) -> None:
    for name, query in FACTS.items():
        assert answers(watched.prometheus, query), name


def test_alerts_are_told_with_their_runbook_and_targets_once(watched: Watched) -> None:
    text = httpx.get(f"{watched.page.url}/status", auth=AUTH, timeout=15).text
    assert "<h1>2 things need a look.</h1>" in text
    assert text.index("The target has not answered") < text.index("The disk is filling")
    assert 'href="https://runbooks.example/TargetDown"' in text
    assert "pneumonia-gone does not answer" not in text and "Heartbeat" not in text
    assert "trained on synthetic images" in text and "epoch 2 of 12" in text


def test_the_process_is_small_and_tells_nobody_its_password(watched: Watched) -> None:
    for pid in (watched.page.process.pid, *watched.page.workers()):
        status = Path(f"/proc/{pid}/status").read_text()
        rss = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert rss and int(rss[1]) < 128 * 1024
        assert SECRET.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
        assert SECRET.encode() not in Path(f"/proc/{pid}/environ").read_bytes()
    assert SECRET not in watched.page.log.read_text()


# --- in a browser -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as one:
        yield one


LOOKS = {
    "desk": {"viewport": DESK},
    "dark": {"viewport": DESK, "color_scheme": "dark"},
    "phone": {"viewport": PHONE, "device_scale_factor": 2, "is_mobile": True},
}


@pytest.mark.parametrize("look", LOOKS)
def test_the_page_is_readable_by_everybody(
    browser: Browser, history: PrometheusServer, outage: PrometheusServer, watched: Watched, tmp_path: Path, look: str
) -> None:
    (tmp_path / "password").write_text(SECRET)
    settings = {"LIGHTBOX_STATUS_PASSWORD_FILE": str(tmp_path / "password"), "LIGHTBOX_TITLE": "Pneumonia detection"}
    urls = {"day": history.url, "outage": outage.url, "unknown": "http://127.0.0.1:1"}
    pages = {
        name: Gunicorn(
            "lightbox.status.app:app", tmp_path / f"{name}.log", {**settings, "LIGHTBOX_PROMETHEUS_URL": url}, 1
        )
        for name, url in urls.items()
    }
    credentials = {"username": OPERATOR, "password": SECRET}
    thrown: list[str] = []

    def opened(url: str) -> Page:
        context = browser.new_context(**LOOKS[look], base_url=url, http_credentials=credentials)
        context.set_default_timeout(15_000)
        page = context.new_page()
        page.on("console", lambda message: thrown.append(message.text) if "Security Policy" in message.text else None)
        page.on("request", lambda request: thrown.append(request.url) if not request.url.startswith(url) else None)
        page.on("pageerror", lambda error: thrown.append(str(error)))
        return page

    try:
        for name, path, state, heading in (
            ("day", "/status?range=24h&paused=1", "well", "Everything works."),
            ("outage", "/status?range=6h&paused=1", "bad", "1 thing needs a look."),
            ("unknown", "/status?paused=1", "unknown", "Nobody knows how the system is."),
            ("live", "/status?paused=1", "bad", "2 things need a look."),
        ):
            server = watched.page if name == "live" else pages[name].wait()
            page = opened(server.url)
            page.goto(path)
            expect(page.locator("h1")).to_have_text(heading)
            expect(page.locator("[data-state]")).to_have_attribute("data-state", state)
            shot(page, f"status-{name}-{look}")
            assert fits(page), name
            page.keyboard.press("Tab")
            expect(page.get_by_text("Skip to content")).to_be_focused()
            for summary in page.locator("summary").all():
                summary.click()
            assert fits(page), name
            accessible(page)
            if name == "day":
                expect(page.locator("figure svg[role=img]")).to_have_count(len(PANELS))
                expect(page.locator("figure table")).to_have_count(len(PANELS))
                shot(page, f"status-open-{look}")
                page.get_by_role("link", name="Last 6 hours").click()
                expect(page.locator("[aria-current]")).to_have_text("Last 6 hours")
            page.context.close()
    finally:
        for server in pages.values():
            server.stop()
    assert thrown == []
