"""What AWS refuses and moto allows: a tear-down in the wrong order, too many vCPUs, an address outside the subnet."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lab.api import spot
from lab.api.patching import replace

STANDARD = "L-1216C47A"
GPU = "L-DB2E81BA"
ADDRESSES = "L-0263D0A3"
SPOT_STANDARD = "L-34B43A08"
SPOT_GPU = "L-3819A6DF"
# Not a quota: the vCPUs that the spot market has room for.
SPOT_ROOM = "spot-room"
_applied = False


@dataclass(frozen=True)
class Quota:
    """A quota of EC2; ``families`` are the letters with which instance types that count against it begin, ``spot``
    says of which market.
    """

    code: str
    name: str
    families: tuple[str, ...] = ()
    spot: bool = False


QUOTAS = (
    Quota(STANDARD, "Running On-Demand Standard (A, C, D, H, I, M, R, T, Z) instances", tuple("acdhimrtz")),
    Quota(GPU, "Running On-Demand G and VT instances", ("g", "vt")),
    Quota("L-417A185B", "Running On-Demand P instances", ("p",)),
    Quota(SPOT_STANDARD, "All Standard (A, C, D, H, I, M, R, T, Z) Spot Instance Requests", tuple("acdhimrtz"), True),
    Quota(SPOT_GPU, "All G and VT Spot Instance Requests", ("g", "vt"), True),
    Quota("L-7212CCBC", "All P4, P3 and P2 Spot Instance Requests", ("p",), True),
    Quota(ADDRESSES, "EC2-VPC Elastic IPs"),
)

# Families that begin with a letter of another one's but have quotas of their own, which the lab does not keep.
OTHERS = ("trn", "inf", "dl", "mac", "hpc")

# How much of each quota the account has; the lab's process sets the vCPUs from its settings.
limits: dict[str, float] = {
    STANDARD: 32, GPU: 8, "L-417A185B": 0, ADDRESSES: 5, SPOT_STANDARD: 32, SPOT_GPU: 8, "L-7212CCBC": 0, SPOT_ROOM: 40,
}  # fmt: skip


def quota_of(instance_type: str, of_spot: bool = False) -> Quota | None:
    """Return the quota that an instance type counts against: the family is the letters before the first digit."""
    letters = ""
    for character in instance_type.partition(".")[0]:
        if not character.isalpha():
            break
        letters += character
    if letters in OTHERS:
        return None
    quotas = [quota for quota in QUOTAS if quota.spot == of_spot]
    return next((quota for quota in quotas if letters in quota.families or letters[:1] in quota.families), None)


def vcpus_of(instance_type: str) -> int:
    """Return the default vCPUs of an instance type; 1 for a type without a record."""
    from moto.ec2.models.instance_types import INSTANCE_TYPES

    return int(INSTANCE_TYPES.get(instance_type, {}).get("VCpuInfo", {}).get("DefaultVCpus", 1))


def vcpus_in_use(backend: Any, quota: Quota) -> int:
    """Return the vCPUs of pending and running instances that count against a quota."""
    return sum(
        vcpus_of(instance.instance_type)
        for reservation in backend.reservations.values()
        for instance in reservation.instances
        if instance.state in ("pending", "running")
        and quota_of(instance.instance_type, spot.is_spot(instance)) == quota
    )


def room_on_spot(backend: Any) -> float:
    """Return the vCPUs that the spot market has left."""
    used = [quota for quota in QUOTAS if quota.spot]
    return limits[SPOT_ROOM] - sum(vcpus_in_use(backend, quota) for quota in used)


def _before(owner: Any, name: str, parameters: str) -> Callable[[Callable[..., None]], None]:
    """Decorate a check so that it runs, with the same arguments, before a method of moto's EC2 backend."""

    def decorate(check: Callable[..., None]) -> None:
        def make(original: Any) -> Any:
            def checked(self: Any, *args: Any, **kwargs: Any) -> Any:
                check(self, *args, **kwargs)
                return original(self, *args, **kwargs)

            return checked

        replace(owner, name, make, parameters=parameters)

    return decorate


def _alive(backend: Any) -> list[Any]:
    """Return the network interfaces that stand for something."""
    return [nic for nic in backend.enis.values() if nic.instance is None or nic.instance.state != "terminated"]


def _dependency(message: str) -> Exception:
    from moto.ec2.exceptions import EC2ClientError

    return EC2ClientError("DependencyViolation", message)


def teardown_order() -> None:
    """Nothing is deleted while something else stands on it."""
    from moto.ec2.exceptions import EC2ClientError
    from moto.ec2.models import EC2Backend

    @_before(EC2Backend, "delete_subnet", "self subnet_id")
    def _subnet(self: Any, subnet_id: str) -> None:
        if any(nic.subnet.id == subnet_id for nic in _alive(self)):
            raise _dependency(f"The subnet '{subnet_id}' has dependencies and cannot be deleted.")

    @_before(EC2Backend, "delete_security_group", "self name group_id")
    def _group(self: Any, name: str | None = None, group_id: str | None = None) -> None:
        group = self.get_security_group_from_id(group_id) if group_id else None
        if group is None or group.is_default:
            return
        used = any(group.id in [one.id for one in nic._group_set] for nic in _alive(self))
        named = any(
            rule.source_group.get("GroupId") == group.id
            for groups in self.groups.values()
            for other in groups.values()
            if other is not group
            for rule in (*other.ingress_rules, *other.egress_rules)
        )
        if used or named:
            raise _dependency(f"resource {group.id} has a dependent object")

    @_before(EC2Backend, "detach_internet_gateway", "self internet_gateway_id vpc_id")
    def _gateway(self: Any, internet_gateway_id: str, vpc_id: str) -> None:
        if any(nic.subnet.vpc_id == vpc_id and nic.public_ip for nic in _alive(self)):
            raise _dependency(
                f"Network {vpc_id} has some mapped public address(es). "
                "Please unmap those public address(es) before detaching the gateway."
            )

    @_before(EC2Backend, "delete_vpc", "self vpc_id")
    def _vpc(self: Any, vpc_id: str) -> None:
        gateway = any(one.vpc is not None and one.vpc.id == vpc_id for one in self.internet_gateways.values())
        if gateway or any(not group.is_default for group in self.groups.get(vpc_id, {}).values()):
            raise _dependency(f"The vpc '{vpc_id}' has dependencies and cannot be deleted.")

    @_before(EC2Backend, "release_address", "self address allocation_id")
    def _address(self: Any, address: str | None = None, allocation_id: str | None = None) -> None:
        for one in self.addresses:
            named = (allocation_id and one.allocation_id == allocation_id) or (address and one.public_ip == address)
            if named and one.association_id:
                raise EC2ClientError("InvalidIPAddress.InUse", f"Address {one.public_ip} is in use.")


def quotas_of_instances() -> None:
    """RunInstances and StartInstances fail where the account's vCPUs do not suffice."""
    from moto.ec2.exceptions import EC2ClientError
    from moto.ec2.models import EC2Backend

    def check(backend: Any, wanted: list[str]) -> None:
        for quota in {found for found in map(quota_of, wanted) if found}:
            needed = sum(vcpus_of(name) for name in wanted if quota_of(name) == quota)
            if vcpus_in_use(backend, quota) + needed > limits[quota.code]:
                raise EC2ClientError(
                    "VcpuLimitExceeded",
                    f"You have requested more vCPU capacity than your current vCPU limit of {limits[quota.code]:.0f} "
                    "allows for the instance bucket that the specified instance type belongs to. Please visit "
                    "http://aws.amazon.com/contact-us/ec2-request to request an adjustment to this limit.",
                )

    def check_spot(backend: Any, wanted: list[str]) -> None:
        for quota in {found for name in wanted if (found := quota_of(name, of_spot=True))}:
            needed = sum(vcpus_of(name) for name in wanted if quota_of(name, of_spot=True) == quota)
            if vcpus_in_use(backend, quota) + needed > limits[quota.code]:
                raise EC2ClientError("MaxSpotInstanceCountExceeded", "Max spot instance count exceeded")
        if sum(vcpus_of(name) for name in wanted) > room_on_spot(backend):
            raise EC2ClientError(
                "InsufficientInstanceCapacity", "There is no Spot capacity available that matches your request."
            )

    @_before(EC2Backend, "run_instances", "self image_id count")
    def _run(self: Any, image_id: str, count: int, *args: Any, **kwargs: Any) -> None:
        judge = check if spot.options(self, kwargs) is None else check_spot
        judge(self, [kwargs.get("instance_type") or "m1.small"] * int(count))

    @_before(EC2Backend, "start_instances", "self instance_ids")
    def _start(self: Any, instance_ids: list[str]) -> None:
        stopped = [one for one in self.get_multi_instances_by_id(instance_ids) if one.state == "stopped"]
        check(self, [one.instance_type for one in stopped if not spot.is_spot(one)])
        check_spot(self, [one.instance_type for one in stopped if spot.is_spot(one)])


def addresses_in_subnet() -> None:
    """A private address that is asked for lies in the subnet, is not one of AWS's own five and is free."""
    from moto.ec2.exceptions import EC2ClientError
    from moto.ec2.models.subnets import Subnet

    @_before(Subnet, "request_ip", "self ip instance")
    def _request(self: Any, ip: str, instance: Any) -> None:
        address = ipaddress.ip_address(ip)
        if address not in self.cidr:
            raise EC2ClientError("InvalidParameterValue", "Address does not fall within the subnet's address range")
        if int(address) - int(self.cidr.network_address) < 4 or address == self.cidr.broadcast_address:
            raise EC2ClientError("InvalidParameterValue", "Address is in subnet's reserved address range")
        used = ip in self._subnet_ips or any(
            item["PrivateIpAddress"] == ip
            for nic in self.ec2_backend.enis.values()
            if nic.subnet.id == self.id
            for item in nic.private_ip_addresses
        )
        if used:
            raise EC2ClientError("InvalidIPAddress.InUse", f"Address {ip} is in use.")


def elastic_addresses_are_few() -> None:
    """AllocateAddress fails beyond the quota."""
    from moto.ec2.exceptions import EC2ClientError
    from moto.ec2.models import EC2Backend

    @_before(EC2Backend, "allocate_address", "self domain address")
    def _allocate(self: Any, *args: Any, **kwargs: Any) -> None:
        if len(self.addresses) >= limits[ADDRESSES]:
            raise EC2ClientError("AddressLimitExceeded", "The maximum number of addresses has been reached.")


def service_quotas() -> None:
    """Service Quotas tells the same limits that are enforced, by code and as a list."""
    from moto.servicequotas.exceptions import NoSuchResource
    from moto.servicequotas.models import ServiceQuotasBackend
    from moto.servicequotas.responses import ServiceQuotasResponse

    def records(backend: Any) -> list[dict[str, Any]]:
        return [
            {
                "ServiceCode": "ec2",
                "ServiceName": "Amazon Elastic Compute Cloud (Amazon EC2)",
                "QuotaArn": f"arn:aws:servicequotas:{backend.region_name}:{backend.account_id}:ec2/{quota.code}",
                "QuotaCode": quota.code,
                "QuotaName": quota.name,
                "Value": limits[quota.code],
                "Unit": "None",
                "Adjustable": True,
                "GlobalQuota": False,
            }
            for quota in QUOTAS
        ]

    def make_list(original: Any) -> Any:
        def list_aws_default_service_quotas(self: Any, service_code: str) -> Any:
            return records(self) if service_code == "ec2" else original(self, service_code)

        return list_aws_default_service_quotas

    def make_get(original: Any) -> Any:
        def get_service_quota(self: Any, service_code: str, quota_code: str) -> Any:
            if service_code != "ec2":
                return original(self, service_code, quota_code)
            found = next((record for record in records(self) if record["QuotaCode"] == quota_code), None)
            if found is None:
                raise NoSuchResource
            return found

        return get_service_quota

    replace(ServiceQuotasBackend, "list_aws_default_service_quotas", make_list, parameters="self service_code")
    replace(ServiceQuotasBackend, "get_service_quota", make_get, parameters="self service_code quota_code")
    ServiceQuotasResponse.list_service_quotas = ServiceQuotasResponse.list_aws_default_service_quotas  # type: ignore[attr-defined]


CONSTRAINTS: tuple[Callable[[], None], ...] = (
    teardown_order,
    quotas_of_instances,
    addresses_in_subnet,
    elastic_addresses_are_few,
    service_quotas,
)


def apply() -> None:
    """Put every constraint in force, once per process; raise PatchPointError on another version of moto."""
    global _applied  # noqa: PLW0603
    if _applied:
        return
    for constraint in CONSTRAINTS:
        constraint()
    _applied = True
