"""Tags limit a run of `configure.yml` to what hosts are for, or to one role. Others stand in for the real roles."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PLAYBOOK = ROOT / "playbooks/configure.yml"
PLAYS = yaml.safe_load(PLAYBOOK.read_text())
ROLES = sorted(path.name for path in (ROOT / "roles").iterdir() if path.is_dir())
# `base` has the tag of its play; `release` and `trainer` go with the kind of host they are for.
WITHOUT_OWN_TAG = {"base", "release", "trainer"}
HOSTS = ("api", "monitor", "proxy", "trainer", "ui")


def own_tags(tasks: list[dict[str, Any]]) -> set[str]:
    """Return the tags that tasks have themselves, blocks included."""
    found = {tag for task in tasks for tag in task.get("tags", [])}
    return found.union(*(own_tags(task["block"]) for task in tasks if "block" in task))


def included() -> dict[str, dict[str, Any]]:
    """Return the tasks of the plays that include a file, by that file."""
    found = {}
    for task in (task for play in PLAYS for task in play.get("tasks", []) if "ansible.builtin.include_tasks" in task):
        found[task["ansible.builtin.include_tasks"]["file"]] = task
    return found


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hosts that are this machine, and roles that say that they play, in a file that they include as real ones do."""
    directory = tmp_path_factory.mktemp("stage")
    for role in ROLES:
        tasks = directory / "roles" / role / "tasks"
        tasks.mkdir(parents=True)
        says = [{"name": "It plays", "ansible.builtin.debug": {"msg": f"{role} plays"}}]
        (tasks / "says.yml").write_text(yaml.safe_dump(says))
        for entry in ("main", "install", "authority"):
            (tasks / f"{entry}.yml").write_text(
                yaml.safe_dump([{"name": "It is included", "ansible.builtin.include_tasks": "says.yml"}])
            )
    (directory / "inventory").mkdir()
    groups = {
        f"pneumonia_{name}": {"hosts": {f"pneumonia-{name}": {"private_address": f"10.9.0.{number}"}}}
        for number, name in enumerate(HOSTS, 4)
    }
    (directory / "inventory/hosts.yml").write_text(yaml.safe_dump({"all": {"children": groups}}))
    return directory


def players(stage: Path, tag: str) -> set[tuple[str, str]]:
    """Return which role plays on which host when a tag is asked for."""
    done = subprocess.run(
        [ROOT / ".venv/bin/ansible-playbook", PLAYBOOK, "-i", stage / "inventory", "-i", "inventories/pneumonia",
         "--tags", tag, "-e", json.dumps({"ansible_connection": "local", "ansible_become": False})],
        cwd=ROOT, text=True, check=False, capture_output=True,
        env={**os.environ, "ANSIBLE_ROLES_PATH": str(stage / "roles"), "ANSIBLE_FORCE_COLOR": "0",
             "ANSIBLE_STDOUT_CALLBACK": "default", "ANSIBLE_CALLBACK_RESULT_FORMAT": "json"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    said = re.findall(r'ok: \[([\w-]+)\] => \{\s+"msg": "(\w+) plays"', done.stdout)
    return {(host.removeprefix("pneumonia-"), role) for host, role in said}


@pytest.mark.parametrize(
    ("tag", "expected"),
    [
        ("nginx", {("proxy", "nginx")}),
        ("exporter", {("proxy", "exporter"), ("api", "exporter"), ("monitor", "exporter")}),
        ("redis", {("api", "redis"), ("api", "exporter")}),
        ("node_exporter", {(host, "node_exporter") for host in HOSTS}),
        ("proxy", {("proxy", "nginx"), ("proxy", "exporter")}),
    ],
)
def test_a_tag_touches_what_it_names_and_nothing_else(stage: Path, tag: str, expected: set[tuple[str, str]]) -> None:
    assert players(stage, tag) == expected


@pytest.mark.parametrize("file", included())
def test_what_is_included_is_chosen_by_every_tag_of_what_is_in_it(file: str) -> None:
    inside = own_tags(yaml.safe_load((PLAYBOOK.parent / file).read_text()))
    outside = set(included()[file]["tags"])
    assert inside < outside, "a tag of its own, for all of it, and those of its parts"
    stop = next(play for play in PLAYS if play["name"] == "No host was left behind")
    assert outside <= set(stop["tags"]), "a host that fails ends the run, whatever was asked for"


def test_every_role_has_the_tag_of_its_name() -> None:
    files = [task for file in included() for task in yaml.safe_load((PLAYBOOK.parent / file).read_text())]
    found = own_tags(files) | {tag for play in PLAYS for role in play.get("roles", []) for tag in role.get("tags", [])}
    assert set(ROLES) - WITHOUT_OWN_TAG <= found


def test_the_document_has_every_tag() -> None:
    page = (ROOT / "docs/operations.md").read_text()
    table = page.split("## Configure only", 1)[1].split("\n## ", 1)[0]
    first_cells = " ".join(re.findall(r"^\| (`.*?) \|", table, re.MULTILINE))
    documented = set(re.findall(r"`(\w+)`", first_cells))
    tags = {tag for play in PLAYS for tag in play.get("tags", [])} | {
        tag for play in PLAYS for role in play.get("roles", []) for tag in role.get("tags", [])
    }
    tags = tags.union(*(own_tags(yaml.safe_load((PLAYBOOK.parent / file).read_text())) for file in included()))
    assert documented == tags
