"""The filter that turns hosts into Prometheus targets."""

from __future__ import annotations

from typing import Any


def scrape_targets(hosts: list[tuple[str, str, str]], port: int) -> list[dict[str, Any]]:
    """Return one group of targets per host, named as the inventory names it.

    Args:
        hosts: name, role and address of every host.
        port: the port that the exporter listens on.
    """
    return [
        {"addresses": [f"{address}:{port}"], "labels": {"instance": name, "role": role}}
        for name, role, address in hosts
    ]


class FilterModule:
    """The filter by the name that playbooks use."""

    def filters(self) -> dict[str, Any]:
        """Return the filter."""
        return {"scrape_targets": scrape_targets}
