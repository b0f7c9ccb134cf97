"""The routes under ``/v1``: predictions, cases, feedback, exports, and what happens when too much or nothing works."""

from __future__ import annotations

import asyncio
import base64
import csv
import io
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from image_kit import PERSON, dicom, encoded, ramp
from PIL import Image
from serving_kit import PASSWORD, RedisServer, Start, free_port, logistic, noise, png, wait_for, write_bundle
from starlette.testclient import TestClient

from lightbox.api.app import create_app
from lightbox.api.service import Settings, expected_shares, moment
from lightbox.store import Case, CaseStore, Feedback

NOW = datetime.now(timezone.utc)


def store_of(server: RedisServer) -> CaseStore:
    return CaseStore.connect("127.0.0.1", server.port, "api", PASSWORD)


@pytest.fixture
def api(bundle: Path, redis_server: RedisServer) -> Iterator[TestClient]:
    app = create_app(Settings(bundle=bundle, max_upload_bytes=200_000, max_pixels=4_000_000), store_of(redis_server))
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def send(client: Any, content: bytes, name: str = "xray.png", query: str = "", **more: Any) -> httpx.Response:
    response: httpx.Response = client.post(f"/v1/predictions{query}", files={"file": (name, content)}, **more)
    return response


def is_problem(response: httpx.Response, status: int, kind: str, words: str = "") -> None:
    """A problem says what is wrong in the form of RFC 9457, and in which request."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert set(body) == {"type", "title", "status", "detail", "instance", "kind"}
    assert (body["type"], body["kind"], body["status"]) == (f"urn:lightbox:{kind}", kind, status)
    assert body["instance"] == f"urn:lightbox:request:{response.headers['X-Request-ID']}"
    assert re.search(words, body["detail"]), body["detail"]


def filled(server: RedisServer, count: int = 60) -> CaseStore:
    """Return a store with cases: every third one of pneumonia, every fifth one uncertain, from both sources."""
    store = store_of(server)
    store.add_many(
        Case(
            id=f"case-{number:03d}",
            filename=f"Film {number:03d}{'.JPEG' if number % 2 else '.png'}",
            label="Normal" if number % 3 else "Pneumonia",
            confidence=0.5 + number / 4000,
            scores=(0.5,),
            model_version="v1",
            source="batch" if number % 2 else "upload",
            created=NOW - timedelta(minutes=number),
            thumbnail=b"\xff\xd8jpeg",
            uncertain=number % 5 == 0,
        )
        for number in range(count)
    )
    return store


# --- predictions ---


@pytest.mark.parametrize(("value", "label"), [(200, "Pneumonia"), (20, "Normal")])
def test_a_prediction_says_all_that_is_known(api: TestClient, value: int, label: str) -> None:
    response = send(api, png(value))
    assert response.status_code == 201, response.text
    answer, score = response.json(), logistic(12 * (value / 255 - 0.5))
    assert response.headers["location"] == f"/v1/cases/{answer['id']}"
    assert (answer["verdict"], answer["label"], answer["uncertain"], answer["unfamiliar"]) == (
        label,
        label,
        False,
        None,
    )
    assert answer["probabilities"] == pytest.approx({"Normal": 1 - score, "Pneumonia": score}, abs=1e-5)
    assert answer["confidence"] == pytest.approx(max(score, 1 - score), abs=1e-5)
    assert answer["confidence_text"] == f"{answer['confidence'] * 100:.2f}%"
    assert (answer["threshold"], answer["positive"], answer["band"]) == (0.5, "Pneumonia", {"low": 0.4, "high": 0.6})
    assert (answer["stored"], answer["notice"], answer["synthetic"], answer["heatmap"]) == (True, None, False, None)
    assert (answer["has_heatmap"], answer["heatmap_label"], answer["source"]) == (True, "Pneumonia", "upload")
    kept = api.get(f"/v1/cases/{answer['id']}").json()
    assert kept == {name: answer[name] for name in kept}


def test_what_is_uncertain_or_unfamiliar_is_called_so(api: TestClient) -> None:
    uncertain = send(api, png(128)).json()
    assert (uncertain["verdict"], uncertain["label"], uncertain["uncertain"]) == ("Uncertain", "Pneumonia", True)
    assert "unlike" in send(api, noise(4)).json()["unfamiliar"]
    kept = api.get("/v1/cases").json()["cases"]
    assert [(case["verdict"], bool(case["unfamiliar"])) for case in kept][1] == ("Uncertain", False)


def test_the_heat_map_lies_where_the_image_speaks(api: TestClient) -> None:
    values = np.zeros((64, 64), np.uint8)
    values[:, 32:] = 255
    answer = send(api, encoded(Image.fromarray(values)), query="?heatmap=true").json()
    drawn = base64.b64decode(answer["heatmap"])
    assert api.get(f"/v1/cases/{answer['id']}/heatmap").content == drawn
    heat = Image.open(io.BytesIO(drawn))
    assert (heat.format, heat.mode, heat.size) == ("PNG", "RGBA", (224, 224))
    alpha = np.asarray(heat)[..., 3]
    assert not alpha[:, :80].any() and alpha[:, 150:].min() > 100
    assert heat.getpixel((200, 100))[0] == 255, "red where much speaks for the label"


def test_a_bundle_without_heat_gives_none(tmp_path: Path, redis_server: RedisServer) -> None:
    def plain(contract: dict[str, Any]) -> None:
        del contract["serving"]["outputs"], contract["decision"]["uncertain"], contract["out_of_distribution"]

    app = create_app(Settings(bundle=write_bundle(tmp_path / "b", change=plain)), store_of(redis_server))
    with TestClient(app) as client:
        answer = send(client, png(200), query="?heatmap=1").json()
        assert (answer["heatmap"], answer["has_heatmap"], answer["heatmap_label"], answer["band"]) == (
            None, False, None, None,
        )  # fmt: skip
        is_problem(client.get(f"/v1/cases/{answer['id']}/heatmap"), 404, "not_found", "no heat map")


def test_the_picture_is_kept_in_a_size_to_look_at(api: TestClient, redis_server: RedisServer) -> None:
    large = encoded(Image.new("L", (1600, 800), 90), "JPEG")
    case = send(api, large).json()
    image = api.get(f"/v1/cases/{case['id']}/image")
    assert image.headers["content-type"] == "image/jpeg"
    assert Image.open(io.BytesIO(image.content)).size == (512, 256)
    assert Image.open(io.BytesIO(base64.b64decode(case["thumbnail"]))).size == (224, 112)
    with redis_server.client() as client:
        client.delete(f"lightbox:image:{case['id']}")
    assert Image.open(io.BytesIO(api.get(f"/v1/cases/{case['id']}/image").content)).size == (224, 112)


def test_dicom_is_taken_and_nothing_of_its_header_is_kept(
    api: TestClient, redis_server: RedisServer, capfd: pytest.CaptureFixture[str]
) -> None:
    content = dicom(np.full((40, 40), 3600, "u2"), WindowCenter=2048, WindowWidth=4096)
    assert PERSON.encode() in content
    answer = send(api, content, "no name at all")
    assert (answer.status_code, answer.json()["label"]) == (201, "Pneumonia")
    assert answer.json()["filename"] == "no name at all"
    assert api.post("/predict", files={"file": ("a.dcm", content)}).json()["prediction"] == "Pneumonia"
    with redis_server.client() as client:
        kept = str([client.hgetall(key) for key in client.keys("lightbox:case:*")])
    assert PERSON not in kept + answer.text + "".join(capfd.readouterr())
    is_problem(send(api, dicom(ramp(), BitsAllocated=32)), 415, "unsupported", "32 bits")


@pytest.mark.parametrize(
    ("content", "status", "kind", "words"),
    [
        (b"", 400, "empty", "empty"),
        (b"no image", 415, "type", "PNG or JPEG"),
        (b"GIF89a" + b"0" * 100, 415, "type", "DICOM"),
        (png(9, 64)[:-20], 400, "unreadable", "damaged or cut off"),
        (encoded(Image.new("1", (2100, 2100))), 413, "pixels", "2100 by 2100"),
        (b"0" * 200_001, 413, "too_large", "larger than"),
        (b"0" * 3_000_000, 413, "too_large", "larger than"),
    ],
)
def test_bad_files_are_named(api: TestClient, content: bytes, status: int, kind: str, words: str) -> None:
    is_problem(send(api, content), status, kind, words)
    assert api.get("/v1/cases").json()["total"] == 0


def test_requests_that_are_no_uploads(api: TestClient) -> None:
    url = "/v1/predictions"
    is_problem(api.post(url), 400, "no_file")
    is_problem(api.post(url, files={"other": ("a.png", png(9))}), 400, "no_file")
    is_problem(api.post(url, files={"file": ("", png(9))}), 400, "no_file")
    is_problem(api.post(url, content=png(9), headers={"Content-Type": "image/png"}), 400, "no_file")
    for body, boundary, kind in (
        (b"--x\r\nbroken", "", "malformed"),
        (b"--x\r\nbroken", "; boundary=", "malformed"),
        (b"other\r\nbroken", "; boundary=x", "malformed"),
        (b"--x--\r\n", "; boundary=x", "no_file"),
    ):
        headers = {"Content-Type": f"multipart/form-data{boundary}"}
        is_problem(api.post(url, content=body, headers=headers), 400, kind)
    two = [("file", ("a.png", png(9))), ("file", ("b.png", png(9)))]
    is_problem(api.post(url, files=two), 400, "too_many", "one file")
    is_problem(send(api, png(9), query="?heatmap=perhaps"), 422, "validation", "heatmap")
    is_problem(api.get(url), 405, "method")
    is_problem(api.get("/v1/nothing"), 404, "not_found")


def test_several_files_are_answered_in_order(api: TestClient) -> None:
    contents = {
        "a.png": png(200), "b.txt": b"text", "c.png": b"", "d.jpg": png(20, form="JPEG"), "e.png": b"0" * 200_001,
    }  # fmt: skip
    sent = [("files", (name, content)) for name, content in contents.items()]
    answer = api.post("/v1/predictions/batch?heatmap=true", files=sent)
    assert answer.status_code == 200
    results = answer.json()["results"]
    assert [item["filename"] for item in results] == ["a.png", "b.txt", "c.png", "d.jpg", "e.png"]
    assert [item["prediction"] and item["prediction"]["label"] for item in results] == [
        "Pneumonia", None, None, "Normal", None,
    ]  # fmt: skip
    assert [item["problem"] and item["problem"]["status"] for item in results] == [None, 415, 400, None, 413]
    assert results[0]["prediction"]["heatmap"]
    assert [case["filename"] for case in api.get("/v1/cases").json()["cases"]] == ["d.jpg", "a.png"]


def test_batches_have_limits(api: TestClient) -> None:
    url = "/v1/predictions/batch"
    is_problem(api.post(url), 400, "no_file")
    many = [("files", (f"{number}.png", png(9))) for number in range(33)]
    is_problem(api.post(url, files=many), 400, "too_many", "at most 32")
    assert len(api.post(url, files=many[:32]).json()["results"]) == 32
    large = [("files", ("a.png", b"0" * 200_000))] * 6
    is_problem(api.post(url, files=large), 413, "too_large", "together")


# --- cases ---


def names(api: TestClient, query: str) -> list[str]:
    answer = api.get(f"/v1/cases?size=100&{query}")
    assert answer.status_code == 200, answer.text
    assert answer.json()["total"] == len(answer.json()["cases"])
    return [case["id"] for case in answer.json()["cases"]]


def test_cases_by_filter_and_order(api: TestClient, redis_server: RedisServer) -> None:
    store = filled(redis_server)
    store.set_feedback("case-001", Feedback("Normal", NOW))
    store.set_feedback("case-002", Feedback("Pneumonia", NOW))
    newest_first = [f"case-{number:03d}" for number in range(60)]
    assert names(api, "") == newest_first
    assert names(api, "order=asc") == newest_first[::-1]
    uncertain = [case for number, case in enumerate(newest_first) if number % 5 == 0]
    assert names(api, "verdict=Uncertain") == uncertain
    normal = [case for number, case in enumerate(newest_first) if number % 3 and number % 5]
    assert names(api, "verdict=Normal") == normal
    assert names(api, "verdict=Normal&order=asc") == normal[::-1]
    assert names(api, "search=FILM 01") == newest_first[10:20]
    assert names(api, "search=.jpeg") == newest_first[1::2]
    assert names(api, "source=upload") == newest_first[::2]
    assert names(api, "source=upload&search=02") == [
        "case-002",
        "case-020",
        "case-022",
        "case-024",
        "case-026",
        "case-028",
    ]
    assert names(api, "feedback=any") == ["case-001", "case-002"]
    assert names(api, "feedback=agree") == ["case-001"]
    assert names(api, "feedback=disagree") == ["case-002"]
    assert len(names(api, "feedback=none")) == 58
    assert names(api, "sort=confidence") == newest_first[::-1]
    assert names(api, "sort=filename&order=asc") == newest_first
    by_label = names(api, "sort=label&order=asc")
    assert by_label[: len(normal)] == normal, "cases of one label are newest first"
    assert by_label[-len(uncertain) :] == uncertain
    assert names(api, "verdict=None such") == []
    assert api.get("/v1/cases").json()["verdicts"] == ["Normal", "Pneumonia", "Uncertain"]


def test_cases_by_page(api: TestClient, redis_server: RedisServer) -> None:
    filled(redis_server)
    for query in ("", "&search=film"):
        pages = [api.get(f"/v1/cases?page={number}&size=25{query}").json() for number in (1, 2, 3)]
        assert [len(page["cases"]) for page in pages] == [25, 25, 10]
        assert {(page["total"], page["pages"], page["size"]) for page in pages} == {(60, 3, 25)}
        assert len({case["id"] for page in pages for case in page["cases"]}) == 60
        is_problem(api.get(f"/v1/cases?page=4&size=25{query}"), 404, "page", "3 or less")
    for query in ("page=0", "page=x", "size=0", "size=101", "sort=age", "order=up", "source=fax", "feedback=maybe"):
        is_problem(api.get(f"/v1/cases?{query}"), 422, "validation", query.split("=", maxsplit=1)[0])


def test_cases_of_before_are_shown(api: TestClient, redis_server: RedisServer) -> None:
    filled(redis_server, 1)
    with redis_server.client() as client:
        client.hdel("lightbox:case:case-000", "probabilities", "uncertain", "unfamiliar", "heat", "heat_label")
    (case,) = api.get("/v1/cases?verdict=Pneumonia").json()["cases"]
    assert (case["verdict"], case["probabilities"], case["has_heatmap"]) == ("Pneumonia", {}, False)


def test_a_deleted_case_is_gone_with_all_it_has(api: TestClient, redis_server: RedisServer) -> None:
    case = send(api, png(200)).json()["id"]
    assert api.put(f"/v1/cases/{case}/feedback", json={"label": "Normal"}).status_code == 200
    deleted = api.delete(f"/v1/cases/{case}")
    assert (deleted.status_code, deleted.content) == (204, b"")
    for path in ("", "/image", "/heatmap"):
        is_problem(api.get(f"/v1/cases/{case}{path}"), 404, "not_found")
    is_problem(api.delete(f"/v1/cases/{case}"), 404, "not_found")
    is_problem(api.put(f"/v1/cases/{case}/feedback", json={"label": "Normal"}), 404, "not_found")
    with redis_server.client() as client:
        assert client.keys("*") == []


def test_an_id_that_is_none(api: TestClient) -> None:
    is_problem(api.get("/v1/cases/nobody"), 404, "not_found")
    is_problem(api.get("/v1/cases/%00%ff"), 422, "validation", "case_id")
    is_problem(api.get(f"/v1/cases/{'x' * 200}"), 422, "validation")


# --- feedback ---


def test_feedback_is_kept_and_listed_for_retraining(api: TestClient) -> None:
    first, second = (send(api, png(value)).json()["id"] for value in (200, 20))
    said = api.put(f"/v1/cases/{second}/feedback", json={"label": "Pneumonia"}).json()["feedback"]
    assert (said["label"], said["agrees"]) == ("Pneumonia", False)
    assert api.put(f"/v1/cases/{first}/feedback", json={"label": "Pneumonia"}).json()["feedback"]["agrees"] is True
    listed = api.get("/v1/feedback").json()
    assert [case["id"] for case in listed["cases"]] == [second, first]
    assert (listed["total"], listed["pages"]) == (2, 1)
    assert api.get(listed["cases"][0]["image"]).headers["content-type"] == "image/jpeg"
    assert api.put(f"/v1/cases/{first}/feedback", json={"label": "Normal"}).json()["feedback"]["label"] == "Normal"
    assert api.get("/v1/feedback").json()["total"] == 2
    assert api.delete(f"/v1/cases/{first}/feedback").json()["feedback"] is None
    assert api.delete(f"/v1/cases/{first}/feedback").json()["feedback"] is None, "taking it back twice is no error"
    assert [case["id"] for case in api.get("/v1/feedback").json()["cases"]] == [second]
    is_problem(api.get("/v1/feedback?page=2"), 404, "page")
    is_problem(api.put(f"/v1/cases/{first}/feedback", json={"label": "Cat"}), 422, "label", "Normal, Pneumonia")
    is_problem(api.put(f"/v1/cases/{first}/feedback", json={}), 422, "validation", "label")
    is_problem(api.put(f"/v1/cases/{first}/feedback", content=b"{"), 422, "validation")
    is_problem(api.put(f"/v1/cases/{first}/feedback", json={"label": "x" * 300_000}), 413, "too_large")
    is_problem(api.delete("/v1/cases/nobody/feedback"), 404, "not_found")


def test_feedback_survives_that_the_same_case_is_stored_again(api: TestClient) -> None:
    same = {"X-Request-ID": "the-same-request"}
    case = send(api, png(200), headers=same).json()["id"]
    api.put(f"/v1/cases/{case}/feedback", json={"label": "Normal"})
    assert send(api, png(200), headers=same).json()["id"] == case
    assert api.get(f"/v1/cases/{case}").json()["feedback"]["label"] == "Normal"


# --- tables ---


def rows(response: httpx.Response) -> list[dict[str, str]]:
    assert response.headers["content-type"].startswith("text/csv")
    assert response.headers["content-disposition"] == 'attachment; filename="cases.csv"'
    return rows_of(response.text)


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_the_export_holds_what_the_filters_leave(api: TestClient, redis_server: RedisServer) -> None:
    filled(redis_server, 1200).set_feedback("case-003", Feedback("Normal", NOW))
    table = rows(api.get("/v1/cases.csv"))
    assert len(table) == 1200
    assert table[3] == {
        "id": "case-003", "created": table[3]["created"], "filename": "Film 003.JPEG", "verdict": "Pneumonia",
        "label": "Pneumonia", "confidence": "0.500750", "model_version": "v1", "source": "batch",
        "feedback_label": "Normal", "feedback_created": table[3]["feedback_created"],
    }  # fmt: skip
    assert datetime.fromisoformat(table[3]["feedback_created"]) == NOW.replace(
        microsecond=NOW.microsecond // 1000 * 1000
    )
    some = rows(api.get("/v1/cases.csv?verdict=Uncertain&sort=filename&order=asc&search=film 0"))
    assert [row["id"] for row in some] == [f"case-{number:03d}" for number in range(0, 100, 5)]
    is_problem(api.get("/v1/cases.csv?sort=age"), 422, "validation")


@pytest.mark.parametrize("name", ["=cmd|'/c calc'!A0.png", "+1.png", "-1.png", "@SUM(A1).png", "a\",b;'c.png"])
def test_no_spreadsheet_runs_a_cell(api: TestClient, name: str, redis_server: RedisServer) -> None:
    store_of(redis_server).add(
        Case("one", name, "Normal", 0.9, (0.1,), "=v1", "upload", NOW, b"")
    )  # fmt: skip
    (row,) = rows(api.get("/v1/cases.csv"))
    assert row["filename"] == (name if name.startswith("a") else f"'{name}")
    assert row["model_version"] == "'=v1"


# --- when something does not work ---


def test_without_redis_a_verdict_is_given_and_cases_are_a_problem(bundle: Path) -> None:
    with TestClient(create_app(Settings(bundle=bundle), CaseStore.connect("127.0.0.1", free_port()))) as client:
        answer = send(client, png(200))
        assert (answer.status_code, answer.json()["stored"]) == (201, False)
        assert "location" not in answer.headers
        assert "not stored" in answer.json()["notice"]
        for path in ("/cases", "/cases.csv", "/cases/x", "/cases/x/image", "/cases/x/heatmap", "/feedback"):
            is_problem(client.get(f"/v1{path}"), 503, "store", "Redis cannot be reached")
        is_problem(client.delete("/v1/cases/x"), 503, "store")
        is_problem(client.put("/v1/cases/x/feedback", json={"label": "Normal"}), 503, "store")


def test_a_redis_that_hangs_costs_a_moment_once(bundle: Path, redis_server: RedisServer) -> None:
    assert redis_server.process is not None
    with TestClient(create_app(Settings(bundle=bundle), store_of(redis_server))) as client:
        assert send(client, png(200)).json()["stored"] is True
        os.kill(redis_server.process.pid, signal.SIGSTOP)
        try:
            seconds = []
            for _ in range(8):
                begun = time.monotonic()
                assert send(client, png(200)).json()["stored"] is False
                seconds.append(time.monotonic() - begun)
            assert seconds[0] < 2.5, "one time limit, and what this machine is busy with"
            assert sorted(seconds)[5] < 0.5, "the others do not wait"
            is_problem(client.get("/v1/cases"), 503, "store", "in time")
        finally:
            os.kill(redis_server.process.pid, signal.SIGCONT)
        wait_for("cases are stored again", lambda: send(client, png(200)).json()["stored"], 10)
        assert client.get("/v1/cases").status_code == 200


def test_without_a_model_only_what_needs_it_is_refused(tmp_path: Path, redis_server: RedisServer) -> None:
    filled(redis_server, 2)
    with TestClient(create_app(Settings(bundle=tmp_path / "absent"), store_of(redis_server))) as client:
        is_problem(send(client, png(200)), 503, "no_model")
        is_problem(client.post("/v1/predictions/batch", files=[("files", ("a", png(1)))]), 503, "no_model")
        is_problem(client.put("/v1/cases/case-000/feedback", json={"label": "Normal"}), 503, "no_model")
        is_problem(client.get("/v1/model"), 503, "no_model")
        is_problem(send(client, b"0" * 25_000_000), 503, "no_model")
        assert client.get("/v1/health/live").json()["status"] == "healthy"
        assert client.get("/v1/health/ready").status_code == 503
        assert client.get("/v1/cases").json()["total"] == 2


def test_a_failure_inside_says_nothing_of_the_inside(api: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*_: object) -> None:
        raise RuntimeError("secret of the inside")

    monkeypatch.setattr("lightbox.api.service.thumbnail", explode)
    answer = send(api, png(200), headers={"X-Request-ID": "find-me-again"})
    is_problem(answer, 500, "internal", "find-me-again")
    assert "secret" not in answer.text
    engine = api.app.state.service.engine  # type: ignore[attr-defined]
    monkeypatch.setattr(engine, "_session", None)
    is_problem(send(api, png(200)), 500, "model", "could not classify")


def test_who_finds_the_line_full_is_sent_away_at_once(
    bundle: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = create_app(Settings(bundle=bundle, concurrency=1, queue=2), store_of(redis_server))
    examine, go = app.state.service.examine, threading.Event()

    def slow(*arguments: Any) -> Any:
        assert go.wait(20)
        return examine(*arguments)

    monkeypatch.setattr(app.state.service, "examine", slow)

    async def talk() -> None:
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client,
        ):

            def ask(path: str = "/v1/predictions") -> Any:
                return client.post(path, files={"file": ("a.png", png(200))})

            first = [asyncio.create_task(ask()) for _ in range(3)]
            while not app.state.line.full:
                await asyncio.sleep(0.01)
            assert "lightbox_waiting_requests 2.0" in (await client.get("/metrics")).text
            refused = await ask()
            is_problem(refused, 503, "busy", "Try again")
            legacy = await ask("/predict")
            assert (legacy.status_code, list(legacy.json())) == (503, ["error"])
            assert refused.headers["Retry-After"] == legacy.headers["Retry-After"] == "1"
            assert (await client.get("/v1/cases")).status_code == 200, "what needs no model is answered"
            go.set()
            assert [answer.status_code for answer in await asyncio.gather(*first)] == [201] * 3
            assert (await ask()).status_code == 201
            assert "lightbox_waiting_requests 0.0" in (await client.get("/metrics")).text

    asyncio.run(talk())


def test_the_next_image_does_not_wait_for_the_store(
    bundle: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = create_app(Settings(bundle=bundle, concurrency=1), store_of(redis_server))
    examine, examined, keep, go = app.state.service.examine, [], app.state.service.keep, threading.Event()

    def count(uploads: Any) -> Any:
        examined.extend(uploads)
        return examine(uploads)

    def hang(*arguments: Any) -> Any:
        assert go.wait(20)
        return keep(*arguments)

    monkeypatch.setattr(app.state.service, "examine", count)
    monkeypatch.setattr(app.state.service, "keep", hang)

    async def talk() -> None:
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client,
        ):
            files = [{"file": (f"{number}.png", png(200))} for number in range(3)]
            asked = [asyncio.create_task(client.post("/v1/predictions", files=one)) for one in files]
            async with asyncio.timeout(20):
                while len(examined) < 3:
                    await asyncio.sleep(0.01)
            go.set()
            assert [answer.status_code for answer in await asyncio.gather(*asked)] == [201] * 3

    asyncio.run(talk())


def test_images_scored_in_one_run_get_each_their_own_answer(
    bundle: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = create_app(Settings(bundle=bundle, concurrency=1, together=3), store_of(redis_server))
    examine, together, go = app.state.service.examine, [], threading.Event()

    def count(uploads: Any) -> Any:
        assert go.wait(20)
        together.append(len(uploads))
        return examine(uploads)

    monkeypatch.setattr(app.state.service, "examine", count)

    async def talk() -> None:
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client,
        ):
            contents = [png(40), png(250), b"no image", png(40), png(250)]
            asked = [
                asyncio.create_task(client.post("/v1/predictions", files={"file": (f"{number}.png", content)}))
                for number, content in enumerate(contents)
            ]
            while len(app.state.line) < len(asked):
                await asyncio.sleep(0.01)
            go.set()
            answers = await asyncio.gather(*asked)
            assert [answer.status_code for answer in answers] == [201, 201, 415, 201, 201]
            assert [answer.json().get("filename") for answer in answers] == ["0.png", "1.png", None, "3.png", "4.png"]
            labels = [answer.json().get("label") for answer in answers]
            assert labels == ["Normal", "Pneumonia", None, "Normal", "Pneumonia"]

    asyncio.run(talk())
    assert sum(together) == 5
    assert max(together) == 3


def test_a_burst_is_answered_and_service_goes_on(bundle: Path, redis_server: RedisServer, start: Start) -> None:
    settings = {"LIGHTBOX_BUNDLE": str(bundle), "LIGHTBOX_CONCURRENCY": "1", "LIGHTBOX_QUEUE": "2"}
    server = start("lightbox.api.app:app", {**settings, **redis_server.environment}, workers=1)
    large = noise(1500)

    def ask(_: int = 0) -> httpx.Response:
        return httpx.post(f"{server.url}/v1/predictions", files={"file": ("a.png", large)}, timeout=60)

    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(ask, range(24)))
    assert {answer.status_code for answer in answers} == {201, 503}
    for answer in answers:
        if answer.status_code == 503:
            is_problem(answer, 503, "busy")
            assert answer.headers["Retry-After"] == "1"
    assert ask().status_code == 201


def test_metrics_tell_scores_and_verdicts_of_each_version(api: TestClient) -> None:
    def value(series: str) -> float:
        found = re.search(rf"^{re.escape(series)} ([\d.e+]+)$", api.get("/metrics").text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    version = 'model_version="20260101T000000Z-aaaaaaaa"'
    grown = {
        f'lightbox_predictions_total{{label="Normal",{version}}}': 1,
        f'lightbox_predictions_total{{label="Pneumonia",{version}}}': 2,
        f'lightbox_verdicts_total{{{version},verdict="Uncertain"}}': 1,
        f'lightbox_verdicts_total{{{version},verdict="Pneumonia"}}': 1,
        f"lightbox_score_count{{{version}}}": 3,
        f'lightbox_score_bucket{{le="0.05",{version}}}': 1,
        f'lightbox_score_bucket{{le="0.95",{version}}}': 2,
        f"lightbox_inference_seconds_count{{{version}}}": 4,
        'lightbox_errors_total{app="api",kind="type"}': 1,
    }
    before = {series: value(series) for series in grown}
    for content in (png(0), png(128), png(255), b"text"):
        send(api, content)
    assert {series: value(series) - before[series] for series in grown} == grown
    unfamiliar = f"lightbox_unfamiliar_total{{{version}}}"
    before_it = value(unfamiliar)
    send(api, encoded(Image.new("RGB", (32, 32), (255, 0, 0))))
    assert value(unfamiliar) == before_it + 1
    # What the model is, and what it said of the images it was tested on.
    assert value("lightbox_model_created_timestamp_seconds") == datetime(2026, 1, 1, tzinfo=timezone.utc).timestamp()
    for label in ("Normal", "Pneumonia"):
        assert value(f'lightbox_expected_share{{label="{label}",{version}}}') == 0.5


def test_metrics_tell_whether_people_agree(api: TestClient) -> None:
    def value(agrees: str) -> float:
        series = f'lightbox_feedback_total{{agrees="{agrees}",model_version="20260101T000000Z-aaaaaaaa"}}'
        found = re.search(rf"^{re.escape(series)} ([\d.e+]+)$", api.get("/metrics").text, re.MULTILINE)
        assert found, "told before anybody says anything"
        return float(found[1])

    before = value("true"), value("false")
    case = send(api, png(255)).json()["id"]
    for label in ("Pneumonia", "Normal", "Normal"):
        assert api.put(f"/v1/cases/{case}/feedback", json={"label": label}).status_code == 200
    assert api.put("/v1/cases/none/feedback", json={"label": "Normal"}).status_code == 404
    assert (value("true"), value("false")) == (before[0] + 1, before[1] + 2)


@pytest.mark.parametrize(
    ("contract", "shares"),
    [
        ({"metrics": {"test": {"confusion_matrix": [[6, 2], [1, 11]]}}}, {"a": 0.35, "b": 0.65}),
        ({"metrics": {"test": {"confusion_matrix": [[0, 0], [0, 0]]}}}, {}),
        ({"metrics": {"test": {"confusion_matrix": [[1]]}}}, {}),
        ({"metrics": {"test": {"confusion_matrix": None}}}, {}),
        ({}, {}),
    ],
)
def test_a_contract_that_tells_no_shares_stops_nothing(contract: dict[str, Any], shares: dict[str, float]) -> None:
    assert expected_shares(contract, ["a", "b"]) == pytest.approx(shares)
    assert moment(None) is None and moment("yesterday") is None


def test_the_examples_of_the_documentation_work(
    tmp_path: Path, bundle: Path, redis_server: RedisServer, start: Start
) -> None:
    server = start("lightbox.api.app:app", {"LIGHTBOX_BUNDLE": str(bundle), **redis_server.environment}, workers=1)
    for name, content in (("film.jpeg", png(250, form="JPEG")), ("a.jpeg", png(128)), ("b.dcm", dicom(ramp())),
                          ("four.png", png(40))):  # fmt: skip
        (tmp_path / name).write_bytes(content)
    text = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    examples = "\n".join(block for language, block in blocks if language == "shell")
    count = len(re.findall(r"\bcurl ", examples))
    script = f'curl() {{ command curl -sS --fail-with-body "$@" && echo >> done; }}\n{examples}'
    subprocess.run(
        ["bash", "-euc", script.replace("http://127.0.0.1:5000", server.url)],
        cwd=tmp_path, check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    assert count == len((tmp_path / "done").read_text().splitlines()) == 9
    assert len(rows_of((tmp_path / "cases.csv").read_text())) == 4
    assert Image.open(tmp_path / "heatmap.png").size == (224, 224)
    left = httpx.get(f"{server.url}/v1/cases").json()["cases"]
    assert [case["filename"] for case in left] == ["a.jpeg", "drawing.png", "film.jpeg"]
