"""Filters that compare the instances that are planned with those that exist."""

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


class FilterModule:
    """The filters by the names that playbooks use."""

    def filters(self) -> dict[str, Any]:
        """Return the filters."""
        return {"to_settle": to_settle}
