"""What every role keeps to in its tasks: variables are declared, secrets stay secret, changes are taken up."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parents[2] / "docs"))
import role_tables

ROOT = Path(__file__).parents[2]
ROLES = sorted(path.name for path in (ROOT / "roles").iterdir() if path.is_dir())
WRITES = ("copy", "files", "template")
SHOWS = (*WRITES, "blockinfile", "command", "debug", "get_url", "lineinfile", "set_fact", "shell", "uri")
# Who reads these reads them anew whenever it needs them, or notices by itself.
READ_ANEW = {
    ("base", "Root rights are given"): "sudo, at every command",
    ("base", "Security updates are installed every day"): "apt, at every run",
    ("cuda", "Components with the driver are a source"): "apt, when the lists are fetched next",
    ("grafana", "Password of the administrator is there"): "the role asks Grafana whether it is its password",
    ("grafana", "Dashboards are there"): "Grafana looks for them",
    ("grafana", "Repository is known"): "apt, whose lists the next tasks fetch",
    ("grafana", "Signing key is there"): "apt, at every run",
    ("jupyter", "What comes with the role is there"): "Jupyter, when it is opened; the role, in its next task",
    ("pki", "The certificate and the authority's own are on the host"): "the next task restarts who uses it",
    ("pki", "The host knows how to tell when its certificate ends"): "systemd, which the next task makes read it",
    ("prometheus", "Targets are named"): "Prometheus looks for them",
    ("prometheus", "Secrets and those who may look are known"): "Prometheus, at every scrape and at every request",
    ("python_app", "Old credentials are gone, and what is in service is written down"): "the role, at its next run",
    ("trainer", "Password of Redis is there, where one is given"): "the next training",
}


class Yaml(yaml.SafeLoader):
    """YAML with Ansible's tags."""


Yaml.add_multi_constructor("!", lambda loader, _suffix, node: loader.construct_scalar(node))


def load(path: Path) -> Any:
    return Yaml(path.read_text()).get_single_data() if path.exists() else None


def each(tasks: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Return tasks and those in their blocks."""
    for task in tasks:
        yield task
        for part in ("block", "rescue", "always"):
            yield from each(task.get(part, []))


class Role:
    """A role's files."""

    def __init__(self, name: str) -> None:
        self.name, self.home = name, ROOT / "roles" / name
        files = sorted((self.home / "tasks").glob("*.yml"))
        self.tasks = [task for file in files for task in each(load(file) or [])]
        self.handlers = load(self.home / "handlers/main.yml") or []
        self.defaults = load(self.home / "defaults/main.yml") or {}
        self.private = load(self.home / "vars/main.yml") or {}
        self.options = role_tables.options_of(self.home)
        self.templates = {
            str(path.relative_to(self.home / "templates")): path.read_text()
            for path in sorted((self.home / "templates").rglob("*.j2"))
        }

    @property
    def logic(self) -> str:
        """Tasks, handlers and private variables as text."""
        return yaml.safe_dump([self.tasks, self.handlers, self.private], width=10_000)

    def written(self, task: dict[str, Any]) -> str:
        """Return what a task is made of: its text, that of private variables it loops over, and its templates."""
        shown = {key: value for key, value in task.items() if key not in ("when", "notify")}
        text = yaml.safe_dump(shown, width=10_000)
        loop = str(task.get("loop", ""))
        names = text + "".join(str(value) for name, value in self.private.items() if name in loop)
        used = [body for path, body in self.templates.items() if path.removesuffix(".j2") in names]
        return "\n".join([text, *used])

    def configures(self, task: dict[str, Any]) -> bool:
        """Return whether a task writes what is read from /etc."""
        where = " ".join([*(str(file.get("dest")) for file in written_files(task)), str(task.get("loop"))])
        for _ in range(2):
            for name, value in {**self.defaults, **self.private}.items():
                where = re.sub(rf"\b{name}\b", lambda _found, text=str(value): text, where)
        return module(task) in WRITES and re.search(r"(?<!\w)/?etc/", where) is not None

    @property
    def secrets(self) -> set[str]:
        """Return the variables that hold secrets: those the spec calls so, and private ones made of them."""
        found = {name for name, option in self.options.items() if "'no_log': True" in str(option)}
        for _ in self.private:
            found |= {name for name, value in self.private.items() if tells(str(value), found)}
        return found


def tells(text: str, secrets: set[str]) -> bool:
    """Return whether a text holds a secret's value; how many there are, their names or a digest are none."""
    text = re.sub(r"\{\{(?:(?!\}\}).)*\| hash\(.*?\}\}", "", text, flags=re.DOTALL)
    return any(re.search(rf"\b{name}\b(?! \| (?:length|sort)\b)", text) for name in secrets)


def module(task: dict[str, Any]) -> str:
    """Return the last word of a task's module."""
    return next((key.rpartition(".")[2] for key in task if key.count(".") == 2), "")


def arguments(task: dict[str, Any]) -> dict[str, Any]:
    found = next((value for key, value in task.items() if key.count(".") == 2), None)
    return found if isinstance(found, dict) else {}


def written_files(task: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the files that a task writes, as what its module is told of each."""
    told = arguments(task)
    if module(task) != "files":
        return [told]
    lists = [told["files"]] if isinstance(told["files"], list) else list(task["vars"].values())
    return [one for some in lists for one in some if one.get("state", "file") not in ("directory", "absent")]


@cache
def role(name: str) -> Role:
    return Role(name)


@pytest.mark.parametrize("name", ROLES)
def test_every_variable_is_declared_or_made(name: str) -> None:
    this = role(name)
    # What a task remembers, sets or is handed counts too; a path, a file's name or a word in quotes is no variable.
    known = {*this.options, *this.defaults, *this.private}
    known |= set(re.findall(rf"^\s*(?:- )?({name}_\w+):", this.logic, re.MULTILINE))
    known |= {task["register"] for task in [*this.tasks, *this.handlers] if "register" in task}
    text = "\n".join([this.logic, str(this.defaults), *this.templates.values()])
    mentioned = set(re.findall(rf"(?<![\w./'\"-]){name}_\w+(?!\w|[=(/-]|\.(?:ini|json|key|py|yml)\b)", text))
    assert mentioned - known == set()


@pytest.mark.parametrize("name", ROLES)
def test_secrets_are_shown_by_no_task(name: str) -> None:
    this = role(name)
    for task in this.tasks:
        if module(task) in SHOWS and tells(this.written(task), this.secrets):
            assert task.get("no_log") is True, task["name"]
            assert module(task) not in WRITES or task.get("diff") is False, task["name"]


@pytest.mark.parametrize("name", ROLES)
def test_secrets_are_written_for_those_who_need_them_alone(name: str) -> None:
    for task in role(name).tasks:
        if module(task) in WRITES and task.get("no_log"):
            for file in written_files(task):
                assert re.fullmatch(r"0[0-7][04]0", file.get("mode", "0644")), f"{task['name']}: {file['dest']}"


@pytest.mark.parametrize("name", ROLES)
def test_whoever_reads_a_file_learns_that_it_changed(name: str) -> None:
    this = role(name)
    handlers = {handler["name"] for handler in this.handlers}
    told = {who for task in this.tasks if "notify" in task for who in [task["notify"]]}
    assert told == handlers, "what is notified and what handlers there are"
    # That systemd reads the unit anew is not yet that its process does.
    taken_up = re.sub(r"ansible_check_mode and \(?(?:\w+ is changed(?: or )?)+|daemon_reload: .*", "", this.logic)
    for task in this.tasks:
        if not this.configures(task) or "notify" in task or (name, task["name"]) in READ_ANEW:
            continue
        assert "register" in task, task["name"]
        looked_at = rf"\b{task['register']}(?: is changed|\.results \| select\('changed'\))"
        assert re.search(looked_at, taken_up), task["name"]


def test_what_is_read_anew_is_still_written() -> None:
    assert {(name, task["name"]) for name in ROLES for task in role(name).tasks} >= READ_ANEW.keys()
