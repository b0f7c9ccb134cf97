"""What a run of a playbook is told by: `benchmarks/converge.py`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from converge import changes, executions, processor_seconds

REPORT = {
    "plays": [
        {
            "tasks": [
                {"hosts": {"a": {"action": "ansible.builtin.stat"}, "b": {"action": "ansible.builtin.stat"}}},
                {
                    "hosts": {
                        "a": {
                            "action": "ansible.builtin.template",
                            "results": [{"changed": True}, {"changed": False}, {"skipped": True}],
                        }
                    }
                },
                {"hosts": {"a": {"action": "ansible.builtin.copy", "skipped": True}}},
                {
                    "hosts": {
                        "a": {"action": "ansible.builtin.assert"},
                        "b": {"action": "ansible.builtin.include_tasks"},
                    }
                },
            ]
        }
    ],
    "stats": {"a": {"changed": 1}, "b": {"changed": 0}},
}


def test_each_turn_of_a_loop_is_an_execution_and_words_are_none() -> None:
    assert executions(REPORT) == 4


def test_changes_of_all_hosts_are_counted() -> None:
    assert changes(REPORT) == 1


def test_processors_have_worked() -> None:
    before = processor_seconds()
    sum(range(10_000_000))
    assert processor_seconds() > before > 0
