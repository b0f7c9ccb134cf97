"""Security groups as nftables rules in the instance's own network namespace.

Input and output are two gates: a packet of a new conversation must pass the one it meets, and neither knows the other's
rules. Both are stateful, as security groups are: answers always pass.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_network

from lab.hosts.system import METADATA, RESOLVER, nft
from lab.world import Instance, Rule

NUMBERS = {"-1": "all", "6": "tcp", "17": "udp", "1": "icmp", "58": "icmpv6"}
ANY_PORTS = {(None, None), (-1, -1), (0, 65535)}


def _addresses(cidrs: Iterable[str], side: str) -> list[str]:
    """Return the matches for the far end's address, one per IP version; an empty match means any address."""
    networks = [ip_network(cidr, strict=False) for cidr in cidrs]
    matches = []
    for version, family in ((4, "ip"), (6, "ip6")):
        found = sorted({network for network in networks if network.version == version}, key=str)
        if any(network.prefixlen == 0 for network in found):
            matches.append(f"meta nfproto ipv{version}")
        elif found:
            # nft refuses overlapping elements unless told to merge them; separate matches need no merging.
            matches += [f"{family} {side} {network}" for network in found]
    return matches


def _service(rule: Rule) -> str:
    """Return the match for a rule's protocol and ports (for ICMP: type and code)."""
    protocol = NUMBERS.get(rule.protocol, rule.protocol)
    if protocol == "all":
        return ""
    if protocol in ("icmp", "icmpv6"):
        kind, code = rule.from_port, rule.to_port
        match = f"meta l4proto {'icmp' if protocol == 'icmp' else 'ipv6-icmp'}"
        if kind not in (None, -1):
            match += f" {protocol} type {kind}"
            if code not in (None, -1):
                match += f" {protocol} code {code}"
        return match
    if protocol not in ("tcp", "udp"):
        return f"meta l4proto {protocol}"
    if (rule.from_port, rule.to_port) in ANY_PORTS:
        return f"meta l4proto {protocol}"
    first, last = rule.from_port, rule.to_port if rule.to_port is not None else rule.from_port
    return f"{protocol} dport {first}" if first == last else f"{protocol} dport {first}-{last}"


def _lines(rules: Iterable[Rule], side: str) -> list[str]:
    lines = []
    for rule in rules:
        service = _service(rule)
        lines += [" ".join(filter(None, (address, service, "accept"))) for address in _addresses(rule.cidrs, side)]
    return sorted(set(lines))


def ruleset(instance: Instance) -> str:
    """Return the nftables script that replaces an instance's gates in one transaction."""
    gates = [
        ("input", "iif lo accept", [], _lines(instance.ingress, "saddr")),
        (
            "output",
            "oif lo accept",
            [
                # As on AWS, no security group stands between an instance and its metadata or the VPC's resolver.
                f"ip daddr {METADATA} accept",
                f"ip daddr {RESOLVER} udp dport 53 accept",
                f"ip daddr {RESOLVER} tcp dport 53 accept",
            ],
            _lines(instance.egress, "daddr"),
        ),
    ]
    text = ["table inet lab", "delete table inet lab", "table inet lab {"]
    for hook, loopback, always, rules in gates:
        text += [
            f"  chain {hook} {{",
            f"    type filter hook {hook} priority filter; policy drop;",
            f"    {loopback}",
            "    ct state established,related accept",
            *(f"    {line}" for line in [*always, *rules]),
            "  }",
        ]
    return "\n".join([*text, "}", ""])


def load(instance: Instance, namespace: str) -> None:
    """Put an instance's security groups in force; the old ones hold until the new ones do."""
    nft(ruleset(instance), namespace)
