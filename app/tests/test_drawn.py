"""``POST /predict/``: data URLs in every state in which they arrive, and pages of other origins."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving_kit import RedisServer, Start, noise, png, write_bundle
from starlette.testclient import TestClient
from test_api import is_error, nowhere, store_of

from lightbox.api import cors
from lightbox.api.app import create_app
from lightbox.api.drawn import picture_of, wants_json
from lightbox.api.problems import RefusalError
from lightbox.api.service import Settings
from lightbox.serving import record_smoke

LIMIT = 200_000
HEAD = b"data:image/png;base64,"
FORM = {"Content-Type": "application/x-www-form-urlencoded; charset=UTF-8"}
AS_JSON = {"Accept": "application/json"}
PAGE = "https://digits.example.org"


def url_of(content: bytes) -> bytes:
    return HEAD + base64.b64encode(content)


@pytest.fixture
def api(bundle: Path, redis_server: RedisServer) -> Iterator[TestClient]:
    app = create_app(Settings(bundle=bundle, max_upload_bytes=LIMIT), store_of(redis_server))
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


# --- the data URL ---


@given(st.binary(min_size=1, max_size=2000))
def test_a_data_url_survives_what_forms_do_to_it(content: bytes) -> None:
    plain = url_of(content).decode()
    damaged = {
        "plain": plain,
        "a form's value": quote_plus(plain),
        "quoted, slashes left": quote(plain),
        "plus made a space": plain.replace("+", " "),
        "only plus escaped": plain.replace("+", "%2B").replace("=", "%3D"),
        "padding lost": plain.rstrip("="),
        "a form's field": f"image={quote_plus(plain)}&more=1",
        "JSON's quotation marks": f'"{plain}"',
        "lines": "\r\n".join([plain[:30], *(plain[n : n + 76] for n in range(30, len(plain), 76))]) + "\r\n",
        "another type": plain.replace("image/png", "image/svg+xml;charset=utf-8"),
        "no type": plain.replace("image/png", ""),
    }
    for how, text in damaged.items():
        assert picture_of(text.encode(), LIMIT) == content, how


@given(st.one_of(st.binary(max_size=300), st.binary(max_size=300).map(lambda body: HEAD + body)))
def test_any_body_is_a_file_or_refused_in_a_sentence(body: bytes) -> None:
    try:
        assert picture_of(body, LIMIT)
    except RefusalError as refusal:
        assert 400 <= refusal.status < 500
        assert re.search(r"\w+ \w+ \w+", str(refusal))


@given(st.text("data:image/png;base64,%+= &'\"A", max_size=120))
def test_nearly_a_data_url_is_no_failure(text: str) -> None:
    try:
        assert isinstance(picture_of(text.encode(), LIMIT), bytes)
    except RefusalError as refusal:
        assert refusal.status == 400


def test_a_file_may_be_as_large_as_any_other() -> None:
    assert len(picture_of(url_of(bytes(LIMIT)), LIMIT)) == LIMIT
    with pytest.raises(RefusalError, match="larger than") as caught:
        picture_of(url_of(bytes(LIMIT + 3)), LIMIT)
    assert caught.value.status == 413


@pytest.mark.parametrize(
    ("accept", "as_json"),
    [
        ("", False),
        ("*/*", False),
        ("text/html, */*; q=0.01", False),
        ("application/json", True),
        ("Application/JSON;charset=utf-8", True),
        ("application/json, text/javascript, */*; q=0.01", True),
        ("application/json;q=0", False),
        ("text/plain, application/json;q=0.5", False),
        ("application/json, text/plain, */*", True),
        ("application/json;q=much", True),
        (",;,q=", False),
    ],
)
def test_json_is_for_those_who_ask(accept: str, as_json: bool) -> None:
    assert wants_json(accept) is as_json


# --- the route ---


@pytest.mark.parametrize("headers", [FORM, {"Content-Type": "text/plain"}, {"Content-Type": "image/png"}, {}])
def test_the_answer_is_the_bare_label(api: TestClient, headers: dict[str, str]) -> None:
    for value, label in ((200, "Pneumonia"), (20, "Normal")):
        answer = api.post("/predict/", content=url_of(png(value)), headers=headers)
        assert (answer.status_code, answer.text) == (200, label)
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert api.get("/predictions").json()["total_keys"] == 2


def test_json_has_what_the_bare_label_lacks(api: TestClient) -> None:
    answer = api.post("/predict/", content=url_of(png(200, mode="RGB", form="JPEG")), headers={**FORM, **AS_JSON})
    body = answer.json()
    assert answer.status_code == 200 and answer.headers["vary"] == "Accept"
    assert body["digit"] == max(body["probabilities"], key=body["probabilities"].get)
    assert body["confidence"] == body["probabilities"][body["digit"]]
    assert body["model_version"] == api.get("/v1/model").json()["version"]
    assert (body["uncertain"], body["stored"], body["notice"], body["synthetic"]) == (False, True, None, False)
    case = api.get(f"/v1/cases/{body['id']}").json()
    assert (case["label"], case["filename"], case["source"]) == (body["digit"], "drawing.jpeg", "upload")
    metrics = api.get("/metrics").text
    assert re.search(
        r'lightbox_http_requests_total\{app="api",method="POST",route="/predict/",status="200"\} [1-9]', metrics
    )


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"", 400, "Nothing was sent"),
        (b" \r\n", 400, "Nothing was sent"),
        (b"digit", 400, "no data URL"),
        (b"data:image/png,abc", 400, "no data URL"),
        (png(9), 400, "no data URL"),
        (HEAD, 400, "holds no picture"),
        (HEAD + b"====", 400, "holds no picture"),
        (HEAD + b"AAAAA", 400, "damaged"),
        (HEAD + b"<svg/>", 400, "damaged"),
        (HEAD + "é".encode(), 400, "damaged"),
        (url_of(b"no image"), 400, "not a readable"),
        (url_of(png(9, 64)[:-20]), 400, "not a readable"),
        (url_of(bytes(LIMIT + 3)), 413, "larger than"),
        (url_of(bytes(3_000_000)), 413, "larger than"),
    ],
)
@pytest.mark.parametrize("headers", [FORM, AS_JSON])
def test_a_bad_drawing_is_named(api: TestClient, body: bytes, status: int, words: str, headers: dict[str, str]) -> None:
    is_error(api.post("/predict/", content=body, headers=headers), status, words)
    assert api.get("/predictions").json()["total_keys"] == 0


def test_only_post_is_answered(api: TestClient) -> None:
    is_error(api.get("/predict/"), 405, "Method not allowed")


def test_without_a_model_nothing_is_guessed(tmp_path: Path) -> None:
    with TestClient(create_app(Settings(bundle=tmp_path / "none"), nowhere())) as client:
        is_error(client.post("/predict/", content=url_of(png(9))), 503, "No model")


def test_without_a_store_there_is_a_verdict_and_a_notice(bundle: Path) -> None:
    with TestClient(create_app(Settings(bundle=bundle), nowhere())) as client:
        body = client.post("/predict/", content=url_of(png(200)), headers=AS_JSON).json()
        assert (body["digit"], body["stored"]) == ("Pneumonia", False) and "not stored" in body["notice"]


def test_nothing_on_the_canvas_is_a_sentence_and_no_verdict(tmp_path: Path, redis_server: RedisServer) -> None:
    def change(contract: dict[str, Any]) -> None:
        contract["preprocessing"]["resize"] = "centred"

    bundle = write_bundle(tmp_path / "centred", change=change)
    record_smoke(bundle)
    with TestClient(create_app(Settings(bundle=bundle), store_of(redis_server))) as client:
        is_error(client.post("/predict/", content=url_of(png(0, 280))), 400, "nothing on the picture")
        answer = client.post("/v1/predictions", files={"file": ("a.png", png(0, 280))})
        assert (answer.status_code, answer.json()["kind"]) == (400, "blank")
        assert client.post("/predict/", content=url_of(png(255, 280))).status_code == 200
        assert client.get("/predictions").json()["total_keys"] == 1


def test_many_at_once_are_answered_as_one_after_the_other(
    bundle: Path, redis_server: RedisServer, start: Start
) -> None:
    server = start("lightbox.api.app:app", {"LIGHTBOX_BUNDLE": str(bundle), "LIGHTBOX_QUEUE": "64",
                                            **redis_server.environment})  # fmt: skip
    drawings = [url_of(noise(40, seed) if seed % 3 else png(seed * 5)) for seed in range(50)]

    def ask(body: bytes) -> Any:
        answer = httpx.post(f"{server.url}/predict/", content=body, headers={**FORM, **AS_JSON}, timeout=60)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    alone = [ask(body) for body in drawings]
    with ThreadPoolExecutor(50) as pool:
        for one, together in zip(alone, pool.map(ask, drawings), strict=True):
            assert (one["digit"], one["uncertain"]) == (together["digit"], together["uncertain"])
            # Scored in one run with another drawing, the last digits may differ.
            assert one["probabilities"] == pytest.approx(together["probabilities"], abs=1e-5)


# --- other origins ---


@pytest.fixture
def shared(bundle: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    """An API that pages of one origin may use."""
    monkeypatch.setenv(cors.VARIABLE, f"{PAGE}, http://10.0.0.5:8080")
    app = create_app(Settings(bundle=bundle, max_upload_bytes=LIMIT), store_of(redis_server))
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def preflight(client: TestClient, origin: str, method: str = "POST", header: str = "content-type") -> httpx.Response:
    asked = {"Origin": origin, "Access-Control-Request-Method": method, "Access-Control-Request-Headers": header}
    return client.options("/predict/", headers=asked)


def test_a_page_of_a_named_origin_may_send_and_read(shared: TestClient) -> None:
    asked = preflight(shared, PAGE)
    assert asked.status_code == 200
    assert asked.headers["access-control-allow-origin"] == PAGE
    assert "POST" in asked.headers["access-control-allow-methods"]
    answer = shared.post("/predict/", content=url_of(png(200)), headers={**FORM, "Origin": PAGE})
    assert answer.text == "Pneumonia"
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert {"Origin", "Accept"} <= {part.strip() for part in answer.headers["vary"].split(",")}
    assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.parametrize("body", [b"", url_of(bytes(3_000_000))])
def test_it_reads_why_it_was_refused(shared: TestClient, body: bytes) -> None:
    answer = shared.post("/predict/", content=body, headers={**FORM, "Origin": PAGE})
    assert answer.status_code in (400, 413) and answer.json()["error"]
    assert answer.headers["access-control-allow-origin"] == PAGE


def test_it_reads_that_the_api_failed(shared: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError

    monkeypatch.setattr("lightbox.api.drawn.picture_of", fail)
    answer = shared.post("/predict/", content=b"x", headers={"Origin": PAGE})
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (500, PAGE)


def test_other_origins_and_methods_are_not_let_in(shared: TestClient) -> None:
    for answer in (preflight(shared, "https://elsewhere.example.org"), preflight(shared, PAGE, "DELETE"),
                   preflight(shared, PAGE, header="authorization")):  # fmt: skip
        assert answer.status_code == 400
    elsewhere = shared.post("/predict/", content=url_of(png(200)), headers={"Origin": f"{PAGE}.evil.example"})
    assert "access-control-allow-origin" not in elsewhere.headers


def test_without_the_setting_no_origin_is_let_in(api: TestClient) -> None:
    assert preflight(api, PAGE).status_code == 405
    answer = api.post("/predict/", content=url_of(png(200)), headers={"Origin": PAGE})
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_origins_are_read_and_anything_else_is_refused() -> None:
    assert cors.read_origins({}) == cors.read_origins({cors.VARIABLE: " , "}) == ()
    names = f"{PAGE},http://[fd00::1]:8080"
    assert cors.read_origins({cors.VARIABLE: names}) == tuple(names.split(","))
    for wrong in ("*", "null", "digits.example.org", f"{PAGE}/", f"{PAGE}, *", "ftp://a", "https://A.example.org"):
        with pytest.raises(ValueError, match=f"{cors.VARIABLE} must name origins"):
            cors.read_origins({cors.VARIABLE: wrong})
