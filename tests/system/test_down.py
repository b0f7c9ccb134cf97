"""The end of the system: destroyed, and the lab gone with it."""

from __future__ import annotations

import os
import subprocess

import pytest

from .conftest import ROOT, System

pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(bool(os.environ.get("LIGHTBOX_KEEP")), reason="LIGHTBOX_KEEP is set"),
]


def test_destroy_and_down_leave_nothing(system: System) -> None:
    system.make("destroy")
    assert system.instances() == {}
    system.make("down")

    # The lab's own configuration of podman went with the lab.
    environment = {name: value for name, value in os.environ.items() if name != "CONTAINERS_CONF"}

    def listing(*command: str) -> str:
        return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout

    names = listing("podman", "ps", "--all", "--format", "{{.Names}}").split()
    assert [name for name in names if name.startswith("lb-")] == []
    assert "lb-" not in listing("ip", "netns", "list")
    assert "lb-" not in listing("ip", "link", "show")
    assert "lightbox" not in listing("nft", "list", "tables")
    assert "198.18." not in listing("ip", "route", "show", "table", "all")
    programs = [line.split() for line in listing("ps", "-eo", "args").splitlines()]
    assert [words for words in programs if "python" in words[0] and words[1:3] == ["-m", "lab"]] == []
    assert not (ROOT / ".lab").exists()
