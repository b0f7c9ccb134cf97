"""What a doctor does with the pages, in a real browser, through Nginx over TLS."""

from __future__ import annotations

import base64
import csv
import io
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, FilePayload, Locator, Page, expect
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

from .conftest import System, opened, shot, wait_until

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

PHONE = {"width": 390, "height": 844}
PATIENT = "Musterfrau^Erika"
# Files of this run carry it, so that a search finds them among the cases of other tests.
RUN = uuid.uuid4().hex[:6]
LABELS = ("Normal", "Pneumonia", "Uncertain")


@pytest.fixture
def page(browser: Browser, system: System) -> Iterator[Page]:
    """A page on a desk."""
    yield from opened(browser, system)


@pytest.fixture
def phone(browser: Browser, system: System) -> Iterator[Page]:
    """A page on a phone."""
    yield from opened(browser, system, viewport=PHONE, is_mobile=True, has_touch=True, color_scheme="dark")


@pytest.fixture
def plain(browser: Browser, system: System) -> Iterator[Page]:
    """A page without JavaScript."""
    yield from opened(browser, system, java_script_enabled=False)


def named(name: str) -> str:
    return f"{RUN}-{name}"


@pytest.fixture(scope="module")
def xray(system: System) -> bytes:
    """The image that the live model was tried with when it was trained."""
    return system.smoke()


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("L"))


def dicom(content: bytes) -> bytes:
    """Return an image as a scanner would send it: 12 bits, black shown as white, with a patient's name."""
    shown = 4095 - pixels(content).astype(np.uint16) * 16
    data = pydicom.Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID, data.SOPInstanceUID = SecondaryCaptureImageStorage, data.file_meta.MediaStorageSOPInstanceUID
    data.PatientName, data.PatientID, data.Modality = PATIENT, "4711-0815", "CR"
    data.Rows, data.Columns = shown.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME1"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
    data.PixelData = shown.tobytes()
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, data, enforce_file_format=True)
    return stream.getvalue()


def large_png(content: bytes, megabytes: int) -> bytes:
    """Return an image of about so many MB: enlarged, with the noise of a fine-grained detector."""
    side = int((megabytes * 1024 * 1024) ** 0.5)
    enlarged = np.asarray(Image.fromarray(pixels(content)).resize((side, side)), dtype=np.int16)
    noise = np.random.default_rng(1).integers(-100, 101, (side, side))
    stream = io.BytesIO()
    Image.fromarray(np.clip(enlarged + noise, 0, 255).astype(np.uint8)).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def payload(name: str, content: bytes, kind: str = "image/png") -> FilePayload:
    return FilePayload(name=named(name), mimeType=kind, buffer=content)


def analyze(page: Page, *files: FilePayload) -> None:
    """Choose files by the button and send them."""
    page.goto("/predict")
    page.set_input_files("#file", files=list(files))
    page.locator("#upload [type=submit]").click()


def verdicts(page: Page, count: int = 1) -> Locator:
    """Return the verdicts on the page, when there are as many as expected."""
    found = page.locator("#result [data-verdict]")
    try:
        expect(found).to_have_count(count, timeout=60_000)
    except AssertionError as error:
        pytest.fail(f"{error}\nThe page says: {page.locator('#result').inner_text()}")
    for number in range(count):
        assert found.nth(number).get_attribute("data-verdict") in LABELS
    return found


def rows(page: Page) -> Locator:
    return page.locator("table.cases tbody tr")


def fits(page: Page) -> bool:
    """Return whether nothing sticks out to the right."""
    return bool(page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"))


def drop(page: Page, content: bytes, name: str, event: str) -> None:
    """Let go of a file over the page, or paste it, as the system's own gesture would."""
    script = """([bytes, name, event]) => {
        const files = new DataTransfer();
        files.items.add(new File([new Uint8Array(bytes)], name, {type: 'image/png'}));
        const target = event === 'paste' ? document.body : document.querySelector('.drop');
        target.dispatchEvent(event === 'paste'
            ? new ClipboardEvent(event, {clipboardData: files, bubbles: true, cancelable: true})
            : new DragEvent(event, {dataTransfer: files, bubbles: true, cancelable: true}));
    }"""
    page.evaluate(script, [list(content), name, event])


def no_serious_violation(page: Page) -> None:
    """Fail on what axe-core calls serious or critical."""
    found = Axe().run(page).response["violations"]
    grave = [item for item in found if item["impact"] in ("serious", "critical")]
    words = [f"{item['id']}: {item['help']}; {[node['html'][:200] for node in item['nodes']][:3]}" for item in grave]
    assert grave == [], f"{page.url}\n" + "\n".join(words)


# --- uploads ----------------------------------------------------------------------------------------------------------


def test_one_image_gets_a_verdict_with_everything_a_doctor_needs(page: Page, xray: bytes) -> None:
    analyze(page, payload("one.png", xray))
    card = verdicts(page)
    assert card.locator("[data-confidence]").inner_text().endswith("%")
    expect(card).to_contain_text(named("one.png"))
    expect(card).to_contain_text("Decision support, not a diagnosis")
    expect(card.locator(".scale svg")).to_be_visible()
    expect(card.locator(".stack img").first).not_to_have_js_property("naturalWidth", 0)
    shot(page, "verdict")
    no_serious_violation(page)


def test_the_heat_map_lies_over_the_image_as_strong_as_one_likes(page: Page, xray: bytes) -> None:
    analyze(page, payload("heat.png", xray))
    card = verdicts(page)
    heat = card.locator("img.heat")
    expect(heat).to_be_visible()
    expect(heat).not_to_have_js_property("naturalWidth", 0)
    image, over = card.locator(".stack").evaluate(
        "node => [...node.querySelectorAll('img')].map(image => Object.values(image.getBoundingClientRect().toJSON()))"
    )
    assert np.allclose(image, over, atol=1), (image, over)
    slider = card.locator("[data-opacity]")
    slider.fill("100")
    assert float(heat.evaluate("node => getComputedStyle(node).opacity")) == 1
    shot(page, "heat-map")
    slider.fill("0")
    assert float(heat.evaluate("node => getComputedStyle(node).opacity")) == 0


def test_twenty_films_at_once_get_twenty_verdicts(page: Page, xray: bytes) -> None:
    """Sent as fast as they are answered, from one address: nobody is told to wait."""
    analyze(page, *(payload(f"film-{number:02}.png", xray) for number in range(20)))
    expect(page.locator("#summary")).to_have_text("20 of 20 images analyzed", timeout=90_000)
    verdicts(page, 20)
    expect(page.locator("#result [data-error]")).to_have_count(0)
    shot(page, "twenty")


def test_several_with_one_that_is_no_image(page: Page, xray: bytes) -> None:
    analyze(page, payload("a.png", xray), payload("b.png", b"not an image"), payload("c.png", xray))
    verdicts(page, 2)
    error = page.locator("#result [data-error]")
    expect(error).to_have_count(1)
    assert error.locator("[data-verdict]").count() == 0
    expect(page.locator("#summary")).to_contain_text("2 of 3 images analyzed")
    shot(page, "several")


@pytest.mark.parametrize("event", ["drop", "paste"])
def test_dragged_and_pasted_images_are_taken(page: Page, xray: bytes, event: str) -> None:
    page.goto("/predict")
    drop(page, xray, named(f"{event}.png"), event)
    page.locator("#upload [type=submit]").click()
    expect(verdicts(page)).to_contain_text(named(f"{event}.png"))


def test_a_dicom_file_is_read_and_the_patient_forgotten(page: Page, system: System, xray: bytes) -> None:
    analyze(page, payload("plain.png", xray))
    expected = verdicts(page).get_attribute("data-verdict")
    analyze(page, payload("scan.dcm", dicom(xray), "application/dicom"))
    card = verdicts(page)
    assert card.get_attribute("data-verdict") == expected
    assert "Musterfrau" not in page.content()
    shot(page, "dicom")
    # Encoded, since the journal also keeps the commands that are run with sudo.
    name = base64.b64encode(PATIENT.encode()).decode()
    for host in ("proxy", "ui", "api"):
        kept = f'grep -rlaF "$(echo {name} | base64 -d)" /var/lib/redis /var/log /run/log /tmp /var/tmp 2>/dev/null'
        assert system.on(host, kept, check=False) == ""


def test_a_file_of_15_mb_is_analyzed(page: Page, xray: bytes) -> None:
    content = large_png(xray, 15)
    assert 14e6 < len(content) < 18e6
    analyze(page, payload("large.png", content))
    verdicts(page)


def test_a_file_of_100_mb_is_refused_in_words(page: Page, plain: Page, system: System, tmp_path: Path) -> None:
    huge = tmp_path / "huge.png"
    with huge.open("wb") as file:
        file.truncate(100 * 1024 * 1024)
    page.goto("/predict")
    page.set_input_files("#file", huge)
    page.locator("#upload [type=submit]").click()
    expect(page.locator("#result [data-error]")).to_contain_text("too large")
    shot(page, "too-large")
    # A browser without the script sends it; Nginx says no.
    plain.goto("/predict")
    plain.set_input_files("#file", huge)
    with plain.expect_response("**/upload_predict", timeout=60_000) as answer:
        plain.locator("#upload [type=submit]").click()
    assert answer.value.status == 413
    expect(plain.locator("[role=alert]")).to_contain_text("larger than the 20 MB")
    shot(plain, "too-large-plain")
    status, text = system.upload(huge.read_bytes())
    assert status == 413
    assert "data-verdict" not in text


@pytest.mark.parametrize(
    ("name", "content"),
    [("notes.txt", b"a letter"), ("empty.png", b""), ("cut.png", b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR")],
)
def test_a_wrong_file_is_an_error_and_no_verdict(page: Page, name: str, content: bytes) -> None:
    analyze(page, payload(name, content))
    expect(page.locator("#result [data-error]")).to_be_visible()
    expect(page.locator("#result [data-verdict]")).to_have_count(0)
    shot(page, f"wrong-{name.partition('.')[0]}")


def test_what_is_no_x_ray_is_said_to_be_none(page: Page) -> None:
    noise = np.random.default_rng(2).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, "PNG")
    analyze(page, payload("garden.png", stream.getvalue()))
    expect(verdicts(page).locator("[data-unfamiliar]")).to_be_visible()
    shot(page, "unfamiliar")


def test_without_javascript_an_upload_is_answered_by_a_page(plain: Page, xray: bytes) -> None:
    analyze(plain, payload("plain-form.png", xray))
    verdicts(plain)
    plain.goto(f"/?search={named('plain-form')}")
    expect(rows(plain)).to_have_count(1)


# --- results ----------------------------------------------------------------------------------------------------------


def test_results_are_paged_sorted_filtered_and_searched(page: Page) -> None:
    page.goto("/")
    expect(rows(page)).to_have_count(25)
    shot(page, "results")
    no_serious_violation(page)
    first = rows(page).first.inner_text()
    page.locator("[data-key=next]").click()
    expect(page.locator(".pager [aria-current=page]")).to_have_text("2")
    assert rows(page).first.inner_text() != first

    page.goto("/")
    page.locator("#search").fill(f"{RUN}-film".upper())
    expect(page.locator(".count")).to_have_attribute("data-total", "20")
    page.locator("[data-key=sort-filename]").click()
    expect(page.locator("th[aria-sort]")).to_contain_text("Filename")
    names = rows(page).locator(".name a").all_inner_texts()
    assert names == sorted(names) or names == sorted(names, reverse=True)

    verdict = rows(page).first.locator(".badge").inner_text()
    page.goto("/")
    page.locator("#verdict").select_option(verdict)
    page.wait_for_url("**verdict=*")
    assert set(rows(page).locator(".badge").all_inner_texts()) == {verdict}
    page.goto("/?source=batch")
    expect(rows(page).first).to_contain_text("batch")


def test_a_search_that_finds_nothing_says_so(page: Page) -> None:
    page.goto("/?search=no-such-file-anywhere")
    expect(page.get_by_text("No case matches these filters")).to_be_visible()


def test_the_export_holds_what_the_filter_shows(page: Page) -> None:
    page.goto(f"/?search={RUN}-film")
    with page.expect_download() as download:
        page.get_by_role("link", name="Export CSV").click()
    lines = list(csv.DictReader(io.StringIO(Path(download.value.path()).read_text(encoding="utf-8-sig"))))
    assert len(lines) == 20
    assert {line["filename"] for line in lines} == {named(f"film-{number:02}.png") for number in range(20)}
    assert {line["source"] for line in lines} == {"upload"}


def test_feedback_is_given_changed_found_and_withdrawn(page: Page, xray: bytes) -> None:
    analyze(page, payload("opinion.png", xray))
    verdicts(page).get_by_role("link", name="Open the case").click()
    expect(page.get_by_role("heading", name=named("opinion.png"))).to_be_visible()
    no_serious_violation(page)
    shot(page, "case")
    feedback = page.locator("#feedback")
    feedback.get_by_role("button", name="Agree", exact=True).click()
    expect(feedback.get_by_role("heading")).to_contain_text("You agreed")
    feedback.locator("fieldset button").first.click()
    expect(feedback.get_by_role("heading")).to_contain_text("You disagreed")
    case = page.url
    page.goto(f"/?feedback=disagree&search={named('opinion')}")
    expect(rows(page)).to_have_count(1)
    expect(rows(page).first).to_contain_text("disagreed")
    page.goto(case)
    feedback.get_by_role("button", name="Withdraw feedback").click()
    expect(feedback.get_by_role("heading")).to_contain_text("right?")


def test_a_deleted_case_is_gone(page: Page, xray: bytes) -> None:
    analyze(page, payload("gone.png", xray))
    verdicts(page).get_by_role("link", name="Open the case").click()
    case = page.url
    page.get_by_role("link", name="Delete").first.click()
    dialog = page.locator("#dialog")
    expect(dialog).to_contain_text(named("gone.png"))
    shot(page, "delete")
    dialog.get_by_role("link", name="Keep it").click()
    expect(dialog).not_to_be_visible()
    page.get_by_role("link", name="Delete").first.click()
    dialog.get_by_role("button", name="Delete case").click()
    page.wait_for_url(lambda url: "/cases/" not in url)
    page.goto(f"/?search={named('gone')}")
    expect(rows(page)).to_have_count(0)
    answer = page.goto(case)
    assert answer and answer.status == 404
    expect(page.locator("[data-error]")).to_be_visible()


def test_a_form_from_elsewhere_does_nothing(page: Page, xray: bytes) -> None:
    analyze(page, payload("kept.png", xray))
    verdicts(page).get_by_role("link", name="Open the case").click()
    answer = page.request.post(page.url + "/delete", form={"csrf_token": "forged"}, headers={"Origin": "https://a.b"})
    assert answer.status == 403
    page.reload()
    expect(page.get_by_role("heading", name=named("kept.png"))).to_be_visible()


def test_the_model_page_shows_figures_and_curves(page: Page, system: System) -> None:
    page.goto("/")
    page.get_by_role("navigation", name="Pages", exact=True).get_by_role("link", name="Model").click()
    expect(page.get_by_role("heading", name="Model card")).to_be_visible()
    expect(page.get_by_text(system.model()["version"]).first).to_be_visible()
    for words in ("AUROC", "Sensitivity", "Limits", "Calibration"):
        expect(page.get_by_text(words).first).to_be_visible()
    assert page.locator("main svg[role=img]").count() >= 2
    shot(page, "model")
    no_serious_violation(page)


# --- ways of using it -------------------------------------------------------------------------------------------------


def test_on_a_phone_nothing_sticks_out(phone: Page, xray: bytes) -> None:
    for path in ("/", "/predict", "/model"):
        phone.goto(path)
        assert fits(phone), path
        shot(phone, f"phone-{path.strip('/') or 'results'}")
    analyze(phone, payload("a-rather-long-name-of-a-file-from-an-archive-of-radiographs.png", xray))
    verdicts(phone)
    assert fits(phone)
    shot(phone, "phone-verdict")
    verdicts(phone).get_by_role("link", name="Open the case").tap()
    expect(phone.locator("#feedback")).to_be_visible()
    assert fits(phone)
    shot(phone, "phone-case")
    no_serious_violation(phone)


def tab_to(page: Page, target: Locator) -> None:
    """Press Tab until the focus is where it should be."""
    for _ in range(60):
        if target.evaluate("node => node === document.activeElement"):
            return
        page.keyboard.press("Tab")
    pytest.fail(f"no way by keyboard to {target}")


def test_everything_can_be_done_by_keyboard(page: Page, xray: bytes) -> None:
    # Listening begins early: the browser is told to show no dialog of its own, and told so in the background.
    page.on("filechooser", lambda chooser: chooser.set_files([payload("keys.png", xray)]))
    page.goto("/")
    page.keyboard.press("Tab")
    expect(page.get_by_text("Skip to content")).to_be_focused()
    tab_to(page, page.get_by_role("navigation", name="Pages", exact=True).get_by_role("link", name="New Prediction"))
    page.keyboard.press("Enter")
    page.wait_for_url("**/predict")
    tab_to(page, page.locator("#file"))
    page.keyboard.press("Space")
    expect(page.locator(".chosen")).to_have_text(named("keys.png"))
    tab_to(page, page.locator("#upload [type=submit]"))
    page.keyboard.press("Enter")
    card = verdicts(page)
    tab_to(page, card.locator("[data-opacity]"))
    before = card.locator("output").inner_text()
    page.keyboard.press("ArrowRight")
    expect(card.locator("output")).not_to_have_text(before)
    tab_to(page, card.get_by_role("link", name="Open the case"))
    page.keyboard.press("Enter")
    page.wait_for_url("**/cases/*")
    tab_to(page, page.locator("#feedback").get_by_role("button", name="Agree", exact=True))
    page.keyboard.press("Enter")
    expect(page.locator("#feedback").get_by_role("heading")).to_contain_text("You agreed")
    page.keyboard.press("Home")
    page.goto(page.url)
    tab_to(page, page.get_by_role("link", name="Delete").first)
    page.keyboard.press("Enter")
    expect(page.locator("#dialog [data-cancel]")).to_be_focused()
    no_serious_violation(page)
    page.keyboard.press("Escape")
    expect(page.locator("#dialog")).not_to_be_visible()
    tab_to(page, page.get_by_role("link", name="Delete").first)
    page.keyboard.press("Enter")
    tab_to(page, page.locator("#dialog").get_by_role("button", name="Delete case"))
    page.keyboard.press("Enter")
    page.wait_for_url(lambda url: "/cases/" not in url)


# --- when something is down -------------------------------------------------------------------------------------------


def test_without_the_api_the_page_says_so_in_red_and_shows_no_verdict(page: Page, system: System, xray: bytes) -> None:
    page.goto("/predict")
    system.on("api", "systemctl stop lightbox-api")
    try:
        page.set_input_files("#file", files=[payload("down.png", xray)])
        page.locator("#upload [type=submit]").click()
        error = page.locator("#result [data-error]")
        expect(error).to_be_visible(timeout=40_000)
        red, green, blue = (
            int(part) for part in error.locator("h2").evaluate("node => getComputedStyle(node).color")[4:-1].split(",")
        )
        assert red > 1.5 * max(green, blue), "an error is red"
        expect(page.locator("[data-verdict]")).to_have_count(0)
        shot(page, "api-down")
        no_serious_violation(page)
        answer = page.goto("/")
        assert answer and answer.status >= 500
        expect(page.locator("[data-error]")).to_be_visible()
        expect(rows(page)).to_have_count(0)
        shot(page, "api-down-results")
    finally:
        system.on("api", "systemctl start lightbox-api")
    wait_until("an upload is answered", system.ready, 30)


def test_without_redis_predictions_go_on_without_history(page: Page, system: System, xray: bytes) -> None:
    system.on("api", "systemctl stop redis-server")
    try:
        analyze(page, payload("unkept.png", xray))
        card = verdicts(page)
        expect(card.locator("[data-notice]")).to_contain_text("Not stored")
        shot(page, "redis-down")
        answer = page.goto("/")
        assert answer and answer.status >= 500
        expect(page.locator("[data-error]")).to_be_visible()
        shot(page, "redis-down-results")
    finally:
        system.on("api", "systemctl start redis-server")

    def kept() -> bool:
        status, text = system.upload(xray, named("again.png"))
        return status == 200 and "data-notice" not in text

    wait_until("cases are kept again", kept, 30)
    page.goto("/")
    expect(rows(page).first).to_contain_text(named("again.png"))
