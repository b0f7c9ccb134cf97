"""What is generated is up to date."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_picture_shows_the_inventory(tmp_path):
    subprocess.run(
        [sys.executable, "docs/draw_network.py", "inventories/pneumonia", str(tmp_path / "network.svg")],
        cwd=ROOT,
        check=True,
    )
    drawn = (tmp_path / "network.svg").read_text()
    assert drawn == (ROOT / "docs/network.svg").read_text(), "run `make picture`"


def test_every_link_in_the_documents_leads_somewhere():
    import re

    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "roles").glob("*/README.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"
