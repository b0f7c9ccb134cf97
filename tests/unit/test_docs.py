"""What is generated is up to date."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("system", "picture"), [("pneumonia", "network.svg"), ("mnist", "network-mnist.svg")])
def test_the_picture_shows_the_inventory(tmp_path, system, picture):
    subprocess.run(
        [sys.executable, "docs/draw_network.py", f"inventories/{system}", str(tmp_path / picture)],
        cwd=ROOT,
        check=True,
    )
    drawn = (tmp_path / picture).read_text()
    assert drawn == (ROOT / "docs" / picture).read_text(), "run `make picture`"


def test_the_picture_shows_every_host_of_a_role_and_what_they_say_to_one_another():
    sys.path.insert(0, str(ROOT / "docs"))
    from draw_network import draw

    api = {"role": "api", "subnet": "app", "type": "t3.medium", "public": False}
    ui = {"name": "ui", "role": "ui", "subnet": "app", "type": "t3.micro", "public": False}
    network = {"cidr": "10.0.0.0/16", "subnets": [{"name": "app", "cidr": "10.0.2.0/24", "route": "nat"}]}
    flows = [{"from": "ui", "to": "api", "ports": [5000]}, {"from": "api", "to": "api", "ports": [6379]}]
    one = draw("title", network, [{"name": "api", **api}, ui], flows)
    two = draw("title", network, [{"name": "api", **api}, ui, {"name": "api2", **api}], flows)
    assert ">api<" in two and ">api2<" in two
    assert one.count('class="flow"') == two.count('class="flow"') == 2
    assert 'class="role"' in two and 'class="role"' not in one


def test_the_picture_says_when_a_flow_holds_and_leaves_out_roles_without_hosts():
    sys.path.insert(0, str(ROOT / "docs"))
    from draw_network import draw

    network = {"cidr": "10.0.0.0/16", "subnets": [{"name": "app", "cidr": "10.0.2.0/24", "route": "nat"}]}
    api = {"name": "api", "role": "api", "subnet": "app", "type": "t3.medium", "public": False}
    flows = [
        {"from": "internet", "to": "api", "ports": [5000], "if": "{{ api_public | bool }}", "why": "directly"},
        {"from": "monitor", "to": "api", "ports": [9100]},
    ]
    drawn = draw("title", network, [api], flows)
    assert 'class="flow"' not in drawn and "9100" not in drawn
    assert "internet reaches api on 5000 where api_public: directly" in drawn


def test_the_pipelines_call_what_is_there():
    import re

    targets = set(
        re.findall(r"^([\w./-]+):", (ROOT / "Makefile").read_text().replace("$(VENV)", ".venv"), re.MULTILINE)
    )
    for name in ("github-actions.yml", "Jenkinsfile"):
        text = (ROOT / "docs/ci" / name).read_text()
        made = set(re.findall(r"(?:run: |sh ')make ([a-z./-]+)", text))
        assert {"lint", "up", "verify", "down"} <= made <= targets, name
        played = set(re.findall(r"(?<= )[\w/]+\.yml(?=\s)", text.split("ansible-playbook", 1)[1]))
        assert played == {"site.yml", "playbooks/verify.yml"}, name
        assert all((ROOT / path).exists() for path in played)
    assert "id-token: write" in (ROOT / "docs/ci/github-actions.yml").read_text()


def test_every_link_in_the_documents_leads_somewhere():
    import re

    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "roles").glob("*/README.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"
