"""The filters that word the doctor's findings."""

from __future__ import annotations

from typing import Any


def finding_line(finding: dict[str, Any]) -> str:
    """Return one finding ``{"name", "ok", "detail"}`` as a line of the table."""
    return f"{'ok  ' if finding['ok'] else 'FAIL'}  {finding['name']:<38}  {str(finding['detail']).strip()}"


def wrong_paths(reached: dict[str, Any]) -> str:
    """Return in words what the `reachability` module found: ``{"tried", "wrong": [{"name", "port", "state"}]}``."""
    if not reached["wrong"]:
        return f"{reached['tried']} paths as declared"
    return ", ".join(f"{item['name']}:{item['port']} is {item['state']}" for item in reached["wrong"])


def journal_ages(lines: list[str], hosts: dict[str, str], limit: float) -> dict[str, Any]:
    """Return a finding's `ok` and `detail` about the newest line that was collected of every host.

    Args:
        lines: one for each host, ``HOSTNAME SECONDS``; of a host without any line, the name alone.
        hosts: the inventory's name of every host by the name it calls itself.
        limit: seconds after which a newest line is too old.
    """
    ages = {words[0]: float(words[1]) for words in map(str.split, lines) if len(words) == 2}
    amiss = [
        f"{name}: newest line {ages[hostname]:.0f} s old" if hostname in ages else f"{name}: no line"
        for hostname, name in sorted(hosts.items(), key=lambda item: item[1])
        if ages.get(hostname, limit + 1) > limit
    ]
    oldest = max(ages.values(), default=0)
    return {
        "ok": not amiss,
        "detail": ", ".join(amiss) or f"{len(hosts)} hosts, newest line at most {oldest:.0f} s old",
    }


class FilterModule:
    """The filters by the names that playbooks use."""

    def filters(self) -> dict[str, Any]:
        """Return the filters."""
        return {"finding_line": finding_line, "journal_ages": journal_ages, "wrong_paths": wrong_paths}
