"""The collection as others get it: what its archive holds, and how it works from any directory once installed."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
COLLECTION = Path("collections/ansible_collections/lightbox/mlops")
# What a checkout has and the archive does not.
STAYS = re.compile(
    r"\.|.*/\.|(app/tests|benchmarks|collections|lab|molecule|requirements|tests)(/|$)"
    r"|(ansible\.cfg|docs/draw_network\.py|galaxy\.yml|pyproject\.toml|Makefile|app/Makefile|app/locks/(bench|dev)\.txt)$"
)
# What work with a checkout leaves in it.
LEFT_BEHIND = (
    ".ansible/collections/x.yml", ".build/lightbox-0.1.0-py3-none-any.whl", ".cache/molecule/containers.conf",
    ".git/config", ".lab/secrets/pneumonia/id_ed25519", ".lab-artefacts/page.png", ".mypy_cache/x.json",
    ".pytest_cache/x", ".ruff_cache/x", ".secrets/pneumonia/redis_api", ".venv/bin/python", ".venv-app/pyvenv.cfg",
    "app/.hypothesis/x", "app/src/lightbox.egg-info/PKG-INFO", "app/src/lightbox/__pycache__/data.cpython-311.pyc",
    "lightbox-mlops-0.1.0.tar.gz", "plugins/filter/__pycache__/flows.cpython-311.pyc", "reports/A.html",
    "roles/base/.DS_Store", "site.retry", "train.log",
)  # fmt: skip


class Installed:
    """The collection, built from what the checkout holds and installed into an empty place; and a user's project."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.project = directory, directory / "project"
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "AWS_"))},
            "HOME": str(directory / "home"),
            "ANSIBLE_COLLECTIONS_PATH": str(directory / "collections"),
            "ANSIBLE_FORCE_COLOR": "0",
        }
        self.project.mkdir()
        listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
        self.tracked = {name for name in names if name and os.path.lexists(ROOT / name)}
        checkout = directory / "checkout"
        for name in (*self.tracked, *LEFT_BEHIND):
            (checkout / name).parent.mkdir(parents=True, exist_ok=True)
            if name in self.tracked:
                shutil.copy2(ROOT / name, checkout / name, follow_symlinks=False)
            else:
                (checkout / name).write_text("left behind\n")
        galaxy = ["ansible-galaxy", "collection"]
        self.run(*galaxy, "build", str(checkout), "--output-path", str(directory))
        (archive,) = directory.glob("*.tar.gz")
        with tarfile.open(archive) as opened:
            self.files = {member.name for member in opened if not member.isdir()}
        self.run(*galaxy, "install", str(archive), "-p", str(directory / "collections"), "--no-deps", "--offline")
        self.home = directory / COLLECTION
        # As docs/collection.md says, but for the file that asks the cloud which hosts there are.
        inventories = self.project / "inventories"
        shutil.copytree(self.home / "inventories/pneumonia", inventories / "pneumonia", symlinks=True)
        shutil.copytree(self.home / "inventories/aws", inventories / "aws", symlinks=True)
        (inventories / "common").symlink_to(self.home / "inventories/common")
        (inventories / "aws/aws_ec2.yml").unlink()

    def run(self, *command: str) -> str:
        """Run one of Ansible's commands in the user's project; return its output."""
        done = subprocess.run(
            [BIN / command[0], *command[1:]], cwd=self.project, env=self.environment, text=True, check=False,
            stdin=subprocess.DEVNULL, capture_output=True,
        )  # fmt: skip
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
        return done.stdout

    def play(self, *arguments: str) -> str:
        """Run ansible-playbook on the user's inventories."""
        return self.run("ansible-playbook", "-i", "inventories/aws", "-i", "inventories/pneumonia", *arguments)

    def documented(self, kind: str) -> dict[str, Any]:
        """Return what ansible-doc lists of the collection, by name."""
        listed = json.loads(self.run("ansible-doc", "-t", kind, "-l", "--json", "lightbox.mlops"))
        return {name.removeprefix("lightbox.mlops."): told for name, told in listed.items()}

    def contents(self) -> set[str]:
        """Return every file of the installed collection; what Python compiles counts as none."""
        found = (path for path in self.home.rglob("*") if path.suffix != ".pyc" and path.name != "__pycache__")
        return {str(path.relative_to(self.home)) for path in found}


def filters() -> dict[str, Any]:
    """Return the filters by name."""
    found: dict[str, Any] = {}
    for path in (ROOT / "plugins/filter").glob("*.py"):
        found |= runpy.run_path(str(path))["FilterModule"]().filters()
    return found


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    directory = tmp_path_factory.mktemp("collection")
    yield Installed(directory)
    shutil.rmtree(directory)


def test_the_archive_holds_what_is_of_use_elsewhere_and_nothing_else(installed: Installed) -> None:
    assert installed.files - {"FILES.json", "MANIFEST.json"} == {
        name for name in installed.tracked if not STAYS.match(name)
    }


def test_plugins_are_called_by_names_that_hold_in_every_place() -> None:
    known = {path.stem for place in ("playbooks", "plugins") for path in (ROOT / place).rglob("*.*")} | {*filters()}
    short = re.compile(rf"(?:\|\s*|map\(')({'|'.join(filters())})\b")
    for place in ("playbooks", "roles", "inventories"):
        for path in (ROOT / place).rglob("*.yml"):
            text = path.read_text()
            assert set(re.findall(r"\blightbox\.mlops\.(\w+)", text)) <= known, path
            assert short.findall(text) == [], f"{path}: filters are found by their full names alone"


def test_every_playbook_works_by_its_name_with_inventories_elsewhere(installed: Installed) -> None:
    names = sorted(path.stem for path in (ROOT / "playbooks").glob("*.yml"))
    assert {"site", "train"} <= set(names)
    installed.play("--syntax-check", *(f"lightbox.mlops.{name}" for name in names))
    listed = installed.play("lightbox.mlops.site", "--list-tasks")
    roles = {path.name for path in (ROOT / "roles").iterdir()}
    assert set(re.findall(r"^ +lightbox\.mlops\.(\w+) : ", listed, re.MULTILINE)) & roles >= {"base", "pki"}
    assert len(re.findall(r"^  play #", listed, re.MULTILINE)) > 20


def test_what_a_run_makes_is_kept_beside_the_inventories(installed: Installed) -> None:
    before = installed.contents()
    installed.play("lightbox.mlops.configure", "--tags", "app")
    assert installed.contents() == before
    (wheel,) = (installed.project / ".build").glob("*.whl")
    at_home = installed.directory / "from-checkout"
    build = [BIN / "uv", "build", "--quiet", "--wheel", "--no-build-isolation", "--python", sys.executable]
    subprocess.run([*build, "--out-dir", at_home, ROOT / "app"], check=True)
    digests = {hashlib.sha256(path.read_bytes()).hexdigest() for path in (wheel, at_home / wheel.name)}
    assert len(digests) == 1, "the same app, so hosts need nothing new"


def test_a_playbook_of_ones_own_can_import_those_of_the_collection(installed: Installed) -> None:
    names = ("app_source", "app_wheel", "reports_dir", "secrets_dir")
    play = {
        "hosts": "localhost", "gather_facts": False,
        "tasks": [{"ansible.builtin.copy": {"content": "{{ told | to_json }}", "dest": "told.json", "mode": "0600"}}],
        "vars": {"told": {name: f"{{{{ {name} }}}}" for name in names}},
    }  # fmt: skip
    own = [{"ansible.builtin.import_playbook": "lightbox.mlops.policy"}, play]
    (installed.project / "own.yml").write_text(yaml.safe_dump(own))
    installed.play("own.yml")
    told = json.loads((installed.project / "told.json").read_text())
    assert told.pop("app_source") == str(installed.home / "app")
    assert {str(Path(path).relative_to(installed.project)).split("/")[0] for path in told.values()} == {
        ".build", ".secrets", "reports",
    }  # fmt: skip


def test_roles_and_plugins_are_documented(installed: Installed) -> None:
    roles = {path.name for path in (ROOT / "roles").iterdir()}
    assert set(installed.documented("role")) == roles
    for kind, directory in (("module", "modules"), ("lookup", "lookup"), ("strategy", "strategy")):
        names = {path.stem for path in (ROOT / "plugins" / directory).glob("*.py")}
        assert {name for name, told in installed.documented(kind).items() if told != "UNDOCUMENTED"} == names
    actions = {path.stem for path in (ROOT / "plugins/action").glob("*.py")}
    assert actions <= installed.documented("module").keys()


def test_filters_are_documented_with_every_argument(installed: Installed) -> None:
    listed = installed.documented("filter")
    assert {name for name, told in listed.items() if told != "UNDOCUMENTED"} == set(filters())
    for name, function in filters().items():
        told = yaml.safe_load((ROOT / f"plugins/filter/{name}.yml").read_text())["DOCUMENTATION"]
        _, *taken = inspect.signature(function).parameters.values()
        assert [one.name for one in taken] == [one for one in told.get("positional", "").split(", ") if one], name
        assert told["options"].keys() == {"_input", *(one.name for one in taken)}, name
        needed = {one.name for one in taken if one.default is inspect.Parameter.empty}
        assert {key for key, option in told["options"].items() if option.get("required")} == {"_input", *needed}, name


def test_an_execution_environment_gets_what_the_collection_needs(installed: Installed) -> None:
    definition = str(ROOT / "execution-environment.yml")
    installed.run("ansible-builder", "create", "-f", definition, "-c", str(installed.directory / "context"))
    wanted = yaml.safe_load((installed.directory / "context/_build/requirements.yml").read_text())["collections"]
    needed = yaml.safe_load((ROOT / "galaxy.yml").read_text())["dependencies"]
    assert {one["name"] for one in wanted} == {"lightbox.mlops", *needed}
    told = installed.run("ansible-builder", "introspect", str(installed.directory / "collections"))
    for name in ("boto3", "hatchling", "uv", "curl"):
        assert f"'{name} " in told, told
