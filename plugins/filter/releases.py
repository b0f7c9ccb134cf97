"""The filter that reads a host's record of releases."""

from __future__ import annotations

from typing import Any


def releases_before(record: str, live: str, present: list[str]) -> list[str]:
    """Return the versions to which one may roll back, the latest last.

    A release puts its version on top of those before it; a rollback takes away what was above the version it leads to.

    Args:
        record: lines of time, event and version, oldest first.
        live: the version that serves now.
        present: the versions that are still on the host.
    """
    stack: list[str] = []
    for _, event, version in (line.split() for line in record.splitlines() if line.strip()):
        if version in stack:
            place = stack.index(version)
            stack = stack[:place] if event == "rolled-back-to" else stack[:place] + stack[place + 1 :]
        stack.append(version)
    before = stack[: stack.index(live)] if live in stack else stack
    return [version for version in before if version in present]


class FilterModule:
    """The filter by the name that roles use."""

    def filters(self) -> dict[str, Any]:
        """Return the filter."""
        return {"releases_before": releases_before}
