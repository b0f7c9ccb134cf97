"""Plays go through Mitogen where it is installed and wanted, and through Ansible's own strategies otherwise."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
# The process that runs a module, and on how many cores that may run.
TASKS = [{"ansible.builtin.command": "sh -c 'echo $PPID $(nproc)'"}] * 2


def results(directory: Path, strategy: str, tasks: list[dict[str, Any]], **variables: str) -> list[dict[str, Any]]:
    """Return what each task of a play came to."""
    playbook = directory / "play.yml"
    play = {"hosts": "localhost", "gather_facts": False, "strategy": strategy, "tasks": tasks}
    playbook.write_text(yaml.safe_dump([play]))
    done = subprocess.run(
        [Path(sys.executable).parent / "ansible-playbook", "-i", "localhost,", "-c", "local", playbook],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json", "ANSIBLE_FORCE_COLOR": "0", **variables},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout[done.stdout.index("{") :])["plays"][0]["tasks"]
    return [one["hosts"]["localhost"] for one in told]


def played(directory: Path, strategy: str, **variables: str) -> list[tuple[int, int]]:
    """Return process and cores of each module that a play executed."""
    words = [one["stdout"].split() for one in results(directory, strategy, TASKS, **variables)]
    return [(int(process), int(cores)) for process, cores in words]


@pytest.mark.parametrize("strategy", ["lightbox.mlops.linear", "lightbox.mlops.free"])
def test_modules_share_a_python_and_have_every_core(tmp_path: Path, strategy: str) -> None:
    first, second = played(tmp_path, strategy)
    assert first == second
    assert first[1] == len(os.sched_getaffinity(0))


@pytest.mark.parametrize("strategy", ["lightbox.mlops.linear", "lightbox.mlops.free"])
def test_without_mitogen_they_are_ansibles_own(tmp_path: Path, strategy: str) -> None:
    missing = tmp_path / "ansible_mitogen.py"
    missing.write_text("raise ImportError('not installed')\n")
    first, second = played(tmp_path, strategy, PYTHONPATH=str(tmp_path))
    assert first[0] != second[0]


def test_installed_collections_are_listed_once_for_a_run(tmp_path: Path) -> None:
    looked = tmp_path / "looked"
    # What Mitogen starts is another Python, and has no business with it.
    (tmp_path / "sitecustomize.py").write_text(f"""
import sys

if any(word.endswith("ansible-playbook") for word in sys.orig_argv):
    import ansible.collections.list as installed

    def told(*arguments, find=installed.find_existing_collections, **named):
        with open({str(looked)!r}, "a") as stream:
            stream.write("once more\\n")
        return find(*arguments, **named)

    installed.find_existing_collections = told
""")
    tasks = [{"lightbox.mlops.files": {"files": [{"dest": f"{tmp_path}/{name}", "content": name}]}} for name in "abc"]
    made = results(tmp_path, "lightbox.mlops.linear", tasks, PYTHONPATH=str(tmp_path))
    assert [one["changed"] for one in made] == [True] * 3
    assert looked.read_text().splitlines() == ["once more"]


def test_what_modules_share_is_compiled_once_for_a_run(tmp_path: Path) -> None:
    compiled = tmp_path / "compiled"
    (tmp_path / "sitecustomize.py").write_text(f"""
import builtins, sys

if any(word.endswith("ansible-playbook") for word in sys.orig_argv):
    def told(*arguments, compile=compile, **named):
        with open({str(compiled)!r}, "a") as stream:
            stream.write(f"{{arguments[1:2]}}\\n")
        return compile(*arguments, **named)

    builtins.compile = told
""")
    tasks = [{"ansible.builtin.ping": {}}, {"ansible.builtin.stat": {"path": "/"}}]
    results(tmp_path, "lightbox.mlops.linear", tasks, PYTHONPATH=str(tmp_path))
    assert compiled.read_text().splitlines().count("('ansible.module_utils.basic',)") == 1
