"""A new model tried on some of the people: who is served by which host, and what becomes of those whom it fails."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from serving_kit import Gunicorn, RedisServer, Start, free_port, png, wait_for, write_bundle
from starlette.testclient import TestClient
from test_ui import PART, SECRET, TOKEN, Answers, an_api, good, upload

from lightbox.ui.app import Settings, create_app
from lightbox.ui.canary import Canary, Watched, read
from lightbox.ui.client import ApiClient

OLD, NEW = "20260101T000000Z-old00000", "20260102T000000Z-new00000"


def put(path: Path, url: str, percent: float, version: str = NEW) -> None:
    """Write the file as the playbook does: in one step."""
    path.with_suffix(".part").write_text(json.dumps({"url": url, "percent": percent, "version": version}))
    path.with_suffix(".part").replace(path)


def people(number: int) -> list[str]:
    """Return cookies of so many people, the same ones every time."""
    return [f"person-{one:04d}".ljust(32, "_") for one in range(number)]


def ours(percent: float, version: str = NEW) -> Callable[[str], bool]:
    return Canary("http://canary", percent, version).serves


# --- who is whose ---


def test_a_share_of_the_people_is_served_and_always_the_same() -> None:
    crowd = people(4000)
    for percent in (0, 1, 10, 50, 100):
        served = [who for who in crowd if ours(percent)(who)]
        # Three standard deviations of a binomial count.
        spread = 3 * (len(crowd) * percent / 100 * (1 - percent / 100)) ** 0.5
        assert abs(len(served) - len(crowd) * percent / 100) <= spread
        assert served == [who for who in crowd if ours(percent)(who)]
    # Who is served at ten per cent is served at fifty too; another version is tried on others.
    assert {who for who in crowd if ours(10)(who)} < {who for who in crowd if ours(50)(who)}
    assert {who for who in crowd if ours(10)(who)} != {who for who in crowd if ours(10, OLD)(who)}
    assert not ours(100)("")


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "7", '{"url": "http://a"}', '{"percent": 5}', '{"url": "http://a", "percent": "some"}',
     '{"url": "http://a", "percent": 101}', '{"url": "http://a", "percent": NaN}', "[" * 100_000],
)  # fmt: skip
def test_a_file_that_says_nothing_clear_is_as_good_as_none(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError):
        read(text)
    file = tmp_path / "canary.json"
    file.write_text(text)
    assert Watched(file, ["http://a", "http://b"]).now() is None


def test_the_file_is_looked_at_anew_whenever_it_changes(tmp_path: Path) -> None:
    file = tmp_path / "canary.json"
    watched = Watched(file, ["http://a", "http://b"])
    assert watched.now() is None
    put(file, "http://a/", 10)
    assert watched.now() == Canary("http://a", 10, NEW)
    put(file, "http://b", 20)
    assert watched.now() == Canary("http://b", 20, NEW)
    put(file, "http://c", 20)
    assert watched.now() is None, "no host of ours"
    put(file, "http://a", 10)
    assert watched.now() is not None
    file.unlink()
    assert watched.now() is None
    put(file, "http://a", 10)
    assert Watched(file, ["http://a"]).now() is None, "there is no other"
    assert Watched(None, ["http://a", "http://b"]).now() is None


# --- real pages before two real APIs ---


@pytest.fixture(scope="module")
def two_apis(
    tmp_path_factory: pytest.TempPathFactory, shared_redis: RedisServer
) -> Iterator[tuple[Gunicorn, Gunicorn]]:
    """An API with the new model and one with the old."""
    directory = tmp_path_factory.mktemp("canary")
    servers = []
    for version in (NEW, OLD):
        bundle = write_bundle(directory / version, version)
        settings = {"LIGHTBOX_BUNDLE": str(bundle), **shared_redis.environment}
        servers.append(Gunicorn("lightbox.api.app:app", directory / f"{version}.log", settings, workers=1))
    for server in servers:
        server.wait()
    yield servers[0], servers[1]
    for server in servers:
        server.stop()


def visit(url: str, who: str) -> str:
    """Upload an image as a person does whose cookie is ``who``; return the version that served."""
    with httpx.Client(base_url=url, cookies={"lightbox": who}, timeout=20) as browser:
        (token, *_) = TOKEN.findall(browser.get("/predict").text)
        sent = browser.post(
            "/upload_predict",
            data={"csrf_token": token},
            files={"file": (f"{who}.png", png(200))},
            headers={**PART, "Sec-Fetch-Site": "same-origin"},
        )
    assert sent.status_code == 200, sent.text
    assert "data-verdict=" in sent.text
    (version,) = re.findall(r"<dt>Model</dt><dd><code>(.*?)</code>", sent.text)
    return str(version)


def test_each_person_is_served_by_one_version(
    two_apis: tuple[Gunicorn, Gunicorn], tmp_path: Path, redis_server: RedisServer, start: Start
) -> None:
    new, old = two_apis
    file = tmp_path / "canary.json"
    # Nothing is started anew below: two workers learn of the canary, and of its end, from the file alone.
    ui = start("lightbox.ui.app:app", {"LIGHTBOX_API_URLS": f"{new.url},{old.url}", "LIGHTBOX_CANARY_FILE": str(file)})
    crowd = people(12)
    put(file, new.url, 40)
    expected = {who: NEW if ours(40)(who) else OLD for who in crowd}
    assert set(expected.values()) == {NEW, OLD}
    for _ in range(2):
        assert {who: visit(ui.url, who) for who in crowd} == expected
    put(file, new.url, 0)
    assert {visit(ui.url, who) for who in crowd} == {OLD}
    put(file, new.url, 100)
    assert {visit(ui.url, who) for who in crowd} == {NEW}
    file.unlink()
    assert {visit(ui.url, who) for who in crowd} == {NEW, OLD}


def test_a_canary_that_dies_fails_nobody_nor_does_the_death_of_the_others(
    two_apis: tuple[Gunicorn, Gunicorn], tmp_path: Path, redis_server: RedisServer, start: Start
) -> None:
    _, old = two_apis
    settings = {"LIGHTBOX_BUNDLE": str(write_bundle(tmp_path / "b", NEW)), **redis_server.environment}
    new = start("lightbox.api.app:app", settings, workers=1)
    file = tmp_path / "canary.json"
    environment = {"LIGHTBOX_API_URLS": f"{old.url},{new.url}", "LIGHTBOX_CANARY_FILE": str(file)}
    ui = start("lightbox.ui.app:app", environment, workers=1)
    put(file, new.url, 100)
    assert visit(ui.url, people(1)[0]) == NEW
    new.stop()
    assert {visit(ui.url, who) for who in people(4)} == {OLD}
    put(file, old.url, 0)
    assert {visit(ui.url, who) for who in people(4)} == {OLD}, "better the canary than no answer"


# --- what a canary can do wrong ---


@contextmanager
def pages(file: Path, *urls: str, timeout: float = 10.0) -> Iterator[TestClient]:
    shown = Settings(api_urls=urls, csrf_secret=SECRET)
    client = ApiClient(urls, timeout=timeout, connect_timeout=1.0, canary_file=file)
    with TestClient(create_app(shown, client), raise_server_exceptions=False) as browser:
        yield browser


@pytest.mark.parametrize("wrong", ["error", "nonsense", "silence", "half", "busy", "dead"])
def test_whatever_the_canary_fails_at_the_others_do(
    tmp_path: Path, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightbox.ui.client.CANARY_SECONDS", 0.5)
    asked: list[str | None] = []
    ended: list[bool] = []

    def bad(request: Answers) -> tuple[int, bytes] | None:
        if request.command == "POST":
            asked.append(request.headers["X-Request-ID"])
        if wrong == "silence":
            wait_for("the test ends", lambda: ended, 20)
        return {"error": (500, b"{}"), "nonsense": (201, b"<html>"), "half": None, "busy": (503, b"{}")}.get(wrong)

    def well(request: Answers) -> tuple[int, bytes]:
        if request.command == "POST":
            asked.append(request.headers["X-Request-ID"])
        return good(request)

    with an_api(bad) as canary, an_api(well) as other:
        url = f"http://127.0.0.1:{free_port()}" if wrong == "dead" else canary
        file = tmp_path / "canary.json"
        put(file, url, 100)
        with pages(file, url, other) as client:
            answer = upload(client, png(9), **PART)
            assert answer.status_code == 200, answer.text
            assert 'data-verdict="Normal"' in answer.text
        ended.append(True)
    assert len(set(asked)) == 1, "the API sees that it is one case"


def test_others_are_not_held_to_less_because_there_is_a_canary(tmp_path: Path) -> None:
    """An error of theirs is shown, not taken to the canary: the image may be what is wrong."""
    asked: list[str] = []

    def refuse(request: Answers) -> tuple[int, bytes]:
        asked.append(request.command)
        return 500, b"{}"

    def well(request: Answers) -> tuple[int, bytes]:
        asked.append(f"canary {request.command}")
        return good(request)

    with an_api(refuse) as other, an_api(well) as canary:
        file = tmp_path / "canary.json"
        put(file, canary, 0)
        with pages(file, other, canary) as client:
            assert upload(client, png(9), **PART).status_code == 500
    assert "canary POST" not in asked


def test_a_program_without_a_cookie_stays_with_one_version(tmp_path: Path) -> None:
    asked: list[str] = []

    def named(name: str) -> Callable[[Answers], tuple[int, bytes]]:
        def answer(request: Answers) -> tuple[int, bytes]:
            if request.command == "POST":
                asked.append(name)
            return good(request)

        return answer

    with an_api(named("canary")) as canary, an_api(named("other")) as other:
        file = tmp_path / "canary.json"
        for version in [secrets.token_hex(4) for _ in range(30)]:
            put(file, canary, 50, version)
            with pages(file, canary, other) as client:
                for _ in range(3):
                    upload(client, png(9), **PART)
            assert len(set(asked[-3:])) == 1
    assert set(asked) == {"canary", "other"}
