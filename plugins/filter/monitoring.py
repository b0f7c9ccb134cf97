"""Filters that turn hosts into Prometheus targets, and judge what has become of them."""

from __future__ import annotations

from typing import Any


def scrape_targets(hosts: list[tuple[str, str, str]], port: int, unit: str = "") -> list[dict[str, Any]]:
    """Return one group of targets per host, named as the inventory names it.

    Args:
        hosts: name, role and address of every host.
        port: the port that the exporter listens on.
        unit: the systemd unit that must be active for somebody to listen there; empty where somebody always does.
    """
    labels = {"unit": unit} if unit else {}
    return [
        {"addresses": [f"{address}:{port}"], "labels": {"instance": name, "role": role, **labels}}
        for name, role, address in hosts
    ]


def targets_amiss(targets: list[dict[str, Any]], missed: list[dict[str, Any]]) -> list[str]:
    """Return the URLs of the targets that should answer Prometheus and do not.

    Args:
        targets: `activeTargets`, as Prometheus' API gives them.
        missed: labels of the targets that do not answer though the unit they stand for is active.
    """
    names = {(one["instance"], one["unit"]) for one in missed}
    return [
        target["scrapeUrl"]
        for target in targets
        if target["health"] != "up"
        and ("unit" not in target["labels"] or (target["labels"]["instance"], target["labels"]["unit"]) in names)
    ]


class FilterModule:
    """The filters by the names that playbooks use."""

    def filters(self) -> dict[str, Any]:
        """Return the filters."""
        return {"scrape_targets": scrape_targets, "targets_amiss": targets_amiss}
