"""The pages: against a real API, and against APIs that are down, slow or talk nonsense."""

from __future__ import annotations

import copy
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving_kit import PASSWORD, Gunicorn, Load, RedisServer, Start, free_port, png, wait_for, write_bundle
from starlette.testclient import TestClient

from lightbox.store import Case, CaseStore, identity
from lightbox.ui.app import Settings, create_app, moment, page_numbers
from lightbox.ui.client import ApiClient, MalformedError, read_verdict

PART = {"X-Partial": "1"}
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
    shown = Settings(api_urls=urls, api_timeout=timeout, max_upload_bytes=limit)
    client = ApiClient(urls, timeout=timeout, connect_timeout=1.0)
    with TestClient(create_app(shown, client), raise_server_exceptions=False) as browser:
        yield browser


@pytest.fixture
def ui(real_api: Gunicorn, redis_server: RedisServer) -> Iterator[TestClient]:
    with pages(real_api.url) as client:
        yield client


def upload(client: Any, content: bytes, name: str = "xray.png", **headers: str) -> httpx.Response:
    response: httpx.Response = client.post("/upload_predict", files={"file": (name, content)}, headers=headers)
    return response


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


class Answers(BaseHTTPRequestHandler):
    """An API that answers what a test wants, or breaks the connection."""

    protocol_version = "HTTP/1.1"
    answer: Callable[[Answers], tuple[int, bytes] | None]

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        given_answer = type(self).answer(self)
        if given_answer is None:
            self.close_connection = True
            return
        status, body = given_answer
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET  # noqa: N815 - the server calls it so

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
        assert f"<h2>{words}</h2>" in answer.text
        assert ("card verdict finding" in answer.text) == (label == "Pneumonia")
        assert "data:image/jpeg;base64," in answer.text
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
    assert float(confidence[:-1]) > 50


def test_results_are_paged(ui: TestClient, redis_server: RedisServer) -> None:
    assert "No case has been classified yet" in ui.get("/").text
    now = datetime.now(timezone.utc)
    CaseStore.connect("127.0.0.1", redis_server.port, "api", PASSWORD).add_many(
        Case(identity(str(n)), f"case-{n}.png", "Normal", 0.9912, (0.0088,), "v", "batch", now - timedelta(seconds=n))
        for n in range(453)
    )
    first = ui.get("/table").text
    assert re.findall(r"case-(\d+)\.png", first) == [str(n) for n in range(25)]
    assert "453 cases, page 1 of 19" in first
    assert '<span aria-disabled="true">Previous</span>' in first
    assert "99.12%" in first
    last = ui.get("/?page=19").text
    assert re.findall(r"case-(\d+)\.png", last) == ["450", "451", "452"]
    assert '<span aria-disabled="true">Next</span>' in last
    assert 'href="/?page=18"' in last
    for wrong in ("20", "0", "x", "-1"):
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
        (b"no image", "a.png", 400, "not a readable PNG or JPEG"),
        (png(9, 64)[:-9], "a.png", 400, "not a readable PNG or JPEG"),
        (png(9), "a.gif", 400, "Invalid file type"),
        (png(9), "", 400, "No file"),
        (b"0" * 500_001, "a.png", 413, "larger than"),
        (b"0" * 9_000_000, "a.png", 413, "larger than"),
    ],
)
@pytest.mark.parametrize("headers", [{}, PART])
def test_bad_uploads_show_an_error(
    ui: TestClient, content: bytes, name: str, status: int, words: str, headers: dict[str, str]
) -> None:
    shows_error(upload(ui, content, name, **headers), status, words)


def test_a_form_without_a_file_and_a_foreign_form(ui: TestClient) -> None:
    shows_error(ui.post("/upload_predict"), 400, "No file uploaded")
    shows_error(upload(ui, png(9), **{"Sec-Fetch-Site": "cross-site"}), 403, "this site")
    assert upload(ui, png(9), **{"Sec-Fetch-Site": "same-origin"}).status_code == 200


def test_every_page_is_plain_local_and_not_kept(ui: TestClient) -> None:
    for path in ("/", "/predict", "/nothing"):
        answer = ui.get(path)
        assert answer.headers["Cache-Control"] == "no-store"
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert "Pneumonia Detection" in answer.text
        assert "Decision support, not a diagnosis" in answer.text
        assert not re.search(r"""(?:src|href)=["'](?:https?:)?//""", answer.text)
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
    shows_error(ui.get("/"), 503, "Unable to fetch data from API[^!]*Database error: Redis cannot be reached")


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


# --- with an API that is not ---

GOOD: dict[str, Any] = {
    "id": "1", "filename": "a.png", "prediction": "Normal", "confidence": "99.12%", "model_version": "v1",
    "source": "upload", "created": "2026-01-01T00:00:00+00:00", "timestamp": "2026-01-01T00:00:00+00:00", "image": "",
    "probabilities": {"Normal": 0.9912, "Pneumonia": 0.0088}, "positive": "Pneumonia", "synthetic": False,
    "stored": True, "notice": None,
}  # fmt: skip


def test_a_good_answer_is_a_verdict() -> None:
    with an_api(lambda _: (200, json.dumps(GOOD).encode())) as url, pages(url) as client:
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
        altered(prediction=None), altered(prediction=""), altered(prediction=1), altered(prediction="Pneumonia"),
        altered(prediction="Other"), altered(confidence=None), altered(confidence="nan%"), altered(confidence=0.99),
        altered(confidence="0.88%"), altered(confidence="199.12%"), altered(probabilities=None),
        altered(probabilities={"Normal": "x"}), altered(probabilities={"Normal": 99.12}), altered(filename=None),
        altered(image="not base64!"), altered(model_version=None), altered(created=7),
    ],
)  # fmt: skip
def test_an_answer_that_is_not_whole_is_an_error(body: bytes) -> None:
    with an_api(lambda _: (200, body)) as url, pages(url) as client:
        for headers in ({}, PART):
            shows_error(upload(client, png(9), **headers), 502, "does not understand")
        shows_error(client.get("/table"), 502, "Unable to fetch data from API")


@pytest.mark.parametrize("status", [201, 204, 301, 400, 404, 413, 422, 429, 500, 502, 503, 504, 599])
def test_an_answer_that_is_not_200_is_an_error(status: int) -> None:
    body = b"" if status == 204 else json.dumps({**GOOD, "error": "words of the API"}).encode()
    with an_api(lambda _: (status, body)) as url, pages(url) as client:
        shown = status if status >= 400 else 502
        shows_error(upload(client, png(9)), shown, "service failed" if status == 204 else "words of the API")
        shows_error(client.get("/"), shown, "Unable to fetch data from API")


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

    monkeypatch.setattr("lightbox.ui.client.read_verdict", explode)
    answer = upload(ui, png(9))
    shows_error(answer, 500, "Something went wrong")
    assert "secret" not in answer.text


def test_apis_are_asked_in_turn_and_the_dead_one_is_stepped_over() -> None:
    asked: list[str] = []

    def named(name: str) -> Callable[[Answers], tuple[int, bytes]]:
        def answer(request: Answers) -> tuple[int, bytes]:
            if request.path == "/predict":
                asked.append(name)
            return 200, json.dumps(GOOD).encode()

        return answer

    with an_api(named("a")) as first, an_api(named("b")) as second:
        with pages(first, second) as client:
            for _ in range(6):
                assert 'data-verdict="Normal"' in upload(client, png(9), **PART).text
        assert sorted(asked) == ["a"] * 3 + ["b"] * 3
        with pages(f"http://127.0.0.1:{free_port()}", first) as client:
            for _ in range(6):
                assert 'data-verdict="Normal"' in upload(client, png(9), **PART).text
        with an_api(lambda _: (503, b'{"error": "No model is loaded"}')) as empty, pages(empty, first) as client:
            for _ in range(4):
                assert 'data-verdict="Normal"' in upload(client, png(9), **PART).text


def test_a_broken_connection_is_tried_once_more_and_an_error_is_not() -> None:
    calls: list[str | None] = []

    def once(request: Answers) -> tuple[int, bytes] | None:
        calls.append(request.headers["X-Request-ID"])
        return None if len(calls) == 1 else (200, json.dumps(GOOD).encode())

    with an_api(once) as url, pages(url) as client:
        assert 'data-verdict="Normal"' in upload(client, png(9), **PART).text
    assert len(calls) == 2
    assert calls[0] == calls[1], "the API sees that it is one case"
    calls.clear()

    def refuse(request: Answers) -> tuple[int, bytes]:
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
        verdict = read_verdict(answer)
    except MalformedError:
        return
    share = answer["probabilities"][verdict.case.label]
    assert abs(share * 100 - float(verdict.case.confidence[:-1])) < 0.01
    assert verdict.synthetic or answer["synthetic"] is False


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


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="LIGHTBOX_API_URLS"):
        ApiClient(["api:5000"])
    with pytest.raises(ValueError, match="LIGHTBOX_API_URLS"):
        ApiClient(["", " "])
    with pytest.raises(ValueError, match="LIGHTBOX_API_TIMEOUT"):
        Settings.read({"LIGHTBOX_API_TIMEOUT": "soon"})
    assert Settings.read({"LIGHTBOX_API_URLS": "http://a:1,http://b:2"}).api_urls == ("http://a:1", "http://b:2")
