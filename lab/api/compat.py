"""What AWS does and moto does not, as far as the modules of amazon.aws depend on it: one function for each gap.

``apply`` closes them all, once per process. Each function checks the points of moto that it replaces, so that another
version of moto is refused at the start instead of answering wrongly later.
"""

from __future__ import annotations

import fnmatch
import ipaddress
import re
from collections.abc import Callable
from typing import Any

from lab.api.patching import replace

_applied = False


class PublicPool:
    """Hands out the lab's public addresses, the one freed longest ago last.

    Args:
        cidr: the range; its first nine addresses are the lab's own.
    """

    def __init__(self, cidr: str) -> None:
        self._network = ipaddress.ip_network(cidr)
        self._last = 9

    def take(self, used: set[str]) -> str:
        """Return the next address that is not used; raise RuntimeError when there is none."""
        size = self._network.num_addresses - 11
        for step in range(1, size + 1):
            offset = 10 + (self._last - 10 + step) % size
            address = str(self._network[offset])
            if address not in used:
                self._last = offset
                return address
        raise RuntimeError(f"every address of {self._network} is in use")


pool = PublicPool("198.18.0.0/16")


def public_addresses() -> None:
    """Public addresses belong to a range that this machine can route, and return to it when they are released.

    AWS draws them from ranges of its own; moto invents addresses that belong to others.
    """

    def used() -> set[str]:
        from moto.ec2.models import ec2_backends

        found = set()
        for account in list(ec2_backends.values()):
            for backend in list(account.values()):
                found |= {interface.public_ip for interface in backend.enis.values() if interface.public_ip}
                found |= {address.public_ip for address in backend.addresses}
        return found

    import moto.ec2.models.elastic_ip_addresses as elastic
    import moto.ec2.models.elastic_network_interfaces as interfaces

    for module, name in ((interfaces, "random_public_ip"), (elastic, "random_ip")):
        replace(module, name, lambda _: lambda: pool.take(used()), parameters="")


def private_addresses() -> None:
    """Every interface gets the lowest free address of its subnet from .4 on; it is free again when the interface goes.

    moto draws an interface's and a NAT gateway's address at random, even from outside the subnet, and returns an
    instance's address whenever Python happens to collect the instance.
    """
    import moto.ec2.models.nat_gateways as nat
    from moto.ec2.models.elastic_network_interfaces import NetworkInterface
    from moto.ec2.models.instances import Instance
    from moto.ec2.models.subnets import Subnet

    def available(subnet: Any, instance: Any) -> str:
        taken = set(subnet._subnet_ips)
        for interface in subnet.ec2_backend.enis.values():
            if interface.subnet.id == subnet.id:
                taken |= {item["PrivateIpAddress"] for item in interface.private_ip_addresses}
        for offset in range(4, subnet.cidr.num_addresses - 1):
            address = str(subnet.cidr[offset])
            if address not in taken:
                subnet._subnet_ips[address] = instance
                return address
        from moto.ec2.exceptions import EC2ClientError

        raise EC2ClientError(
            "InsufficientFreeAddressesInSubnet", f"There are not enough free addresses in subnet '{subnet.id}'"
        )

    def make_interface(original: Any) -> Any:
        def init(self: Any, ec2_backend: Any, subnet: Any, private_ip_address: Any, *args: Any, **kwargs: Any) -> None:
            found = ec2_backend.get_subnet(subnet) if isinstance(subnet, str) else subnet
            given = kwargs.get("private_ip_addresses") or (args[0] if args else None)
            if not private_ip_address and not given:
                private_ip_address = available(found, self)
            original(self, ec2_backend, found, private_ip_address, *args, **kwargs)

        return init

    def make_nat(original: Any) -> Any:
        def init(self: Any, backend: Any, subnet_id: str, *args: Any, **kwargs: Any) -> None:
            address = available(backend.get_subnet(subnet_id), self)
            invented, nat.random_private_ip = nat.random_private_ip, lambda *_args, **_kwargs: address
            try:
                original(self, backend, subnet_id, *args, **kwargs)
            finally:
                nat.random_private_ip = invented

        return init

    def make_terminate(original: Any) -> Any:
        def terminate(self: Any) -> Any:
            previous = original(self)
            for address in self._private_ips:
                for interface in self.nics.values():
                    interface.subnet.del_subnet_ip(address)
            return previous

        return terminate

    replace(Subnet, "get_available_subnet_ip", lambda _: available, parameters="self instance")
    replace(NetworkInterface, "__init__", make_interface, parameters="self ec2_backend subnet private_ip_address")
    replace(nat, "random_private_ip", lambda original: original)
    replace(nat.NatGateway, "__init__", make_nat, parameters="self backend subnet_id allocation_id")
    replace(Instance, "terminate", make_terminate, parameters="self")
    replace(Instance, "__del__", lambda _: lambda _self: None)


def elastic_address_outlives_a_stop() -> None:
    """An Elastic IP stays with its instance through stop and start; only an address assigned at launch changes.

    moto takes or replaces whichever address the interface has when it was launched with a public address.
    """
    from moto.ec2.models.elastic_network_interfaces import NetworkInterface

    def make(original: Any) -> Any:
        def unless_elastic(self: Any) -> None:
            if not any(address.eni is self for address in self.ec2_backend.addresses):
                original(self)

        return unless_elastic

    replace(NetworkInterface, "start", make, parameters="self")
    replace(NetworkInterface, "stop", make, parameters="self")


def tag_types() -> None:
    """DescribeTags names types of resources as AWS does: the modules look for a NAT gateway's tags under that name."""
    import moto.ec2.utils as target

    names = {"nat": "natgateway", "eipalloc": "elastic-ip", "h": "dedicated-host", "fl": "vpc-flow-log"}
    replace(target, "EC2_PREFIX_TO_RESOURCE", lambda original: {**original, **names})
    from moto.ec2.models import tags

    replace(tags, "EC2_PREFIX_TO_RESOURCE", lambda _: target.EC2_PREFIX_TO_RESOURCE)


def volume_multi_attach() -> None:
    """DescribeVolumes says false, not nothing, of a volume that cannot be attached twice."""
    from moto.ec2.models.elastic_block_store import Volume

    def make(original: Any) -> Any:
        def init(self: Any, *args: Any, **kwargs: Any) -> None:
            original(self, *args, **kwargs)
            self.multi_attach_enabled = bool(self.multi_attach_enabled)

        return init

    replace(Volume, "__init__", make)


def instance_filters() -> None:
    """DescribeInstances filters by interface, client token, group and root device, as ec2_instance asks it to."""
    import moto.ec2.utils as target
    from moto.ec2.models.instances import Instance

    for name in ("nics", "network_interface_ids", "network_interface_addresses"):
        if hasattr(Instance, name):
            raise RuntimeError(f"moto's Instance has a {name} of its own now")
    Instance.network_interface_ids = property(lambda self: [nic.id for nic in self.nics.values()])  # type: ignore[attr-defined]
    Instance.network_interface_addresses = property(  # type: ignore[attr-defined]
        lambda self: [item["PrivateIpAddress"] for nic in self.nics.values() for item in nic.private_ip_addresses]
    )
    more = {
        "network-interface.network-interface-id": "network_interface_ids",
        "network-interface.addresses.private-ip-address": "network_interface_addresses",
        "client-token": "client_token",
        "instance.group-id": "security_groups.id",
        "root-device-type": "root_device_type",
    }
    replace(target, "filter_dict_attribute_mapping", lambda original: original | more)


def one_list_of_groups() -> None:
    """The groups of an instance and those of its first interface are one list, however it is changed.

    moto keeps two and shows their union, so that a group that was left stays in force.
    """
    from moto.ec2.models import EC2Backend
    from moto.ec2.models.elastic_network_interfaces import NetworkInterface
    from moto.ec2.models.instances import Instance

    def make_nics(original: Any) -> Any:
        def prep_nics(self: Any, *args: Any, **kwargs: Any) -> None:
            original(self, *args, **kwargs)
            groups = {group.id: group for nic in (self.nics[0],) for group in nic._group_set}
            if self.security_groups and len(groups) == 0:
                groups = {group.id: group for group in self.security_groups}
            self.security_groups = list(groups.values())
            self.nics[0]._group_set = list(groups.values())

        return prep_nics

    def make_instance(original: Any) -> Any:
        def modify_instance_security_groups(self: Any, *args: Any, **kwargs: Any) -> Any:
            instance = original(self, *args, **kwargs)
            instance.nics[0]._group_set = list(instance.security_groups)
            return instance

        return modify_instance_security_groups

    def make_interface(original: Any) -> Any:
        def modify_network_interface_attribute(self: Any, eni_id: str, *args: Any, **kwargs: Any) -> None:
            original(self, eni_id, *args, **kwargs)
            interface = self.get_network_interface(eni_id)
            if interface.instance is not None and interface.device_index == 0:
                interface.instance.security_groups = list(interface._group_set)

        return modify_network_interface_attribute

    replace(Instance, "prep_nics", make_nics, parameters="self nic_spec")
    replace(EC2Backend, "modify_instance_security_groups", make_instance, parameters="self instance_id")
    replace(EC2Backend, "modify_network_interface_attribute", make_interface, parameters="self eni_id")
    replace(NetworkInterface, "group_set", lambda _: property(lambda self: list(self._group_set)))


def default_instance_volume() -> None:
    """An instance without block devices of its own has a root volume with the device name of its image."""
    from moto.ec2.models.instances import Instance

    def setup_defaults(self: Any) -> None:
        volume = self.ec2_backend.create_volume(size=8, zone_name=self._placement.zone)
        self.ec2_backend.attach_volume(volume.id, self.id, self.root_device_name, True)

    replace(Instance, "setup_defaults", lambda _: setup_defaults, parameters="self")


def nat_gateway_lets_go() -> None:
    """A deleted NAT gateway gives up its network interface and its Elastic IP, which can then be released."""
    from moto.ec2.models import EC2Backend

    def make(original: Any) -> Any:
        def delete_nat_gateway(self: Any, nat_gateway_id: str, *args: Any, **kwargs: Any) -> Any:
            gateway = original(self, nat_gateway_id, *args, **kwargs)
            for address in self.addresses:
                if address.eni is gateway._eni:
                    address.eni = address.association_id = None
            if self.enis.pop(gateway._eni.id, None):
                gateway._eni.subnet.del_subnet_ip(gateway._eni.private_ip_address)
            return gateway

        return delete_nat_gateway

    replace(EC2Backend, "delete_nat_gateway", make, parameters="self nat_gateway_id")


def termination_lets_go() -> None:
    """A terminated instance gives up its interfaces, its public address and its place in the subnet at once."""
    from moto.ec2.models import EC2Backend

    def make(original: Any) -> Any:
        def terminate_instances(self: Any, instance_ids: list[str]) -> Any:
            terminated = original(self, instance_ids)
            for instance, _previous in terminated:
                for interface in instance.nics.values():
                    if interface.description == "Primary network interface" or interface.delete_on_termination:
                        self.enis.pop(interface.id, None)
                    interface.public_ip = None
                    for address in self.addresses:
                        if address.eni is interface:
                            address.eni = address.instance = address.association_id = None
            return terminated

        return terminate_instances

    replace(EC2Backend, "terminate_instances", make, parameters="self instance_ids")


def bucket_notifications() -> None:
    """PutBucketNotificationConfiguration takes Prefix and Suffix in any case, and rules with an empty value."""
    from moto.s3.responses import S3Response

    def make(original: Any) -> Any:
        def _notification_config_from_body(self: Any) -> Any:
            body = self.body.decode() if isinstance(self.body, bytes) else self.body
            body = re.sub(r"<Name>(Prefix|Suffix)</Name>", lambda found: f"<Name>{found[1].lower()}</Name>", body)
            empty = r"(/>|>\s*</{}>)"
            body = re.sub(
                r"<FilterRule>\s*<Name>\w+</Name>\s*<Value\s*" + empty.format("Value") + r"\s*</FilterRule>", "", body
            )
            body = re.sub(r"<Filter>\s*<S3Key\s*" + empty.format("S3Key") + r"\s*</Filter>", "", body)
            self.body = body
            return original(self)

        return _notification_config_from_body

    replace(S3Response, "_notification_config_from_body", make, parameters="self")


def policy_conditions() -> None:
    """A statement whose condition is not met says nothing; every call counts as one over TLS, as all of AWS's are.

    moto takes a Deny with any condition for a Deny: a bucket that insists on TLS refuses everyone.
    """
    from moto.iam.access_control import IAMPolicyStatement, PermissionResult

    def make(original: Any) -> Any:
        def is_action_permitted(
            self: Any,
            action: str,
            resource: str = "*",
            principal: str | None = None,
            incoming_condition_values: dict[str, str] | None = None,
        ) -> Any:
            values = {"aws:SecureTransport": "true", **(incoming_condition_values or {})}
            if not conditions_hold(self._statement.get("Condition") or {}, values):
                return PermissionResult.NEUTRAL
            return original(self, action, resource, principal, values)

        return is_action_permitted

    replace(IAMPolicyStatement, "is_action_permitted", make, parameters="self action resource principal")


def conditions_hold(conditions: dict[str, dict[str, Any]], values: dict[str, str]) -> bool:
    """Say whether every condition of a policy statement is met.

    Args:
        conditions: by operator, then by key: the value or values that are expected.
        values: what is known of the request, by key. A key that is not known meets no condition but a negated one.
            Operators other than Bool, the String ones and Null count as met.
    """
    known = {key.lower(): value for key, value in values.items()}
    for operator, keys in conditions.items():
        name = operator.rpartition(":")[2]
        optional = name.endswith("IfExists")
        name = name.removesuffix("IfExists")
        for key, expected in keys.items():
            wanted = [str(item) for item in (expected if isinstance(expected, list) else [expected])]
            actual = known.get(key.lower())
            if name == "Null":
                if (actual is None) != (wanted[0].lower() == "true"):
                    return False
            elif name in OPERATORS:
                negated = name.startswith("StringNot")
                found = actual is not None and any(OPERATORS[name](actual, item) for item in wanted)
                if found if negated else not found and not (optional and actual is None):
                    return False
    return True


OPERATORS: dict[str, Callable[[str, str], bool]] = {
    "Bool": lambda actual, wanted: actual.lower() == wanted.lower(),
    "StringEquals": lambda actual, wanted: actual == wanted,
    "StringNotEquals": lambda actual, wanted: actual == wanted,
    "StringEqualsIgnoreCase": lambda actual, wanted: actual.lower() == wanted.lower(),
    "StringNotEqualsIgnoreCase": lambda actual, wanted: actual.lower() == wanted.lower(),
    "StringLike": fnmatch.fnmatchcase,
    "StringNotLike": fnmatch.fnmatchcase,
}


def random_bytes_follow_the_seed() -> None:
    """Upload ids, session tokens and data keys are restored by a replay like every other id.

    AWS keeps them; moto draws them from the operating system, which no seed reaches.
    """
    import moto.kms.models
    import moto.kms.utils
    import moto.s3.models
    import moto.sts.utils
    from moto.moto_api._internal import mock_random

    class Seeded:
        """The module os with a source of random bytes that can be seeded."""

        def __init__(self, original: Any) -> None:
            self._original = original

        def __getattr__(self, name: str) -> Any:
            return getattr(self._original, name)

        def urandom(self, size: int) -> bytes:
            return mock_random.randbytes(size)

    for module in (moto.s3.models, moto.sts.utils, moto.kms.models, moto.kms.utils):
        replace(module, "os", Seeded)


def every_region_starts_alike() -> None:
    """The default network of a region has the same ids in every lab, whoever touches the region first, and when."""
    from moto.core.base_backend import AccountSpecificBackend
    from moto.moto_api._internal import mock_random

    def make(original: Any) -> Any:
        def getitem(self: Any, region_name: str) -> Any:
            name = "aws" if region_name == "global" else region_name
            if name in self.keys():
                return original(self, region_name)
            state = mock_random.getstate()
            mock_random.seed(f"{self.service_name}/{self.account_id}/{name}")
            try:
                return original(self, region_name)
            finally:
                mock_random.setstate(state)

        return getitem

    replace(AccountSpecificBackend, "__getitem__", make, parameters="self region_name")


def ec2_refuses_by_its_own_name() -> None:
    """EC2 calls a missing permission UnauthorizedOperation, where other services say AccessDenied."""
    from moto.core.exceptions import AccessDeniedError
    from moto.iam.access_control import IAMRequest

    def make(original: Any) -> Any:
        def _raise_access_denied(self: Any) -> None:
            try:
                original(self)
            except AccessDeniedError as error:
                if self._service == "ec2":
                    raise RefusedError(f"You are not authorized to perform this operation. {error.message}") from None
                raise

        return _raise_access_denied

    class RefusedError(AccessDeniedError):
        def __init__(self, message: str) -> None:
            super(AccessDeniedError, self).__init__("UnauthorizedOperation", message)

    replace(IAMRequest, "_raise_access_denied", make, parameters="self")


GAPS: tuple[Callable[[], None], ...] = (
    public_addresses,
    every_region_starts_alike,
    random_bytes_follow_the_seed,
    private_addresses,
    elastic_address_outlives_a_stop,
    tag_types,
    volume_multi_attach,
    instance_filters,
    one_list_of_groups,
    default_instance_volume,
    nat_gateway_lets_go,
    termination_lets_go,
    bucket_notifications,
    policy_conditions,
    ec2_refuses_by_its_own_name,
)


def apply(public_cidr: str) -> None:
    """Close every gap, once per process, and have public addresses handed out from the start of their range.

    Args:
        public_cidr: range of the lab's public addresses.

    Raises:
        PatchPointError: this moto is not the one that the lab was written for.
    """
    global _applied, pool  # noqa: PLW0603
    pool = PublicPool(public_cidr)
    if _applied:
        return
    for gap in GAPS:
        gap()
    _applied = True
