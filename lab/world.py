"""The world the hosts must be brought to: what EC2 says exists, reduced to what a host and a network can be made of.

The world is derived afresh from EC2's records each time and is never changed by the one who reads it.
"""

from __future__ import annotations

import base64
import time
from dataclasses import asdict, dataclass
from typing import Any, Literal

from lab.settings import DEFAULT_RELEASE, RELEASES

Protocol = str
"""tcp, udp, icmp or all."""


@dataclass(frozen=True)
class Rule:
    """One permission of a security group, group references already resolved to their members.

    Attributes:
        protocol: tcp, udp, icmp or all.
        from_port: first port; for icmp the type, -1 for any; None for all.
        to_port: last port; for icmp the code, -1 for any; None for all.
        cidrs: IPv4 networks at the other end; none at all when a referenced group has no members.
    """

    protocol: Protocol
    from_port: int | None
    to_port: int | None
    cidrs: tuple[str, ...]


@dataclass(frozen=True)
class Subnet:
    """A subnet and where its default route leads."""

    id: str
    cidr: str
    egress: Literal["internet", "nat", "none"]
    nat_public_ip: str | None


@dataclass(frozen=True)
class Network:
    """A VPC in which instances live."""

    id: str
    cidr: str
    subnets: tuple[Subnet, ...]


@dataclass(frozen=True)
class Instance:
    """An instance that is not terminated.

    Attributes:
        state: pending, running, stopping or stopped.
        image: the Debian release to boot, bookworm or trixie.
        groups: names of its security groups.
        imds_tokens: required or optional.
        tags: pairs of key and value, sorted.
        reboots: how often it was rebooted through the API.
        market: on-demand or spot.
        spot_notice: JSON that says when a spot instance will be stopped or terminated; None as long as it may stay.
    """

    id: str
    name: str
    state: str
    image: str
    instance_type: str
    vpc_id: str
    subnet_id: str
    private_ip: str
    public_ip: str | None
    mac: str
    ingress: tuple[Rule, ...]
    egress: tuple[Rule, ...]
    authorized_key: str | None
    key_name: str | None
    user_data: str | None
    profile: str | None
    imds_tokens: str
    tags: tuple[tuple[str, str], ...]
    reboots: int
    availability_zone: str
    launch_time: str
    groups: tuple[str, ...]
    market: str = "on-demand"
    spot_notice: str | None = None


@dataclass(frozen=True)
class World:
    """Everything that should exist on this machine."""

    networks: tuple[Network, ...] = ()
    instances: tuple[Instance, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return the world as plain JSON values."""
        return asdict(self)


def observe(backend: Any) -> World:
    """Derive the world from an EC2 backend of moto.

    The backend may change meanwhile: an observation that was disturbed is made again, for at most a second.

    Raises:
        RuntimeError: when no undisturbed observation could be made.
    """
    deadline = time.monotonic() + 1
    while True:
        try:
            return _observe(backend)
        except (RuntimeError, KeyError) as error:  # a dictionary changed size, or lost an entry, while it was read
            if time.monotonic() > deadline:
                raise RuntimeError(f"EC2's records could not be read undisturbed: {error!r}") from error
            time.sleep(0.005)


def _observe(backend: Any) -> World:
    alive = [
        instance
        for reservation in list(backend.reservations.values())
        for instance in list(reservation.instances)
        if instance.state not in ("terminated", "shutting-down") and instance.nics and instance.subnet_id
    ]
    members = _members(alive)
    instances = tuple(sorted((_instance(backend, one, members) for one in alive), key=lambda one: one.id))
    inhabited = {instance.vpc_id for instance in instances}
    networks = tuple(
        Network(id=vpc.id, cidr=vpc.cidr_block, subnets=_subnets(backend, vpc.id))
        for vpc in sorted(backend.vpcs.values(), key=lambda vpc: vpc.id)
        if vpc.id in inhabited
    )
    return World(networks=networks, instances=instances)


def _members(instances: list[Any]) -> dict[str, tuple[str, ...]]:
    """Return the private addresses of the interfaces in each security group, by the group's id."""
    found: dict[str, set[str]] = {}
    for instance in instances:
        for interface in list(instance.nics.values()):
            for group in groups_of(interface):
                found.setdefault(group.id, set()).update(
                    address["PrivateIpAddress"] for address in list(interface.private_ip_addresses)
                )
    return {group: tuple(sorted(f"{address}/32" for address in addresses)) for group, addresses in found.items()}


def groups_of(interface: Any) -> list[Any]:
    """Return the security groups of a network interface.

    The group_set of moto's interfaces adds groups that the instance has left; the lab keeps _group_set true.
    """
    return list(interface._group_set)


def _instance(backend: Any, instance: Any, members: dict[str, tuple[str, ...]]) -> Instance:
    interface = instance.nics[0]
    groups = groups_of(interface)
    tags = {tag["key"]: tag["value"] for tag in instance.get_tags()}
    key = backend.key_pairs.get(instance.key_name) if instance.key_name else None
    return Instance(
        id=instance.id,
        name=tags.get("Name", instance.id),
        state=instance.state,
        image=release_of(backend, instance.image_id),
        instance_type=instance.instance_type,
        vpc_id=instance.vpc_id,
        subnet_id=instance.subnet_id,
        private_ip=interface.private_ip_address,
        public_ip=interface.public_ip or None,
        mac=interface.mac_address,
        ingress=tuple(_rule(rule, members) for group in groups for rule in list(group.ingress_rules)),
        egress=tuple(_rule(rule, members) for group in groups for rule in list(group.egress_rules)),
        authorized_key=_text(key.material_public).strip() if key else None,
        key_name=instance.key_name or None,
        user_data=_decoded(instance.user_data),
        profile=profile_of(backend, instance),
        imds_tokens=instance.metadata_options.http_tokens or "optional",
        tags=tuple(sorted(tags.items())),
        reboots=getattr(instance, "reboots", 0),
        availability_zone=instance.availability_zone,
        launch_time=instance.launch_time.strftime("%Y-%m-%dT%H:%M:%SZ"),
        groups=tuple(sorted(group.name for group in groups)),
        market=instance.lifecycle or "on-demand",
        spot_notice=getattr(instance, "spot_notice", None),
    )


def _rule(rule: Any, members: dict[str, tuple[str, ...]]) -> Rule:
    protocol = {"-1": "all", "6": "tcp", "17": "udp", "1": "icmp"}.get(str(rule.ip_protocol), str(rule.ip_protocol))
    cidrs: tuple[str, ...] = ()
    if rule.ip_range.get("CidrIp"):
        cidrs = (rule.ip_range["CidrIp"],)
    elif rule.source_group.get("GroupId"):
        cidrs = members.get(rule.source_group["GroupId"], ())
    ports = (None, None) if protocol == "all" else (rule.from_port, rule.to_port)
    return Rule(protocol=protocol, from_port=ports[0], to_port=ports[1], cidrs=cidrs)


def _subnets(backend: Any, vpc_id: str) -> tuple[Subnet, ...]:
    tables = [table for table in list(backend.route_tables.values()) if table.vpc_id == vpc_id]
    main = next((table for table in tables if table.main_association_id), None)
    found = []
    for zone in list(backend.subnets.values()):
        for subnet in list(zone.values()):
            if subnet.vpc_id == vpc_id:
                own = next((table for table in tables if subnet.id in table._associations.values()), main)
                egress, address = _egress(backend, own, vpc_id)
                found.append(Subnet(id=subnet.id, cidr=subnet.cidr_block, egress=egress, nat_public_ip=address))
    return tuple(sorted(found, key=lambda subnet: subnet.id))


def _egress(backend: Any, table: Any, vpc_id: str) -> tuple[Literal["internet", "nat", "none"], str | None]:
    """Return where the default route of a route table leads, and the address a NAT gateway gives."""
    for route in table.routes if table else []:
        if route.destination_cidr_block != "0.0.0.0/0":
            continue
        nat = route.nat_gateway
        if nat is not None and nat.state == "available":
            return "nat", nat._eni.public_ip or None
        gateway = route.gateway
        if gateway is not None and gateway.id in backend.internet_gateways:
            attached = backend.internet_gateways[gateway.id].vpc
            if attached is not None and attached.id == vpc_id:
                return "internet", None
    return "none", None


def release_of(backend: Any, image_id: str) -> str:
    """Return the Debian release that an AMI stands for; an AMI that is not Debian's boots the default release."""
    image = backend.amis.get(image_id)
    name = (getattr(image, "name", None) or "") if image else ""
    return next(
        (release for release, number in RELEASES.items() if name.startswith(f"debian-{number}-")), DEFAULT_RELEASE
    )


def profile_of(backend: Any, instance: Any) -> str | None:
    """Return the name of an instance's profile."""
    association = backend.iam_instance_profile_associations.get(instance.id)
    if association is not None:
        return str(association.iam_instance_profile.name)
    given = instance.iam_instance_profile
    if isinstance(given, dict):
        given = given.get("Arn") or given.get("arn") or given.get("Name")
    return str(given).rpartition("/")[2] if given else None


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _decoded(user_data: Any) -> str | None:
    if not user_data:
        return None
    return base64.b64decode(str(user_data)).decode(errors="replace")
