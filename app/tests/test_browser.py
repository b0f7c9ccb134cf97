"""The pages in a real browser, against a real API under gunicorn.

``LIGHTBOX_SCREENSHOTS=DIR`` keeps a picture of every page, light, dark and as on a phone.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from browser_kit import DESK, PHONE, accessible, fits, launched, shot
from PIL import Image
from playwright.sync_api import Browser, FilePayload, Locator, Page, Route, expect
from serving_kit import PASSWORD, Gunicorn, RedisServer, png, wait_for, write_bundle

from lightbox import synthetic
from lightbox.store import Case, CaseStore, Feedback, identity

SYNTHETIC = "This model was trained on synthetic images: not for clinical use"
VERSION = "20260101T000000Z-aaaaaaaa"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as one:
        yield one


class Site:
    """An API and its pages, and the ways they fail."""

    def __init__(self, directory: Path, server: RedisServer, bundle: Path) -> None:
        self.directory, self.redis, self.bundle = directory, server, bundle
        self.api = self.start_api()
        self.ui = self.start_ui()

    def start_api(self, port: int | None = None) -> Gunicorn:
        settings = {"LIGHTBOX_BUNDLE": str(self.bundle), **self.redis.environment}
        return Gunicorn("lightbox.api.app:app", self.directory / "api.log", settings, workers=1, port=port)

    def start_ui(self, port: int | None = None) -> Gunicorn:
        settings = {"LIGHTBOX_API_URLS": self.api.url, "LIGHTBOX_MAX_UPLOAD_BYTES": "3000000",
                    "LIGHTBOX_API_TIMEOUT": "5"}  # fmt: skip
        return Gunicorn("lightbox.ui.app:app", self.directory / "ui.log", settings, workers=1, port=port)

    def wait(self) -> None:
        self.api.wait()
        self.ui.wait()

    def stop(self) -> None:
        self.ui.stop()
        self.api.stop()

    @property
    def store(self) -> CaseStore:
        return CaseStore.connect("127.0.0.1", self.redis.port, "api", PASSWORD)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, shared_redis: RedisServer) -> Iterator[Site]:
    def richer(contract: dict[str, Any]) -> None:
        contract["limits"] = ["It was tried with this test's images only.", "A heat map does not show a disease."]
        contract["serving"]["rejected"] = {"precision": "int8", "why": "2 of 20 verdicts changed"}
        contract["training"].update(epochs=12, best_epoch=9, seconds=1450.2, parameters={"learning_rate": 1e-5})
        contract["libraries"] = {"keras": "3.6.0"}
        # Drawn chests have more contrast than the flat pictures of the other tests.
        contract["out_of_distribution"]["threshold"] = 1.9

    directory = tmp_path_factory.mktemp("site")
    made = Site(directory, shared_redis, write_bundle(directory / "b", synthetic=True, change=richer))
    made.wait()
    yield made
    made.stop()


@contextmanager
def opened(browser: Browser, site: Site, **settings: Any) -> Iterator[Page]:
    """Open a page that may neither ask anybody else, nor throw, nor break its own content security policy."""
    context = browser.new_context(**{"viewport": DESK, "base_url": site.ui.url, **settings})
    context.set_default_timeout(15_000)
    page = context.new_page()
    asked: list[str] = []
    thrown: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: thrown.append(str(error)))
    page.on("console", lambda message: thrown.append(message.text) if "Security Policy" in message.text else None)
    yield page
    context.close()
    assert [url for url in asked if not url.startswith((site.ui.url, "data:"))] == []
    assert thrown == []


@pytest.fixture
def page(browser: Browser, site: Site, redis_server: RedisServer) -> Iterator[Page]:
    with opened(browser, site) as one:
        yield one


@pytest.fixture(scope="module")
def chests(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Drawn chests: dark, between and bright, so that they are called Normal, Uncertain and Pneumonia."""
    directory = tmp_path_factory.mktemp("chests") / "drawn"
    synthetic.generate(directory, 3, seed=5)
    drawn = []
    for path, middle in zip(sorted(directory.glob("train/*/*.png"))[:3], (0.35, 0.505, 0.66), strict=True):
        values = np.asarray(Image.open(path).convert("L"), dtype=np.float32) / 255
        for _ in range(8):
            values = np.clip(values + (middle - values.mean()), 0, 1)
        stream = io.BytesIO()
        Image.fromarray((values * 255).astype(np.uint8)).save(stream, "PNG")
        drawn.append(stream.getvalue())
    return drawn


def payload(content: bytes, name: str = "xray.png") -> FilePayload:
    return FilePayload(name=name, mimeType="image/png", buffer=content)


def colourful() -> bytes:
    """Return a picture that is no X-ray."""
    stream = io.BytesIO()
    Image.fromarray(np.indices((90, 120)).sum(0).astype(np.uint8)).convert("P").save(stream, "PNG")
    picture = Image.open(stream)
    picture.putpalette([value for n in range(256) for value in (n, 255 - n, 128)])
    stream = io.BytesIO()
    picture.convert("RGB").save(stream, "PNG")
    return stream.getvalue()


def rows(page: Page) -> Locator:
    return page.locator("table.cases tbody tr")


def names(page: Page) -> list[str]:
    return rows(page).locator(".name a").all_inner_texts()


def dropped(page: Page, kind: str, files: dict[str, bytes], target: str) -> None:
    """Let go of files over an element, or paste them into it."""
    script = """([kind, files, target]) => {
        const data = new DataTransfer();
        for (const [name, bytes] of files) data.items.add(new File([new Uint8Array(bytes)], name, {type: "image/png"}));
        const settings = {bubbles: true, cancelable: true};
        document.querySelector(target).dispatchEvent(kind === "paste"
            ? new ClipboardEvent(kind, {...settings, clipboardData: data})
            : new DragEvent(kind, {...settings, dataTransfer: data}));
    }"""
    page.evaluate(script, [kind, [[name, list(content)] for name, content in files.items()], target])


def analyze(page: Page, content: bytes, name: str = "xray.png", thing: str = "Image") -> None:
    page.set_input_files("#file", files=[payload(content, name)])
    page.get_by_role("button", name=f"Analyze {thing}").click()


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
    expect(card.locator("img").first).not_to_have_js_property("naturalWidth", 0)
    analyze(page, png(10), "other.png")
    expect(page.locator("[data-verdict=Normal]").get_by_role("heading", name="Normal")).to_be_visible()
    assert page.locator("[data-verdict] h2").evaluate("node => getComputedStyle(node).color") != red
    page.get_by_role("link", name="Results").click()
    expect(rows(page)).to_have_count(2)
    expect(rows(page).nth(0)).to_contain_text("other.png")
    expect(rows(page).nth(1)).to_contain_text(confidence)
    expect(rows(page).nth(1).locator(".badge")).to_have_text("Pneumonia")


def test_an_error_takes_the_place_of_an_older_verdict(page: Page) -> None:
    page.goto("/predict")
    for content, name, words in (
        (b"no image", "a.png", "not a readable PNG or JPEG"),
        (b"", "a.png", "empty"),
        (b"0" * 3_000_001, "a.png", "too large"),
    ):
        analyze(page, png(10))
        expect(page.locator("[data-verdict]")).to_be_visible()
        analyze(page, content, name)
        expect(page.locator("#result [data-error]")).to_contain_text(words)
        expect(page.locator("#result [data-error]")).to_contain_text("a.png")
        expect(page.locator("[data-verdict]")).to_have_count(0)
        expect(page.get_by_role("button", name="Analyze Image")).to_be_enabled()
        expect(page.get_by_role("button", name="Try again")).to_have_count(0)


def test_choosing_another_file_removes_the_old_verdict(page: Page) -> None:
    page.goto("/predict")
    analyze(page, png(10))
    expect(page.locator("[data-verdict]")).to_be_visible()
    page.set_input_files("#file", files=[payload(png(240), "next.png")])
    expect(page.locator("[data-verdict]")).to_have_count(0)
    expect(page.locator(".chosen li")).to_have_text(["next.png"])


def test_results_turn_pages_without_leaving_and_back_goes_back(page: Page, redis_server: RedisServer) -> None:
    now = datetime.now(timezone.utc)
    CaseStore.connect("127.0.0.1", redis_server.port, "api", PASSWORD).add_many(
        Case(identity(str(n)), f"case-{n}.png", "Normal", 0.99, (0.01,), "v", "batch", now - timedelta(seconds=n))
        for n in range(260)
    )
    page.goto("/")
    page.evaluate("window.stayed = true")
    expect(rows(page)).to_have_count(25)
    page.get_by_role("link", name="Next").click()
    expect(rows(page).first).to_contain_text("case-25.png")
    page.get_by_role("link", name="11", exact=True).click()
    expect(rows(page)).to_have_count(10)
    expect(page.locator(".count")).to_have_text("260 cases, page 11 of 11")
    expect(page.locator(".count")).to_be_focused()
    expect(page.locator("#announcer")).to_have_text("260 cases, page 11 of 11")
    assert page.evaluate("window.stayed") is True
    assert page.url.endswith("/?page=11")
    page.go_back()
    expect(rows(page).first).to_contain_text("case-25.png")
    page.reload()
    expect(rows(page).first).to_contain_text("case-25.png")


# --- several, dragged, pasted ---


def test_several_images_have_a_card_each_in_order_two_at_a_time(page: Page) -> None:
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    page.route("**/upload_predict", hold)
    page.goto("/predict")
    files = [payload(png(30 * n + 10), f"{n}.png") for n in range(5)]
    files[2] = payload(b"no image", "2.png")
    page.set_input_files("#file", files=files)
    page.get_by_role("button", name="Analyze 5 Images").click()
    cards = page.locator("#result > li")
    expect(cards).to_have_count(5)
    expect(page.locator(".pending progress")).to_have_count(5)
    for n in range(5):
        expect(page.locator(".pending")).to_have_count(5 - n)
        expected = min(2, 5 - n)
        for _ in range(100):
            # Playwright hands out requests while it waits; a third one would have come in that time, too.
            page.wait_for_timeout(60)
            if len(held) >= expected:
                break
        under_way = page.locator(".pending").filter(has_text=re.compile("Uploading|Analyzing"))
        assert under_way.count() == len(held) == expected
        held.pop(0).continue_()
    expect(page.locator("#summary")).to_have_text("4 of 5 images analyzed; 1 without a verdict")
    expect(page.locator("#summary")).to_be_focused()
    for n in (0, 1, 3, 4):
        expect(cards.nth(n).locator("[data-verdict]")).to_contain_text(f"{n}.png")
    expect(cards.nth(2).locator("[data-error]")).to_contain_text("2.png")
    expect(page.get_by_role("button", name="Analyze 5 Images")).to_be_enabled()


@pytest.mark.parametrize(("kind", "target"), [("drop", ".drop"), ("drop", "footer"), ("paste", "body")])
def test_images_are_dropped_anywhere_and_pasted(page: Page, kind: str, target: str) -> None:
    page.goto("/predict")
    if kind == "drop":
        dropped(page, "dragover", {"a.png": b""}, target)
        expect(page.locator(".drop.over")).to_be_visible()
    dropped(page, kind, {"one.png": png(230), "image.png": png(10)}, target)
    expect(page.locator(".drop.over")).to_have_count(0)
    expect(page.get_by_role("button", name="Analyze 2 Images")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("[data-verdict]")).to_have_count(2)
    expect(page.locator("[data-verdict=Pneumonia]")).to_contain_text("one.png")
    last = page.locator("[data-verdict=Normal] dd.name")
    expect(last).to_have_text("image.png" if kind == "drop" else re.compile(r"^pasted-\d{6}-1\.png$"))


def test_the_field_takes_dicom_and_several(page: Page) -> None:
    page.goto("/predict")
    field = page.locator("#file")
    assert {".png", ".jpg", ".jpeg", ".dcm"} <= set((field.get_attribute("accept") or "").split(","))
    assert field.evaluate("node => node.multiple") is True
    expect(page.get_by_text("PNG, JPEG or DICOM")).to_be_visible()


def test_a_failed_upload_is_tried_again_in_its_place(page: Page) -> None:
    page.route("**/upload_predict", lambda route: route.abort(), times=1)
    page.goto("/predict")
    analyze(page, png(230))
    expect(page.locator("#result [data-error]")).to_contain_text("cannot be reached")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("[data-verdict=Pneumonia] h2")).to_be_focused()
    expect(page.locator("[data-error]:visible")).to_have_count(0)


# --- the card ---


def test_the_heat_map_is_as_strong_as_one_likes(page: Page, chests: list[bytes]) -> None:
    page.goto("/predict")
    analyze(page, chests[2])
    card = page.locator("[data-verdict=Pneumonia]")
    heat, slider = card.locator("img.heat"), card.get_by_label("Heat map opacity")

    def opacity() -> float:
        return float(heat.evaluate("node => getComputedStyle(node).opacity"))

    assert opacity() == 0.45
    expect(card).to_contain_text("where the image speaks for Pneumonia")
    # Both at one moment: the page may still be scrolling to the verdict.
    boxes = card.locator(".stack").evaluate(
        "node => [...node.querySelectorAll('img')].map(image => Object.values(image.getBoundingClientRect().toJSON()))"
    )
    assert len(boxes) == 2 and boxes[0] == pytest.approx(boxes[1], abs=1)
    slider.focus()
    page.keyboard.press("End")
    assert opacity() == 1
    page.keyboard.press("ArrowLeft")
    assert opacity() == 0.95
    expect(card.locator("output")).to_have_text("95%")
    page.keyboard.press("Home")
    assert opacity() == 0


def test_uncertain_and_unfamiliar_are_amber(page: Page, chests: list[bytes]) -> None:
    def is_amber(node: Locator, what: str) -> bool:
        colour = node.evaluate(f"node => getComputedStyle(node).{what}")
        red, green, blue = (int(part) for part in re.findall(r"\d+", colour)[:3])
        return red > green > 1.5 * blue

    page.goto("/predict")
    page.set_input_files("#file", files=[payload(chests[1]), payload(colourful(), "garden.png")])
    page.get_by_role("button", name="Analyze 2 Images").click()
    uncertain = page.locator("[data-verdict=Uncertain]").first
    expect(uncertain.get_by_role("heading", name="Uncertain")).to_be_visible()
    expect(uncertain).to_contain_text("A physician should read this image")
    assert is_amber(uncertain, "borderLeftColor")
    warning = page.locator("[data-unfamiliar]")
    expect(warning).to_contain_text("This may not be a chest X-ray: The image is in colour")
    assert is_amber(warning, "borderLeftColor")


def test_the_verdict_is_told_to_those_who_listen(page: Page) -> None:
    page.goto("/predict")
    analyze(page, png(230))
    expect(page.locator("[data-verdict] h2")).to_be_focused()
    expect(page.locator("#announcer")).to_have_text(re.compile(r"xray\.png: Pneumonia, \d\d\.\d\d%"))
    expect(
        page.get_by_role("img", name=re.compile("The probability of Pneumonia is .* The threshold is 50%"))
    ).to_be_visible()


# --- results ---


@pytest.fixture
def some(site: Site, redis_server: RedisServer) -> CaseStore:
    """Store a few cases of either kind, with pictures, and one that is uncertain."""
    now = datetime.now(timezone.utc)
    store = site.store
    for n in range(8):
        share = 0.55 if n == 5 else 0.99 - n / 100
        label = "Pneumonia" if n % 2 else "Normal"
        store.add(
            Case(f"case{n}", f"film-{'hgfedcba'[n]}.png", label, share, (share,), VERSION,
                 "batch" if n > 5 else "upload", now - timedelta(minutes=n), thumbnail=thumbnail(),
                 probabilities={"Normal": 1 - share, "Pneumonia": share} if n % 2 else
                               {"Normal": share, "Pneumonia": 1 - share},
                 uncertain=n == 5)
        )  # fmt: skip
    store.set_feedback("case1", Feedback("Normal", now))
    return store


def thumbnail() -> bytes:
    stream = io.BytesIO()
    Image.new("L", (48, 48), 120).save(stream, "JPEG")
    return stream.getvalue()


def test_filters_search_and_sort_live_in_the_address(page: Page, some: CaseStore) -> None:
    page.goto("/")
    page.evaluate("window.stayed = true")
    expect(rows(page)).to_have_count(8)
    page.get_by_label("Verdict").select_option("Uncertain")
    expect(rows(page)).to_have_count(1)
    expect(rows(page).locator(".badge.uncertain")).to_have_text("Uncertain")
    page.get_by_label("Verdict").select_option("Pneumonia")
    expect(rows(page)).to_have_count(3)
    page.get_by_role("link", name="Filename").click()
    expect(page.locator("th[aria-sort=ascending]")).to_contain_text("Filename")
    expect(page.get_by_role("link", name="Filename")).to_be_focused()
    assert names(page) == ["film-a.png", "film-e.png", "film-g.png"]
    page.get_by_role("link", name="Filename").click()
    expect(page.locator("th[aria-sort=descending]")).to_be_visible()
    page.get_by_label("Source").select_option("upload")
    expect(rows(page)).to_have_count(2)
    page.get_by_label("File name").press_sequentially("FILM-G")
    expect(rows(page)).to_have_count(1)
    assert page.evaluate("window.stayed") is True
    assert page.url.endswith("/?search=FILM-G&verdict=Pneumonia&source=upload&sort=filename&order=desc")
    page.reload()
    assert names(page) == ["film-g.png"]
    expect(page.get_by_label("Verdict")).to_have_value("Pneumonia")
    page.get_by_role("link", name="Clear filters").click()
    expect(rows(page)).to_have_count(8)
    expect(page.get_by_label("Verdict")).to_have_value("")
    expect(page.locator("th[aria-sort=descending]")).to_contain_text("Filename")
    page.go_back()
    expect(rows(page)).to_have_count(1)
    expect(page.get_by_label("File name")).to_have_value("FILM-G")
    page.get_by_label("Feedback").select_option("Disagreed")
    expect(rows(page)).to_have_count(1)
    expect(rows(page)).to_contain_text("disagreed: Normal")
    page.get_by_label("File name").fill("nothing like it")
    expect(page.get_by_text("No case matches these filters.")).to_be_visible()


def test_the_export_is_a_file_with_what_is_shown(page: Page, some: CaseStore) -> None:
    page.goto("/?verdict=Pneumonia&sort=filename")
    with page.expect_download() as download:
        page.get_by_role("link", name="Export CSV").click()
    assert download.value.suggested_filename.endswith(".csv")
    lines = list(csv.DictReader(io.StringIO(Path(download.value.path()).read_text(encoding="utf-8-sig"))))
    assert [line["filename"] for line in lines] == names(page) == ["film-a.png", "film-e.png", "film-g.png"]


def test_a_case_is_deleted_where_it_is_listed_after_a_question(page: Page, some: CaseStore) -> None:
    page.goto("/?verdict=Pneumonia&sort=filename")
    page.get_by_role("link", name="Delete film-e.png").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("film-e.png")
    expect(dialog.get_by_role("link", name="Keep it")).to_be_focused()
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    expect(page.get_by_role("link", name="Delete film-e.png")).to_be_focused()
    page.keyboard.press("Enter")
    dialog.get_by_role("link", name="Keep it").click()
    expect(dialog).to_have_count(0)
    page.get_by_role("link", name="Delete film-e.png").click()
    dialog.get_by_role("button", name="Delete case").click()
    expect(page.get_by_text("The case was deleted.")).to_be_focused()
    assert page.url.endswith("/?verdict=Pneumonia&sort=filename")
    assert names(page) == ["film-a.png", "film-g.png"]
    assert some.get("case3") is None
    page.reload()
    expect(page.get_by_text("The case was deleted.")).to_have_count(0)


def test_a_page_that_was_left_open_too_long_deletes_nothing(page: Page, some: CaseStore) -> None:
    page.goto("/cases/case0/delete")
    page.context.clear_cookies()
    page.get_by_role("button", name="Delete case").click()
    expect(page.locator("main [data-error]")).to_contain_text("This page has expired, nothing was done")
    assert some.get("case0") is not None


# --- a case ---


def test_feedback_is_given_changed_and_withdrawn_in_place(page: Page, some: CaseStore) -> None:
    page.goto("/")
    page.get_by_role("link", name="film-f.png", exact=True).click()
    page.evaluate("window.stayed = true")
    place = page.locator("#feedback")
    place.get_by_role("button", name="Agree", exact=True).click()
    expect(place.get_by_role("heading", name="You agreed: Normal")).to_be_focused()
    expect(place.get_by_role("button", name="Agree", exact=True)).to_have_attribute("aria-pressed", "true")
    place.get_by_role("button", name="Pneumonia").click()
    expect(place.get_by_role("heading", name="You disagreed: the right label is Pneumonia")).to_be_focused()
    case = some.get("case2")
    assert case and case.feedback and case.feedback.label == "Pneumonia"
    place.get_by_role("button", name="Withdraw feedback").click()
    expect(place.get_by_role("heading", name="Is Normal right?")).to_be_focused()
    assert page.evaluate("window.stayed") is True
    some.delete("case2")
    place.get_by_role("button", name="Agree", exact=True).click()
    expect(place.locator("[data-error]")).to_contain_text("The feedback was not saved")


# --- the canvas ---


def digits_model() -> bytes:
    """Return an ONNX model for (N, 28, 28, 1) with ten labels: which tenth of the columns is the brightest."""
    from onnx import TensorProto, helper, numpy_helper

    bands = np.arange(28) * 10 // 28
    weights = np.zeros((28, 28, 10), np.float32)
    for label in range(10):
        weights[:, bands == label, label] = 20 / (28 * (bands == label).sum())
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["image"], ["flat"], axis=1),
            helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["score"], axis=1),
        ],
        "columns",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 28, 28, 1])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N", 10])],
        [numpy_helper.from_array(weights.reshape(784, 10), "weights")],
    )
    return bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8).SerializeToString()
    )


def write_digits(directory: Path) -> Path:
    """Write a bundle that takes drawings and knows ten labels."""

    def change(contract: dict[str, Any]) -> None:
        content = digits_model()
        (directory / "model.onnx").write_bytes(content)
        contract["files"]["model.onnx"] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        contract["serving"]["outputs"] = {"score": "score"}
        contract["input"] = {"height": 28, "width": 28, "channels": 1, "color": "grayscale", "form": "canvas"}
        contract["labels"], contract["output"] = [str(n) for n in range(10)], "softmax"
        contract["decision"] = {"threshold": 0.5, "uncertain": {"below": 0.5, "chosen_by": "hand"}}
        contract["smoke"] = {"file": "smoke.png", "scores": [0.1] * 10, "label": "0"}
        del contract["out_of_distribution"]
        for figures in contract["metrics"].values():
            figures["confusion_matrix"] = [
                [9 if i == j else int(abs(i - j) == 1) for j in range(10)] for i in range(10)
            ]

    return write_bundle(directory, change=change)


@pytest.fixture(scope="module")
def drawing(tmp_path_factory: pytest.TempPathFactory, shared_redis: RedisServer) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("drawing")
    made = Site(directory, shared_redis, write_digits(directory / "b"))
    made.wait()
    yield made
    made.stop()


def stroke(page: Page, x: float) -> None:
    """Draw a line from top to bottom, at a share of the width."""
    box = page.locator("#canvas").bounding_box()
    assert box
    across = box["x"] + x * box["width"]
    page.mouse.move(across, box["y"] + 5)
    page.mouse.down()
    page.mouse.move(across, box["y"] + box["height"] - 5, steps=8)
    page.mouse.up()


def grey(page: Page, x: int, y: int) -> int:
    return int(
        page.evaluate(f"document.getElementById('canvas').getContext('2d').getImageData({x}, {y}, 1, 1).data[0]")
    )


def test_what_is_drawn_is_classified(browser: Browser, drawing: Site, redis_server: RedisServer) -> None:
    with opened(browser, drawing) as page:
        page.goto("/predict")
        canvas = page.locator("#canvas")
        assert canvas.evaluate("node => [node.width, node.height]") == [280, 280]
        assert grey(page, 140, 140) == 0
        page.get_by_role("button", name="Predict").click()
        expect(page.locator("#result [data-error]")).to_contain_text("Nothing is drawn yet")
        pen = page.get_by_label("Pen width")
        assert [pen.get_attribute(name) for name in ("min", "max")] == ["10", "50"]
        pen.fill("28")
        expect(page.locator("#pen-value")).to_have_text("28")
        stroke(page, 0.35)
        assert grey(page, 98, 140) == 255
        assert grey(page, 98 + 18, 140) == 0, "the pen is as wide as it says"
        page.get_by_role("button", name="Predict").click()
        card = page.locator("[data-verdict='3']")
        expect(card.get_by_role("heading", name="3")).to_be_focused()
        expect(card).to_contain_text("drawing.png")
        expect(card.locator("table.bars tr")).to_have_count(10)
        expect(card.locator("table.bars .top th")).to_have_text("3")
        expect(card.locator("[data-opacity]")).to_have_count(0)
        shot(page, "canvas-light")
        accessible(page)
        page.get_by_role("button", name="Clear").click()
        assert grey(page, 98, 140) == 0
        expect(page.locator("[data-verdict]")).to_have_count(0)
        stroke(page, 0.75)
        stroke(page, 0.25)
        page.get_by_role("button", name="Predict").click()
        expect(page.locator("[data-verdict=Uncertain]")).to_contain_text("Leans toward")
        page.goto("/")
        expect(rows(page)).to_have_count(2)
        expect(page.get_by_label("Verdict").locator("option")).to_have_count(12)
        page.goto("/model")
        expect(page.get_by_role("img", name=re.compile("Confusion matrix"))).to_be_visible()
        shot(page, "canvas-model-light")
    # With a finger, on a phone, in the dark.
    with opened(browser, drawing, viewport=PHONE, has_touch=True, is_mobile=True, color_scheme="dark") as page:
        page.goto("/predict")
        box = page.locator("#canvas").bounding_box()
        assert box
        page.get_by_label("Pen width").fill("50")
        page.touchscreen.tap(box["x"] + 0.05 * box["width"], box["y"] + 0.5 * box["height"])
        assert grey(page, 14, 140) == 255
        page.get_by_role("button", name="Predict").tap()
        expect(page.locator("[data-verdict='0']")).to_be_visible()
        assert fits(page)
        shot(page, "canvas-phone")
        accessible(page)
    with opened(browser, drawing, java_script_enabled=False) as page:
        page.goto("/predict")
        expect(page.get_by_text("Drawing needs JavaScript")).to_be_visible()
        page.locator("summary").click()
        stream = io.BytesIO()
        picture = Image.new("L", (28, 28), 0)
        picture.paste(255, (25, 0, 28, 28))
        picture.save(stream, "PNG")
        analyze(page, stream.getvalue(), thing="Drawing")
        expect(page.locator("[data-verdict='9']")).to_be_visible()


@pytest.mark.parametrize("look", ["light", "phone"])
def test_pages_of_drawings_speak_of_drawings(
    browser: Browser, drawing: Site, redis_server: RedisServer, look: str
) -> None:
    def check(page: Page, name: str) -> None:
        text = page.locator("body").inner_text()
        found = re.findall(r"(?i)physician|diagnosis|clinical|x-ray|DICOM|patient|\bfilms?\b", text)
        assert found == [], (page.url, found)
        expect(page.get_by_text("A guess, not a certainty").first).to_be_visible()
        assert fits(page), page.url
        shot(page, f"drawing-{name}-{look}")
        accessible(page)

    settings: dict[str, Any] = {}
    if look == "phone":
        settings.update(viewport=PHONE, has_touch=True, is_mobile=True, color_scheme="dark")
    with opened(browser, drawing, **settings) as page:
        page.goto("/index.html")
        assert page.url == f"{drawing.ui.url}/", "the first version's address leads on"
        expect(page.get_by_role("link", name="Draw the first one.")).to_be_visible()
        check(page, "empty")
        page.get_by_role("link", name="Draw the first one.").click()
        expect(page.get_by_role("heading", name="Draw a Digit inside This Box")).to_be_visible()
        check(page, "canvas")
        stroke(page, 0.35)
        page.get_by_role("button", name="Predict").click()
        expect(page.locator("[data-verdict='3'] table.bars tr")).to_have_count(10)
        check(page, "verdict")
        page.get_by_role("button", name="Clear").click()
        stroke(page, 0.75)
        stroke(page, 0.25)
        page.get_by_role("button", name="Predict").click()
        expect(page.locator("[data-verdict=Uncertain]")).to_contain_text("A person should look at this drawing.")
        check(page, "uncertain")
        page.locator("summary").click()
        page.set_input_files("#file", files=[payload(png(9)), payload(b"no image", "letter.png")])
        page.get_by_role("button", name="Analyze 2 Drawings").click()
        expect(page.locator("#summary")).to_have_text("1 of 2 drawings analyzed; 1 without a verdict")
        page.goto("/")
        expect(rows(page)).to_have_count(3)
        check(page, "results")
        rows(page).first.locator(".name a").click()
        check(page, "case")
        page.get_by_role("link", name="Delete").click()
        expect(page.get_by_role("dialog")).to_contain_text("Its drawing, verdict and feedback")
        page.goto("/model")
        check(page, "model")


def test_a_stroke_ends_where_the_pen_is_lifted_wherever_that_is(
    browser: Browser, drawing: Site, redis_server: RedisServer
) -> None:
    with opened(browser, drawing) as page:
        page.goto("/predict")
        box = page.locator("#canvas").bounding_box()
        assert box
        page.mouse.move(box["x"] + 140, box["y"] + 140)
        page.mouse.down()
        page.mouse.move(box["x"] + 140, box["y"] + 400, steps=4)
        page.mouse.up()
        page.mouse.move(box["x"] + 30, box["y"] + 30, steps=4)
        assert (grey(page, 140, 270), grey(page, 30, 30)) == (255, 0)
        # A pen, of which the mouse knows nothing.
        page.locator("#canvas").evaluate(
            """(canvas, [x, y]) => {
                canvas.setPointerCapture = () => {};
                const at = (kind, dx) => canvas.dispatchEvent(new PointerEvent(kind, {pointerId: 7, pointerType: "pen",
                    isPrimary: true, bubbles: true, cancelable: true, clientX: x + dx, clientY: y + 60}));
                at("pointerdown", 40); at("pointermove", 90); at("pointerup", 90); at("pointermove", 250);
            }""",
            [box["x"], box["y"]],
        )
        assert (grey(page, 65, 60), grey(page, 90, 60), grey(page, 200, 60)) == (255, 255, 0)


# --- every page, every reader ---


@pytest.mark.parametrize("look", ["light", "dark", "phone"])
def test_every_page_fits_is_accessible_and_says_what_it_is(
    browser: Browser, site: Site, some: CaseStore, chests: list[bytes], look: str
) -> None:
    settings: dict[str, Any] = {"color_scheme": "dark" if look == "dark" else "light"}
    if look == "phone":
        settings.update(viewport=PHONE, has_touch=True, is_mobile=True)
    long = "a-very-long-name-without-any-place-to-break-it-" * 3

    def check(page: Page, name: str) -> None:
        expect(page.get_by_text(SYNTHETIC).first).to_be_visible()
        expect(page.get_by_text("Decision support, not a diagnosis").first).to_be_visible()
        shot(page, f"{name}-{look}")
        assert fits(page), page.url
        accessible(page)

    with opened(browser, site, **settings) as page:
        page.goto("/predict")
        check(page, "predict")
        files = [payload(content, f"patient-{n}.png") for n, content in enumerate(chests)]
        files += [payload(colourful(), f"{long}.png"), payload(b"no image", "letter.png")]
        page.set_input_files("#file", files=files)
        page.get_by_role("button", name="Analyze 5 Images").click()
        expect(page.locator("#summary")).to_be_visible()
        page.wait_for_load_state("networkidle")
        verdicts = [node.get_attribute("data-verdict") for node in page.locator("#result [data-verdict]").all()]
        assert verdicts[:3] == ["Normal", "Uncertain", "Pneumonia"]
        check(page, "verdicts")
        page.locator("[data-verdict=Pneumonia]").get_by_role("link", name="Open the case").click()
        expect(page.get_by_role("heading", name="patient-2.png")).to_be_visible()
        check(page, "case")
        page.get_by_role("link", name="Delete").click()
        expect(page.get_by_role("dialog")).to_be_visible()
        shot(page, f"delete-{look}")
        accessible(page)
        for path, name in (
            ("/", "results"),
            ("/model", "model"),
            ("/nothing", "nothing"),
            ("/cases/case1/delete", "confirm"),
        ):
            page.goto(path)
            check(page, name)


def test_it_works_without_scripts(browser: Browser, site: Site, some: CaseStore) -> None:
    with opened(browser, site, java_script_enabled=False) as page:
        page.goto("/predict")
        analyze(page, png(240))
        expect(page.locator("[data-verdict=Pneumonia]")).to_be_visible()
        expect(page.get_by_text(SYNTHETIC).first).to_be_visible()
        expect(page.locator("[data-opacity]")).not_to_be_visible()
        page.goto("/predict")
        analyze(page, b"no image")
        expect(page.locator("#result [data-error]")).to_contain_text("not a readable")
        expect(page.locator("[data-verdict]")).to_have_count(0)
        page.goto("/")
        expect(rows(page)).to_have_count(9)
        page.get_by_label("Verdict").select_option("Uncertain")
        page.get_by_role("button", name="Filter").click()
        assert names(page) == ["film-c.png"]
        page.get_by_role("link", name="film-c.png", exact=True).click()
        page.get_by_role("button", name="Agree", exact=True).click()
        expect(page.get_by_text("Your feedback was saved.")).to_be_visible()
        expect(page.get_by_role("heading", name="You agreed: Pneumonia")).to_be_visible()
        page.get_by_role("link", name="Delete").click()
        page.get_by_role("button", name="Delete case").click()
        expect(page.get_by_text("The case was deleted.")).to_be_visible()
        expect(rows(page)).to_have_count(8)


def test_everything_can_be_done_by_keyboard(page: Page, some: CaseStore) -> None:
    def go(target: Locator) -> None:
        for _ in range(60):
            page.keyboard.press("Tab")
            if target.evaluate("node => node === document.activeElement"):
                outline = target.evaluate("node => getComputedStyle(node.closest('.drop') || node).outlineStyle")
                assert outline == "solid", "the focus is seen"
                return
        pytest.fail(f"no way by keyboard to {target}")

    # Listening begins early: the browser is told to show no dialog of its own, and told so in the background.
    page.on("filechooser", lambda chooser: chooser.set_files([payload(png(230), "keys.png")]))
    page.goto("/")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    go(page.get_by_role("link", name="New Prediction").first)
    page.keyboard.press("Enter")
    page.wait_for_url("**/predict")
    go(page.locator("#file"))
    page.keyboard.press("Enter")
    expect(page.locator(".chosen")).to_have_text("keys.png")
    go(page.get_by_role("button", name="Analyze Image"))
    page.keyboard.press("Enter")
    expect(page.locator("[data-verdict=Pneumonia] h2")).to_be_focused()
    go(page.get_by_label("Heat map opacity"))
    page.keyboard.press("ArrowRight")
    expect(page.locator("[data-verdict] output")).to_have_text("50%")
    go(page.get_by_role("link", name="Open the case"))
    page.keyboard.press("Enter")
    page.wait_for_url("**/cases/*")
    go(page.get_by_role("button", name="Agree", exact=True))
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="You agreed: Pneumonia")).to_be_focused()
    page.goto("/")
    go(page.get_by_role("link", name="Confidence"))
    page.keyboard.press("Enter")
    expect(page.locator("th[aria-sort=descending]")).to_contain_text("Confidence")
    expect(page.get_by_role("link", name="Confidence")).to_be_focused()
    go(page.get_by_role("link", name="Delete film-h.png"))
    page.keyboard.press("Enter")
    expect(page.get_by_role("link", name="Keep it")).to_be_focused()
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_text("The case was deleted.")).to_be_visible()


def test_who_wants_no_motion_gets_none(page: Page) -> None:
    page.emulate_media(reduced_motion="reduce")
    page.route("**/upload_predict", lambda _: None)
    page.goto("/predict")
    analyze(page, png(9))
    expect(page.locator(".pending .spinner")).to_be_visible()
    assert page.locator(".pending .spinner").evaluate("node => getComputedStyle(node).animationName") == "none"


# --- failures ---


@pytest.mark.parametrize(
    ("status", "words"),
    [(413, "too large"), (429, "Too many requests"), (502, "could not answer"), (200, "could not answer")],
)
def test_a_proxys_own_error_page_is_an_error(page: Page, status: int, words: str) -> None:
    def proxy(route: Route) -> None:
        body = '<html><h1 data-verdict="Normal">Normal</h1></html>'
        headers = {"Content-Type": "text/html", "X-Request-ID": "0123abcd"}
        route.fulfill(status=status, headers=headers, body=body)

    page.route("**/upload_predict", proxy)
    page.goto("/predict")
    analyze(page, png(10))
    expect(page.locator("#result [data-error]")).to_contain_text(words)
    expect(page.locator("#result [data-error] .reference")).to_have_text("Reference: 0123abcd")
    expect(page.locator("[data-verdict]")).to_have_count(0)


def test_without_redis_there_is_a_verdict_with_a_notice_and_no_history(page: Page, redis_server: RedisServer) -> None:
    page.goto("/predict")
    redis_server.stop()
    analyze(page, png(10))
    card = page.locator("[data-verdict=Normal]")
    expect(card.locator("[data-notice]")).to_contain_text("Not stored.")
    expect(card.locator(".stack img").first).not_to_have_js_property("naturalWidth", 0)
    expect(card.get_by_role("link", name="Open the case")).to_have_count(0)
    shot(page, "redis-down-light")
    page.goto("/")
    expect(page.locator("#data-table [data-error]")).to_contain_text("Unable to fetch data from API")
    expect(rows(page)).to_have_count(0)
    shot(page, "redis-down-results-light")


def test_a_dead_server_is_an_error_and_retry_recovers(page: Page, site: Site) -> None:
    def is_red(error: Any) -> bool:
        colour = error.evaluate("node => getComputedStyle(node).borderLeftColor")
        red, green, _ = (int(part) for part in re.findall(r"\d+", colour)[:3])
        return red > 2 * green

    page.goto("/")
    expect(page.get_by_text("No case has been classified yet")).to_be_visible()
    site.api.stop()
    try:
        page.goto("/predict")
        analyze(page, png(10))
        error = page.locator("#result [data-error]")
        expect(error).to_contain_text("The prediction service cannot be reached")
        expect(page.locator("[data-verdict]")).to_have_count(0)
        assert is_red(error)
        shot(page, "api-down-light")
        for path in ("/", "/cases/case1"):
            page.goto(path)
            expect(page.locator("main [data-error]")).to_contain_text("The prediction service cannot be reached")
            assert is_red(page.locator("main [data-error]"))
        page.goto("/")
        expect(page.locator("[data-error]")).to_contain_text("Unable to fetch data from API")
    finally:
        site.api = site.start_api(site.api.port).wait()
    wait_for("the API is ready", lambda: httpx.get(f"{site.api.url}/ready").status_code == 200)
    page.get_by_role("link", name="Retry").click()
    expect(page.get_by_text("No case has been classified yet")).to_be_visible()
    expect(page.locator("#data-table [data-error]")).to_have_count(0)
    page.goto("/predict")
    site.ui.stop()
    try:
        analyze(page, png(10))
        expect(page.locator("#result [data-error]")).to_contain_text("cannot be reached")
        site.ui = site.start_ui(site.ui.port).wait()
        page.get_by_role("button", name="Try again").click()
        # The new process has another secret, as a host of its own would: the page says so and does nothing.
        expect(page.locator("#result [data-error]")).to_contain_text("This page has expired")
        page.reload()
        analyze(page, png(10))
        expect(page.locator("[data-verdict=Normal]")).to_be_visible()
    finally:
        if site.ui.process.poll() is not None:
            site.ui = site.start_ui(site.ui.port).wait()
