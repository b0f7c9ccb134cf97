"""Hold the collection, as it is installed, against ansible-test's sanity tests: ``make test T=sanity``.

The app is left out: it is no Ansible content, runs on the hosts in environments of its own, and `make lint` reads it.
What ansible-test installs for itself is kept in ``.cache/sanity``.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import ansible_collections
import ansible_test

ROOT = Path(__file__).resolve().parents[1]
BIN = ROOT / ".venv/bin"
HOME = ROOT / ".cache/sanity"


def python_brings_pip(home: Path) -> None:
    """Have ansible-test take the pip that comes with Python, where it would fetch one from its makers' site."""
    text = (Path(ansible_test.__path__[0]) / "_internal/python_requirements.py").read_text()
    found = re.search(r"\bpip='([\d.]+)'", text)
    assert found, "ansible-test does not say any more which pip it fetches"
    script = home / f".ansible/test/cache/get_pip_{found[1].replace('.', '_')}.py"
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text("import ensurepip\n\nensurepip.bootstrap(default_pip=True)\n")


def sanity(place: Path) -> int:
    """Build, install and test in an empty directory; return ansible-test's exit status."""
    # Not in the checkout, whose ansible.cfg says that this collection is installed, and whose Git knows no copy of it.
    galaxy: list[str | Path] = [BIN / "ansible-galaxy", "collection"]
    subprocess.run([*galaxy, "build", ROOT, "--output-path", place], cwd=place, check=True)
    (archive,) = place.glob("*.tar.gz")
    subprocess.run([*galaxy, "install", archive, "-p", place, "--no-deps", "--offline"], cwd=place, check=True)
    # The documentation and the modules refer to this one; ansible-test looks for it beside ours.
    (place / "ansible_collections/amazon").symlink_to(Path(ansible_collections.__path__[0]) / "amazon")
    python_brings_pip(HOME)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    command: list[str | Path] = [
        BIN / "ansible-test",
        "sanity",
        "--venv",
        "--python",
        version,
        "--color",
        "no",
        "--exclude",
        "app/",
    ]
    environment = {**os.environ, "HOME": str(HOME), "PATH": f"{BIN}:{os.environ['PATH']}"}
    collection = place / "ansible_collections/lightbox/mlops"
    return subprocess.run(command, cwd=collection, env=environment, check=False).returncode


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        status = sanity(Path(directory))
    sys.exit(status)
