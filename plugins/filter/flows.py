"""Filters that turn the list of flows into security group rules and into a reachability matrix.

A flow is a mapping ``{from, to, ports}``. ``from`` is a role, ``all``, ``internet`` or ``admins``; ``to`` is a role or
``all``, and not both are ``all``. With ``if`` it is a flow where that is true. Everything that is not a flow is closed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from ansible.errors import AnsibleFilterError

# What EC2 takes as the description of a rule.
WHY = re.compile(r"[a-zA-Z0-9 ._\-:/()#,@\[\]+=&;{}!$*]{0,255}")
OUTSIDE = ("internet", "admins")


def _holds(flow: dict[str, Any]) -> bool:
    return bool(flow.get("if", True))


def _targets(flow: dict[str, Any], roles: list[str]) -> list[str]:
    """Return the roles that a flow leads to; ``all`` leaves out the role it comes from."""
    if flow["to"] == "all":
        return [role for role in roles if role != flow["from"]]
    return [flow["to"]]


def _sources(flow: dict[str, Any], role: str, roles: list[str]) -> list[str]:
    """Return whom a flow lets in to a role; ``all`` leaves out that role itself."""
    return [other for other in roles if other != role] if flow["from"] == "all" else [flow["from"]]


def check_flows(flows: list[dict[str, Any]], roles: list[str], optional: Iterable[str] = ()) -> list[str]:
    """Return what is wrong with the flows, in words; an empty list when nothing is.

    Args:
        flows: the flows of the system.
        roles: every role of the system.
        optional: roles that it may do without: a flow that names one is no mistake.
    """
    faults = []
    known = (*roles, *optional)
    for flow in flows:
        if not isinstance(flow.get("if", True), bool):
            faults.append(f"flow {flow}: 'if' must be true or false")
        if flow["from"] not in (*known, "all", *OUTSIDE):
            faults.append(f"flow {flow}: 'from' is neither a role of `instances` nor one of all, {', '.join(OUTSIDE)}")
        if flow["from"] == flow["to"] == "all":
            faults.append(f"flow {flow}: 'from' and 'to' cannot both be 'all'")
        if flow["to"] not in (*known, "all"):
            faults.append(f"flow {flow}: 'to' is neither a role of `instances` nor 'all'")
        if not flow["ports"] or not all(isinstance(port, int) and 0 < port < 65536 for port in flow["ports"]):
            faults.append(f"flow {flow}: 'ports' must be a list of numbers from 1 to 65535")
        if not WHY.fullmatch(flow.get("why", "")):
            faults.append(
                f"flow {flow}: 'why' may have letters without accents, digits, spaces and ._-:/()#,@[]+=&;{{}}!$* only"
            )
    return faults


def flow_rules(
    flows: list[dict[str, Any]],
    role: str,
    roles: list[str],
    admin_cidrs: list[str],
    group_ids: dict[str, str],
    optional: Iterable[str] = (),
) -> list[dict[str, Any]]:
    """Return the inbound rules of one role's security group, as amazon.aws.ec2_security_group takes them.

    Args:
        flows: the flows of the system.
        role: the role whose group is wanted.
        roles: every role of the system.
        admin_cidrs: the networks that `admins` stands for.
        group_ids: security group id by role.
        optional: see `check_flows`.
    """
    faults = check_flows(flows, roles, optional)
    if faults:
        raise AnsibleFilterError("; ".join(faults))
    rules: list[dict[str, Any]] = []
    for flow in flows:
        if not _holds(flow) or role not in _targets(flow, roles):
            continue
        rule = {"proto": "tcp", "ports": [str(port) for port in flow["ports"]], "rule_desc": flow.get("why", "")}
        if flow["from"] == "internet":
            rule["cidr_ip"] = "0.0.0.0/0"
        elif flow["from"] == "admins":
            if not admin_cidrs:
                continue
            rule["cidr_ip"] = list(admin_cidrs)
        else:
            sources = [source for source in _sources(flow, role, roles) if source in roles]
            rules += [{**rule, "group_id": group_ids[source]} for source in sources]
            continue
        rules.append(rule)
    return rules


def _rule_set(permissions: list[dict[str, Any]]) -> set[tuple[str, int, int, str, str]]:
    """Return what permissions admit, as AWS describes them, one element per protocol, ports, source and reason."""
    found = set()
    for one in permissions:
        ports = (str(one["ip_protocol"]), int(one.get("from_port", -1)), int(one.get("to_port", -1)))
        for key, source in (
            ("ip_ranges", "cidr_ip"),
            ("ipv6_ranges", "cidr_ipv6"),
            ("user_id_group_pairs", "group_id"),
            ("prefix_list_ids", "prefix_list_id"),
        ):
            found |= {(*ports, str(item[source]), str(item.get("description") or "")) for item in one.get(key) or []}
    return found


def admits(permissions: list[dict[str, Any]], rules: list[dict[str, Any]]) -> bool:
    """Return whether a security group admits what rules say and nothing else.

    Args:
        permissions: `ip_permissions` of the group, as amazon.aws.ec2_security_group_info gives them.
        rules: as `flow_rules` gives them.
    """
    wanted = set()
    for rule in rules:
        sources = rule.get("cidr_ip", rule.get("group_id"))
        for source in [sources] if isinstance(sources, str) else sources or []:
            wanted |= {(rule["proto"], int(port), int(port), source, rule["rule_desc"]) for port in rule["ports"]}
    return _rule_set(permissions) == wanted


def known_ports(flows: list[dict[str, Any]], closed_ports: list[int]) -> list[int]:
    """Return every port that the system knows, sorted: those of the flows, whether they hold or not, and the closed."""
    return sorted({port for flow in flows for port in flow["ports"]} | set(closed_ports))


def flow_matrix(
    flows: list[dict[str, Any]], source: str, hosts: list[tuple[str, str, str]], ports: list[int]
) -> list[dict[str, Any]]:
    """Return what one source must find open and closed.

    Args:
        flows: the flows of the system.
        source: a role, or `internet` / `admins` for the outside.
        hosts: name, role and address of every host to knock at.
        ports: the ports to try on each.

    Returns:
        A list of ``{"name", "address", "port", "open"}``.
    """
    roles = list(dict.fromkeys(role for _name, role, _address in hosts))
    # `internet` is anyone: what it reaches, the administrators and every host reach too.
    allowed = {
        (target, port)
        for flow in filter(_holds, flows)
        for target in _targets(flow, roles)
        if flow["from"] in (source, "internet") or (flow["from"] == "all" and source not in (*OUTSIDE, target))
        for port in flow["ports"]
    }
    return [
        {"name": name, "address": address, "port": port, "open": (role, port) in allowed}
        for name, role, address in hosts
        for port in ports
    ]


class FilterModule:
    """The filters by the names that playbooks use."""

    def filters(self) -> dict[str, Any]:
        """Return the filters."""
        return {
            "admits": admits,
            "check_flows": check_flows,
            "flow_matrix": flow_matrix,
            "flow_rules": flow_rules,
            "known_ports": known_ports,
        }
