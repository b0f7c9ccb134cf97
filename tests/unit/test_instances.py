"""Only instances that do not run as planned are asked for."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "plugins/filter"))
from instances import launch_problems, spot_problems, to_buy_on_spot, to_settle

PLANS = [
    {"name": "api", "role": "api", "subnet": "app", "type": "t3.medium", "bucket": "read"},
    {"name": "ui", "role": "ui", "subnet": "app", "type": "t3.micro"},
]
WANTED = {"subnets": {"app": "subnet-1"}, "groups": {"api": "sg-api", "ui": "sg-ui"}, "tags": {"System": "p"}}
RUNNING = [
    {
        "state": {"name": "running"},
        "instance_type": plan["type"],
        "subnet_id": "subnet-1",
        "security_groups": [{"group_id": f"sg-{plan['role']}"}],
        "iam_instance_profile": {"arn": "arn:aws:iam::1:instance-profile/lightbox-p-api"} if "bucket" in plan else None,
        "key_name": "lightbox-p",
        "metadata_options": {"http_tokens": "required"},
        "tags": {"Name": f"p-{plan['name']}", "System": "p", "Role": plan["role"]},
    }
    for plan in PLANS
]


def test_what_runs_as_planned_is_left_alone():
    assert to_settle(PLANS, RUNNING, "p", WANTED) == []


def test_what_does_not_exist_is_asked_for():
    assert to_settle(PLANS, [], "p", WANTED) == PLANS
    assert to_settle(PLANS, RUNNING[1:], "p", WANTED) == PLANS[:1]


@pytest.mark.parametrize(
    "change",
    [
        {"state": {"name": "stopped"}},
        {"instance_type": "t3.nano"},
        {"subnet_id": "subnet-2"},
        {"security_groups": []},
        {"security_groups": [{"group_id": "sg-api"}, {"group_id": "sg-open"}]},
        {"iam_instance_profile": None},
        {"key_name": "other"},
        {"metadata_options": {"http_tokens": "optional"}},
        {"tags": {"Name": "p-api", "System": "p", "Role": "ui"}},
        {"tags": {"Name": "p-api", "Role": "api"}},
    ],
)
def test_every_difference_is_settled(change):
    changed = copy.deepcopy(RUNNING)
    changed[0].update(change)
    assert to_settle(PLANS, changed, "p", WANTED) == PLANS[:1]


def test_an_instance_that_could_not_be_started_is_named_with_zone_reason_and_remedy():
    trainer = {"name": "trainer", "type": "g4dn.xlarge"}
    said = "An error occurred (InsufficientInstanceCapacity) when calling the RunInstances operation: none."
    results = [{"item": PLANS[0], "changed": True}, {"item": trainer, "failed": True, "msg": said}]
    (problem,) = launch_problems(results, "us-east-1a", {"g4dn.xlarge": ["us-east-1a", "us-east-1c"]})
    assert problem == (
        f"trainer (g4dn.xlarge) could not be started in us-east-1a: {said} Run again later, or choose another type "
        "in `instances`; a network made in us-east-1c could have it too."
    )
    assert (
        "quota for this type raised"
        in launch_problems([{**results[1], "msg": "(VcpuLimitExceeded)"}], "us-east-1a", {})[0]
    )
    assert (
        "(Other) Correct it and run again." in launch_problems([{**results[1], "msg": "(Other)"}], "us-east-1a", {})[0]
    )


def test_what_exists_is_not_bought_on_spot_again():
    plans = [{"name": "trainer", "market": "spot"}, {"name": "other", "market": "on-demand"}, {"name": "api"}]
    assert to_buy_on_spot(plans, [], "p") == plans[:1]
    assert to_buy_on_spot(plans, [{"tags": {"Name": "p-trainer"}}], "p") == []


def test_what_the_spot_market_has_no_room_for_is_named_with_the_reason_and_what_happens_instead():
    trainer = {"name": "trainer", "type": "g4dn.xlarge"}
    said = "An error occurred (InsufficientInstanceCapacity): There is no Spot capacity available."
    assert spot_problems([{"item": trainer, "msg": said}], "us-east-1a") == [
        f"trainer (g4dn.xlarge) is not to be had on spot in us-east-1a: {said} It runs on demand."
    ]
    (told,) = spot_problems([{"item": trainer, "msg": "(MaxSpotInstanceCountExceeded)"}], "us-east-1a")
    assert "the account's quota of spot instances of this family is used up" in told
