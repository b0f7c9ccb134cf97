"""Run the tests: ``make test`` for all of them, ``make test T=name`` for a stage, a part of one, or a role's scenarios.

The quick stages run first. Some run beside one that waits more than it computes. All of them run even when one fails,
and the exit status says whether all passed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BIN = ROOT / ".venv/bin"
APP_BIN = ROOT / ".venv-app/bin"
Command = list[str]
# Stages whose commands stand by themselves, and run as many at once as there are cores.
ABREAST = frozenset({"lint"})
# In this order: a stage, and those that run beside it, one after the other, with what it leaves of the processor. Tests
# of servers and of whole systems wait as much as they compute.
TOGETHER = {"unit": ("lint",), "lab": (), "system": ("molecule", "provisioning")}
# What takes long and runs when it is asked for by name: the second system, the scenarios of the role only it has, the
# installed collection on a system in the lab, the collection as ansible-test judges it, and the other settings of roles
# that the system lane plays too.
ON_DEMAND = frozenset(
    {
        "mnist", "jupyter", "jupyter_alternative", "collection", "sanity",
        "grafana_alternative", "release_alternative", "trainer_alternative",
    }
)  # fmt: skip
# Files of tests/system that are a stage each.
OWN_STAGES = ("mnist", "collection")


def as_root(command: Command) -> Command:
    """Return the command with sudo in front where the caller is not root."""
    return command if os.geteuid() == 0 else ["sudo", "--preserve-env", "env", f"PATH={os.environ['PATH']}", *command]


def scenarios() -> list[str]:
    """Return the names of the Molecule scenarios."""
    return sorted(path.parent.name for path in (ROOT / "molecule").glob("*/molecule.yml"))


def lint() -> list[Command]:
    """Return the linters and type checkers."""
    syntax = [
        [
            f"{BIN}/ansible-playbook",
            "-i",
            f"inventories/{where}",
            "-i",
            f"inventories/{system}",
            playbook,
            "--syntax-check",
        ]
        for where in ("lab", "aws")
        for system in ("pneumonia", "mnist")
        for playbook in ("site.yml", "train.yml")
    ]
    return [
        [f"{BIN}/ruff", "check", "."],
        [f"{BIN}/ruff", "format", "--check", "."],
        # An action plugin and its module have one name. The two runs of mypy go on at once, and each has its own cache.
        [
            f"{BIN}/mypy",
            "--cache-dir=.mypy_cache/controller",
            "--explicit-package-bases",
            "lab",
            "tests/run.py",
            "tests/sanity.py",
            "tests/mutate.py",
            "plugins",
        ],
        [f"{BIN}/mypy", "--cache-dir=.mypy_cache/app", "--python-executable", f"{APP_BIN}/python", "app/src"],
        [f"{BIN}/yamllint", "--strict", "."],
        [f"{BIN}/check-jsonschema", "--builtin-schema", "vendor.github-workflows", "docs/ci/github-actions.yml"],
        [f"{BIN}/ansible-lint", "--offline", "--strict"],
        [f"{BIN}/antsibull-changelog", "lint"],
        *syntax,
    ]


def pytest(python: Path, *arguments: str) -> Command:
    """Return a pytest run."""
    return [f"{python}/python", "-m", "pytest", "-q", *arguments]


def stages() -> dict[str, list[Command]]:
    """Return every stage by name, in the order they run."""
    return {
        "lint": lint(),
        "unit": [
            pytest(BIN, "tests/unit", "lab/tests", "-m", "not hosts", "--numprocesses", "auto"),
            pytest(APP_BIN, "app/tests", "-m", "not slow", "--numprocesses", "auto", "--dist", "loadfile"),
        ],
        "provisioning": [pytest(BIN, "tests/provisioning", "--numprocesses", "auto")],
        "lab": [as_root(pytest(BIN, "lab/tests", "-m", "hosts"))],
        "molecule": [as_root([f"{BIN}/molecule", "test", "--scenario-name", name]) for name in scenarios()],
        "system": [
            as_root(pytest(BIN, "tests/system", *(f"--ignore=tests/system/test_{name}.py" for name in OWN_STAGES)))
        ],
        # Beside the first, which it must leave alone.
        **{
            name: [
                as_root(pytest(BIN, "tests/system", "-k", f"test_pneumonia and make_up or test_{name} or test_down"))
            ]
            for name in OWN_STAGES
        },
        "sanity": [[f"{BIN}/python", "tests/sanity.py"]],
    }


def before(stage: str) -> list[Command]:
    """Return what a stage needs first."""
    return [as_root([f"{BIN}/python", "-m", "lab", "image"])] if stage in ("lab", "molecule") else []


def environment(stage: str, root: Path = ROOT) -> dict[str, str]:
    """Return the variables that a stage's commands see, in a checkout."""
    # Molecule's podman has settings of its own, where .config/molecule says: those of the lab go with the lab.
    own = {"LAB_DIR": f"{root}/.cache/molecule", "CONTAINERS_CONF": f"{root}/.cache/molecule/containers.conf"}
    path = f"{BIN}:{os.environ['PATH']}"
    every = {**os.environ, "PATH": path, "ANSIBLE_FORCE_COLOR": "0", "PY_COLORS": "0"}
    return {**every, **own} if stage == "molecule" else every


def selected(subset: str) -> dict[str, list[Command]]:
    """Return the stages that a name asks for: a stage, a linter, a file of unit tests, a scenario, or all of a role."""
    everything = stages()
    if not subset:
        everything["molecule"] = [command for command in everything["molecule"] if command[-1] not in ON_DEMAND]
        return {stage: commands for stage, commands in everything.items() if stage not in ON_DEMAND}
    if subset in everything:
        return {subset: everything[subset]}
    if linters := [command for command in everything["lint"] if Path(command[0]).name == subset]:
        return {"lint": linters}
    if (ROOT / f"tests/unit/test_{subset}.py").exists():
        return {"unit": [pytest(BIN, f"tests/unit/test_{subset}.py")]}
    names = {name: {name, name.split("_")[0], name.removesuffix("_alternative")} for name in scenarios()}
    commands = [command for command in everything["molecule"] if subset in names[command[-1]]]
    if commands:
        return {"molecule": commands}
    roles = sorted({name.removesuffix("_alternative") for name in names})
    known = f"a stage ({', '.join(everything)}), a linter, a file of tests/unit nor a role with a scenario"
    sys.exit(f"'{subset}' is neither {known} ({', '.join(roles)})")


def run(stage: str, command: Command, variables: dict[str, str], aside: bool, niceness: int) -> tuple[str, bool, float]:
    """Run one command; return its name, whether it passed, and its seconds. Aside, it prints when it has ended."""
    shown = " ".join(command).replace(f"{ROOT}/", "")
    name = f"{stage}: {shown}"
    print(f"\n=== {name}{' has begun' if aside else ''}", flush=True)
    started = time.monotonic()
    done = subprocess.run(
        ["nice", f"--adjustment={niceness}", *command],
        cwd=ROOT, env=variables, check=False, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if aside else None, stderr=subprocess.STDOUT if aside else None,
    )  # fmt: skip
    if aside:
        text = done.stdout.decode(errors="replace")
        print(f"\n=== {name}\n{text if done.returncode else text[-3000:]}", flush=True)
    return name, done.returncode == 0, time.monotonic() - started


def main() -> int:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("subset", nargs="?", default="", help="a stage, a role or a Molecule scenario")
    options = parser.parse_args()
    results: list[tuple[str, bool, float]] = []

    def go(stages: list[str], beside: bool = False) -> None:
        """Run stages: what is beside another prints when it has ended, and so does what runs abreast."""
        for stage in stages:
            aside = beside or stage in ABREAST
            one = partial(run, stage, variables=environment(stage), aside=aside, niceness=10 if beside else 0)
            results.extend(map(one, before(stage)))
            with ThreadPoolExecutor(os.cpu_count() if stage in ABREAST else 1) as pool:
                results.extend(pool.map(one, chosen[stage]))

    chosen = selected(options.subset)
    alone = [stage for stage in chosen if stage not in chain(TOGETHER, *TOGETHER.values())]
    for stage, others in [*TOGETHER.items(), *((stage, ()) for stage in alone)]:
        first = [stage] if stage in chosen else []
        beside = [other for other in others if other in chosen]
        with ThreadPoolExecutor() as pool:
            lanes = [pool.submit(go, beside, bool(first)), pool.submit(go, first)]
        for lane in lanes:
            lane.result()
    print("\n=== summary")
    for name, passed, seconds in results:
        print(f"{'ok  ' if passed else 'FAIL'} {seconds:7.1f} s  {name}")
    failed = sum(not passed for _, passed, _ in results)
    print(f"{len(results) - failed} passed, {failed} failed", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
