"""The flows decide the security groups and the reachability matrix, and the two agree."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from ansible.errors import AnsibleFilterError
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[2] / "plugins/filter"))
from flows import admits, check_flows, flow_matrix, flow_rules, known_ports

ROLES = ["proxy", "ui", "api", "monitor"]
GROUPS = {role: f"sg-{role}" for role in ROLES}
FLOWS = [
    {"from": "internet", "to": "proxy", "ports": [80, 443]},
    {"from": "admins", "to": "proxy", "ports": [22]},
    {"from": "proxy", "to": "ui", "ports": [5001], "why": "pages"},
    {"from": "api", "to": "api", "ports": [6379], "why": "one case store"},
    {"from": "monitor", "to": "all", "ports": [9100]},
]
HOSTS = [(f"p-{role}", role, f"10.0.0.{number}") for number, role in enumerate(ROLES, 4)]
SECOND_API = ("p-api2", "api", "10.0.0.9")


def test_rules_name_the_source():
    assert flow_rules(FLOWS, "proxy", ROLES, ["203.0.113.0/24"], GROUPS) == [
        {"proto": "tcp", "ports": ["80", "443"], "rule_desc": "", "cidr_ip": "0.0.0.0/0"},
        {"proto": "tcp", "ports": ["22"], "rule_desc": "", "cidr_ip": ["203.0.113.0/24"]},
        {"proto": "tcp", "ports": ["9100"], "rule_desc": "", "group_id": "sg-monitor"},
    ]
    assert flow_rules(FLOWS, "ui", ROLES, [], GROUPS)[0] == {
        "proto": "tcp", "ports": ["5001"], "rule_desc": "pages", "group_id": "sg-proxy",
    }  # fmt: skip


def test_all_leaves_out_its_own_role():
    assert flow_rules(FLOWS, "monitor", ROLES, [], GROUPS) == []


def test_a_role_that_talks_to_itself_names_its_own_group():
    assert {"proto": "tcp", "ports": ["6379"], "rule_desc": "one case store", "group_id": "sg-api"} in flow_rules(
        FLOWS, "api", ROLES, [], GROUPS
    )


def test_hosts_of_one_role_reach_one_another_where_a_flow_says_so():
    others = [host for host in HOSTS if host[1] != "api"]
    alone = flow_matrix(FLOWS, "api", others, known_ports(FLOWS, []))
    assert not [item for item in alone if item["port"] == 6379 and item["open"]]
    found = flow_matrix(FLOWS, "api", [*others, SECOND_API], known_ports(FLOWS, []))
    assert [(item["name"], item["port"]) for item in found if item["open"] and item["name"] == "p-api2"] == [
        ("p-api2", 6379)
    ]
    from_ui = flow_matrix(FLOWS, "ui", [*others, SECOND_API], known_ports(FLOWS, []))
    assert not [item for item in from_ui if item["name"] == "p-api2" and item["open"]]


def test_without_admin_networks_ssh_is_closed_to_the_outside():
    assert all(rule["ports"] != ["22"] for rule in flow_rules(FLOWS, "proxy", ROLES, [], GROUPS))


@pytest.mark.parametrize(
    ("flow", "word"),
    [
        ({"from": "nobody", "to": "ui", "ports": [1]}, "'from'"),
        ({"from": "ui", "to": "nobody", "ports": [1]}, "'to'"),
        ({"from": "ui", "to": "api", "ports": []}, "'ports'"),
        ({"from": "ui", "to": "api", "ports": [70000]}, "'ports'"),
        ({"from": "ui", "to": "api", "ports": ["http"]}, "'ports'"),
        ({"from": "ui", "to": "api", "ports": [1], "why": "the doctors' page"}, "'why'"),
        ({"from": "ui", "to": "api", "ports": [1], "why": "x" * 256}, "'why'"),
    ],
)
def test_a_wrong_flow_is_named(flow, word):
    assert word in check_flows([flow], ROLES)[0]
    with pytest.raises(AnsibleFilterError, match=word):
        flow_rules([flow], "ui", ROLES, [], GROUPS)


def test_ports_to_try_are_those_of_the_flows_and_the_closed_ones():
    assert known_ports(FLOWS, [9090]) == [22, 80, 443, 5001, 6379, 9090, 9100]


def test_the_outside_reaches_the_proxy_only():
    found = flow_matrix(FLOWS, "admins", HOSTS, known_ports(FLOWS, []))
    assert {(item["name"], item["port"]) for item in found if item["open"]} == {
        ("p-proxy", 22), ("p-proxy", 80), ("p-proxy", 443),
    }  # fmt: skip


flows_of_anyone = st.lists(
    st.fixed_dictionaries(
        {
            "from": st.sampled_from([*ROLES, "all", "internet", "admins"]),
            "to": st.sampled_from([*ROLES, "all"]),
            "ports": st.lists(st.integers(1, 65535), min_size=1, max_size=3),
        }
    ).filter(lambda flow: not flow["from"] == flow["to"] == "all"),
    max_size=6,
)


@given(flows_of_anyone, st.sampled_from(ROLES))
def test_rules_and_matrix_agree(flows, source):
    """A path is open in the matrix exactly when a rule of the target's group admits the source."""
    for item in flow_matrix(flows, source, HOSTS, known_ports(flows, [])):
        role = item["name"].removeprefix("p-")
        rules = flow_rules(flows, role, ROLES, ["203.0.113.0/24"], GROUPS)
        admitted = any(
            str(item["port"]) in rule["ports"]
            and (rule.get("cidr_ip") == "0.0.0.0/0" or rule.get("group_id") == f"sg-{source}")
            for rule in rules
        )
        assert item["open"] == admitted


def permissions(rules):
    """Return rules as AWS describes them once they are there: a permission for each range of ports."""
    found: dict[int, dict] = {}
    for rule in rules:
        for port in map(int, rule["ports"]):
            empty = {"ip_ranges": [], "ipv6_ranges": [], "user_id_group_pairs": [], "prefix_list_ids": []}
            one = found.setdefault(port, {"ip_protocol": "tcp", "from_port": port, "to_port": port, **empty})
            if "group_id" in rule:
                one["user_id_group_pairs"].append({"group_id": rule["group_id"], "description": rule["rule_desc"]})
            else:
                cidrs = [rule["cidr_ip"]] if isinstance(rule["cidr_ip"], str) else rule["cidr_ip"]
                one["ip_ranges"] += [{"cidr_ip": cidr, "description": rule["rule_desc"]} for cidr in cidrs]
    return list(found.values())


@pytest.mark.parametrize("role", ROLES)
def test_a_group_that_admits_the_flows_is_known_by_its_permissions(role):
    rules = flow_rules(FLOWS, role, ROLES, ["203.0.113.0/24", "198.51.100.7/32"], GROUPS)
    assert admits(permissions(rules), rules)
    more = {"proto": "tcp", "ports": ["8080"], "rule_desc": "", "cidr_ip": "0.0.0.0/0"}
    assert not admits(permissions([*rules, more]), rules)
    for index in range(len(rules)):
        assert not admits(permissions(rules[:index] + rules[index + 1 :]), rules)
    wide = [{"ip_protocol": "-1", "ip_ranges": [{"cidr_ip": "0.0.0.0/0"}]}]
    assert not admits(permissions(rules) + wide, rules)
    sixth = [{"ip_protocol": "tcp", "from_port": 22, "to_port": 22, "ipv6_ranges": [{"cidr_ipv6": "::/0"}]}]
    assert not admits(permissions(rules) + sixth, rules)


def test_a_flow_holds_where_its_condition_does():
    for holds in (True, False):
        flow = {"from": "internet", "to": "api", "ports": [5000], "if": holds}
        assert bool(flow_rules([flow], "api", ROLES, [], GROUPS)) is holds
        (found,) = [
            item for item in flow_matrix([flow], "admins", HOSTS, known_ports([flow], [])) if item["name"] == "p-api"
        ]
        assert found == {"name": "p-api", "address": "10.0.0.6", "port": 5000, "open": holds}
    assert "'if'" in check_flows([{"from": "ui", "to": "api", "ports": [1], "if": "no"}], ROLES)[0]


def test_a_flow_may_name_a_role_that_the_system_does_without():
    roles = ["proxy", "ui", "api"]
    assert "'from'" in check_flows(FLOWS, roles)[0]
    assert check_flows(FLOWS, roles, ["monitor"]) == []
    flows = [*FLOWS, {"from": "all", "to": "monitor", "ports": [19532]}]
    rules = flow_rules(flows, "api", roles, [], {role: GROUPS[role] for role in roles}, ["monitor"])
    assert [rule["group_id"] for rule in rules] == ["sg-api"]
    hosts = [host for host in HOSTS if host[1] != "monitor"]
    found = flow_matrix(flows, "ui", hosts, known_ports(flows, []))
    assert {item["port"] for item in found} >= {9100, 19532}, "the doctor knocks there too"
    assert not [item for item in found if item["open"] and item["port"] in (9100, 19532)]


def test_everybody_reaches_what_a_flow_from_all_leads_to():
    flows = [{"from": "all", "to": "monitor", "ports": [19532], "why": "journals"}]
    rules = flow_rules(flows, "monitor", ROLES, [], GROUPS)
    assert [rule["group_id"] for rule in rules] == ["sg-proxy", "sg-ui", "sg-api"]
    assert {rule["rule_desc"] for rule in rules} == {"journals"}
    assert flow_rules(flows, "api", ROLES, [], GROUPS) == []
    for source, is_open in (("api", True), ("proxy", True), ("monitor", False), ("admins", False), ("internet", False)):
        found = flow_matrix(flows, source, HOSTS, [19532])
        assert {item["name"] for item in found if item["open"]} == ({"p-monitor"} if is_open else set())
    assert "both" in check_flows([{"from": "all", "to": "all", "ports": [1]}], ROLES)[0]
