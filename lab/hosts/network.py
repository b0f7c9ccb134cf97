"""The VPCs' networks: a router in a network namespace for each, a namespace for each host, the way in and out.

A router holds its VPC's bridge, the first address of every subnet, the metadata address, and the translation that
Internet and NAT gateways do. A link joins it to this machine, which knows of a VPC only its public addresses: to a
private one there is no route, as there is none on AWS. Everything carries the lab's prefix, and nothing is remembered
outside the kernel, so that a lab that was killed finds, uses and removes what it made.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import socket
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv4Address, IPv4Network, ip_address
from pathlib import Path
from typing import Final

from lab.hosts import firewall
from lab.hosts.system import METADATA, NETNS, RESOLVER, HostError, Names, inside, ip_batch, ip_json, nft, run, sysctl
from lab.world import Instance, Network, Subnet

log = logging.getLogger(__name__)

FORWARD_SWITCH: Final = Path("/proc/sys/net/ipv4/ip_forward")
LAST_RESORT: Final = 4_000_000_000  # metric that any real route of the machine beats
BRIDGE: Final = "vpc"
UPLINK: Final = "uplink"
RUNNING: Final = frozenset({"pending", "running"})
RESOLVER_FILES: Final = (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf"))


def gateway(subnet: Subnet) -> str:
    """Return a subnet's router address: the first one, as on AWS."""
    return str(IPv4Network(subnet.cidr)[1])


def nameserver() -> str | None:
    """Return a name server of this machine that can be reached from elsewhere than its loopback."""
    for file in RESOLVER_FILES:
        for found in re.findall(r"^nameserver\s+(\S+)", file.read_text() if file.exists() else "", re.MULTILINE):
            try:
                address = ip_address(found)
            except ValueError:
                continue
            if isinstance(address, IPv4Address) and not address.is_loopback:
                return str(address)
    return None


def mtu() -> int:
    """Return the packet size of this machine's default route: hosts must not send longer ones."""
    for route in ip_json("route", "show", "default"):
        for link in ip_json("link", "show", "dev", route.get("dev", "lo")):
            return min(1500, int(link["mtu"]))
    return 1500


def _map(pairs: Mapping[str, str]) -> str:
    return "{ " + ", ".join(f"{key} : {value}" for key, value in sorted(pairs.items())) + " }"


def router_ruleset(network: Network, instances: Iterable[Instance], transit: str, resolver: str | None) -> str:
    """Return a router's nftables script: who is translated to what, and who may leave.

    Args:
        network: the VPC.
        instances: its instances.
        transit: the router's own address on the link to this machine.
        resolver: address that answers the VPC resolver's queries, if any.
    """
    egress = {subnet.id: subnet.egress for subnet in network.subnets}
    public = {
        one.private_ip: one.public_ip
        for one in instances
        if one.public_ip and one.state in RUNNING and egress.get(one.subnet_id) == "internet"
    }
    behind_nat = {
        subnet.cidr: subnet.nat_public_ip
        for subnet in network.subnets
        if subnet.egress == "nat" and subnet.nat_public_ip
    }
    inward, outward, leave = [], [], []
    if resolver:
        inward += [f"ip daddr {RESOLVER} {protocol} dport 53 dnat to {resolver}" for protocol in ("udp", "tcp")]
        outward += [f"ct original ip daddr {RESOLVER} snat to {transit}"]
    if public:
        inward += [f"dnat to ip daddr map {_map({outside: inside for inside, outside in public.items()})}"]
    # The second pair: traffic to a public address of the same VPC leaves through the gateway and comes back.
    for way in (f'oifname "{UPLINK}"', f'oifname "{BRIDGE}" ct status dnat'):
        if public:
            outward.append(f"{way} snat to ip saddr map {_map(public)}")
        outward += [f"{way} ip saddr {cidr} snat to {address}" for cidr, address in sorted(behind_nat.items())]
    sources = sorted(public) + sorted(behind_nat)
    if sources:
        leave += [f'iifname "{BRIDGE}" ip saddr {source} accept' for source in sources]
    return "\n".join(
        [
            "table ip lab",
            "delete table ip lab",
            "table ip lab {",
            "  chain prerouting {",
            "    type nat hook prerouting priority dstnat;",
            *(f"    {line}" for line in inward),
            "  }",
            "  chain postrouting {",
            "    type nat hook postrouting priority srcnat;",
            *(f"    {line}" for line in outward),
            "  }",
            "  chain forward {",
            "    type filter hook forward priority filter; policy drop;",
            "    ct state established,related accept",
            f'    iifname "{UPLINK}" ct status dnat accept',
            f"    ct original ip daddr {RESOLVER} accept",
            f'    iifname "{BRIDGE}" oifname "{BRIDGE}" ct status & dnat == 0 accept',
            *(f"    {line}" for line in leave),
            "  }",
            "}",
            "",
        ]
    )


def _hardware_address(vpc_id: str) -> str:
    digest = hashlib.sha256(vpc_id.encode()).hexdigest()
    return "02:" + ":".join(digest[at : at + 2] for at in range(0, 10, 2))


def public_addresses(network: Network, instances: Iterable[Instance]) -> list[str]:
    """Return the public addresses that lead into a VPC."""
    egress = {subnet.id: subnet.egress for subnet in network.subnets}
    found = {one.public_ip for one in instances if one.public_ip and egress.get(one.subnet_id) == "internet"}
    found |= {subnet.nat_public_ip for subnet in network.subnets if subnet.egress == "nat" and subnet.nat_public_ip}
    return sorted(address for address in found if address)


class Fabric:
    """Everything of the lab's network on this machine."""

    def __init__(self, names: Names) -> None:
        """Take the names; touch nothing."""
        self.names = names
        self._applied: dict[str, object] = {}
        self._resolver = nameserver()
        self._mtu = mtu()

    # --- this machine's own network namespace ------------------------------------------------------------------------

    def prepare(self) -> None:
        """Let this machine forward for the lab, and only for it; keep traffic to what is not there from leaving it."""
        table, links = self.names.table, self.names.links
        switched = "turned_on_forwarding" in self._root_chains()
        if FORWARD_SWITCH.read_text().strip() == "0":
            switched = True
            FORWARD_SWITCH.write_text("1")
        nft(
            "\n".join(
                [
                    f"table ip {table}",
                    f"delete table ip {table}",
                    f"table ip {table} {{",
                    # An empty chain remembers, for as long as the machine runs, that forwarding was off before.
                    *(["  chain turned_on_forwarding { }"] if switched else []),
                    "  chain postrouting {",
                    "    type nat hook postrouting priority srcnat;",
                    f'    ip saddr {{ {self.names.public}, {self.names.transit} }} oifname != "{links}" masquerade',
                    "  }",
                    "  chain forward {",
                    "    type filter hook forward priority filter - 5; policy accept;",
                    f'    oifname "{links}" iifname != "{links}" ct state new drop',
                    "  }",
                    "}",
                    "",
                ]
            )
        )
        self.admit()
        self._unreachable(self.names.public)

    def _unreachable(self, network: IPv4Network) -> None:
        ip_batch([f"route replace unreachable {network} metric {LAST_RESORT} proto {self.names.protocol}"])

    def _root_chains(self) -> set[str]:
        listing = json.loads(run("nft", "-j", "list", "chains", "ip"))
        chains = (entry.get("chain", {}) for entry in listing["nftables"])
        return {chain["name"] for chain in chains if chain.get("table") == self.names.table}

    def _foreign_forwards(self) -> Iterator[tuple[str, str, str]]:
        """Yield (family, table, chain) of other programs' filters of forwarded traffic."""
        for entry in json.loads(run("nft", "-j", "list", "chains"))["nftables"]:
            chain = entry.get("chain", {})
            ours = chain.get("table") == self.names.table
            filters = chain.get("hook") == "forward" and chain.get("type") == "filter"
            if filters and not ours and chain["family"] in ("ip", "inet"):
                yield chain["family"], chain["table"], chain["name"]

    def _admissions(self, family: str, table: str, chain: str) -> list[int]:
        listing = json.loads(run("nft", "-j", "-a", "list", "chain", family, table, chain, check=False) or "{}")
        rules = (entry.get("rule", {}) for entry in listing.get("nftables", []))
        return [rule["handle"] for rule in rules if rule.get("comment") == self.names.table]

    def admit(self) -> None:
        """Admit the lab's traffic in other programs' forward filters: a verdict of ours alone would not bind theirs.

        Docker, ufw and firewalld end theirs with a refusal.
        """
        for family, table, chain in self._foreign_forwards():
            if not self._admissions(family, table, chain):
                for side in ("iifname", "oifname"):
                    rule = f'{side} "{self.names.links}" accept comment "{self.names.table}"'
                    nft(f"insert rule {family} {table} {chain} {rule}\n")

    def _unadmit(self) -> None:
        for family, table, chain in self._foreign_forwards():
            for handle in self._admissions(family, table, chain):
                nft(f"delete rule {family} {table} {chain} handle {handle}\n")

    # --- routers -----------------------------------------------------------------------------------------------------

    def link(self, vpc_id: str) -> str:
        """Return the name of this machine's end of the link to a router."""
        return f"{self.names.prefix}-{hashlib.sha256(vpc_id.encode()).hexdigest()[:9]}"

    def routers(self) -> list[str]:
        """Return the ids of the VPCs that have a router now."""
        start = f"{self.names.prefix}-"
        found = (name.removeprefix(start) for name in self.names.namespaces())
        return [name for name in found if name.startswith("vpc-")]

    def _transit_addresses(self) -> dict[str, str]:
        """Return the routers' addresses on the links that exist, by this machine's end."""
        found = {}
        for link in ip_json("-4", "address", "show"):
            for address in link.get("addr_info", []):
                if link.get("ifname", "").startswith(f"{self.names.prefix}-") and "address" in address:
                    found[link["ifname"]] = address["address"]
        return found

    def _free_transit_address(self) -> str:
        taken = set(self._transit_addresses().values())
        return next(str(address) for address in self.names.transit.hosts() if str(address) not in taken)

    def has_router(self, vpc_id: str) -> bool:
        """Tell whether a VPC's router is there with its link."""
        return (NETNS / self.names.router(vpc_id)).exists() and self.link(vpc_id) in self._transit_addresses()

    def _make_router(self, network: Network) -> None:
        router, link = self.names.router(network.id), self.link(network.id)
        if self.has_router(network.id):
            return
        self.remove_router(network.id)
        address = self._free_transit_address()
        run("ip", "netns", "add", router)
        sysctl(
            {
                "ipv4/ip_forward": "1",
                "ipv4/conf/all/send_redirects": "0",
                "ipv4/conf/default/send_redirects": "0",
                "ipv4/conf/all/rp_filter": "0",
                "ipv4/conf/default/rp_filter": "0",
                "ipv6/conf/all/disable_ipv6": "1",
                "ipv6/conf/default/disable_ipv6": "1",
            },
            router,
        )
        bridge = f"{BRIDGE} address {_hardware_address(network.id)} mtu {self._mtu}"
        run(*f"ip link add {link} mtu {self._mtu} type veth peer name {UPLINK} mtu {self._mtu} netns {router}".split())
        ip_batch(
            [
                "link set dev lo up",
                f"address add {METADATA}/32 dev lo",
                # An address of its own: a bridge without one changes it with its ports, and the hosts would lose it.
                f"link add name {bridge} type bridge forward_delay 0 stp_state 0",
                f"link set dev {BRIDGE} up",
                f"address add {address} peer {self.names.controller}/32 dev {UPLINK}",
                f"link set dev {UPLINK} up",
            ],
            router,
        )
        # The address comes last: a router whose link has one is complete.
        ip_batch([f"link set dev {link} up", f"address add {self.names.controller} peer {address}/32 dev {link}"])
        ip_batch([f"route add default via {self.names.controller} dev {UPLINK}"], router)

    def remove_router(self, vpc_id: str) -> None:
        """Remove a VPC's router with its link; hosts still attached lose their network."""
        self._applied.pop(vpc_id, None)
        link = self.link(vpc_id)
        run("ip", "link", "delete", link, check=False)
        _delete_namespace(self.names.router(vpc_id))

    def sync_router(self, network: Network, instances: Iterable[Instance]) -> None:
        """Make a VPC's router be as EC2 says; does nothing when it already is."""
        members = [one for one in instances if one.vpc_id == network.id]
        wanted = (
            network,
            tuple((one.private_ip, one.public_ip, one.subnet_id, one.state in RUNNING) for one in members),
        )
        if self._applied.get(network.id) == wanted and (NETNS / self.names.router(network.id)).exists():
            return
        self._make_router(network)
        router, link = self.names.router(network.id), self.link(network.id)
        address = self._transit_addresses()[link]
        self._sync_addresses(network, router)
        nft(router_ruleset(network, members, address, self._resolver), router)
        self._sync_public_routes(link, address, public_addresses(network, members))
        if self._may_blackhole(IPv4Network(network.cidr)):
            self._unreachable(IPv4Network(network.cidr))
        self._applied[network.id] = wanted

    def _sync_addresses(self, network: Network, router: str) -> None:
        wanted = {f"{gateway(subnet)}/{IPv4Network(subnet.cidr).prefixlen}" for subnet in network.subnets}
        listing = ip_json("-4", "address", "show", "dev", BRIDGE, namespace=router)
        present = {f"{one['local']}/{one['prefixlen']}" for entry in listing for one in entry.get("addr_info", [])}
        ip_batch(
            [
                *(f"address delete {address} dev {BRIDGE}" for address in sorted(present - wanted)),
                *(f"address add {address} dev {BRIDGE}" for address in sorted(wanted - present)),
                f"route replace unreachable {network.cidr} metric {LAST_RESORT}",
            ],
            router,
        )

    def _sync_public_routes(self, link: str, address: str, wanted: Iterable[str]) -> None:
        protocol = str(self.names.protocol)
        listing = ip_json("-4", "route", "show", "dev", link, "proto", protocol)
        present = {entry["dst"] for entry in listing}
        lines = [f"route delete {gone} dev {link} proto {protocol}" for gone in sorted(present - set(wanted))]
        source = self.names.controller
        lines += [
            f"route replace {new} via {address} dev {link} src {source} proto {protocol}"
            for new in sorted(set(wanted))
            if new not in present
        ]
        ip_batch(lines)

    def _may_blackhole(self, network: IPv4Network) -> bool:
        """Tell whether this machine itself needs nothing in a VPC's range through its default route."""
        needed = [self._resolver, *(route.get("gateway") for route in ip_json("-4", "route", "show", "default"))]
        return not any(address and IPv4Address(address) in network for address in needed)

    def forget_networks(self, keep: Iterable[Network]) -> None:
        """Drop the refusals for VPC ranges that no VPC has any more."""
        kept = {str(IPv4Network(network.cidr)) for network in keep} | {str(self.names.public)}
        listing = ip_json("-4", "route", "show", "type", "unreachable", "proto", str(self.names.protocol))
        gone = sorted({entry["dst"] for entry in listing} - kept)
        ip_batch([f"route delete unreachable {cidr} metric {LAST_RESORT}" for cidr in gone])

    # --- hosts -------------------------------------------------------------------------------------------------------

    def attach(self, instance: Instance, network: Network) -> str:
        """Make an instance's namespace anew, its security groups in force before its link is up; return the name."""
        name, router = self.names.host(instance.id), self.names.router(instance.vpc_id)
        subnet = next(one for one in network.subnets if one.id == instance.subnet_id)
        port = f"p-{instance.id.removeprefix('i-')[-12:]}"
        self.detach(instance.id)
        run("ip", "netns", "add", name)
        ip_batch(
            [
                f"link add {port} mtu {self._mtu} type veth peer name eth0 mtu {self._mtu} netns {name}",
                f"link set dev {port} master {BRIDGE} up",
            ],
            router,
        )
        sysctl(
            {
                "ipv4/conf/eth0/arp_notify": "1",  # neighbours must forget who had this address before
                "ipv6/conf/eth0/disable_ipv6": "1",
                "ipv4/ping_group_range": "0 2147483647",
            },
            name,
        )
        firewall.load(instance, name)
        ip_batch(
            [
                "link set dev lo up",
                f"link set dev eth0 address {instance.mac}",
                f"address add {instance.private_ip}/{IPv4Network(subnet.cidr).prefixlen} dev eth0",
                "link set dev eth0 up",
                f"route add default via {gateway(subnet)}",
            ],
            name,
        )
        return name

    def detach(self, instance_id: str) -> None:
        """Take a host off the network at once, even while its processes still end."""
        name = self.names.host(instance_id)
        if (NETNS / name).exists():
            run("ip", "-n", name, "link", "delete", "eth0", check=False)
            _delete_namespace(name)

    def attached(self) -> set[str]:
        """Return the ids of the instances that have a namespace now."""
        start = f"{self.names.prefix}-"
        found = (name.removeprefix(start) for name in self.names.namespaces())
        return {name for name in found if name.startswith("i-")}

    def is_attached(self, instance: Instance) -> bool:
        """Tell whether an instance's namespace is joined to its VPC's router, which is there."""
        name, router = self.names.host(instance.id), self.names.router(instance.vpc_id)
        if not ((NETNS / name).exists() and (NETNS / router).exists()):
            return False
        links = ip_json("link", "show", "dev", "eth0", namespace=name)
        port = f"p-{instance.id.removeprefix('i-')[-12:]}"
        return bool(links) and bool(ip_json("link", "show", "dev", port, namespace=router))

    # --- the end -----------------------------------------------------------------------------------------------------

    def destroy(self) -> None:
        """Remove all of it, whoever made it with this prefix; restore what was changed."""
        for name in self.names.namespaces():
            _delete_namespace(name)
        start = f"{self.names.prefix}-"
        for link in ip_json("link", "show", "type", "veth"):
            if link.get("ifname", "").startswith(start):
                run("ip", "link", "delete", link["ifname"], check=False)
        run("ip", "route", "flush", "proto", str(self.names.protocol), check=False)
        self._unadmit()
        if "turned_on_forwarding" in self._root_chains():
            FORWARD_SWITCH.write_text("0")
        nft(f"table ip {self.names.table}\ndelete table ip {self.names.table}\n")
        self._applied.clear()


def _delete_namespace(name: str) -> None:
    if (NETNS / name).exists():
        run("ip", "netns", "delete", name, check=False)


def answers_ssh(namespace: str, address: str, timeout: float = 2) -> bool:
    """Tell whether an SSH server greets on a host, asked from inside its namespace, where no security group stands."""

    def greet() -> bool:
        with socket.create_connection((address, 22), timeout) as connection:
            connection.settimeout(timeout)
            return connection.recv(4) == b"SSH-"

    try:
        return inside(namespace, greet)
    except (OSError, HostError):
        return False
