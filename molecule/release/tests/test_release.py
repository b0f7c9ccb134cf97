"""A model made live: what is on the host after a release, five that were refused, another one, and the way back."""

from __future__ import annotations

import json

from testinfra.host import Host

ROOT = "/var/lib/lightbox/model"
FIRST, SECOND, THIRD = "20260101T000000Z-first000", "20260102T000000Z-second00", "20260107T000000Z-third000"
URL = "http://127.0.0.1:5000"


def test_the_link_leads_to_the_model_that_serves(host: Host) -> None:
    assert host.file(f"{ROOT}/current").linked_to == f"{ROOT}/releases/{FIRST}"
    model = json.loads(host.check_output(f"curl --silent --fail {URL}/v1/model"))
    assert model["version"] == FIRST
    digest = host.check_output(f"sha256sum {ROOT}/current/best_model.keras").split()[0]
    assert model["loaded_sha256"]["best_model.keras"] == digest
    assert host.run(f"curl --silent --fail {URL}/ready").rc == 0


def test_it_predicts_what_it_predicted_when_it_was_trained(host: Host) -> None:
    answer = json.loads(host.check_output(f"curl --silent --fail --form file=@{ROOT}/current/smoke.png {URL}/predict"))
    assert answer["prediction"] == "Normal"


def test_the_record_has_every_event_and_no_refused_release(host: Host) -> None:
    lines = [line.split()[1:] for line in host.file(f"{ROOT}/releases.log").content_string.splitlines()]
    assert lines == [
        ["released", FIRST], ["released", SECOND], ["rolled-back-to", FIRST],
        ["released", SECOND], ["released", FIRST], ["released", THIRD], ["rolled-back-to", FIRST],
    ]  # fmt: skip


def test_what_was_refused_left_nothing(host: Host) -> None:
    assert host.check_output(f"ls {ROOT}/incoming") == ""
    # Two are kept: the live one and, at the last release, the one before it.
    assert sorted(host.check_output(f"ls {ROOT}/releases").split()) == [FIRST, THIRD]
    assert sorted(host.check_output(f"ls {ROOT}").split()) == ["current", "incoming", "releases", "releases.log"]


def test_release_and_rollback_failed_no_request(host: Host) -> None:
    answers = host.file("/run/visitor").content_string.split()
    assert len(answers) > 20
    assert set(answers) == {"200"}


def test_the_service_cannot_change_its_model(host: Host) -> None:
    for path in (ROOT, f"{ROOT}/releases/{FIRST}", f"{ROOT}/releases/{FIRST}/model.json"):
        assert host.file(path).user == "root"
        assert not host.file(path).mode & 0o022
