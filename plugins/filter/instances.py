"""Filters that compare the instances that are planned with those that exist, and say why one could not be started."""

from __future__ import annotations

from typing import Any


def _as_planned(found: dict[str, Any], plan: dict[str, Any], system: str, wanted: dict[str, Any]) -> bool:
    profile = (found.get("iam_instance_profile") or {}).get("arn", "").rpartition("/")[2]
    return (
        found["state"]["name"] == "running"
        and found["instance_type"] == plan["type"]
        and found["subnet_id"] == wanted["subnets"].get(plan["subnet"])
        and [group["group_id"] for group in found["security_groups"]] == [wanted["groups"].get(plan["role"])]
        and profile == (f"lightbox-{system}-{plan['role']}" if "bucket" in plan else "")
        and found.get("key_name") == f"lightbox-{system}"
        and (found.get("metadata_options") or {}).get("http_tokens") == "required"
        and all(found["tags"].get(key) == value for key, value in wanted["tags"].items())
        and found["tags"].get("Role") == plan["role"]
    )


def to_settle(
    plans: list[dict[str, Any]], existing: list[dict[str, Any]], system: str, wanted: dict[str, Any]
) -> list[dict[str, Any]]:
    """Return the planned instances that do not run as planned, so that only those cost a call.

    Args:
        plans: `instances` of the inventory.
        existing: instances of the system, as amazon.aws.ec2_instance_info gives them.
        system: the system's name.
        wanted: `subnets` (id by name), `groups` (security group id by role), `tags` of every instance.
    """
    known = {one["tags"].get("Name"): one for one in existing}
    return [
        plan
        for plan in plans
        if (found := known.get(f"{system}-{plan['name']}")) is None or not _as_planned(found, plan, system, wanted)
    ]


def to_buy_on_spot(plans: list[dict[str, Any]], existing: list[dict[str, Any]], system: str) -> list[dict[str, Any]]:
    """Return the planned instances that are to be made as spot instances: an existing one stays what it is.

    Args:
        plans, existing, system: see `to_settle`.
    """
    known = {one["tags"].get("Name") for one in existing}
    return [plan for plan in plans if plan.get("market") == "spot" and f"{system}-{plan['name']}" not in known]


def spot_problems(results: list[dict[str, Any]], zone: str) -> list[str]:
    """Return, for each instance that the spot market did not give, its type, the zone, why, and what happens instead.

    Args:
        results: those of the loop of amazon.aws.ec2_instance that failed so.
        zone: where they were to start.
    """
    told = []
    for result in results:
        kind, why = result["item"]["type"], str(result["msg"]).strip().rstrip(".")
        if "MaxSpotInstanceCountExceeded" in why:
            why = f"the account's quota of spot instances of this family is used up ({why})"
        told.append(f"{result['item']['name']} ({kind}) is not to be had on spot in {zone}: {why}. It runs on demand.")
    return told


REMEDIES = {
    "InsufficientInstanceCapacity": "Run again later, or choose another type in `instances`",
    "IncorrectSpotRequestState": "EC2 has taken it back and starts it again when there is room: run again then",
    "VcpuLimitExceeded": "Stop what runs, or have the account's quota for this type raised",
}


def launch_problems(results: list[dict[str, Any]], zone: str, zones: dict[str, list[str]]) -> list[str]:
    """Return, for each instance that could not be started, its type, the zone tried, why, and what to do.

    Args:
        results: of the loop of amazon.aws.ec2_instance over planned instances.
        zone: where they were to start.
        zones: zones of the region that offer an instance type, as far as they were asked for.
    """
    problems = []
    for result in results:
        if not result.get("failed"):
            continue
        kind, why = result["item"]["type"], str(result.get("msg", "")).strip()
        remedy = next((words for code, words in REMEDIES.items() if code in why), "Correct it and run again")
        others = [name for name in zones.get(kind, []) if name != zone]
        elsewhere = f"; a network made in {' or '.join(others)} could have it too" if others else ""
        problems.append(f"{result['item']['name']} ({kind}) could not be started in {zone}: {why} {remedy}{elsewhere}.")
    return problems


class FilterModule:
    """The filters by the names that playbooks use."""

    def filters(self) -> dict[str, Any]:
        """Return the filters."""
        return {
            "launch_problems": launch_problems,
            "spot_problems": spot_problems,
            "to_buy_on_spot": to_buy_on_spot,
            "to_settle": to_settle,
        }
