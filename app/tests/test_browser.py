"""The pages in a real browser, against a real API under gunicorn."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, FilePayload, Page, Route, expect, sync_playwright
from serving_kit import PASSWORD, Gunicorn, RedisServer, png, wait_for, write_bundle

from lightbox.store import Case, CaseStore, identity

# A browser that talks to nobody but the page.
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
SYNTHETIC = "This model was trained on synthetic images: not for clinical use"
VERSION = "20260101T000000Z-aaaaaaaa"
DESK, PHONE = {"width": 1200, "height": 800}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if not path:
        raise RuntimeError("these tests need a browser: install Debian's package chromium, or name one in CHROMIUM")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield launched
        launched.close()


class Site:
    """An API and its pages, and the ways they fail."""

    def __init__(self, directory: Path, server: RedisServer) -> None:
        self.directory, self.redis = directory, server
        self.bundle = write_bundle(directory / "b", synthetic=True)
        self.api = self.start_api()
        self.ui = Gunicorn(
            "lightbox.ui.app:app",
            directory / "ui.log",
            {"LIGHTBOX_API_URLS": self.api.url, "LIGHTBOX_MAX_UPLOAD_BYTES": "3000000", "LIGHTBOX_API_TIMEOUT": "5"},
        )

    def start_api(self, port: int | None = None) -> Gunicorn:
        settings = {"LIGHTBOX_BUNDLE": str(self.bundle), **self.redis.environment}
        return Gunicorn("lightbox.api.app:app", self.directory / "api.log", settings, port=port)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, shared_redis: RedisServer) -> Iterator[Site]:
    made = Site(tmp_path_factory.mktemp("site"), shared_redis)
    made.api.wait()
    made.ui.wait()
    yield made
    made.ui.stop()
    made.api.stop()


@pytest.fixture
def page(browser: Browser, site: Site, redis_server: RedisServer) -> Iterator[Page]:
    context = browser.new_context(viewport=DESK, base_url=site.ui.url)  # type: ignore[arg-type]
    context.set_default_timeout(15_000)
    opened = context.new_page()
    foreign: list[str] = []
    thrown: list[str] = []
    opened.on("request", lambda request: foreign.append(request.url))
    opened.on("pageerror", lambda error: thrown.append(str(error)))
    opened.on("console", lambda message: thrown.append(message.text) if "Security Policy" in message.text else None)
    yield opened
    context.close()
    assert [url for url in foreign if not url.startswith((site.ui.url, "data:"))] == []
    assert thrown == []


def analyze(page: Page, content: bytes, name: str = "xray.png") -> None:
    page.set_input_files("#file", files=[FilePayload(name=name, mimeType="image/png", buffer=content)])
    page.get_by_role("button", name="Analyze Image").click()


def fits(page: Page) -> bool:
    """Return whether nothing sticks out to the right."""
    return bool(page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"))


def test_an_upload_shows_a_verdict_and_is_found_again(page: Page) -> None:
    page.goto("/")
    expect(page.get_by_role("heading", name="Prediction Inference Results")).to_be_visible()
    expect(page.get_by_text("No case has been classified yet")).to_be_visible()
    page.get_by_role("navigation", name="Pages", exact=True).get_by_role("link", name="New Prediction").click()
    expect(page.get_by_role("heading", name="Upload X-Ray Image")).to_be_visible()
    analyze(page, png(230))
    card = page.locator("[data-verdict=Pneumonia]")
    expect(card.get_by_role("heading", name="Pneumonia Detected")).to_be_visible()
    expect(card).to_contain_text("xray.png")
    red = card.get_by_role("heading").evaluate("node => getComputedStyle(node).color")
    confidence = card.locator("[data-confidence]").inner_text()
    assert re.fullmatch(r"\d\d\.\d\d%", confidence)
    assert card.locator("img").evaluate("node => node.naturalWidth") > 0
    analyze(page, png(10), "other.png")
    expect(page.locator("[data-verdict=Normal]").get_by_role("heading", name="Normal")).to_be_visible()
    assert page.locator("[data-verdict] h2").evaluate("node => getComputedStyle(node).color") != red
    page.get_by_role("link", name="Results").click()
    rows = page.locator("table.cases tbody tr")
    expect(rows).to_have_count(2)
    expect(rows.nth(0)).to_contain_text("other.png")
    expect(rows.nth(1)).to_contain_text(confidence)
    expect(rows.nth(1).locator(".badge")).to_have_text("Pneumonia")


def test_an_error_takes_the_place_of_an_older_verdict(page: Page) -> None:
    page.goto("/predict")
    for content, name, words in (
        (b"no image", "a.png", "not a readable PNG or JPEG"),
        (b"", "a.png", "empty"),
        (png(9), "a.gif", "Invalid file type"),
        (b"0" * 3_000_001, "a.png", "too large"),
    ):
        analyze(page, png(10))
        expect(page.locator("[data-verdict]")).to_be_visible()
        analyze(page, content, name)
        expect(page.locator("#result [data-error]")).to_contain_text(words)
        expect(page.locator("[data-verdict]")).to_have_count(0)
        expect(page.get_by_role("button", name="Analyze Image")).to_be_enabled()


def test_choosing_another_file_removes_the_old_verdict(page: Page) -> None:
    page.goto("/predict")
    analyze(page, png(10))
    expect(page.locator("[data-verdict]")).to_be_visible()
    page.set_input_files("#file", files=[FilePayload(name="next.png", mimeType="image/png", buffer=png(240))])
    expect(page.locator("[data-verdict]")).to_have_count(0)
    expect(page.locator(".drop-name")).to_have_text("next.png")


def test_results_turn_pages_without_leaving_and_back_goes_back(page: Page, redis_server: RedisServer) -> None:
    now = datetime.now(timezone.utc)
    CaseStore.connect("127.0.0.1", redis_server.port, "api", PASSWORD).add_many(
        Case(identity(str(n)), f"case-{n}.png", "Normal", 0.99, (0.01,), "v", "batch", now - timedelta(seconds=n))
        for n in range(260)
    )
    page.goto("/")
    page.evaluate("window.stayed = true")
    rows = page.locator("table.cases tbody tr")
    expect(rows).to_have_count(25)
    page.get_by_role("link", name="Next").click()
    expect(rows.first).to_contain_text("case-25.png")
    page.get_by_role("link", name="11", exact=True).click()
    expect(rows).to_have_count(10)
    expect(page.get_by_text("260 cases, page 11 of 11")).to_be_visible()
    assert page.evaluate("window.stayed") is True
    assert page.url.endswith("/?page=11")
    page.go_back()
    expect(rows.first).to_contain_text("case-25.png")
    page.reload()
    expect(rows.first).to_contain_text("case-25.png")


@pytest.mark.parametrize("size", [DESK, PHONE])
def test_every_page_fits_and_says_what_it_is(page: Page, redis_server: RedisServer, size: dict[str, int]) -> None:
    long = "a-very-long-name-without-any-place-to-break-it-" * 3
    CaseStore.connect("127.0.0.1", redis_server.port, "api", PASSWORD).add(
        Case(
            "1",
            f"{long}.png",
            "Pneumonia",
            0.99,
            (0.99,),
            "20260101T000000Z-aaaaaaaa",
            "upload",
            datetime.now(timezone.utc),
        )
    )
    page.set_viewport_size(size)  # type: ignore[arg-type]
    for path in ("/", "/predict", "/nothing"):
        page.goto(path)
        expect(page.get_by_text(SYNTHETIC)).to_be_visible()
        expect(page.get_by_text("Decision support, not a diagnosis")).to_be_visible()
        assert fits(page), path
    page.goto("/predict")
    analyze(page, png(240), f"{long}.png")
    expect(page.locator("[data-verdict]")).to_be_visible()
    expect(page.locator("[data-verdict]").get_by_text(SYNTHETIC)).to_be_visible()
    assert fits(page)


def test_it_works_without_scripts(browser: Browser, site: Site, redis_server: RedisServer) -> None:
    context = browser.new_context(java_script_enabled=False, base_url=site.ui.url)
    page = context.new_page()
    page.goto("/predict")
    analyze(page, png(240))
    expect(page.locator("[data-verdict=Pneumonia]")).to_be_visible()
    expect(page.get_by_text(SYNTHETIC).first).to_be_visible()
    page.goto("/predict")
    analyze(page, b"no image")
    expect(page.locator("#result [data-error]")).to_contain_text("not a readable")
    expect(page.locator("[data-verdict]")).to_have_count(0)
    page.goto("/")
    expect(page.locator("table.cases tbody tr")).to_have_count(1)
    context.close()


def test_colours_follow_the_reader(page: Page) -> None:
    page.goto("/predict")
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.emulate_media(color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != light


@pytest.mark.parametrize(
    ("status", "words"),
    [(413, "too large"), (429, "Too many requests"), (502, "could not answer"), (200, "could not answer")],
)
def test_a_proxys_own_error_page_is_an_error(page: Page, status: int, words: str) -> None:
    def proxy(route: Route) -> None:
        body = '<html><h1 data-verdict="Normal">Normal</h1></html>'
        route.fulfill(status=status, content_type="text/html", body=body)

    page.route("**/upload_predict", proxy)
    page.goto("/predict")
    analyze(page, png(10))
    expect(page.locator("#result [data-error]")).to_contain_text(words)
    expect(page.locator("[data-verdict]")).to_have_count(0)


def test_a_notice_says_that_a_case_was_not_stored(page: Page, redis_server: RedisServer) -> None:
    page.goto("/predict")
    redis_server.stop()
    analyze(page, png(10))
    expect(page.locator("[data-verdict=Normal]")).to_be_visible()
    expect(page.locator("[data-notice]")).to_contain_text("Not stored.")


def test_a_dead_server_is_an_error_and_retry_recovers(page: Page, site: Site) -> None:
    page.goto("/")
    expect(page.get_by_text("No case has been classified yet")).to_be_visible()
    site.api.stop()
    page.goto("/predict")
    analyze(page, png(10))
    error: Any = page.locator("#result [data-error]")
    expect(error).to_contain_text("The prediction service cannot be reached")
    expect(page.locator("[data-verdict]")).to_have_count(0)
    background = error.evaluate("node => getComputedStyle(node).borderLeftColor")
    red, green, _ = (int(part) for part in re.findall(r"\d+", background)[:3])
    assert red > 2 * green, "the card is red"
    page.goto("/")
    expect(page.locator("[data-error]")).to_contain_text("Unable to fetch data from API")
    site.api = site.start_api(site.api.port).wait()
    wait_for("the API is ready", lambda: httpx.get(f"{site.api.url}/ready").status_code == 200)
    page.get_by_role("link", name="Retry").click()
    expect(page.get_by_text("No case has been classified yet")).to_be_visible()
    expect(page.locator("#data-table [data-error]")).to_have_count(0)
    page.goto("/predict")
    site.ui.stop()
    analyze(page, png(10))
    expect(page.locator("#result [data-error]")).to_contain_text("cannot be reached")
