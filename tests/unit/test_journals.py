"""A failed test ends with the journals of the hosts it asked. Here this machine is the host, and no system is up."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
OF_A_HOST = """
import pytest, testinfra

@pytest.fixture
def host():
    return testinfra.get_host("local://")

def test_fails(host):
    assert not host.run("true").succeeded

def test_passes(host):
    assert host.run("true").succeeded
"""
OF_A_SYSTEM = """
import pytest
from conftest import System

@pytest.fixture
def system(monkeypatch):
    system = System()
    monkeypatch.setattr(System, "instances", lambda self: {"api": {}, "ui": {}})
    monkeypatch.setattr(System, "on", lambda self, host, command, **options: f"the words of {host}")
    yield system

def test_fails(system):
    assert system.name == "mnist"
"""


def said_by(tmp_path: Path, conftest: str, test: str) -> str:
    """Return what pytest says of tests beside a conftest.py of ours."""
    (tmp_path / "conftest.py").symlink_to(ROOT / conftest)
    (tmp_path / "test_it.py").write_text(test)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(tmp_path)]
    return subprocess.run(command, cwd=tmp_path, text=True, check=False, stdout=subprocess.PIPE).stdout


def test_of_a_host(tmp_path: Path) -> None:
    said = said_by(tmp_path, "molecule/conftest.py", OF_A_HOST)
    assert "1 failed, 1 passed" in said
    assert said.count("journal of local") == 1
    assert "The end of the journal:" in said


def test_of_a_system(tmp_path: Path) -> None:
    said = said_by(tmp_path, "tests/system/conftest.py", OF_A_SYSTEM)
    for host in ("api", "ui"):
        assert f"journal of pneumonia-{host}" in said
        assert f"the words of {host}" in said
