#!/usr/bin/python
# License: Apache-2.0 OR GPL-3.0-or-later (the GNU General Public License, version 3 or later)
"""Ansible module: ask AWS whether instances could be started, before any is."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ec2_capacity
short_description: Ask whether the account and the zone can start the instances of a plan
version_added: 0.1.0
description:
  - Compares the vCPUs that a plan needs with the account's service quotas and with what already runs, and checks that
    the zone is one of the region and offers each instance type. Changes nothing.
options:
  instance_types:
    description: Instance types of the instances still to be started, one entry per instance.
    type: list
    elements: str
    required: true
  spot_instance_types:
    description: >-
      The same of those that are to be spot instances. What the quotas of spot instances have no room for counts among
      the on-demand ones, as which it would be started.
    type: list
    elements: str
    default: []
  availability_zone:
    description: The zone they would start in.
    type: str
    required: true
extends_documentation_fragment:
  - amazon.aws.common.modules
  - amazon.aws.region.modules
  - amazon.aws.boto3
author: The Lightbox authors (@lightbox-mlops)
"""

EXAMPLES = r"""
- name: The plan fits the account
  lightbox.mlops.ec2_capacity:
    instance_types: [t3.micro, t3.micro, g4dn.xlarge]
    availability_zone: us-east-1a
  register: capacity
"""

RETURN = r"""
problems:
  description: What stands in the way, each with its remedy; empty when nothing does.
  type: list
  elements: str
  returned: always
notes:
  description: Which spot instances will be on-demand ones, and why.
  type: list
  elements: str
  returned: always
demand:
  description: Per quota code, the vCPUs needed, running and allowed.
  type: dict
  returned: always
zones:
  description: Per instance type, the zones of the region that offer it.
  type: dict
  returned: always
"""

try:
    import botocore.exceptions
except ImportError:
    pass  # AnsibleAWSModule says what is missing

from collections.abc import Sequence
from typing import Any

from ansible_collections.amazon.aws.plugins.module_utils.modules import AnsibleAWSModule

# Quotas of running on-demand instances, by the letters the instance family starts with. A family is matched by its
# longest prefix. https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/ec2-on-demand-instances.html
QUOTAS = {
    "L-1216C47A": ("Running On-Demand Standard (A, C, D, H, I, M, R, T, Z) instances", tuple("acdhimrtz")),
    "L-DB2E81BA": ("Running On-Demand G and VT instances", ("g", "vt")),
    "L-417A185B": ("Running On-Demand P instances", ("p",)),
}


# The same of spot instances. https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/using-spot-limits.html
SPOT_QUOTAS = {
    "L-1216C47A": ("L-34B43A08", "All Standard (A, C, D, H, I, M, R, T, Z) Spot Instance Requests"),
    "L-DB2E81BA": ("L-3819A6DF", "All G and VT Spot Instance Requests"),
    "L-417A185B": ("L-7212CCBC", "All P4, P3 and P2 Spot Instance Requests"),
}


def quota_of(instance_type: str) -> str | None:
    """Return the quota code that an instance type counts against, or None for a family with no quota known here."""
    family = instance_type.partition(".")[0]
    letters = family[: next((i for i, char in enumerate(family) if char.isdigit()), len(family))]
    matches = [
        (len(prefix), code)
        for code, (_words, prefixes) in QUOTAS.items()
        for prefix in prefixes
        if letters.startswith(prefix)
    ]
    return max(matches)[1] if matches else None


def vcpus_of(ec2: Any, instance_types: set[str]) -> dict[str, int]:
    """Return the default vCPUs of each instance type that AWS knows."""
    if not instance_types:
        return {}
    paginator = ec2.get_paginator("describe_instance_types")
    filters = [{"Name": "instance-type", "Values": sorted(instance_types)}]
    return {
        item["InstanceType"]: item["VCpuInfo"]["DefaultVCpus"]
        for page in paginator.paginate(Filters=filters)
        for item in page["InstanceTypes"]
    }


def running_types(ec2: Any) -> tuple[list[str], list[str]]:
    """Return the instance types of all on-demand, and of all spot instances that count against a quota now."""
    paginator = ec2.get_paginator("describe_instances")
    filters = [{"Name": "instance-state-name", "Values": ["pending", "running"]}]
    found = [
        (instance["InstanceType"], instance.get("InstanceLifecycle") == "spot")
        for page in paginator.paginate(Filters=filters)
        for reservation in page["Reservations"]
        for instance in reservation["Instances"]
    ]
    return [name for name, spot in found if not spot], [name for name, spot in found if spot]


def zones_of(ec2: Any, instance_types: set[str]) -> dict[str, set[str]]:
    """Return the zones of the region that offer each of the instance types; a type that none offers is left out."""
    paginator = ec2.get_paginator("describe_instance_type_offerings")
    filters = [{"Name": "instance-type", "Values": sorted(instance_types)}]
    zones: dict[str, set[str]] = {}
    for page in paginator.paginate(LocationType="availability-zone", Filters=filters):
        for item in page["InstanceTypeOfferings"]:
            zones.setdefault(item["InstanceType"], set()).add(item["Location"])
    return zones


def zone_problem(zone: str, region: str, zones: list[str]) -> str | None:
    """Return what is wrong with a zone of a region that has these zones, or None."""
    if zone in zones:
        return None
    letters = ", ".join(sorted(name.removeprefix(region) for name in zones))
    return f"{zone} is not a zone of the region; network.zone can be one of: {letters}"


def without_spot(
    planned: list[str], running: list[str], vcpus: dict[str, int], limits: dict[str, float]
) -> tuple[list[str], list[str]]:
    """Return the instance types for which the quotas of spot instances have no room, and that in words.

    Args:
        planned: instance type of each spot instance still to be started.
        running: instance type of each that runs.
        vcpus: vCPUs of an instance type that AWS knows.
        limits: vCPUs allowed on spot, by the code of the on-demand quota of the same families.
    """
    missed, notes = [], []
    used: dict[str, int] = {}
    for name in running:
        if code := quota_of(name):
            used[code] = used.get(code, 0) + vcpus.get(name, 0)
    for name in planned:
        code = quota_of(name)
        if code is None or code not in limits:
            continue
        needed = used.get(code, 0) + vcpus.get(name, 0)
        if needed <= limits[code]:
            used[code] = needed
            continue
        spot_code, words = SPOT_QUOTAS[code]
        missed.append(name)
        notes.append(
            f"{name} will run on demand: on spot {needed} vCPUs would run, but the quota {spot_code} ({words}) is "
            f"{limits[code]:.0f}"
        )
    return missed, notes


def assess(
    planned: list[str],
    running: list[str],
    vcpus: dict[str, int],
    offers: dict[str, set[str]],
    limits: dict[str, float],
    zone: str,
    on_spot: Sequence[str] = (),
) -> tuple[list[str], dict[str, dict[str, float]]]:
    """Return what stands in the plan's way, in words, and the demand by quota code.

    Args:
        planned: instance type of each instance still to be started.
        running: instance type of each that counts against a quota now.
        vcpus: vCPUs of an instance type that AWS knows.
        offers: zones that offer an instance type.
        limits: vCPUs allowed, by quota code.
        zone: where they would start.
        on_spot: instance type of each that is to be a spot instance; they need no more of a quota here.
    """
    names = {*planned, *on_spot}
    problems = [f"{name} is not an EC2 instance type; correct it in `instances`" for name in sorted(names - set(vcpus))]
    for name in sorted(names & set(vcpus)):
        zones = offers.get(name, set())
        if zone not in zones:
            where = (
                f"{', '.join(sorted(zones))} offer it: set `network.zone`" if zones else "no zone of the region does"
            )
            problems.append(f"{name} is not offered in {zone}; {where}, or choose another type in `instances`")
    demand: dict[str, dict[str, float]] = {}
    for code, limit in limits.items():
        needed = sum(vcpus.get(name, 0) for name in planned if quota_of(name) == code)
        used = sum(vcpus.get(name, 0) for name in running if quota_of(name) == code)
        demand[code] = {"needed": needed, "running": used, "limit": limit}
        if needed and used + needed > limit:
            kinds = ", ".join(sorted({name for name in planned if quota_of(name) == code}))
            problems.append(
                f"{needed} vCPUs are needed for {kinds} and {used} run already, but the quota {code} "
                f"({QUOTAS[code][0]}) is {limit:.0f}; request at least {used + needed} with: aws service-quotas "
                f"request-service-quota-increase --service-code ec2 --quota-code {code} --desired-value {used + needed}"
            )
    return problems, demand


def main() -> None:
    """Run the module."""
    module = AnsibleAWSModule(
        argument_spec={
            "instance_types": {"type": "list", "elements": "str", "required": True},
            "spot_instance_types": {"type": "list", "elements": "str", "default": []},
            "availability_zone": {"type": "str", "required": True},
        },
        supports_check_mode=True,
    )
    planned, zone = module.params["instance_types"], module.params["availability_zone"]
    on_spot = module.params["spot_instance_types"]
    try:
        ec2 = module.client("ec2")
        zones = [one["ZoneName"] for one in ec2.describe_availability_zones()["AvailabilityZones"]]
        wrong = zone_problem(zone, module.region, zones)
        if wrong or not (planned or on_spot):
            module.exit_json(changed=False, problems=[wrong] if wrong else [], notes=[], demand={}, zones={})
        quotas = module.client("service-quotas")
        running, running_on_spot = running_types(ec2)
        vcpus = vcpus_of(ec2, {*planned, *on_spot, *running, *running_on_spot})
        known = {name for name in (*planned, *on_spot) if name in vcpus}
        offers = zones_of(ec2, known) if known else {}

        def limit(code: str) -> float:
            return float(quotas.get_service_quota(ServiceCode="ec2", QuotaCode=code)["Quota"]["Value"])

        spot_limits = {code: limit(SPOT_QUOTAS[code][0]) for code in {quota_of(name) for name in on_spot} if code}
        missed, notes = without_spot(on_spot, running_on_spot, vcpus, spot_limits)
        limits = {code: limit(code) for code in sorted({code for code in map(quota_of, [*planned, *missed]) if code})}
    except (botocore.exceptions.ClientError, botocore.exceptions.BotoCoreError) as error:
        module.fail_json_aws(error, msg="Could not ask AWS about instance types and quotas")
    problems, demand = assess([*planned, *missed], running, vcpus, offers, limits, zone, on_spot)
    zones_by_type = {name: sorted(offering) for name, offering in offers.items()}
    module.exit_json(changed=False, problems=problems, notes=notes, demand=demand, zones=zones_by_type)


if __name__ == "__main__":
    main()
