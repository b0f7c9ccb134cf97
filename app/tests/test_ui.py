"""The pages: against a real API, and against APIs that are down, slow or talk nonsense."""

from __future__ import annotations

import base64
import copy
import io
import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from serving_kit import PASSWORD, Gunicorn, Load, RedisServer, Start, free_port, png, wait_for, write_bundle
from starlette.testclient import TestClient

from lightbox.store import Case, CaseStore, identity
from lightbox.ui.answers import MalformedError, read_prediction
from lightbox.ui.app import Settings, create_app, moment, page_numbers
from lightbox.ui.client import ApiClient
from lightbox.ui.query import Query

PART = {"X-Partial": "1"}
TOKEN = re.compile(r'name="csrf_token" value="([^"]+)"')
SECRET = "a-secret-that-all-hosts-of-the-ui-share"
SYNTHETIC = "This model was trained on synthetic images: not for clinical use"


@pytest.fixture(scope="module")
def real_api(tmp_path_factory: pytest.TempPathFactory, shared_redis: RedisServer) -> Iterator[Gunicorn]:
    directory = tmp_path_factory.mktemp("ui")
    bundle = write_bundle(directory / "b")
    settings = {"LIGHTBOX_BUNDLE": str(bundle), **shared_redis.environment}
    server = Gunicorn("lightbox.api.app:app", directory / "log", settings).wait()
    yield server
    server.stop()


@contextmanager
def pages(*urls: str, timeout: float = 10.0, limit: int = 500_000) -> Iterator[TestClient]:
    """Give the pages in front of these APIs."""
    shown = Settings(api_urls=urls, api_timeout=timeout, max_upload_bytes=limit, csrf_secret=SECRET)
    client = ApiClient(urls, timeout=timeout, connect_timeout=1.0)
    with TestClient(create_app(shown, client), raise_server_exceptions=False) as browser:
        yield browser


@pytest.fixture
def ui(real_api: Gunicorn, redis_server: RedisServer) -> Iterator[TestClient]:
    with pages(real_api.url) as client:
        yield client


def upload(client: Any, content: bytes, name: str = "xray.png", **headers: str) -> httpx.Response:
    """Send a file as a program does, without cookies; pages that were shown before left theirs."""
    client.cookies.clear()
    response: httpx.Response = client.post("/upload_predict", files={"file": (name, content)}, headers=headers)
    return response


def send(client: TestClient, page: str, path: str, **fields: str) -> httpx.Response:
    """Fill in a form of a page as a browser does: with its token, its cookie and the headers browsers send."""
    (token, *_) = TOKEN.findall(client.get(page).text)
    headers = {"Sec-Fetch-Site": "same-origin", "Origin": "http://testserver"}
    return client.post(path, data={"csrf_token": token, **fields}, headers=headers, follow_redirects=False)


def shows_error(response: httpx.Response, status: int, words: str) -> None:
    """The red card is shown, with words for people, and nothing that could be taken for a verdict."""
    # The card that the page's script fills by itself stands in every page.
    text = response.text.split("<template")[0]
    assert response.status_code == status, text
    assert 'class="card error"' in text
    assert re.search(words, text), text
    assert "data-verdict" not in text
    assert "Detected" not in text
    assert 'class="card verdict' not in text
    assert not re.search(r"Traceback|httpx|lightbox\.(?!js)|Errno", text)


def stripes() -> bytes:
    """Return a picture unlike those the model knows: half black, half white."""
    picture = Image.new("L", (32, 32), 0)
    picture.paste(255, (0, 0, 16, 32))
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


class Answers(BaseHTTPRequestHandler):
    """An API that answers what a test wants, or breaks the connection."""

    protocol_version = "HTTP/1.1"
    answer: Callable[[Answers], tuple[int, bytes] | None]
    extra: Mapping[str, str] = {}

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        given_answer = type(self).answer(self)
        if given_answer is None:
            self.close_connection = True
            return
        status, body = given_answer
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **self.extra}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815 - the server calls them so

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


@contextmanager
def an_api(answer: Callable[[Answers], tuple[int, bytes] | None]) -> Iterator[str]:
    """Give the address of a server that answers by a function; None breaks the connection."""
    handler = type("Handler", (Answers,), {"answer": staticmethod(answer)})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


# --- with an API that is well ---


@pytest.mark.parametrize(
    ("value", "label", "words"), [(220, "Pneumonia", "Pneumonia Detected"), (10, "Normal", "Normal")]
)
def test_the_card_shows_the_verdict(ui: TestClient, value: int, label: str, words: str) -> None:
    for headers in ({}, PART):
        answer = upload(ui, png(value), **headers)
        assert answer.status_code == 200
        assert f'data-verdict="{label}"' in answer.text
        assert re.search(f"<h2[^>]*>{words}</h2>", answer.text)
        assert ("card verdict finding" in answer.text) == (label == "Pneumonia")
        (picture,) = re.findall(r'<img src="(/cases/[^"]+/image)"', answer.text)
        assert ui.get(picture).headers["Content-Type"] == "image/jpeg"
        assert "xray.png" in answer.text
        assert "20260101T000000Z-aaaaaaaa" in answer.text
        assert "Decision support, not a diagnosis" in answer.text
        assert "data-error" not in answer.text.split("<template")[0]
        assert answer.text.startswith("<!doctype html>") == (headers == {})


def test_card_and_table_show_the_same_confidence(ui: TestClient) -> None:
    card = upload(ui, png(10), **PART).text
    table = ui.get("/table").text
    (confidence,) = re.findall(r"data-confidence>([^<]+)<", card)
    assert re.fullmatch(r"\d{1,3}\.\d\d%", confidence)
    assert f">{confidence}</td>" in table
    assert "data:image/jpeg;base64," in table
    assert float(confidence[:-1]) > 50


def test_results_are_paged(ui: TestClient, redis_server: RedisServer) -> None:
    assert "No case has been classified yet" in ui.get("/").text
    now = datetime.now(timezone.utc)
    CaseStore.connect("127.0.0.1", redis_server.port, "api", PASSWORD).add_many(
        Case(identity(str(n)), f"case-{n}.png", "Normal", 0.9912, (0.0088,), "v", "batch", now - timedelta(seconds=n))
        for n in range(453)
    )
    first = ui.get("/table").text
    assert re.findall(r">case-(\d+)\.png</a>", first) == [str(n) for n in range(25)]
    assert "453 cases, page 1 of 19" in first
    assert '<span aria-disabled="true">Previous</span>' in first
    assert "99.12%" in first
    last = ui.get("/?page=19").text
    assert re.findall(r">case-(\d+)\.png</a>", last) == ["450", "451", "452"]
    assert '<span aria-disabled="true">Next</span>' in last
    assert 'href="/?page=18"' in last
    shows_error(
        ui.get("/table", params={"page": "20"}), 404, "Unable to fetch data from API[^!]*Page must be 19 or less"
    )
    for wrong in ("0", "x", "-1"):
        shows_error(ui.get("/table", params={"page": wrong}), 400, "Page must be")


def test_file_names_are_text(ui: TestClient) -> None:
    name = '<img src=x onerror=alert(1)>".png'
    for text in (upload(ui, png(10), name).text, ui.get("/").text):
        assert "<img src=x" not in text
        assert "&lt;img src=x onerror=alert(1)&gt;" in text


@pytest.mark.parametrize(
    ("content", "name", "status", "words"),
    [
        (b"", "a.png", 400, "empty"),
        (b"no image", "a.png", 415, "not a readable PNG or JPEG"),
        (png(9, 64)[:-9], "a.png", 4, "not readable|not a readable"),
        (png(9), "", 400, "No file"),
        (b"0" * 500_001, "a.png", 413, "larger than"),
        (b"0" * 9_000_000, "a.png", 413, "larger than"),
    ],
)
@pytest.mark.parametrize("headers", [{}, PART])
def test_bad_uploads_show_an_error(
    ui: TestClient, content: bytes, name: str, status: int, words: str, headers: dict[str, str]
) -> None:
    answer = upload(ui, content, name, **headers)
    assert str(answer.status_code).startswith(str(status))
    shows_error(answer, answer.status_code, words)


def test_a_form_without_a_file_and_a_foreign_form(ui: TestClient) -> None:
    shows_error(ui.post("/upload_predict"), 400, "No file uploaded")
    shows_error(upload(ui, png(9), **{"Sec-Fetch-Site": "cross-site"}), 403, "this site")
    shows_error(upload(ui, png(9), **{"Sec-Fetch-Site": "same-origin"}), 403, "expired")


def test_every_page_is_plain_local_and_not_kept(ui: TestClient) -> None:
    for path in ("/", "/predict", "/model", "/nothing"):
        answer = ui.get(path)
        assert answer.headers["Cache-Control"] == "no-store"
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert "Pneumonia Detection" in answer.text
        assert "Decision support, not a diagnosis" in answer.text
        assert not re.search(r"""(?:src|href)=["'](?:https?:)?//""", answer.text)
        assert not re.search(r"<style|<script(?! src=)|\sstyle=|\son\w+=", answer.text)
        for asset in re.findall(r'(?:src|href)="(/static/[^"]+)"', answer.text):
            assert ui.get(asset).status_code == 200
    shows_error(ui.get("/nothing"), 404, "no such page")


def test_health_and_metrics(ui: TestClient) -> None:
    assert ui.get("/health").json()["status"] == "healthy"
    assert "lightbox_http_requests_total" in ui.get("/metrics").text
    assert ui.get("/metrics", headers={"X-Forwarded-For": "203.0.113.7"}).status_code == 404


def test_the_request_id_goes_through_to_the_api(ui: TestClient, real_api: Gunicorn) -> None:
    answer = upload(ui, png(9), **{"X-Request-ID": "from-the-proxy"})
    assert answer.headers["X-Request-ID"] == "from-the-proxy"
    wait_for("the API logs it", lambda: '"request_id": "from-the-proxy"' in real_api.log.read_text(), 5)


def test_without_redis_the_verdict_says_that_it_was_not_stored(ui: TestClient, redis_server: RedisServer) -> None:
    redis_server.stop()
    answer = upload(ui, png(220), **PART)
    assert 'data-verdict="Pneumonia"' in answer.text
    assert "<strong>Not stored.</strong>" in answer.text
    shows_error(ui.get("/"), 503, "Unable to fetch data from API[^!]*cannot be reached")


@pytest.mark.parametrize("synthetic", [True, False])
def test_the_banner_says_what_the_model_knows(synthetic: bool) -> None:
    def answer(request: Answers) -> tuple[int, bytes]:
        if request.path == "/v1/model":
            return 200, json.dumps({"version": "v1", "data": {"synthetic": synthetic}}).encode()
        return 404, b'{"error": "Not found"}'

    with an_api(answer) as url, pages(url) as client:
        for path in ("/", "/predict", "/nothing"):
            assert (SYNTHETIC in client.get(path).text) == synthetic


def test_an_unknown_model_is_not_taken_for_a_real_one() -> None:
    with an_api(lambda _: (200, b'{"version": "v1"}')) as url, pages(url) as client:
        assert SYNTHETIC in client.get("/predict").text
    with an_api(lambda _: (503, b"{}")) as url, pages(url) as client:
        assert "not known at the moment" in client.get("/predict").text


# --- verdicts that are none ---


def test_the_first_versions_address_leads_on(ui: TestClient) -> None:
    answer = ui.get("/index.html", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (308, "/")


def test_an_uncertain_verdict_is_its_own(ui: TestClient) -> None:
    text = upload(ui, png(130), **PART).text
    assert 'data-verdict="Uncertain" data-label="Pneumonia"' in text
    assert "card verdict uncertain" in text
    assert re.search(r"<h2[^>]*>Uncertain</h2>", text)
    assert "Leans toward <strong>Pneumonia</strong>" in text
    assert "A physician should read this image" in text
    assert "Detected" not in text
    assert "Probability of Pneumonia" in text


def test_an_unfamiliar_image_is_warned_of_beside_the_verdict(ui: TestClient) -> None:
    assert "data-unfamiliar" not in upload(ui, png(220), **PART).text
    text = upload(ui, stripes(), **PART).text
    assert "This may not be a chest X-ray:" in text
    assert "unlike those the model was trained on" in text
    assert "doubtful" in text


def test_the_scale_shows_threshold_band_and_score(ui: TestClient) -> None:
    text = upload(ui, png(220), **PART).text
    (words,) = re.findall(r'<svg viewBox="0 0 400 34" role="img" aria-label="([^"]+)"', text)
    share = re.findall(r"data-confidence>([\d.]+)%<", text)[0]
    assert words == (
        f"The probability of Pneumonia is {round(float(share), 1):g}%. The threshold is 50%; "
        "between 40% and 60% the verdict is uncertain."
    )
    assert re.findall(r'class="zone (\w+)"', text) == ["clear", "uncertain", "finding"]


def test_the_heat_map_lies_over_the_picture_and_only_where_there_is_one(ui: TestClient, tmp_path: Path) -> None:
    text = upload(ui, png(220), **PART).text
    (heat,) = re.findall(r'<img class="heat" src="data:image/png;base64,([^"]+)" alt="Heat map: [^"]*Pneumonia"', text)
    assert base64.b64decode(heat).startswith(b"\x89PNG")
    assert 'value="45"' in text
    assert "where the image speaks for Pneumonia" in text
    with an_api(good) as url, pages(url) as client:
        assert not re.search("heat|data-opacity", upload(client, png(9), **PART).text)


# --- results ---


def stored(redis_server: RedisServer) -> CaseStore:
    """Store five cases, of which the first is the newest."""
    store = CaseStore.connect("127.0.0.1", redis_server.port, "api", PASSWORD)
    now = datetime.now(timezone.utc)
    rows: list[tuple[str, str, float, str]] = [
        ("chest-b.png", "Normal", 0.99, "upload"),
        ("chest-a.png", "Pneumonia", 0.91, "batch"),
        ("knee & hip.png", "Normal", 0.70, "upload"),
        ("chest-c.png", "Pneumonia", 0.95, "upload"),
        ("chest-d.png", "Normal", 0.55, "batch"),
    ]
    for n, (name, label, share, source) in enumerate(rows):
        other = "Pneumonia" if label == "Normal" else "Normal"
        store.add(
            Case(str(n), name, label, share, (share,), "v", source, now - timedelta(minutes=n),  # type: ignore[arg-type]
                 probabilities={label: share, other: 1 - share}, uncertain=share < 0.6)
        )  # fmt: skip
    return store


def names(text: str) -> list[str]:
    return re.findall(r'<td class="name"><a href="/cases/\d">([^<]+)</a>', text)


def test_results_are_filtered_searched_and_sorted_by_their_address(ui: TestClient, redis_server: RedisServer) -> None:
    stored(redis_server)
    for query, expected in (
        ("", "b a knee c d"),
        ("verdict=Pneumonia", "a c"),
        ("verdict=Normal", "b knee"),
        ("verdict=Uncertain", "d"),
        ("source=batch", "a d"),
        ("search=CHEST", "b a c d"),
        ("search=%26", "knee"),
        ("search=chest&verdict=Pneumonia&source=upload", "c"),
        ("sort=filename", "a b c d knee"),
        ("sort=filename&order=desc", "knee d c b a"),
        ("sort=confidence", "b c a knee d"),
        ("sort=created&order=asc", "d c knee a b"),
        ("sort=nothing&source=moon", "b a knee c d"),
    ):
        text = ui.get(f"/?{query}").text
        shown = [name.removeprefix("chest-").removesuffix(".png").split(" ")[0] for name in names(text)]
        assert shown == expected.split(), query
        assert names(ui.get(f"/table?{query}").text) == names(text)
    assert "No case matches these filters" in ui.get("/?search=elbow").text
    text = ui.get("/?search=chest&sort=filename").text
    assert 'aria-sort="ascending"' in text
    assert 'href="/?search=chest&amp;sort=filename&amp;order=desc"' in text
    assert 'href="/export.csv?search=chest&amp;sort=filename"' in text
    assert 'value="chest"' in text


def test_the_export_has_what_the_filters_leave(ui: TestClient, redis_server: RedisServer) -> None:
    stored(redis_server)
    answer = ui.get("/export.csv?verdict=Normal&sort=filename")
    assert answer.headers["Content-Type"].startswith("text/csv")
    assert "attachment" in answer.headers["Content-Disposition"]
    head, *rows = answer.text.splitlines()
    assert head.startswith("id,created,filename,verdict,label,confidence")
    assert [row.split(",")[2] for row in rows] == ["chest-b.png", "knee & hip.png"]


def test_addresses_are_short_and_stable() -> None:
    assert Query().address() == "/"
    assert Query.read({"page": "1", "order": "desc", "feedback": ""}).address() == "/"
    query = Query.read({"search": " a&b ", "sort": "confidence", "page": "4"})
    assert query.address(page=query.page) == "/?page=4&search=a%26b&sort=confidence"
    assert query.turned("confidence") == "/?search=a%26b&sort=confidence&order=asc"
    assert query.turned("created") == "/?search=a%26b"
    assert query.cleared() == "/?sort=confidence"
    assert Query.read({"sort": "created", "order": "asc"}).turned("created") == "/"


# --- a case ---


def test_a_case_shows_everything_that_is_kept(ui: TestClient) -> None:
    upload(ui, png(130), "one of many.png")
    (address,) = set(re.findall(r'href="(/cases/[0-9a-f]+)"', ui.get("/").text))
    text = ui.get(address).text
    for words in ("one of many.png", "Uncertain", "Probability of Normal", "Upload", "20260101T000000Z-aaaaaaaa",
                  "Decision support, not a diagnosis", "uncertain from 40% to 60%", "data-opacity"):  # fmt: skip
        assert words in text, words
    assert ui.get(f"{address}/image").headers["Content-Type"] == "image/jpeg"
    assert ui.get(f"{address}/heatmap").headers["Content-Type"] == "image/png"
    assert ui.get(f"{address}/image").headers["Cache-Control"] == "no-store"


def test_there_is_no_such_case(ui: TestClient) -> None:
    for path in ("/cases/nothing", "/cases/nothing/delete", "/cases/..%2Fhealth", "/cases/a%2F..%2Fb/delete"):
        shows_error(ui.get(path), 404, "no such")
    assert ui.get("/cases/nothing/image").status_code == 404
    assert ui.get("/cases/nothing/heatmap").status_code == 404


def test_feedback_is_given_changed_and_withdrawn(ui: TestClient, redis_server: RedisServer) -> None:
    store = stored(redis_server)
    assert "Is Normal right?" in ui.get("/cases/0").text
    answer = send(ui, "/cases/0", "/cases/0/feedback", label="Normal")
    assert (answer.status_code, answer.headers["Location"]) == (303, "/cases/0")
    text = ui.get("/cases/0").text
    assert "You agreed: Normal" in text
    assert "Your feedback was saved." in text
    assert "Your feedback was saved." not in ui.get("/cases/0").text
    send(ui, "/cases/0", "/cases/0/feedback", label="Pneumonia")
    assert "You disagreed: the right label is Pneumonia" in ui.get("/cases/0").text
    assert "disagreed: Pneumonia" in ui.get("/").text
    assert len(names(ui.get("/?feedback=disagree").text)) == 1
    assert len(names(ui.get("/?feedback=none").text)) == 4
    assert len(names(ui.get("/?feedback=any").text)) == 1
    send(ui, "/cases/0", "/cases/0/feedback", label="")
    assert "Is Normal right?" in ui.get("/cases/0").text
    shows_error(send(ui, "/cases/0", "/cases/0/feedback", label="Broken leg"), 422, "feedback was not saved")
    case = store.get("0")
    assert case is not None and case.feedback is None


def test_a_case_is_deleted_after_a_question(ui: TestClient, redis_server: RedisServer) -> None:
    stored(redis_server)
    (link,) = re.findall(r'href="(/cases/3/delete[^"]*)"', ui.get("/?verdict=Pneumonia&sort=filename").text)
    question = ui.get(link.replace("&amp;", "&")).text
    assert "Delete this case?" in question
    assert "chest-c.png" in question
    (back,) = re.findall(r'name="back" value="([^"]+)"', question)
    answer = send(ui, "/cases/3/delete", "/cases/3/delete", back=back.replace("&amp;", "&"))
    assert (answer.status_code, answer.headers["Location"]) == (303, "/?verdict=Pneumonia&sort=filename")
    text = ui.get(answer.headers["Location"]).text
    assert names(text) == ["chest-a.png"]
    assert "The case was deleted." in text
    shows_error(ui.get("/cases/3"), 404, "no such case")
    away = send(ui, "/cases/0/delete", "/cases/0/delete", back="https://elsewhere.example/?page=2&sort=label")
    assert away.headers["Location"] == "/?sort=label", "the second page is gone"
    here = send(ui, "/cases/1/delete", "/cases/1/delete", back="/?page=1&sort=label&order=desc")
    assert here.headers["Location"] == "/?sort=label&order=desc"


# --- forged requests ---


def test_forms_of_browsers_need_the_token_of_their_visitor(ui: TestClient, redis_server: RedisServer) -> None:
    store = stored(redis_server)
    (own,) = set(TOKEN.findall(ui.get("/predict").text))
    ours = {"Sec-Fetch-Site": "same-origin"}
    assert ui.post("/cases/0/delete", data={"csrf_token": own}, headers=ours, follow_redirects=False).status_code == 303
    with pages(str(ui.app.state.pages.api.urls[0])) as other:  # type: ignore[attr-defined]
        (foreign,) = set(TOKEN.findall(other.get("/predict").text))
    for token in ("", "x", foreign, own[:-1], own.replace(".", "")):
        for headers in (ours, {}):
            answer = ui.post("/cases/1/delete", data={"csrf_token": token}, headers=headers, follow_redirects=False)
            shows_error(answer, 403, "expired")
    for site in ("cross-site", "same-site"):
        answer = ui.post("/cases/1/delete", data={"csrf_token": own}, headers={"Sec-Fetch-Site": site})
        shows_error(answer, 403, "this site")
    ui.cookies.clear()
    for headers in (ours, {"Origin": "null"}, {"Referer": "https://elsewhere.example/"}):
        shows_error(ui.post("/cases/1/delete", data={"csrf_token": own}, headers=headers), 403, "expired")
        shows_error(upload(ui, png(9), **headers), 403, "expired")
        shows_error(ui.post("/cases/1/feedback", data={"label": "Normal"}, headers=headers), 403, "expired")
        ui.cookies.clear()
    assert store.get("1") is not None


def test_a_program_needs_no_token_and_gets_no_cookie(ui: TestClient) -> None:
    ui.cookies.clear()
    answer = ui.post("/upload_predict", files={"file": ("a.png", png(220))})
    assert 'data-verdict="Pneumonia"' in answer.text
    assert "Set-Cookie" not in answer.headers


def test_the_cookie_is_the_visitors_alone(ui: TestClient) -> None:
    plain = ui.get("/predict").headers["Set-Cookie"]
    assert plain.startswith("lightbox=")
    assert "HttpOnly" in plain and "SameSite=lax" in plain and "Secure" not in plain
    assert "Set-Cookie" not in ui.get("/predict").headers
    ui.cookies.clear()
    behind_tls = ui.get("https://testserver/predict").headers["Set-Cookie"]
    assert behind_tls.startswith("__Host-lightbox=")
    assert "HttpOnly" in behind_tls and "Secure" in behind_tls and "Path=/" in behind_tls


def test_hosts_that_share_the_secret_take_each_others_forms(
    real_api: Gunicorn, redis_server: RedisServer, start: Start, tmp_path: Path
) -> None:
    (tmp_path / "csrf_secret").write_text(f"{SECRET}\n")
    settings = {"LIGHTBOX_API_URLS": real_api.url, "CREDENTIALS_DIRECTORY": str(tmp_path)}
    first, second, alone = (
        start("lightbox.ui.app:app", one, wait=False)
        for one in (settings, settings, {**settings, "CREDENTIALS_DIRECTORY": "/"})
    )
    headers = {"X-Forwarded-Proto": "https", "Sec-Fetch-Site": "same-origin"}
    with httpx.Client(headers=headers) as browser:
        page = browser.get(f"{first.wait().url}/predict")
        cookie = page.headers["Set-Cookie"].partition(";")[0]
        assert cookie.startswith("__Host-lightbox="), "the workers believe the proxy"
        token = TOKEN.findall(page.text)[0]
        for server, status in ((first, 200), (first, 200), (second, 200), (alone, 403)):
            answer = browser.post(
                f"{server.wait().url}/upload_predict", data={"csrf_token": token}, files={"file": ("a.png", png(9))},
                headers={"Cookie": cookie},
            )  # fmt: skip
            assert answer.status_code == status
        page = browser.get(f"{alone.url}/predict")
        cookie, token = page.headers["Set-Cookie"].partition(";")[0], TOKEN.findall(page.text)[0]
        for _ in range(6):
            answer = browser.post(
                f"{alone.url}/upload_predict", data={"csrf_token": token}, files={"file": ("a.png", png(9))},
                headers={"Cookie": cookie},
            )  # fmt: skip
            assert answer.status_code == 200, "all workers share the random secret"


# --- with an API that is not ---

GOOD: dict[str, Any] = {
    "id": "1", "filename": "a.png", "verdict": "Normal", "label": "Normal", "confidence": 0.9912,
    "confidence_text": "99.12%", "probabilities": {"Normal": 0.9912, "Pneumonia": 0.0088}, "uncertain": False,
    "unfamiliar": None, "has_heatmap": False, "heatmap_label": None, "created": "2026-01-01T00:00:00+00:00",
    "model_version": "v1", "source": "upload", "thumbnail": "", "feedback": None, "threshold": 0.5,
    "positive": "Pneumonia", "band": {"low": 0.4, "high": 0.6}, "synthetic": False, "stored": True, "notice": None,
    "heatmap": None,
}  # fmt: skip


def good(request: Answers) -> tuple[int, bytes]:
    """Answer an upload with a verdict."""
    return 201 if request.command == "POST" else 200, json.dumps(GOOD).encode()


def test_a_good_answer_is_a_verdict() -> None:
    with an_api(good) as url, pages(url) as client:
        assert 'data-verdict="Normal"' in upload(client, png(9)).text


def altered(**changes: Any) -> bytes:
    answer = copy.deepcopy(GOOD)
    for name, value in changes.items():
        if value is None:
            del answer[name]
        else:
            answer[name] = value
    return json.dumps(answer).encode()


@pytest.mark.parametrize(
    "body",
    [
        b"", b"null", b"[]", b"{}", b"<html>gateway</html>", b"\xff\xfe", b'{"error": "No model"}', b"[" * 5000,
        altered(label=None), altered(label=""), altered(label=1), altered(label="Pneumonia"), altered(label="Other"),
        altered(verdict=None), altered(verdict="Uncertain"), altered(verdict="Pneumonia"), altered(uncertain=True),
        altered(uncertain="no"), altered(confidence=None), altered(confidence="nan%"), altered(confidence=0.98),
        altered(confidence=99.12), altered(confidence_text="0.88%"), altered(confidence_text="199.12%"),
        altered(probabilities=None), altered(probabilities={}), altered(probabilities={"Normal": "x"}),
        altered(probabilities={"Normal": 99.12}), altered(probabilities={"Pneumonia": 0.9912}), altered(filename=None),
        altered(thumbnail="not base64!"), altered(model_version=None), altered(created=7), altered(id=None),
        altered(unfamiliar=7), altered(has_heatmap=True), altered(heatmap="not base64!"), altered(stored=None),
        altered(threshold=7), altered(band={"low": 0.4}), altered(band=[0.4, 0.6]),
        altered(feedback={"label": "Pneumonia", "agrees": True, "created": "2026-01-01T00:00:00+00:00"}),
    ],
)  # fmt: skip
def test_an_answer_that_is_not_whole_is_an_error(body: bytes) -> None:
    with an_api(lambda request: (201 if request.command == "POST" else 200, body)) as url, pages(url) as client:
        for headers in ({}, PART):
            shows_error(upload(client, png(9), **headers), 502, "does not understand")
        shows_error(client.get("/table"), 502, "Unable to fetch data from API")


@pytest.mark.parametrize("status", [200, 202, 204, 301, 400, 404, 413, 415, 422, 429, 500, 502, 503, 504, 599])
def test_an_answer_that_is_not_the_promised_one_is_an_error(status: int) -> None:
    body = b"" if status == 204 else json.dumps({**GOOD, "detail": "words of the API"}).encode()
    with an_api(lambda _: (status, body)) as url, pages(url) as client:
        shown = status if status >= 400 else 502
        words = "service failed" if status == 204 else "words of the API"
        shows_error(upload(client, png(9)), shown, words)
        shows_error(client.get("/"), 502 if status == 200 else shown, "Unable to fetch data from API")
        for path in ("/cases/1", "/cases/1/delete", "/export.csv"):
            if status != 200:
                shows_error(client.get(path), shown, words)


def test_an_overloaded_api_says_when_to_come_back() -> None:
    def busy(request: Answers) -> tuple[int, bytes]:
        request.extra = {"Retry-After": "3"}
        return 503, b'{"title": "Too busy", "detail": "Too many images are waiting."}'

    with an_api(busy) as url, pages(url) as client:
        answer = upload(client, png(9), **PART)
        shows_error(answer, 503, "Too many images are waiting[^!]*try again in 3 seconds")
        assert answer.headers["Retry-After"] == "3"


def test_an_api_that_is_down_slow_or_hangs_up_is_an_error() -> None:
    with pages(f"http://127.0.0.1:{free_port()}") as client:
        shows_error(upload(client, png(9)), 503, "cannot be reached")
        shows_error(client.get("/"), 503, "Unable to fetch data from API")
        assert client.get("/predict").status_code == 200
        assert client.get("/health").status_code == 200

    def sleepy(_: Answers) -> None:
        time.sleep(2)

    with an_api(sleepy) as url, pages(url, timeout=0.5) as client:
        shows_error(upload(client, png(9)), 504, "too long")
    with an_api(lambda _: None) as url, pages(url) as client:
        shows_error(upload(client, png(9)), 503, "cannot be reached")


def test_a_failure_of_the_pages_themselves_is_an_error(ui: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*_: object) -> None:
        raise RuntimeError("secret of the inside")

    monkeypatch.setattr("lightbox.ui.answers.read_prediction", explode)
    answer = upload(ui, png(9))
    shows_error(answer, 500, "Something went wrong")
    assert "secret" not in answer.text


def test_apis_are_asked_in_turn_and_the_dead_one_is_stepped_over() -> None:
    asked: list[str] = []

    def named(name: str) -> Callable[[Answers], tuple[int, bytes]]:
        def answer(request: Answers) -> tuple[int, bytes]:
            if request.path.startswith("/v1/predictions"):
                asked.append(name)
            return good(request)

        return answer

    with an_api(named("a")) as first, an_api(named("b")) as second:
        with pages(first, second) as client:
            for _ in range(6):
                assert 'data-verdict="Normal"' in upload(client, png(9), **PART).text
        assert {asked.count("a"), asked.count("b")} <= {2, 3, 4}, "the model is asked for in between"
        with pages(f"http://127.0.0.1:{free_port()}", first) as client:
            for _ in range(6):
                assert 'data-verdict="Normal"' in upload(client, png(9), **PART).text
        with an_api(lambda _: (503, b'{"error": "No model is loaded"}')) as empty, pages(empty, first) as client:
            for _ in range(4):
                assert 'data-verdict="Normal"' in upload(client, png(9), **PART).text


def test_a_broken_connection_is_tried_once_more_and_an_error_is_not() -> None:
    calls: list[str | None] = []

    def once(request: Answers) -> tuple[int, bytes] | None:
        if request.command == "GET":
            return 404, b"{}"
        calls.append(request.headers["X-Request-ID"])
        return None if len(calls) == 1 else good(request)

    with an_api(once) as url, pages(url) as client:
        assert 'data-verdict="Normal"' in upload(client, png(9), **PART).text
    assert len(calls) == 2
    assert calls[0] == calls[1], "the API sees that it is one case"
    calls.clear()

    def refuse(request: Answers) -> tuple[int, bytes]:
        if request.command == "POST":
            calls.append(None)
        return 500, b"{}"

    with an_api(refuse) as url, pages(url) as client:
        shows_error(upload(client, png(9), **PART), 500, "failed")
    assert len(calls) == 1


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=8),
        lambda inner: st.dictionaries(st.sampled_from([*GOOD, "x"]), inner, max_size=6) | st.lists(inner, max_size=3),
        max_leaves=12,
    )
)
def test_no_answer_but_a_whole_one_is_a_verdict(changes: Any) -> None:
    answer = {**GOOD, **changes} if isinstance(changes, dict) else changes
    try:
        prediction = read_prediction(answer)
    except MalformedError:
        return
    case = prediction.case
    share = answer["probabilities"][case.label]
    assert abs(share * 100 - float(case.confidence[:-1])) < 0.01
    assert case.verdict == ("Uncertain" if answer["uncertain"] else case.label)
    assert prediction.synthetic or answer["synthetic"] is False


def test_reloads_of_the_api_never_show(tmp_path: Path, redis_server: RedisServer, start: Start) -> None:
    settings = {"LIGHTBOX_BUNDLE": str(write_bundle(tmp_path / "b")), **redis_server.environment}
    api = start("lightbox.api.app:app", settings)
    ui = start("lightbox.ui.app:app", {"LIGHTBOX_API_URLS": api.url})

    def ask(client: httpx.Client) -> str:
        client.base_url = httpx.URL(ui.url)
        answer = upload(client, png(220), **PART)
        assert answer.status_code == 200, answer.text
        return answer.text

    with Load(ask) as load:
        wait_for("uploads are answered", lambda: len(load.answers) > 10)
        for _ in range(2):
            before = set(api.workers())
            api.reload()
            wait_for("workers were replaced", lambda: not before & set(api.workers()), 30)  # noqa: B023
        seen = len(load.answers)
        wait_for("uploads are answered", lambda: len(load.answers) > seen + 10)
    assert load.failures == []
    assert all('data-verdict="Pneumonia"' in text for text in load.answers)


# --- small things ---


def test_page_numbers() -> None:
    assert page_numbers(1, 1) == [1]
    assert page_numbers(5, 9) == list(range(1, 10))
    assert page_numbers(1, 19) == [1, 2, 3, None, 18, 19]
    assert page_numbers(10, 19) == [1, 2, None, 8, 9, 10, 11, 12, None, 18, 19]
    assert page_numbers(19, 19) == [1, 2, None, 17, 18, 19]


def test_times() -> None:
    assert moment("2026-01-01T01:00:00+01:00") == "2026-01-01 00:00:00 UTC"
    assert moment("soon") == "soon"


def test_the_secret_is_a_good_one(tmp_path: Path) -> None:
    file = tmp_path / "csrf_secret"
    file.write_text("short\n")
    for named in ({"LIGHTBOX_CSRF_SECRET_FILE": str(file)}, {"CREDENTIALS_DIRECTORY": str(tmp_path)}):
        with pytest.raises(ValueError, match="shorter than 32"):
            Settings.read(named)
    with pytest.raises(ValueError, match="cannot be read"):
        Settings.read({"LIGHTBOX_CSRF_SECRET_FILE": str(tmp_path / "none")})
    file.write_text(f"{SECRET}\n")
    assert Settings.read({"CREDENTIALS_DIRECTORY": str(tmp_path)}).csrf_secret == SECRET
    assert SECRET not in repr(Settings.read({"CREDENTIALS_DIRECTORY": str(tmp_path)}))
    assert Settings.read({}).csrf_secret != Settings.read({}).csrf_secret


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="LIGHTBOX_API_URLS"):
        ApiClient(["api:5000"])
    with pytest.raises(ValueError, match="LIGHTBOX_API_URLS"):
        ApiClient(["", " "])
    with pytest.raises(ValueError, match="LIGHTBOX_API_TIMEOUT"):
        Settings.read({"LIGHTBOX_API_TIMEOUT": "soon"})
    assert Settings.read({"LIGHTBOX_API_URLS": "http://a:1,http://b:2"}).api_urls == ("http://a:1", "http://b:2")
