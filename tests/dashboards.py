"""What Grafana's dashboards ask Prometheus, as Grafana would ask it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

DASHBOARDS = Path(__file__).parents[1] / "roles/grafana/files/etc/grafana/dashboards"


def queries(rate_interval: str = "1m") -> Iterator[tuple[str, str, str]]:
    """Yield dashboard, title of the panel and query, its variables standing for everything."""
    for file in sorted(DASHBOARDS.glob("*.json")):
        dashboard = json.loads(file.read_text())
        variables = [one["name"] for one in dashboard["templating"]["list"]]
        for panel in dashboard["panels"]:
            for target in panel["targets"]:
                query = target["expr"].replace("$__rate_interval", rate_interval)
                for name in variables:
                    query = query.replace(f"${name}", ".*")
                yield file.stem, panel["title"], query
