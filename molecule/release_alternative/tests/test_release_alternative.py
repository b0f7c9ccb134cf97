"""Models of another service at another place, gated by a metric of which less is better, one kept."""

from __future__ import annotations

import json

from testinfra.host import Host

ROOT = "/srv/models"
FIRST, SECOND, THIRD = "20260101T000000Z-first000", "20260102T000000Z-second00", "20260107T000000Z-third000"


def test_the_third_model_serves(host: Host) -> None:
    model = json.loads(host.check_output("curl --silent --fail http://127.0.0.1:5050/v1/model"))
    assert model["version"] == THIRD
    assert host.file(f"{ROOT}/current").linked_to == f"{ROOT}/releases/{THIRD}"
    assert host.service("lightbox-scan").is_running
    assert not host.file("/var/lib/lightbox/model").exists


def test_one_release_is_kept(host: Host) -> None:
    assert host.check_output(f"ls {ROOT}/releases").split() == [THIRD]
    assert host.check_output(f"ls {ROOT}/incoming") == ""


def test_the_record_says_who_and_why(host: Host) -> None:
    lines = [line.split(maxsplit=4)[1:] for line in host.file(f"{ROOT}/releases.log").content_string.splitlines()]
    assert [(event, version, who) for event, version, who, _ in lines] == [
        ("released", FIRST, "Grace_Hopper"), ("released", SECOND, "Grace_Hopper"),
        ("rolled-back-to", FIRST, "automatic"), ("released", THIRD, "Grace_Hopper"),
    ]  # fmt: skip
    assert "the first of its kind" in lines[0][3]
    assert "brier 0.0800, live 0.0800" in lines[1][3]
