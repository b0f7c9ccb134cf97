"""The API: its answers in one process, then under gunicorn with reloads, kills and a store that comes and goes."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import re
import signal
import socket
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from serving_kit import (
    PASSWORD,
    Gunicorn,
    Load,
    RedisServer,
    Start,
    free_port,
    logistic,
    noise,
    png,
    wait_for,
    write_bundle,
)
from starlette.testclient import TestClient

from lightbox.api.app import create_app
from lightbox.api.service import Settings, percent
from lightbox.api.uploads import plain_name
from lightbox.store import Case, CaseStore, identity

NOW = datetime.now(timezone.utc)


def store_of(server: RedisServer) -> CaseStore:
    return CaseStore.connect("127.0.0.1", server.port, "api", PASSWORD)


def nowhere() -> CaseStore:
    """Return a store whose Redis is down."""
    return CaseStore.connect("127.0.0.1", free_port())


@pytest.fixture
def api(bundle: Path, redis_server: RedisServer) -> Iterator[TestClient]:
    app = create_app(Settings(bundle=bundle, max_upload_bytes=200_000), store_of(redis_server))
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def send(client: Any, content: bytes, name: str = "xray.png", **more: Any) -> httpx.Response:
    response: httpx.Response = client.post("/predict", files={"file": (name, content)}, **more)
    return response


def is_error(response: httpx.Response, status: int, words: str) -> None:
    """An error says what is wrong, and nothing that could be taken for a verdict."""
    assert response.status_code == status, response.text
    assert list(response.json()) == ["error"]
    assert re.search(words, response.json()["error"]), response.json()


# --- predictions ---


@pytest.mark.parametrize(("value", "label"), [(200, "Pneumonia"), (20, "Normal")])
def test_the_confidence_is_that_of_the_label_shown(api: TestClient, value: int, label: str) -> None:
    answer = send(api, png(value)).json()
    score = logistic(12 * (value / 255 - 0.5))
    assert answer["prediction"] == label
    assert answer["confidence"] == percent(max(score, 1 - score))
    assert answer["filename"] == "xray.png"
    assert answer["positive"] == "Pneumonia"
    assert (answer["stored"], answer["notice"], answer["synthetic"]) == (True, None, False)
    assert abs((datetime.now(timezone.utc) - datetime.fromisoformat(answer["timestamp"])).total_seconds()) < 60
    assert Image.open(io.BytesIO(base64.b64decode(answer["image"]))).format == "JPEG"


@pytest.mark.parametrize("name", ["a.png", "a.PNG", "a.jpg", "a.jpeg", "a.JPEG"])
def test_png_and_jpeg_are_taken_by_their_content(api: TestClient, name: str) -> None:
    assert send(api, png(200), name).status_code == 200
    assert send(api, png(200, mode="RGB", form="JPEG"), name).json()["prediction"] == "Pneumonia"


@pytest.mark.parametrize(
    ("content", "name", "status", "words"),
    [
        (png(9), "notes.txt", 400, "Invalid file type"),
        (png(9), "noextension", 400, "Invalid file type"),
        (b"", "a.png", 400, "empty"),
        (b"no image", "a.png", 400, "not a readable"),
        (png(9, 64)[:-20], "a.png", 400, "not a readable"),
        (png(9), "", 400, "No file"),
        (b"0" * 200_001, "a.png", 413, "larger than"),
        (b"0" * 3_000_000, "a.png", 413, "larger than"),
    ],
)
def test_bad_uploads_are_named(api: TestClient, content: bytes, name: str, status: int, words: str) -> None:
    is_error(send(api, content, name), status, words)
    assert api.get("/predictions").json()["total_keys"] == 0


def test_requests_that_are_no_uploads(api: TestClient) -> None:
    is_error(api.post("/predict"), 400, "No file uploaded")
    is_error(api.post("/predict", data={"file": "text"}), 400, "No file uploaded")
    is_error(api.post("/predict", files={"other": ("a.png", png(9))}), 400, "No file uploaded")
    is_error(api.post("/predict", content=png(9), headers={"Content-Type": "image/png"}), 400, "No file uploaded")
    is_error(
        api.post("/predict", content=b"--x\r\nbroken", headers={"Content-Type": "multipart/form-data"}),
        400,
        "malformed",
    )
    two = [("file", ("a.png", png(9))), ("file", ("b.png", png(9)))]
    is_error(api.post("/predict", files=two), 400, "one file")
    is_error(api.get("/predict"), 405, "not allowed")
    is_error(api.get("/nothing"), 404, "Not found")


def test_more_pixels_than_allowed(bundle: Path, redis_server: RedisServer) -> None:
    app = create_app(Settings(bundle=bundle, max_pixels=1000), store_of(redis_server))
    with TestClient(app) as client:
        is_error(send(client, png(9, 40)), 400, "40 by 40 pixels")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200), cut=st.integers(0, 200), name=st.text(max_size=30))
def test_no_bytes_bring_a_verdict_or_a_crash(api: TestClient, content: bytes, cut: int, name: str) -> None:
    response = send(api, png(200)[: cut % 80] + content, re.sub(r"[\x00-\x1f\x7f\ud800-\udfff]", "", name) + ".png")
    assert response.status_code in (200, 400), response.text
    if response.status_code == 400:
        assert list(response.json()) == ["error"]
        assert not re.search(r"Traceback|PIL|lightbox|0x", response.text)


def test_names_are_bare() -> None:
    assert plain_name("C:\\fakepath\\x.png") == "x.png"
    assert plain_name("../../etc/x.png") == "x.png"
    assert plain_name("a\x00\n\u202eb.png") == "ab.png"
    assert len(plain_name("x" * 500 + ".png")) == 200


def test_a_request_sent_twice_is_one_case(api: TestClient) -> None:
    for _ in range(2):
        assert send(api, png(9), headers={"X-Request-ID": "the-same-request"}).status_code == 200
    assert api.get("/predictions").json()["total_keys"] == 1
    send(api, png(10), headers={"X-Request-ID": "the-same-request"})
    assert api.get("/predictions").json()["total_keys"] == 2


def test_request_ids_are_taken_when_well_formed(api: TestClient) -> None:
    assert api.get("/health", headers={"X-Request-ID": "abcdef-0123"}).headers["X-Request-ID"] == "abcdef-0123"
    for odd in ("short", "x" * 200, "no spaces allowed", "<script>alert(1)"):
        assert re.fullmatch("[0-9a-f]{32}", api.get("/health", headers={"X-Request-ID": odd}).headers["X-Request-ID"])


# --- results ---


def test_uploads_and_batch_cases_are_listed_newest_first(api: TestClient, redis_server: RedisServer) -> None:
    store_of(redis_server).add_many(
        Case(
            identity(str(n)),
            f"{n}.jpeg",
            "Pneumonia",
            0.5,
            (0.5,),
            "v0",
            "batch",
            datetime.fromtimestamp(n, timezone.utc),
        )
        for n in range(1, 61)
    )
    uploaded = send(api, png(20)).json()
    page = api.get("/predictions").json()
    assert {key: page[key] for key in ("page", "total_keys", "items_per_page", "total_pages")} == {
        "page": 1, "total_keys": 61, "items_per_page": 25, "total_pages": 3,
    }  # fmt: skip
    assert page["data"]["xray.png"] == {"prediction": "Normal", "confidence": uploaded["confidence"]}
    assert page["data"]["60.jpeg"] == {"prediction": "Pneumonia", "confidence": "50.00%"}
    first = page["cases"][0]
    assert {key: first[key] for key in first} == {key: uploaded[key] for key in first}
    assert [case["filename"] for case in page["cases"][1:3]] == ["60.jpeg", "59.jpeg"]
    assert [case["filename"] for case in api.get("/predictions?page=3").json()["cases"]] == [
        f"{number}.jpeg" for number in range(11, 0, -1)
    ]


@pytest.mark.parametrize("page", ["0", "-1", "2", "x", "", "1.5", "9" * 40, "²"])
def test_pages_that_do_not_exist(api: TestClient, page: str) -> None:
    is_error(api.get("/predictions", params={"page": page}), 400, "Page must be")


# --- state ---


def test_the_model_and_what_was_loaded(api: TestClient, bundle: Path) -> None:
    answer = api.get("/v1/model").json()
    contract = json.loads((bundle / "model.json").read_text())
    assert answer.pop("loaded_sha256") == {
        name: contract["files"][name]["sha256"] for name in ("model.onnx", "best_model.keras")
    }
    assert answer == contract


def test_ready_names_every_check(api: TestClient) -> None:
    answer = api.get("/ready")
    assert answer.status_code == 200
    assert {name: check["ok"] for name, check in answer.json()["checks"].items()} == {
        "bundle": True, "self_test": True, "redis": True,
    }  # fmt: skip


def test_without_redis_a_verdict_is_given_and_says_it_was_not_stored(bundle: Path) -> None:
    with TestClient(create_app(Settings(bundle=bundle), nowhere())) as client:
        answer = send(client, png(200))
        assert (answer.status_code, answer.json()["prediction"], answer.json()["stored"]) == (200, "Pneumonia", False)
        assert "not stored" in answer.json()["notice"]
        is_error(client.get("/predictions"), 503, "Database error: Redis cannot be reached")
        ready = client.get("/ready")
        assert ready.status_code == 503
        assert ready.json()["checks"]["redis"] == {"ok": False, "detail": "Redis cannot be reached"}
        assert ready.json()["checks"]["bundle"]["ok"] is True
        assert client.get("/health").status_code == 200


def no_model(contract: dict[str, Any]) -> None:
    contract["labels"] = 5


@pytest.mark.parametrize("fault", ["absent", "damaged", "other", "nonsense", "smoke"])
def test_without_a_good_model_the_api_runs_and_gives_no_verdict(
    tmp_path: Path, redis_server: RedisServer, fault: str
) -> None:
    directory = tmp_path / "b"
    if fault == "smoke":
        write_bundle(directory, smoke_score=0.9)
    elif fault != "absent":
        write_bundle(directory, change=no_model if fault == "nonsense" else None)
    if fault == "damaged":
        (directory / "model.onnx").write_bytes(b"")
    if fault == "other":
        (directory / "model.json").write_text("[]")
    with TestClient(create_app(Settings(bundle=directory), store_of(redis_server))) as client:
        assert client.get("/health").json()["status"] == "healthy"
        ready = client.get("/ready")
        assert ready.status_code == 503
        assert ready.json()["checks"]["bundle"]["ok"] is False
        assert ready.json()["checks"]["redis"]["ok"] is True
        model = client.get("/v1/model")
        assert (model.status_code, model.json()["kind"]) == (503, "no_model")
        is_error(send(client, png(200)), 503, "No model is loaded")
        assert client.get("/predictions").status_code == 200


def test_a_failure_inside_says_nothing_of_the_inside(
    api: TestClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def explode(*_: object) -> None:
        raise RuntimeError("secret of the inside")

    monkeypatch.setattr("lightbox.api.service.thumbnail", explode)
    answer = send(api, png(200), headers={"X-Request-ID": "find-me-again"})
    is_error(answer, 500, "Internal error.*find-me-again")
    assert "secret" not in answer.text
    assert answer.headers["X-Request-ID"] == "find-me-again"


def test_a_model_that_fails_gives_no_verdict(api: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = api.app.state.service.engine  # type: ignore[attr-defined]
    monkeypatch.setattr(engine, "_session", None)
    is_error(send(api, png(200)), 500, "could not classify")


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="LIGHTBOX_MAX_UPLOAD_BYTES"):
        Settings.read({"LIGHTBOX_MAX_UPLOAD_BYTES": "20M"})
    assert Settings.read({}).max_upload_bytes == 20 * 2**20


# --- under gunicorn ---


def environment(link: Path, server: RedisServer) -> dict[str, str]:
    return {"LIGHTBOX_BUNDLE": str(link), **server.environment}


def switch(link: Path, target: Path) -> None:
    fresh = link.with_suffix(".new")
    fresh.symlink_to(target)
    fresh.replace(link)


def test_a_reload_serves_the_new_model_and_fails_no_request(
    tmp_path: Path, redis_server: RedisServer, start: Start
) -> None:
    old, new = (write_bundle(tmp_path / name, version=name) for name in ("old", "new"))
    link = tmp_path / "current"
    link.symlink_to(old)
    server = start("lightbox.api.app:app", environment(link, redis_server))
    image = png(200)

    def ask(_: httpx.Client) -> str:
        # One connection a request, and no second try: what is lost here is lost by the server.
        answer = httpx.post(f"{server.url}/predict", files={"file": ("a.png", image)}, timeout=30)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["model_version"])

    before = set(server.workers())
    with Load(ask) as load:
        wait_for("requests are answered", lambda: len(load.answers) > 20)
        switch(link, new)
        server.reload()
        wait_for("the new model answers", lambda: load.answers[-10:] == ["new"] * 10, 30)
        wait_for("the old workers are gone", lambda: not before & set(server.workers()), 30)
        seen = len(load.answers)
        wait_for("more requests are answered", lambda: len(load.answers) > seen + 20)
    assert load.failures == []
    assert set(load.answers) == {"old", "new"}
    assert load.answers[seen:].count("old") == 0
    metrics = httpx.get(f"{server.url}/metrics").text
    assert 'lightbox_model_info{name="pneumonia",synthetic="false",version="new"} 1.0' in metrics
    assert 'version="old"} 1.0' not in metrics
    given_verdicts = re.findall(
        r'lightbox_predictions_total\{label="Pneumonia",model_version="\w+"\} ([\d.]+)', metrics
    )
    assert sum(float(count) for count in given_verdicts) == len(load.answers)


@pytest.mark.parametrize(("threads", "loads"), [("1", 1), ("2", 2)])
def test_the_master_loads_the_model_for_all_workers_unless_it_has_threads(
    tmp_path: Path, redis_server: RedisServer, start: Start, threads: str, loads: int
) -> None:
    link = tmp_path / "current"
    switch(link, write_bundle(tmp_path / "a"))
    server = start("lightbox.api.app:app", {**environment(link, redis_server), "LIGHTBOX_THREADS": threads})
    wait_for("both workers are there", lambda: server.log.read_text().count("Application startup complete") == 2)
    assert server.log.read_text().count('"message": "model loaded"') == loads
    assert send(httpx.Client(base_url=server.url), png(255)).json()["prediction"] == "Pneumonia"
    server.reload()
    wait_for("it is loaded anew", lambda: server.log.read_text().count('"message": "model loaded"') == 2 * loads)


def test_a_connection_without_a_request_yet_survives_a_reload(
    bundle: Path, redis_server: RedisServer, start: Start
) -> None:
    server = start("lightbox.api.app:app", environment(bundle, redis_server), workers=1)
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        # The worker takes the connection before it answers a later one.
        httpx.get(f"{server.url}/health")
        server.reload()
        wait_for("the worker was told to stop", lambda: "No longer accepting" in server.log.read_text())
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = b""
        while block := connection.recv(4096):
            answer += block
    assert answer.startswith(b"HTTP/1.1 200"), answer
    assert b"connection: close" in answer.lower()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, shared_redis: RedisServer) -> Iterator[Gunicorn]:
    """The API as it runs on hosts, with a good model and a store."""
    directory = tmp_path_factory.mktemp("api")
    settings = environment(write_bundle(directory / "b"), shared_redis)
    process = Gunicorn("lightbox.api.app:app", directory / "log", settings).wait()
    yield process
    process.stop()


def test_killed_workers_are_replaced(server: Gunicorn) -> None:
    victims = wait_for("two workers", lambda: len(server.workers()) == 2 and server.workers())
    for victim in victims:
        os.kill(victim, signal.SIGKILL)
    wait_for("two new workers", lambda: len(set(server.workers()) - set(victims)) == 2, 10)
    wait_for("an answer", lambda: httpx.get(f"{server.url}/health", timeout=2).status_code == 200, 10)


def test_a_model_that_arrives_is_served_after_a_reload(tmp_path: Path, redis_server: RedisServer, start: Start) -> None:
    link = tmp_path / "current"
    server = start("lightbox.api.app:app", environment(link, redis_server), workers=1)
    assert httpx.get(f"{server.url}/ready").status_code == 503
    switch(link, write_bundle(tmp_path / "first"))
    server.reload()
    wait_for("ready", lambda: httpx.get(f"{server.url}/ready").status_code == 200)


def test_the_store_may_go_and_come_back(server: Gunicorn, redis_server: RedisServer) -> None:
    assert send(httpx.Client(base_url=server.url), png(9)).json()["stored"] is True
    redis_server.stop()
    answer = send(httpx.Client(base_url=server.url), png(9)).json()
    assert (answer["prediction"], answer["stored"]) == ("Normal", False)
    assert httpx.get(f"{server.url}/ready").status_code == 503
    redis_server.start()
    wait_for("ready again", lambda: httpx.get(f"{server.url}/ready").status_code == 200)
    assert send(httpx.Client(base_url=server.url), png(9)).json()["stored"] is True
    assert httpx.get(f"{server.url}/predictions").json()["total_keys"] == 2


def test_large_files_over_a_real_connection(server: Gunicorn, redis_server: RedisServer) -> None:
    with httpx.Client(base_url=server.url, timeout=30) as client:
        large = noise(3200)
        assert len(large) > 10_000_000
        assert send(client, large).status_code == 200
        is_error(send(client, b"0" * 100_000_000), 413, "larger than 20 MB")

        def endless() -> Iterator[bytes]:
            yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'
            for _ in range(30):
                yield b"0" * 1_000_000

        headers = {"Content-Type": "multipart/form-data; boundary=x"}
        is_error(client.post("/predict", content=endless(), headers=headers), 413, "larger than 20 MB")
        assert client.get("/health").status_code == 200


@pytest.mark.parametrize("line", [b"X-Long: " + b"x" * 4096, b"X-Many: x\r\n"])
def test_a_header_without_end_is_cut(server: Gunicorn, line: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n")
        answer = b""
        with contextlib.suppress(OSError):
            for _ in range(20_000):
                connection.sendall(line)
            raise AssertionError("everything was taken")
        with contextlib.suppress(OSError):
            answer = connection.recv(4096)
    assert answer == b"" or b" 400 " in answer
    with httpx.Client(base_url=server.url) as client:
        headers = {"X-Longish": "x" * 20_000}
        # The count begins anew with every request of a connection.
        assert [client.get("/health", headers=headers).status_code for _ in range(6)] == [200] * 6


def test_who_goes_away_while_sending_is_no_failure(server: Gunicorn) -> None:
    head = b"POST /v1/predictions HTTP/1.1\r\nHost: x\r\nX-Request-ID: gone-away-early\r\nContent-Length: 9000\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(head + b"Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n")
    logged = wait_for("it is in the log", lambda: re.findall(r".*gone-away-early.*", server.log.read_text()))
    assert [json.loads(line)["status"] for line in logged] == [499]


def test_requests_are_logged_with_id_and_forwarded_address_only_from_the_proxy(
    server: Gunicorn, bundle: Path, redis_server: RedisServer, start: Start
) -> None:
    other = {**environment(bundle, redis_server), "LIGHTBOX_FORWARDED_ALLOW_IPS": "192.0.2.1"}
    wary = start("lightbox.api.app:app", other, workers=1)
    for asked, client in ((server, "203.0.113.7"), (wary, "127.0.0.1")):
        headers = {"X-Request-ID": "logged-request", "X-Forwarded-For": "203.0.113.7"}
        httpx.get(f"{asked.url}/predictions", headers=headers)

        def line(asked: Gunicorn = asked) -> Any:
            lines = [json.loads(text) for text in asked.log.read_text().splitlines() if text.startswith("{")]
            return next((line for line in lines if line.get("request_id") == "logged-request"), None)

        logged = wait_for("the request is in the log", line, 5)
        assert (logged["client"], logged["status"], logged["path"]) == (client, 200, "/predictions")
        assert PASSWORD not in asked.log.read_text()
