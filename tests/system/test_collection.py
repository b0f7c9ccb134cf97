"""The collection, built and installed into an empty place, finds nothing to do on the system that the checkout made.

``make test T=collection`` brings the system up first and takes it away; with ``LIGHTBOX_KEEP=1`` this file runs alone
against one that is up.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from .conftest import BIN, ROOT, System

pytestmark = [pytest.mark.system, pytest.mark.timeout(1200)]


class Elsewhere:
    """An empty directory with the collection, and inventories as a user has them."""

    def __init__(self, directory: Path, system: System) -> None:
        self.directory = directory
        self.environment = {
            **{name: value for name, value in system.environment.items() if not name.startswith("ANSIBLE_")},
            "ANSIBLE_COLLECTIONS_PATH": str(directory / "collections"),
            "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json",
        }
        galaxy = [BIN / "ansible-galaxy", "collection"]
        subprocess.run([*galaxy, "build", ROOT], cwd=directory, env=self.environment, check=True)
        (archive,) = directory.glob("*.tar.gz")
        install = [*galaxy, "install", archive, "-p", directory / "collections", "--no-deps", "--offline"]
        subprocess.run(install, cwd=directory, env=self.environment, check=True)
        shipped = directory / "collections/ansible_collections/lightbox/mlops/inventories"
        for name in ("lab", "aws", system.name):
            shutil.copytree(shipped / name, directory / "inventories" / name, symlinks=True)
        (directory / "inventories/common").symlink_to(shipped / "common")
        # The lab has the keys and passwords; they are beside the inventories.
        (directory / ".lab").symlink_to(ROOT / ".lab")
        self.inventories = ["-i", "inventories/lab", "-i", f"inventories/{system.name}"]

    def play(self, *arguments: str) -> dict[str, Any]:
        """Run ansible-playbook; return its figures by host."""
        done = subprocess.run(
            [BIN / "ansible-playbook", *self.inventories, *arguments], cwd=self.directory, env=self.environment,
            text=True, check=False, stdin=subprocess.DEVNULL, capture_output=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
        return dict(json.loads(done.stdout[done.stdout.index("{") :])["stats"])


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory, system: System) -> Elsewhere:
    return Elsewhere(tmp_path_factory.mktemp("elsewhere"), system)


def test_the_installed_collection_changes_nothing_on_what_the_checkout_made(elsewhere: Elsewhere) -> None:
    elsewhere.play("lightbox.mlops.configure", "--tags", "app")  # the wheel is not here yet
    figures = elsewhere.play("lightbox.mlops.site")
    assert len(figures) == 6
    assert {host: one["changed"] for host, one in figures.items() if one["changed"]} == {}


def test_the_installed_doctor_finds_everything_well(elsewhere: Elsewhere) -> None:
    elsewhere.play("lightbox.mlops.verify", "-e", f"verify_out={elsewhere.directory}/findings.json")
    findings = json.loads((elsewhere.directory / "findings.json").read_text())
    assert "second configuration changes nothing" in {one["name"] for one in findings["checks"]}
    assert [one for one in findings["checks"] if not one["ok"]] == []
