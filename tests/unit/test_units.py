"""The services that the roles write whole are confined: systemd says so of the files, before any host has them.

What runs on the hosts, with what the distribution's units say, is measured in `molecule/shared/tests/test_units.py`.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEMPLATES = sorted((ROOT / "roles").glob("*/templates/etc/systemd/system/*.service.j2"))
MOST = 3.0


def exposure(unit: Path) -> float:
    """Return what systemd makes of a unit's sandbox: 0 is all of it, 10 is none."""
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", str(unit)],
        text=True, check=False, capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return float(done.stdout.splitlines()[-1].split(": ")[1].split()[0])


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every template, as Ansible writes it."""
    directory = tmp_path_factory.mktemp("units")
    units = [{"role": path.parts[path.parts.index("roles") + 1], "src": path.name} for path in TEMPLATES]
    subprocess.run(
        [ROOT / ".venv/bin/ansible-playbook", "tests/units/render.yml", "-i", "localhost,",
         "-e", json.dumps({"directory": str(directory), "units": units})],
        cwd=ROOT, check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    return directory


@pytest.mark.parametrize("name", [path.stem for path in TEMPLATES])
def test_a_service_can_do_little_beside_its_work(rendered: Path, name: str) -> None:
    assert exposure(rendered / name) <= MOST


def test_a_service_without_a_sandbox_is_noticed(rendered: Path, tmp_path: Path) -> None:
    open_wide = [
        line for line in (rendered / "lightbox-app.service").read_text().splitlines()
        if not line.startswith(("Capability", "Protect", "Restrict", "SystemCall", "Private"))
    ]  # fmt: skip
    (tmp_path / "lightbox-app.service").write_text("\n".join(open_wide))
    assert exposure(tmp_path / "lightbox-app.service") > MOST
