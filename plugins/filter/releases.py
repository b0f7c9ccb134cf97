"""The filter that reads a host's record of releases."""

from __future__ import annotations

from typing import Any


def releases_before(record: str, live: str, present: list[str]) -> list[str]:
    """Return the versions to which one may roll back, the latest last.

    Args:
        record: lines of time, event and version, oldest first.
        live: the version that serves now.
        present: the versions that are still on the host.
    """
    history = [line.split()[-1] for line in record.splitlines() if line.strip()]
    before = history[: history.index(live)] if live in history else history
    # A version that was live more than once counts from the last time.
    latest_first = dict.fromkeys(reversed(before))
    return [version for version in reversed(latest_first) if version in present and version != live]


class FilterModule:
    """The filter by the name that roles use."""

    def filters(self) -> dict[str, Any]:
        """Return the filter."""
        return {"releases_before": releases_before}
