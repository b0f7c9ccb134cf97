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


class FilterModule:
    """The filters by the names that playbooks use."""

    def filters(self) -> dict[str, Any]:
        """Return the filters."""
        return {"finding_line": finding_line, "wrong_paths": wrong_paths}
