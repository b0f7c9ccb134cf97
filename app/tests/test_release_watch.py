"""The watch over a release: what it counts, how it judges, and a real service whose new model fails."""

from __future__ import annotations

import hashlib
import math
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving_kit import Load, RedisServer, Start, model_bytes, png, write_bundle

from lightbox.release_watch import TOO_BAD, Counts, Limits, WatchError, judge, main, quantile, watch

LIMITS = Limits(errors=0.05, p99=1.0, requests=10)


def metrics(answers: dict[tuple[str, int], int], within: dict[str, int] | None = None) -> str:
    """Return what a service tells that has given so many answers by route and status, so many of them in time."""
    lines = ["# TYPE lightbox_http_requests_total counter"]
    for (route, status), count in answers.items():
        labels = f'app="api",method="POST",route="{route}",status="{status}"'
        lines.append(f"lightbox_http_requests_total{{{labels}}} {count}")
    lines.append("# TYPE lightbox_http_request_seconds histogram")
    for bound, count in (within or {"1.0": sum(answers.values()), "+Inf": sum(answers.values())}).items():
        lines.append(f'lightbox_http_request_seconds_bucket{{app="api",route="/predict",le="{bound}"}} {count}')
    return "\n".join(lines) + "\n"


def test_every_request_counts_but_those_of_the_monitor():
    counts = Counts.read(metrics({("/predict", 200): 7, ("/predict", 500): 2, ("/ready", 503): 40, ("/other", 404): 1}))
    assert (counts.requests, counts.failed) == (10, 2)


def test_only_what_was_answered_since_the_release_counts():
    before = Counts.read(metrics({("/predict", 200): 100, ("/predict", 500): 50}))
    now = Counts.read(metrics({("/predict", 200): 120, ("/predict", 500): 51}))
    since = now.since(before)
    assert (since.requests, since.failed, since.within[math.inf]) == (21, 1, 21)


def test_a_service_that_began_anew_counts_from_nothing():
    before, now = (Counts.read(metrics({("/predict", 200): count})) for count in (100, 3))
    assert now.since(before).requests == 3


@pytest.mark.parametrize(
    ("within", "expected"),
    [
        ({}, 0.0),
        ({0.1: 0, math.inf: 0}, 0.0),
        ({0.1: 100, 1.0: 100, math.inf: 100}, 0.099),
        ({0.1: 98, 1.0: 100, math.inf: 100}, 0.55),
        ({0.1: 50, 1.0: 50, math.inf: 100}, 1.0),
    ],
)
def test_the_quantile_is_that_of_prometheus(within, expected):
    assert quantile(0.99, within) == pytest.approx(expected)


def test_too_few_requests_are_no_ground_to_go_back():
    assert judge(Counts(9, 9, {math.inf: 9}), LIMITS) == "9 requests seen, too few to judge by (10)"


def test_too_many_errors_and_too_slow_answers_are_told_with_their_numbers():
    assert judge(Counts(100, 5, {0.1: 100, math.inf: 100}), LIMITS).startswith("5.0% of 100 requests failed")
    with pytest.raises(WatchError, match=r"6\.0% of 100 requests failed.*more than 5\.0% failed"):
        judge(Counts(100, 6, {0.1: 100, math.inf: 100}), LIMITS)
    with pytest.raises(WatchError, match=r"within 5\.00 s: slower than 1 s"):
        judge(Counts(100, 0, {0.1: 90, 5.0: 90, math.inf: 100}), LIMITS)


def test_a_service_that_does_not_answer_is_not_well(capsys):
    assert main(["http://127.0.0.1:9/metrics", "--seconds", "0"]) == TOO_BAD
    assert "does not tell its metrics" in capsys.readouterr().err


def fails_on_black(directory: Path) -> Path:
    """Write a bundle that predicts its smoke image and gives no number for a black picture."""

    def change(contract: dict[str, Any]) -> None:
        content = model_bytes(math.inf, 0.0)
        (directory / "model.onnx").write_bytes(content)
        contract["files"]["model.onnx"] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        contract["smoke"] = {"file": "smoke.png", "scores": [1.0], "label": "Pneumonia"}

    return write_bundle(directory, "20260102T000000Z-onblack0", change=change)


def test_a_model_that_fails_in_use_is_found_and_one_that_does_not_is_let_be(
    tmp_path: Path, start: Start, redis_server: RedisServer
) -> None:
    link = tmp_path / "current"
    link.symlink_to(write_bundle(tmp_path / "good"))
    server = start("lightbox.api.app:app", {"LIGHTBOX_BUNDLE": str(link), **redis_server.environment})

    def ask(client: httpx.Client) -> int:
        return client.post(f"{server.url}/v1/predictions", files={"file": ("black.png", png(0))}).status_code

    limits = Limits(errors=0.05, p99=20, requests=5)
    with Load(ask, threads=1) as load:
        assert watch(f"{server.url}/metrics", 2, limits, 0.2).startswith("0.0% of ")
        new = tmp_path / "new"
        new.symlink_to(fails_on_black(tmp_path / "bad"))
        new.replace(link)
        server.reload()
        begun = time.monotonic()
        with pytest.raises(WatchError, match=r"failed, .*more than 5\.0% failed"):
            watch(f"{server.url}/metrics", 60, limits, 0.2)
        assert time.monotonic() - begun < 50, "it does not wait for the time to be over"
    assert set(load.answers) == {201, 500}
