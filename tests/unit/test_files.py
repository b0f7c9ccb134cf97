"""The module `files`, played on this machine by Ansible itself."""

from __future__ import annotations

import getpass
import grp
import json
import os
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
ME = {"owner": getpass.getuser(), "group": grp.getgrgid(os.getgid()).gr_name}
JSON = "python3 -m json.tool %s /dev/null"


@dataclass
class Host:
    """A directory that stands for a host."""

    home: Path

    def play(self, *files: dict[str, Any], flags: tuple[str, ...] = (), task: dict[str, Any] | None = None) -> Any:
        """Return what one task answers, and all that was printed as `output`."""
        whole = [ME | one | {"dest": f"{self.home}/{one['dest']}"} for one in files]
        tasks = [{"name": "Files", "lightbox.mlops.files": {"files": whole}, **(task or {})}]
        playbook = self.home.parent / "play.yml"
        playbook.write_text(json.dumps([{"hosts": "localhost", "gather_facts": False, "tasks": tasks}]))
        done = subprocess.run(
            [Path(sys.executable).parent / "ansible-playbook", "-i", "localhost,", "-c", "local", *flags, playbook],
            cwd=ROOT, text=True, check=False, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            env={**os.environ, "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json", "ANSIBLE_FORCE_COLOR": "0"},
        )  # fmt: skip
        said = json.loads(done.stdout[done.stdout.index("{\n") :])
        return {**said["plays"][0]["tasks"][0]["hosts"]["localhost"], "output": done.stdout}

    def there(self) -> dict[str, str]:
        """Return what is in every file."""
        return {str(p.relative_to(self.home)): p.read_text() for p in sorted(self.home.rglob("*")) if p.is_file()}

    def mode(self, path: str) -> int:
        return stat.S_IMODE((self.home / path).stat().st_mode)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    (tmp_path / "host").mkdir()
    (tmp_path / "templates").mkdir()
    return Host(tmp_path / "host")


def test_a_second_run_changes_nothing_and_a_mode_is_mended(host):
    wanted = [
        {"dest": "etc/service/secrets", "state": "directory", "mode": "0700"},
        {"dest": "etc/service/settings", "content": "one\n"},
        {"dest": "etc/service/secrets/password", "content": "two\n", "mode": "0600"},
    ]
    first = host.play(*wanted)
    assert host.there() == {"etc/service/settings": "one\n", "etc/service/secrets/password": "two\n"}
    assert [host.mode(one["dest"]) for one in wanted] == [0o700, 0o644, 0o600]
    assert host.mode("etc/service") == 0o755
    assert first["changed_paths"] == [f"{host.home}/{one['dest']}" for one in wanted]
    assert (second := host.play(*wanted))["changed"] is False and second["changed_paths"] == []
    (host.home / "etc/service/secrets/password").chmod(0o644)
    (host.home / "etc/service/secrets").chmod(0o755)
    third = host.play(*wanted)
    assert third["changed_paths"] == [f"{host.home}/etc/service/secrets", f"{host.home}/etc/service/secrets/password"]
    assert [host.mode(one["dest"]) for one in wanted] == [0o700, 0o644, 0o600]


def test_a_set_is_whole_where_it_is_exclusive(host):
    for name in ("old.json", "notes.txt"):
        (host.home / name).write_text("{}\n")
    (host.home / "folder.json").mkdir()
    of = {"dest": "*.json", "each": {"a": "1\n", "b": "2\n"}}
    host.play(of)
    assert host.there() == {"a.json": "1\n", "b.json": "2\n", "notes.txt": "{}\n", "old.json": "{}\n"}
    assert host.play(of | {"exclusive": True})["changed_paths"] == [f"{host.home}/old.json"]
    assert host.play(of | {"exclusive": True, "each": {}})["changed"] is True
    assert host.there() == {"notes.txt": "{}\n"} and (host.home / "folder.json").is_dir()


def test_nothing_is_written_where_one_file_is_not_valid(host):
    (host.home / "a.json").write_text("1\n")
    told = host.play(
        {"dest": "a.json", "content": "2\n", "validate": JSON},
        {"dest": "b.json", "content": "nothing of JSON", "validate": JSON},
        {"dest": "old", "state": "absent"},
    )
    assert told["failed"] and f"{host.home}/b.json would not be valid, nothing is written" in told["msg"]
    assert [path.name for path in host.home.iterdir()] == ["a.json"], "nothing is left behind"
    assert host.there() == {"a.json": "1\n"}


def test_a_dry_run_writes_nothing_and_shows_all(host):
    (host.home / "gone").write_text("x\n")
    (host.home / "text").write_text("before\n")
    told = host.play(
        {"dest": "folder", "state": "directory"},
        {"dest": "folder/new", "content": "new\n", "validate": "no-such-program %s", "group": "no-such-group"},
        {"dest": "text", "content": "after\n"},
        {"dest": "gone", "state": "absent"},
        flags=("--check", "--diff"),
    )
    assert told["changed"] is True and host.there() == {"gone": "x\n", "text": "before\n"}
    shown = {Path(one["after_header"]).name: (one["before"], one["after"]) for one in told["diff"]}
    assert shown == {
        "folder": ("absent\n", "directory\n"), "new": ("", "new\n"), "text": ("before\n", "after\n"),
        "gone": ("file\n", "absent\n"),
    }  # fmt: skip


def test_a_link_is_replaced_and_what_it_leads_to_left_alone(host):
    (host.home / "other").write_text("other\n")
    (host.home / "settings").symlink_to("other")
    host.play({"dest": "settings", "content": "own\n"})
    assert host.there() == {"other": "other\n", "settings": "own\n"} and not (host.home / "settings").is_symlink()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"dest": "folder", "content": ""}, "should be a file, and is a directory"),
        ({"dest": "text/below", "state": "directory"}, "Not a directory"),
        ({"dest": "text", "state": "directory"}, "should be a directory, and is a file"),
        ({"dest": "nowhere/file", "content": ""}, "No such file or directory"),
        ({"dest": "empty"}, "give src or content"),
        ({"dest": "text", "content": "", "validate": "true"}, "must contain %s"),
        ({"dest": "plain.json", "each": {"a": 1}}, "has one *"),
        ({"dest": "text", "content": "", "contents": ""}, "Unsupported parameters"),
        ({"dest": "text", "src": "no-such-template.j2"}, "no-such-template.j2"),
    ],
)
def test_what_is_wrong_is_said(host, wrong, words):
    (host.home / "folder").mkdir()
    (host.home / "text").write_text("x\n")
    told = host.play(wrong)
    assert told["failed"] and words in told["msg"]
    assert host.there() == {"text": "x\n"}


def test_a_template_comes_to_what_the_module_of_ansible_makes_of_it(host):
    lines = [
        "# {{ ansible_managed }}",
        "{% for n in [1, 2] %}",
        "  {{ n }}: ü {{ item }}",
        "{% endfor %}",
        "",
        "{{ [1] | to_json }}",
    ]
    (host.home.parent / "templates/text.j2").write_text("".join(f"{line}\n" for line in lines))
    # What is read from somewhere is never taken for a template.
    (host.home.parent / "value").write_text("{{ not }} a template")
    value = f"{{{{ lookup('ansible.builtin.file', '{host.home.parent}/value') }}}}"
    same = {"vars": {"ansible_managed": "Ansible managed", "item": value}}
    host.play({"dest": "ours-*", "each": {"x": value}, "src": "text.j2"}, task=same)
    task = {"ansible.builtin.template": {"src": "text.j2", "dest": f"{host.home}/theirs"}, **same}
    playbook = host.home.parent / "theirs.yml"
    playbook.write_text(json.dumps([{"hosts": "localhost", "gather_facts": False, "tasks": [task]}]))
    command = [Path(sys.executable).parent / "ansible-playbook", "-i", "localhost,", "-c", "local", playbook]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    there = host.there()
    assert there["ours-x"] == there["theirs"]
    assert "1: ü {{ not }} a template" in there["theirs"]


def test_a_secret_is_not_shown(host):
    told = host.play(
        {"dest": "password", "content": "canary-5417"}, flags=("--diff", "-vvv"), task={"no_log": True, "diff": False}
    )
    assert host.there() == {"password": "canary-5417"}
    assert "canary-5417" not in told["output"]
