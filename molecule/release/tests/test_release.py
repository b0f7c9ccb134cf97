"""A model made live: what is on the host after releases, some of them refused, the ways back, and one taken back."""

from __future__ import annotations

import json

from testinfra.host import Host

ROOT = "/var/lib/lightbox/model"
FIRST, SECOND, THIRD = "20260101T000000Z-first000", "20260102T000000Z-second00", "20260107T000000Z-third000"
ON_BLACK, HOPELESS = "20260108T000000Z-onblack0", "20260109T000000Z-hopeless"
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
    lines = [line.split(maxsplit=4)[1:] for line in host.file(f"{ROOT}/releases.log").content_string.splitlines()]
    assert [(event, version) for event, version, _, _ in lines] == [
        ("released", FIRST), ("released", SECOND), ("rolled-back-to", FIRST),
        ("released", SECOND), ("released", FIRST), ("released", THIRD), ("rolled-back-to", FIRST),
        ("rolled-back-to", THIRD), ("rolled-back-to", SECOND), ("rolled-back-to", FIRST),
        ("released", HOPELESS), ("rolled-back-to", FIRST),
        ("released", ON_BLACK), ("rolled-back-to", FIRST),
    ]  # fmt: skip
    assert lines[0][2:] == ["Ada_Lovelace", "auroc 0.9500, no model is live"]
    assert lines[1][3] == "auroc 0.9500, live 0.9500"
    assert lines[7][2:] == ["Ada_Lovelace", "a doctor asked"]
    assert lines[8][3] == "-"
    assert lines[10][3] == "it serves elsewhere"
    assert lines[-1][2] == "automatic"
    assert "more than 5.0% failed" in lines[-1][3]


def test_what_was_refused_left_nothing(host: Host) -> None:
    assert host.check_output(f"ls {ROOT}/incoming") == ""
    # The last release that lasted left two, the live one and the one before it. Since then one was taken back.
    assert sorted(host.check_output(f"ls {ROOT}/releases").split()) == [FIRST, ON_BLACK, HOPELESS]
    assert sorted(host.check_output(f"ls {ROOT}").split()) == ["current", "incoming", "releases", "releases.log"]


def test_release_and_rollback_failed_no_request(host: Host) -> None:
    answers = host.file("/run/visitor").content_string.split()
    assert len(answers) > 20
    assert set(answers) == {"200"}


def test_the_service_cannot_change_its_model(host: Host) -> None:
    for path in (ROOT, f"{ROOT}/releases/{FIRST}", f"{ROOT}/releases/{FIRST}/model.json"):
        assert host.file(path).user == "root"
        assert not host.file(path).mode & 0o022
