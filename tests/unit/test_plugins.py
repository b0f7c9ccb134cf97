"""The modules and the action plugin, where they can be tried without a cloud."""

from __future__ import annotations

import importlib.util
import json
import socket
import sys
import threading
from datetime import datetime, timezone
from pathlib import Path
from types import ModuleType

import pytest
from ansible.module_utils.testing import patch_module_args

PLUGINS = Path(__file__).parents[2] / "plugins"


def load(path: str) -> ModuleType:
    name = Path(path).stem
    spec = importlib.util.spec_from_file_location(f"lightbox_{name}", PLUGINS / path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


capacity = load("modules/ec2_capacity.py")
reachability = load("modules/reachability.py")
progress = load("action/training_progress.py")
doctor = load("filter/doctor.py")
monitoring = load("filter/monitoring.py")
costs = load("filter/costs.py")
releases = load("filter/releases.py")

VCPUS = {"t3.micro": 2, "g4dn.xlarge": 4, "p3.2xlarge": 8}
EVERYWHERE = {name: {"us-east-1a", "us-east-1b"} for name in VCPUS}


@pytest.mark.parametrize(
    ("instance_type", "code"),
    [
        ("t3.micro", "L-1216C47A"),
        ("m5.xlarge", "L-1216C47A"),
        ("g4dn.xlarge", "L-DB2E81BA"),
        ("vt1.3xlarge", "L-DB2E81BA"),
        ("p3.2xlarge", "L-417A185B"),
        ("x1.16xlarge", None),
    ],
)
def test_a_family_counts_against_its_quota(instance_type, code):
    assert capacity.quota_of(instance_type) == code


def test_a_zone_elsewhere_is_told_with_those_that_are_there():
    assert capacity.zone_problem("us-east-1b", "us-east-1", ["us-east-1a", "us-east-1b"]) is None
    problem = capacity.zone_problem("us-east-1z", "us-east-1", ["us-east-1b", "us-east-1a"])
    assert problem == "us-east-1z is not a zone of the region; network.zone can be one of: a, b"


def test_a_plan_that_fits_has_no_problem():
    limits = {"L-1216C47A": 8, "L-DB2E81BA": 4}
    problems, demand = capacity.assess(
        ["t3.micro", "t3.micro", "g4dn.xlarge"], ["t3.micro"], VCPUS, EVERYWHERE, limits, "us-east-1a"
    )
    assert problems == []
    assert demand["L-1216C47A"] == {"needed": 4, "running": 2, "limit": 8}


def test_a_quota_too_small_says_what_to_request():
    problems, _ = capacity.assess(["g4dn.xlarge"], [], VCPUS, EVERYWHERE, {"L-DB2E81BA": 0}, "us-east-1a")
    assert len(problems) == 1
    assert problems[0].startswith("4 vCPUs are needed for g4dn.xlarge and 0 run already")
    assert "--quota-code L-DB2E81BA --desired-value 4" in problems[0]


def test_what_the_spot_quota_has_no_room_for_counts_on_demand():
    fits = capacity.without_spot(["g4dn.xlarge", "t3.micro"], [], VCPUS, {"L-DB2E81BA": 4, "L-1216C47A": 2})
    assert fits == ([], [])
    missed, notes = capacity.without_spot(["g4dn.xlarge"], ["g4dn.xlarge"], VCPUS, {"L-DB2E81BA": 4})
    assert missed == ["g4dn.xlarge"]
    assert notes == [
        "g4dn.xlarge will run on demand: on spot 8 vCPUs would run, but the quota L-3819A6DF (All G and VT Spot "
        "Instance Requests) is 4"
    ]
    # A type that does not exist is one on spot no more than on demand.
    problems, demand = capacity.assess([], [], VCPUS, {}, {}, "us-east-1a", ["t9.giant"])
    assert "t9.giant is not an EC2 instance type" in problems[0]
    assert demand == {}


def test_what_already_runs_alone_is_no_problem():
    problems, _ = capacity.assess([], ["g4dn.xlarge"], VCPUS, {}, {"L-DB2E81BA": 0}, "us-east-1a")
    assert problems == []


def test_types_that_do_not_exist_or_are_not_offered_are_named():
    offers = {"t3.micro": {"us-east-1a"}, "p3.2xlarge": {"us-east-1c", "us-east-1b"}}
    problems, _ = capacity.assess(["t9.giant", "p3.2xlarge", "g4dn.xlarge"], [], VCPUS, offers, {}, "us-east-1a")
    assert "t9.giant is not an EC2 instance type" in problems[0]
    assert "g4dn.xlarge is not offered in us-east-1a; no zone of the region does" in problems[1]
    assert "p3.2xlarge is not offered in us-east-1a; us-east-1b, us-east-1c offer it: set `network.zone`" in problems[2]


def test_a_port_is_open_refused_or_closed():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        assert reachability.knock("127.0.0.1", port, 1) == "open"
    assert reachability.knock("127.0.0.1", port, 1) == "refused"


@pytest.mark.parametrize("is_open", [True, False])
def test_a_path_that_should_be_open_is_waited_for_longer(capsys, is_open):
    with socket.socket() as listener, socket.socket() as first:
        listener.bind(("127.0.0.1", 0))
        # The first fills the queue, and until it is accepted another hears nothing; TCP asks once more after a second.
        listener.listen(0)
        first.connect(listener.getsockname())
        accepted = threading.Timer(0.5, listener.accept)
        accepted.start()
        target = {"name": "late", "address": "127.0.0.1", "port": listener.getsockname()[1], "open": is_open}
        with patch_module_args({"targets": [target], "timeout": 20, "silence": 0.2}), pytest.raises(SystemExit):
            reachability.main()
        accepted.join()
    assert json.loads(capsys.readouterr().out)["wrong"] == []


def test_a_path_is_judged_by_the_network_not_by_who_listens():
    def target(port: int, is_open: bool) -> dict[str, object]:
        return {"name": "api2", "address": "10.0.0.9", "port": port, "open": is_open}

    # No second case store listens on the second API host: the path to it is there, and that is all a flow says.
    assert reachability.amiss([target(6379, True), target(5000, True)], ["refused", "open"]) == []
    assert reachability.amiss([target(6379, True)], ["closed"]) == [{**target(6379, True), "state": "closed"}]
    assert [item["state"] for item in reachability.amiss([target(1, False)] * 3, ["refused", "open", "closed"])] == [
        "refused", "open",
    ]  # fmt: skip


def test_progress_is_told_in_one_line():
    line = progress.describe(
        {"state": "training", "epoch": 2, "epochs": 8, "step": 31, "steps": 122, "images_per_second": 210.4,
         "loss": 0.2, "accuracy": 0.91, "val_accuracy": None, "val_auroc": 0.97, "eta_seconds": 95}
    )  # fmt: skip
    assert line == "epoch 2/8, step 31/122, 210 images/s, loss 0.2000, accuracy 0.9100, val_auroc 0.9700, 1:35 left"
    assert progress.describe({"state": "exporting", "message": "model.onnx"}) == "exporting: model.onnx"
    assert progress.describe({}) == "preparing"


def test_a_finding_that_is_not_well_stands_out():
    assert doctor.finding_line({"name": "API ready", "ok": False, "detail": "no\n"}).startswith("FAIL  API ready")
    assert doctor.finding_line({"name": "API ready", "ok": True, "detail": "yes"}).startswith("ok    API ready")


def test_paths_that_are_wrong_are_named():
    assert doctor.wrong_paths({"tried": 40, "wrong": []}) == "40 paths as declared"
    assert doctor.wrong_paths({"tried": 40, "wrong": [{"name": "api", "port": 6379, "state": "open"}]}) == (
        "api:6379 is open"
    )


def test_a_target_is_named_as_its_host_and_knows_the_unit_that_answers_there():
    assert monitoring.scrape_targets([("p-ui", "ui", "10.0.2.4")], 5001) == [
        {"addresses": ["10.0.2.4:5001"], "labels": {"instance": "p-ui", "role": "ui"}}
    ]
    (target,) = monitoring.scrape_targets([("p-trainer", "trainer", "10.0.3.4")], 8000, "train.service")
    assert target["labels"] == {"instance": "p-trainer", "role": "trainer", "unit": "train.service"}


def test_an_idle_training_host_is_no_fault_and_a_silent_training_is():
    def target(instance: str, health: str, **labels: str) -> dict[str, object]:
        return {"scrapeUrl": f"http://{instance}", "health": health, "labels": {"instance": instance, **labels}}

    ui, trainer = target("ui", "up"), target("trainer", "down", unit="train.service")
    assert monitoring.targets_amiss([ui, trainer], []) == []
    assert monitoring.targets_amiss([ui, trainer], [trainer["labels"]]) == ["http://trainer"]
    other_unit = {"instance": "trainer", "unit": "other.service"}
    assert monitoring.targets_amiss([ui, trainer], [other_unit]) == []
    assert monitoring.targets_amiss([target("ui", "down"), trainer], []) == ["http://ui"]
    assert monitoring.targets_amiss([target("ui", "unknown")], []) == ["http://ui"]


def test_rules_that_fail_and_alerts_that_fire_are_named():
    def alert(name: str, severity: str, state: str) -> dict[str, object]:
        labels = {"alertname": name, "severity": severity}
        return {"labels": labels, "annotations": {"summary": f"{name} says"}, "state": state}

    told = {
        "groups": [
            {"rules": [
                {"type": "recording", "name": "a:b", "health": "err", "lastError": "many-to-many"},
                {"type": "recording", "name": "c:d", "health": "unknown"},
                {"type": "alerting", "name": "Down", "health": "ok", "alerts": [alert("Down", "critical", "firing"),
                                                                                alert("Down", "critical", "pending")]},
            ]},
            {"rules": [{"type": "alerting", "name": "Old", "health": "ok",
                        "alerts": [alert("Old", "warning", "firing")]}]},
        ]
    }  # fmt: skip
    assert monitoring.rules_amiss(told) == ["a:b: many-to-many", "c:d: not evaluated yet"]
    assert monitoring.alerts_firing(told) == ["Down (critical): Down says", "Old (warning): Old says"]
    assert monitoring.alerts_firing(told, "critical") == ["Down (critical): Down says"]
    assert monitoring.rules_amiss({"groups": []}) == monitoring.alerts_firing({"groups": []}) == []


def test_a_host_costs_its_price_for_as_long_as_it_is_up():
    def host(kind: str, launched: object) -> dict[str, object]:
        return {"tags": {"Name": "p-trainer"}, "instance_type": kind, "launch_time": launched}

    prices = {"us-east-1": {"g4dn.xlarge": 0.526}}
    now = datetime(2026, 1, 2, 1, 30, tzinfo=timezone.utc).timestamp()
    # Ansible hands the time over as text, in one form or the other.
    for launched in (
        "2026-01-01T23:00:00+00:00",
        "2026-01-01T23:00:00Z",
        datetime(2026, 1, 1, 23, tzinfo=timezone.utc),
    ):
        assert costs.costs([host("g4dn.xlarge", launched)], prices, "us-east-1", now) == [
            "p-trainer (g4dn.xlarge) has been up for 2:30 h: 1.31 USD at 0.526 USD an hour, on demand"
        ]
    spot = {**host("g4dn.xlarge", "2026-01-01T23:00:00Z"), "instance_lifecycle": "spot"}
    assert costs.costs([spot], prices, "us-east-1", now) == [
        "p-trainer (g4dn.xlarge) has been up for 2:30 h on spot: at most the on-demand price of 1.31 USD, "
        "0.526 USD an hour"
    ]
    for kind, region in (("g5.xlarge", "us-east-1"), ("g4dn.xlarge", "eu-west-1")):
        (told,) = costs.costs([host(kind, "2026-01-01T23:00:00Z")], prices, region, now)
        assert (
            told == f"p-trainer ({kind}) has been up for 2:30 h; instance_prices does not say what it costs in {region}"
        )


@pytest.mark.parametrize(
    ("events", "live", "present", "before"),
    [
        ("released A", "A", ["A"], []),
        ("released A\nreleased B", "B", ["A", "B"], ["A"]),
        ("released A\nreleased B\nreleased C", "C", ["A", "C"], ["A"]),
        ("released A\nreleased B\nrolled-back-to A", "A", ["A", "B"], []),
        ("released A\nreleased B\nrolled-back-to A\nreleased B", "B", ["A", "B"], ["A"]),
        ("released A\nreleased B\nrolled-back-to A\nreleased C", "C", ["A", "B", "C"], ["A"]),
        ("released A\nreleased B\nreleased A", "A", ["A", "B"], ["B"]),
        ("released A\nreleased B\nreleased A\nrolled-back-to B", "B", ["A", "B"], []),
        ("released A\nreleased B\nreleased C\nrolled-back-to A", "A", ["A", "B", "C"], []),
        ("released A", "B", ["A", "B"], ["A"]),
        ("", "A", ["A"], []),
    ],
)
def test_the_record_tells_what_was_live_before(events, live, present, before):
    record = "".join(f"2026-01-01T00:00:00Z {line}\n" for line in events.splitlines())
    assert releases.releases_before(record, live, present) == before


def test_the_record_tells_who_and_why_and_old_lines_tell_neither():
    record = "2026-01-01T00:00:00Z released A\n2026-01-02T00:00:00Z released B ada auroc 0.9, live 0.8\n\nbroken\n"
    assert releases.release_record(record) == [
        {"time": "2026-01-01T00:00:00Z", "event": "released", "version": "A", "by": "", "why": ""},
        {
            "time": "2026-01-02T00:00:00Z",
            "event": "released",
            "version": "B",
            "by": "ada",
            "why": "auroc 0.9, live 0.8",
        },
    ]
    assert releases.releases_before(record, "B", ["A", "B"]) == ["A"]


POLICY = {
    "gate": {"metric": "auroc", "minimum": 0.7, "tolerance": 0.01},
    "approval": "auto",
    "watch": {"seconds": 60, "errors": 0.05, "p99_seconds": 5, "requests": 20},
}


def test_a_policy_that_can_be_followed_has_no_problem():
    assert releases.release_policy_problems(POLICY) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"approval": "perhaps"}, "release_policy.approval is 'perhaps'; it can be auto or manual."),
        ({"gate": None}, "release_policy.gate is missing."),
        ({"gate": {"metric": "", "minimum": 0.7, "tolerance": 0}}, "release_policy.gate.metric is missing"),
        ({"gate": {"metric": "auroc", "tolerance": 0}}, "release_policy.gate.minimum is None, not a number."),
        ({"gate": {**POLICY["gate"], "tolerance": -1}}, "release_policy.gate.tolerance is -1; it can be 0 or more."),
        ({"watch": {**POLICY["watch"], "errors": 5}}, "release_policy.watch.errors is 5; it can be from 0 to 1."),
        ({"canary": "some"}, "release_policy.canary is 'some', not a number."),
        ({"canary": 101}, "release_policy.canary is 101; it can be from 0 to 100."),
        ({"canary": 5, "watch": {**POLICY["watch"], "seconds": 0}}, "release_policy.canary needs a watch"),
        ({"watch": {**POLICY["watch"], "requests": "many"}}, "release_policy.watch.requests is 'many', not a number."),
    ],
)
def test_what_is_wrong_with_a_policy_is_named(change, words):
    problems = releases.release_policy_problems({**POLICY, **change})
    assert len(problems) == 1
    assert words in problems[0]


@pytest.mark.parametrize("policy", [None, {}, "auto"])
def test_a_policy_that_is_not_there_is_missed(policy):
    assert releases.release_policy_problems(policy) == [
        "release_policy is missing: it holds gate, approval, canary and watch."
    ]


def test_a_canary_is_the_first_host_where_others_serve_the_others():
    policy = {**POLICY, "canary": 10}
    assert releases.release_policy_problems(policy) == []
    assert releases.canary_host(policy, {"b": "A", "a": "A"}, "C") == "a"
    assert releases.canary_host(policy, {"a": "A", "b": "", "c": "B"}, "C") == "a"
    for before in ({"a": "A"}, {"a": "A", "b": ""}, {"a": "", "b": "A"}, {"a": "C", "b": "A"}, {}):
        assert releases.canary_host(policy, before, "C") == ""
    assert releases.canary_host(POLICY, {"a": "A", "b": "A"}, "C") == ""
    assert releases.canary_host({**policy, "watch": {**POLICY["watch"], "seconds": 0}}, {"a": "A", "b": "A"}, "C") == ""


def test_a_host_goes_back_to_what_it_served_and_a_new_one_to_what_the_others_do():
    before = {"a": "A", "b": "B", "c": ""}
    assert [releases.way_back(before, host) for host in before] == ["A", "B", "A"]
    assert releases.way_back({"a": "", "b": ""}, "a") == ""


def test_a_release_that_failed_is_told_host_by_host():
    before = {"a": "A", "b": "A", "c": "", "d": ""}
    assert releases.release_outcome("C", before, {"b": "auroc 0.1."}, {}, ["a", "c"]) == (
        "C is not released. b: auroc 0.1. What serves now: a A, b A, c A, d nothing yet."
    )
    assert releases.release_outcome("C", {"a": "A", "b": "A"}, {"b": "no room"}, {"a": "cannot be reached"}) == (
        "C is not released. b: no room. What serves now: b A. a could not be brought back (cannot be reached): "
        "run playbooks/rollback.yml -e version=A when it can be reached."
    )
    told = releases.release_outcome("C", {"a": "", "b": ""}, {"b": "no room"}, {})
    assert told.endswith("No host served a model before, so there is nothing to go back to.")


def bundle(version, synthetic=False, approval=None):
    data = {"source": "synthetic" if synthetic else "directory", "digest": "abcdef0123", "synthetic": synthetic}
    return {
        "version": version, "created": "2026-01-01T00:00:00Z", "data": {**data, "images": 5856},
        "metrics": {"accuracy": 0.9, "auroc": 0.95}, "approval": approval,
    }  # fmt: skip


def test_the_table_of_models_tells_data_figures_and_where_each_is_or_was_live():
    unknown = {"version": "E", "created": None, "data": {}, "metrics": {}, "approval": None}
    shown = releases.bundles_table(
        [bundle("D"), bundle("C"), bundle("B", approval={"approved_by": "ada"}), bundle("A", synthetic=True), unknown],
        {"api": "C", "api2": "C"},
        ["t released A\nt released B ada why\n", "t released C\n"],
        manual=True,
    ).splitlines()
    assert shown[0].split() == ["version", "trained", "data", "images", "accuracy", "AUROC", "state"]
    assert shown[1].split(maxsplit=8) == [
        "D", "2026-01-01T00:00:00Z", "directory", "real", "abcdef01", "5856", "0.9000", "0.9500", "not approved",
    ]  # fmt: skip
    assert shown[2].endswith("live on api, api2")
    assert shown[3].endswith("was live; approved by ada")
    assert "synthetic abcdef01" in shown[4] and "synthetic synthetic" not in shown[4]
    assert shown[4].endswith("was live")
    assert shown[5].split() == ["E", "-", "-", "-", "-", "-", "not", "approved"]
    assert releases.bundles_table([bundle("D")], {}, []).endswith("  -")
    assert "train a model first" in releases.bundles_table([], {}, [])


def test_the_records_of_all_hosts_are_shown_in_the_order_of_time():
    shown = releases.record_table(
        {"b": "2026-01-02T00:00:00Z released B ada why not\n", "a": "2026-01-01T00:00:00Z released A\n"}
    )
    assert [line.split(maxsplit=5) for line in shown.splitlines()[1:]] == [
        ["2026-01-01T00:00:00Z", "a", "released", "A", "-", "-"],
        ["2026-01-02T00:00:00Z", "b", "released", "B", "ada", "why not"],
    ]
    assert releases.record_table({"a": ""}) == "Nothing has been released yet."
