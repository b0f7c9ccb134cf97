"""The release policy, by the playbook that every training and every release begins with."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]


def play(*arguments: str, **variables: object) -> subprocess.CompletedProcess[str]:
    command = [
        str(Path(sys.executable).with_name("ansible-playbook")), "-i", "inventories/pneumonia", "playbooks/policy.yml",
        "-e", json.dumps({"watch_seconds": 5, **variables}), *arguments,
    ]  # fmt: skip
    environment = {**os.environ, "ANSIBLE_FORCE_COLOR": "0"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_the_policy_of_the_inventory_can_be_followed():
    done = play()
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_variable_of_old_stops_the_run_and_its_replacement_is_named():
    done = play(release_gate={"metric": "auroc", "tolerance": 0.01})
    assert done.returncode != 0
    assert "release_gate is no longer read: write its metric" in done.stdout
    assert "release_policy.gate" in done.stdout


def test_a_variable_of_old_is_found_on_any_host(tmp_path):
    (tmp_path / "hosts.yml").write_text("pneumonia_ui: {hosts: {ui: {release_gate: {metric: auroc}}}}\n")
    done = play("-i", str(tmp_path / "hosts.yml"))
    assert done.returncode != 0
    assert "release_gate is no longer read" in done.stdout


def test_no_variable_of_old_is_still_set_or_given():
    removed = set(yaml.safe_load((ROOT / "playbooks/vars/removed.yml").read_text()))
    files = [*(ROOT / "inventories").glob("**/*.yml"), *(ROOT / "roles").glob("*/*/main.yml")]
    found = {name for file in files for name in re.findall(r"^ *(\w+):", file.read_text(), re.MULTILINE)}
    assert removed and removed.isdisjoint(found)
