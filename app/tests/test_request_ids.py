"""One id leads through the pages and the API to every line about a request, and no line tells of a patient."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from image_kit import dicom, ramp
from serving_kit import PASSWORD, Gunicorn, RedisServer, png, wait_for, write_bundle

CANARY = "Zacharias-Canary"
ID = "5f4dcc3b5aa765d61d8327deb882cf99"


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, shared_redis: RedisServer) -> Iterator[tuple[Gunicorn, Gunicorn]]:
    """The pages and the API behind them, as they run on hosts."""
    directory = tmp_path_factory.mktemp("ids")
    settings = {"LIGHTBOX_BUNDLE": str(write_bundle(directory / "b")), **shared_redis.environment}
    api = Gunicorn("lightbox.api.app:app", directory / "api.log", settings, workers=1).wait()
    ui = Gunicorn("lightbox.ui.app:app", directory / "ui.log", {"LIGHTBOX_API_URLS": api.url}, workers=1).wait()
    yield ui, api
    ui.stop()
    api.stop()


def lines(server: Gunicorn, request_id: str) -> list[dict[str, Any]]:
    """Return the lines of a log that carry an id."""
    parsed = [json.loads(line) for line in server.log.read_text().splitlines() if line.startswith("{")]
    return [line for line in parsed if line.get("request_id") == request_id]


def test_an_id_leads_through_the_pages_to_the_api(both: tuple[Gunicorn, Gunicorn]) -> None:
    ui, api = both
    answer = httpx.post(
        f"{ui.url}/upload_predict", files={"file": (f"{CANARY}.png", png(10))}, headers={"X-Request-ID": ID}
    )
    assert answer.status_code == 200
    assert answer.headers["X-Request-ID"] == ID
    shown = wait_for("the pages tell of it", lambda: lines(ui, ID))
    assert [(line["method"], line["path"], line["status"]) for line in shown] == [("POST", "/upload_predict", 200)]
    asked = wait_for("the API tells of it", lambda: lines(api, ID))
    assert ("POST", "/v1/predictions", 201) in [(line["method"], line["path"], line["status"]) for line in asked]


def test_who_reads_of_an_error_reads_the_id_too(both: tuple[Gunicorn, Gunicorn]) -> None:
    ui, api = both
    answer = httpx.get(f"{ui.url}/cases/{'0' * 32}", headers={"X-Request-ID": "the-one-that-failed"})
    assert answer.status_code == 404
    assert "Reference: <code>the-one-that-failed</code>" in answer.text
    (refusal,) = [line for line in wait_for("it is logged", lambda: lines(ui, "the-one-that-failed")) if "api" in line]
    assert refusal["reason"] == "status 404"
    assert wait_for("the API tells of it", lambda: lines(api, "the-one-that-failed"))[0]["status"] == 404


def test_no_line_tells_of_a_patient_or_a_secret(both: tuple[Gunicorn, Gunicorn]) -> None:
    ui, api = both
    for content in (
        png(11),
        dicom(ramp(), PatientName=CANARY, PatientID=CANARY),
        b"\x00" * 128 + b"DICM" + CANARY.encode(),
        b"",
    ):
        httpx.post(f"{ui.url}/upload_predict", files={"file": (f"{CANARY}.dcm", content)}, headers={"X-Request-ID": ID})
        httpx.post(
            f"{api.url}/v1/predictions", files={"file": (f"{CANARY}.dcm", content)}, headers={"X-Request-ID": ID}
        )
    last = "the-last-of-all-requests"
    for path in (f"/table?search={CANARY}", f"/?search={CANARY}&page=nowhere", f"/export?search={CANARY}"):
        httpx.get(ui.url + path, headers={"X-Request-ID": last, "Cookie": f"session={CANARY}"})
    wait_for("all is logged", lambda: len(lines(ui, last)) >= 3 and lines(api, last))
    for server in both:
        text = server.log.read_text()
        assert CANARY not in text
        assert PASSWORD not in text
    assert Path(ui.log).stat().st_size > 0
