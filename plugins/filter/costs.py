"""The filter that says what hosts cost."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any


def costs(
    hosts: list[dict[str, Any]], prices: dict[str, dict[str, float]], region: str, now: float | None = None
) -> list[str]:
    """Return a sentence for each instance: how long it has been up, and what that costs.

    Args:
        hosts: running instances, as amazon.aws.ec2_instance_info gives them.
        prices: USD per hour, by region and instance type.
        region: the region they run in.
        now: seconds since 1970; the clock's unless given.
    """
    told = []
    moment = datetime.now(timezone.utc) if now is None else datetime.fromtimestamp(now, timezone.utc)
    for host in hosts:
        started = datetime.fromisoformat(str(host["launch_time"]).replace("Z", "+00:00"))
        hours = max((moment - started).total_seconds(), 0) / 3600
        name, kind = host["tags"]["Name"], host["instance_type"]
        up = f"{name} ({kind}) has been up for {int(hours)}:{int(hours * 60) % 60:02d} h"
        price = prices.get(region, {}).get(kind)
        if price is None:
            told.append(f"{up}; instance_prices does not say what it costs in {region}")
        elif host.get("instance_lifecycle") == "spot":
            told.append(f"{up} on spot: at most the on-demand price of {hours * price:.2f} USD, {price:g} USD an hour")
        else:
            told.append(f"{up}: {hours * price:.2f} USD at {price:g} USD an hour, on demand")
    return told


class FilterModule:
    """The filter by the name that playbooks use."""

    def filters(self) -> dict[str, Any]:
        """Return the filter."""
        return {"costs": costs}
