"""Every panel asks something that Prometheus understands, with a unit and in words."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.dashboards import DASHBOARDS, queries  # noqa: E402 - found only with the path above

NAMES = sorted(file.stem for file in DASHBOARDS.glob("*.json"))


def test_prometheus_understands_every_query(tmp_path: Path) -> None:
    program = shutil.which("promtool")
    assert program, "promtool is missing: install Debian's package prometheus"
    asked = list(queries())
    rules = [{"record": f"panel:{number}", "expr": query} for number, (_, _, query) in enumerate(asked)]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    done = subprocess.run([program, "check", "rules", tmp_path / "rules.yml"], text=True, check=False,
                          capture_output=True)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "$" not in "".join(query for _, _, query in asked), "a variable is not replaced"


@pytest.mark.parametrize("name", NAMES)
def test_panels_are_complete_and_do_not_overlap(name: str) -> None:
    dashboard = json.loads((DASHBOARDS / f"{name}.json").read_text())
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        assert panel["title"] and panel["description"] and panel["targets"], panel["id"]
        assert panel["datasource"]["uid"] == "prometheus"
        if panel["type"] in ("stat", "timeseries"):
            assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken and at["x"] + at["w"] <= 24, panel["title"]
        taken |= cells


def test_the_role_brings_every_dashboard() -> None:
    defaults = yaml.safe_load((ROOT / "roles/grafana/defaults/main.yml").read_text())
    assert sorted(defaults["grafana_dashboards"]) == [f"{name}.json" for name in NAMES] == [
        "hosts.json", "model.json", "service.json", "training.json",
    ]  # fmt: skip
