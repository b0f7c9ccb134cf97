"""Put faults into the roles, one at a time, and see that the tests notice: ``make test-mutations``.

A fault is a patch in ``tests/mutations``. What stands above it says what it does, of which kind it is, which subset of
the tests must turn red (``make test T=…``), and which words in their output show that they did so because of it. Every
fault is put into a copy of the checkout, as it is with what is not committed yet (new files are copied once git knows
them); the checkout itself is left alone. Those in Molecule need the hosts of ``make test``: the two do not run at once.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.run import ROOT, as_root, before, environment, selected

PATCHES = ROOT / "tests/mutations"
LOGS = ROOT / ".cache/mutations"
KINDS = (
    "wrong permission",
    "missing reload",
    "non-idempotent task",
    "leaked secret",
    "undeclared variable",
    "wrong effect",
)
# What the tests need and git does not know: made once, by the targets that `make test` stands on.
SHARED = (".venv", ".venv-app")


@dataclass(frozen=True)
class Fault:
    """A patch, and what stands above it."""

    path: Path
    what: str
    kind: str
    caught_by: str
    words: str

    @property
    def name(self) -> str:
        """Role and fault."""
        return self.path.stem

    @property
    def role(self) -> str:
        """The role that has the fault."""
        return self.name.split("-")[0]

    @classmethod
    def read(cls, path: Path) -> Fault:
        """Read a patch."""
        head = path.read_text().split("\ndiff --git ", 1)[0]
        found = re.fullmatch(r"(.+)\n\nKind: (.+)\nCaught by: (.+)\nWords: (.+)\n", head)
        if not found:
            sys.exit(f"{path}: above a patch stand a sentence, an empty line, and the lines Kind, Caught by and Words")
        return cls(path, *found.groups())


def faults(name: str = "") -> list[Fault]:
    """Return the faults of a name: one, those of a role, or those that a subset of the tests must catch."""
    everything = [Fault.read(path) for path in sorted(PATCHES.glob("*.patch"))]
    # What takes seconds comes before what takes minutes.
    everything.sort(key=lambda fault: (list(selected(fault.caught_by)) == ["molecule"], fault.caught_by, fault.name))
    found = [fault for fault in everything if name in ("", fault.name, fault.role, fault.caught_by)]
    if not found:
        sys.exit(f"'{name}' is neither a fault nor a role nor a subset of tests that has one; --list shows them all")
    return found


def git(*arguments: str, where: Path = ROOT) -> str:
    """Run git; return what it printed."""
    return subprocess.run(["git", *arguments], cwd=where, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


@contextmanager
def copy() -> Iterator[Path]:
    """Return a copy of the checkout, which goes when it has served."""
    with tempfile.TemporaryDirectory() as directory:
        tree = Path(directory) / "lightbox-mutation"
        git("worktree", "add", "--detach", "--quiet", str(tree), git("stash", "create") or "HEAD")
        for name in SHARED:
            (tree / name).symlink_to(ROOT / name)
        # It says that each patch can be applied, and one is.
        (tree / "tests/unit/test_mutations.py").unlink()
        try:
            yield tree
        finally:
            # Tests with root's rights leave files of root.
            subprocess.run(as_root(["rm", "-rf", str(tree)]), check=True)
            git("worktree", "prune")


def verdict(fault: Fault, tree: Path) -> str:
    """Return what came of a fault: ``caught``, ``MISSED``, or ``OTHER`` when the tests failed for another reason."""
    LOGS.mkdir(parents=True, exist_ok=True)
    git("apply", str(fault.path), where=tree)
    try:
        with (LOGS / f"{fault.name}.log").open("w+b") as log:
            for stage, commands in selected(fault.caught_by).items():
                for command in [*before(stage), *commands]:
                    # It takes minutes for all roles, and seconds for one.
                    alone = [f"roles/{fault.role}"] if Path(command[0]).name == "ansible-lint" else []
                    done = subprocess.run(
                        [*command, *alone], cwd=tree, env=environment(stage, tree), check=False,
                        stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                    )  # fmt: skip
                    if done.returncode:
                        log.seek(0)
                        # Molecule colours its own words.
                        said = re.sub(r"\x1b\[\d*m", "", log.read().decode(errors="replace"))
                        return "caught" if fault.words in said else "OTHER"
        return "MISSED"
    finally:
        git("apply", "--reverse", str(fault.path), where=tree)


def main() -> int:
    """Try what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutate", description=__doc__)
    parser.add_argument("name", nargs="?", default="", help="a fault, a role, or a subset of the tests")
    parser.add_argument("--list", action="store_true", help="show the faults and try none")
    options = parser.parse_args()
    chosen = faults(options.name)
    if options.list:
        for fault in chosen:
            print(f"{fault.name:45} {fault.caught_by:14} {fault.kind:20} {fault.what}")
        return 0
    failed = 0
    with copy() as tree:
        for fault in chosen:
            started = time.monotonic()
            found = verdict(fault, tree)
            failed += found != "caught"
            seconds = time.monotonic() - started
            print(f"{found} {seconds:7.1f} s  {fault.name}: {fault.what} ({fault.caught_by})", flush=True)
            if found != "caught":
                print(f"       {os.path.relpath(LOGS)}/{fault.name}.log should hold: {fault.words}", flush=True)
    print(f"{len(chosen) - failed} caught, {failed} not")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
