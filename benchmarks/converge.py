"""Time `site.yml` in the lab with this collection's settings and with Ansible's own: ``make bench-converge``.

For both settings the system is brought up from nothing and then run again. Each run is told by its wall time, the
processor time of this machine, hosts and controller together, and how many modules were executed. Ansible's own
settings are those of an `ansible.cfg` that only says where inventories, roles and collections are.

With ``--again`` a system that is up stays, and only what a further run takes is measured. Without it the system in the
lab is removed, with its data, before each first run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from running import ROOT, BenchmarkError, lab_keys, report

BIN = Path(sys.executable).parent
# The least that lets Ansible find what it is to play.
PLAIN = f"""[defaults]
roles_path = {ROOT}/roles
collections_path = {ROOT}/collections
[inventory]
enable_plugins = amazon.aws.aws_ec2, ansible.builtin.yaml
"""
# Actions that decide, say or remember something on the controller and execute no module.
WORDS = frozenset({
    "add_host", "assert", "debug", "fail", "group_by", "import_playbook", "import_role", "import_tasks", "include_role",
    "include_tasks", "include_vars", "meta", "set_fact", "set_stats", "validate_argument_spec",
})  # fmt: skip
SETTINGS = ("lightbox", "ansible")
FIGURES = ("seconds", "cpu_seconds", "executions")


def processor_seconds() -> float:
    """Return how long this machine's processors have worked, in seconds since it started."""
    user, nice, system, _idle, _wait, irq, soft = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:8])
    return (user + nice + system + irq + soft) / os.sysconf("SC_CLK_TCK")


def results(report: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Return what every task came to on every host, each turn of a loop for itself."""
    for play in report["plays"]:
        for task in play["tasks"]:
            for host in task["hosts"].values():
                yield from ({**one, "action": host.get("action", "")} for one in host.get("results") or [host])


def executions(report: dict[str, Any]) -> int:
    """Return how many modules a run executed, of what ansible.posix.json wrote."""
    return sum(not one.get("skipped") and one["action"].rpartition(".")[2] not in WORDS for one in results(report))


def changes(report: dict[str, Any]) -> int:
    """Return how many tasks changed something."""
    return sum(int(one["changed"]) for one in report["stats"].values())


def play(system: str, playbook: str, settings: str, directory: Path) -> dict[str, Any]:
    """Run a playbook; return its figures.

    Args:
        system: the system's name.
        playbook: its path in the checkout.
        settings: ``lightbox`` for those of the checkout, ``ansible`` for none.
        directory: for files of the run.

    Raises:
        BenchmarkError: it failed.
    """
    plain = directory / "ansible.cfg"
    plain.write_text(PLAIN)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
    environment |= {
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg" if settings == "lightbox" else plain),
        "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json",
        "ANSIBLE_FORCE_COLOR": "0",
    }
    output = directory / "report.json"
    before, begun = processor_seconds(), time.monotonic()
    with output.open("w") as stream:
        done = subprocess.run(
            [BIN / "ansible-playbook", "-i", "inventories/lab", "-i", f"inventories/{system}", playbook],
            cwd=ROOT, env=environment, check=False, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.PIPE,
        )  # fmt: skip
    seconds, cpu = time.monotonic() - begun, processor_seconds() - before
    text = output.read_text()
    if done.returncode:
        raise BenchmarkError(f"{playbook} failed:\n{text[-3000:]}{done.stderr.decode(errors='replace')[-2000:]}")
    found = json.loads(text[text.index("{") :])
    return {"seconds": round(seconds, 1), "cpu_seconds": round(cpu, 1), "executions": executions(found),
            "changed": changes(found), "hosts": len(found["stats"]) - 1}  # fmt: skip


def measure(system: str, rounds: int, again: bool) -> dict[str, Any]:
    """Return the figures of all runs, and as ratios of those with Ansible's own settings."""
    lab_keys()  # it would remove what runs there
    runs: dict[str, dict[str, list[dict[str, Any]]]] = {one: {"first": [], "second": []} for one in SETTINGS}
    with tempfile.TemporaryDirectory(prefix="lightbox-converge-") as scratch:
        for number in range(1, rounds + 1):
            for settings in SETTINGS:
                kinds = ["second"] if again else ["first", "second"]
                if not again:
                    play(system, "playbooks/destroy.yml", "lightbox", Path(scratch))
                for kind in kinds:
                    sys.stderr.write(f"round {number} of {rounds}: {kind} run with {settings}'s settings\n")
                    figures = play(system, "site.yml", settings, Path(scratch))
                    if kind == "second" and figures["changed"]:
                        raise BenchmarkError(f"a second run changed {figures['changed']} things")
                    runs[settings][kind].append(figures)
    best = {
        settings: {kind: min(found, key=lambda one: one["seconds"]) for kind, found in kinds.items() if found}
        for settings, kinds in runs.items()
    }
    ratios = {
        f"{kind}_{figure}": round(best["lightbox"][kind][figure] / best["ansible"][kind][figure], 3)
        for kind in best["lightbox"]
        for figure in FIGURES
    }
    return {"system": system, "rounds": rounds, "runs": best, "ratios": ratios}


def table(found: dict[str, Any]) -> str:
    """Return the figures as people read them."""
    lines = [f"{'':<24}{'hosts':>8}{'seconds':>10}{'CPU seconds':>14}{'executions':>13}{'changed':>10}"]
    lines += [
        f"{kind + ' run, ' + settings:<24}{run['hosts']:>8}{run['seconds']:>10}{run['cpu_seconds']:>14}"
        f"{run['executions']:>13}{run['changed']:>10}"
        for settings, kinds in found["runs"].items()
        for kind, run in kinds.items()
    ]
    return "\n".join([*lines, "", *(f"{name:<24}{ratio:>8}" for name, ratio in found["ratios"].items())])


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--system", default="pneumonia", help="the system's name (default: pneumonia)")
    parser.add_argument("--rounds", type=int, default=1, help="how often; the fastest run counts (default: 1)")
    parser.add_argument("--again", action="store_true", help="leave a system that is up as it is; no first runs")
    parser.add_argument("--out", type=Path, help="file for the figures as JSON")
    options = parser.parse_args(arguments)
    return report("converge", lambda: measure(options.system, options.rounds, options.again), table, options.out)


if __name__ == "__main__":
    sys.exit(main())
