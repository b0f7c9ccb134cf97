"""What watching costs, out of what the hosts say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import watching


def test_the_cost_is_the_difference_between_two_looks():
    before = (100.0, watching.figures("a.service 1000000000 5000000\nnot a line of figures\n"))
    after = (130.0, watching.figures("a.service 1500000000 6000000\nb.service 70000000 1000000\n"))
    assert watching.cost(before, after) == {
        "a": {"cpu_seconds_per_minute": 1.0, "memory_mb": 6.0},
        # A unit that was not there before has no difference yet.
        "b": {"cpu_seconds_per_minute": 0.0, "memory_mb": 1.0},
    }


def test_what_is_there_anyway_is_shown_and_not_counted(monkeypatch):
    looks = iter(
        [(0.0, {"systemd-journald": (0, 1), "a": (0, 1)}), (60.0, {"systemd-journald": (9, 9), "a": (10**9, 10**6)})]
    )
    monkeypatch.setattr(watching, "hosts_of", lambda system: ["p-a"])
    monkeypatch.setattr(watching, "look", lambda host: next(looks))
    monkeypatch.setattr(watching.time, "sleep", lambda seconds: None)
    found = watching.measure("p", 60)
    assert (found["hosts"]["p-a"]["cpu_seconds_per_minute"], found["hosts"]["p-a"]["memory_mb"]) == (1.0, 1.0)
    shown = watching.table(found).splitlines()
    assert "systemd-journald (anyway)" in shown[2]
    assert shown[-1].split() == ["p-a", "all", "1.000", "1.0"]


def test_the_hosts_shell_understands_the_question():
    question = watching.LOOK % "|".join(f"{name}*" for name in watching.WATCHERS)
    assert subprocess.run(["sh", "-n", "-c", question], check=False).returncode == 0
