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


def _rules(data: dict[str, Any]) -> list[dict[str, Any]]:
    return [rule for group in data["groups"] for rule in group["rules"]]


def rules_amiss(data: dict[str, Any]) -> list[str]:
    """Return what is wrong with the rules that were evaluated without success, or not yet.

    Args:
        data: what Prometheus' API answers to `rules`.
    """
    return [
        f"{rule['name']}: {rule.get('lastError') or 'not evaluated yet'}"
        for rule in _rules(data)
        if rule["health"] != "ok"
    ]


def alerts_firing(data: dict[str, Any], severity: str = "") -> list[str]:
    """Return the alerts that fire, each with its severity and summary; only those of one severity where it is given.

    Args:
        data: what Prometheus' API answers to `rules`.
        severity: the label `severity`; empty for any.
    """
    firing = [alert for rule in _rules(data) for alert in rule.get("alerts", []) if alert["state"] == "firing"]
    return sorted(
        f"{alert['labels']['alertname']} ({alert['labels'].get('severity', 'of no severity')}): "
        f"{alert['annotations'].get('summary', '')}"
        for alert in firing
        if severity in ("", alert["labels"].get("severity"))
    )


class FilterModule:
    """The filters by the names that playbooks use."""

    def filters(self) -> dict[str, Any]:
        """Return the filters."""
        return {
            "alerts_firing": alerts_firing,
            "rules_amiss": rules_amiss,
            "scrape_targets": scrape_targets,
            "targets_amiss": targets_amiss,
        }
