"""What is generated is up to date, links and names lead somewhere, and examples are of what there is."""

from __future__ import annotations

import configparser
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from documents import PAGES, ROOT, anchors, blocks, filled, links, of_kind, spans

sys.path.insert(0, str(ROOT / "docs"))
import role_tables
import system_tables
from draw_network import draw

# Kinds of blocks that have a test, here or in test_commands.py.
KINDS = {"ini", "json", "shell", "text", "yaml"}
HERE = re.compile(
    r"((?:app|benchmarks|docs|inventories|lab|molecule|playbooks|plugins|roles|tests)/[\w./-]*?)(?:::(test_\w+))?"
)
ROLES = sorted((ROOT / "roles").iterdir())


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


@pytest.mark.parametrize("page", sorted(system_tables.TABLES))
def test_the_tables_of_flows_and_costs_are_those_of_the_inventories(page: str) -> None:
    assert (ROOT / "docs" / page).read_text() == system_tables.written(page), "run `make tables`"


def test_the_costs_are_sums_of_the_prices_of_the_inventory() -> None:
    settings = yaml.safe_load((ROOT / "inventories/aws/group_vars/all/main.yml").read_text())
    prices, nat, address, gigabyte = (
        table["us-east-1"]
        for table in (settings["instance_prices"], system_tables.NAT, system_tables.ADDRESS, system_tables.GIGABYTE)
    )
    rows = [line.split(" | ") for line in system_tables.cost_table("pneumonia").splitlines()[2:]]
    figures = {row[0].removeprefix("| "): float(row[1]) for row in rows}
    assert figures["api, `t3.medium`"] == prices["t3.medium"]
    assert figures["trainer, `g4dn.xlarge`, while it is up"] == prices["g4dn.xlarge"]
    hosts = prices["t3.micro"] * 2 + prices["t3.small"] + prices["t3.medium"]
    always = hosts + nat + 2 * address + 160 * gigabyte / 730
    assert figures["**all of that**"] == pytest.approx(always, abs=1e-4)
    assert figures["**all of that, a month of 730 hours**"] == pytest.approx(730 * always, abs=1)


# --- links and names --------------------------------------------------------------------------------------------------


def test_every_link_leads_to_a_file_and_a_heading() -> None:
    broken = []
    for page, path, anchor in links():
        target = (page.parent / path).resolve() if path else page
        if not target.exists():
            broken.append(f"{page.relative_to(ROOT)}: {path} is not there")
        elif anchor and anchor not in anchors(target):
            broken.append(f"{page.relative_to(ROOT)}: {path} has no heading #{anchor}")
    assert broken == []


def test_anchors_are_made_as_on_github(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Status (`/status`)\n## Don't, *ever*\n## Again\n## Again\n```shell\n# no heading\n```\n")
    assert anchors(page) == {"status-status", "dont-ever", "again", "again-1"}


def test_files_and_tests_named_in_the_text_are_there() -> None:
    places = ("tests", "app/tests", "molecule", "lab/tests")
    tests = "\n".join(path.read_text() for place in places for path in (ROOT / place).rglob("test_*.py"))
    missing = []
    for span in spans():
        if found := HERE.fullmatch(filled(span.text)):
            path, test = found.groups()
            if not (ROOT / path).exists() or (test and f"def {test}(" not in (ROOT / path).read_text()):
                missing.append(f"{span.where}: {span.text}")
        elif re.fullmatch(r"test_\w+", span.text) and f"def {span.text}(" not in tests:
            missing.append(f"{span.where}: {span.text}")
    assert missing == []


# --- blocks -----------------------------------------------------------------------------------------------------------


def test_every_block_is_of_a_kind_that_is_tested() -> None:
    assert [f"{block.where}: a block of kind '{block.kind}'" for block in blocks() if block.kind not in KINDS] == []
    fences = sum(len(re.findall(r"^ *```", page.read_text(), re.MULTILINE)) for page in PAGES)
    assert fences == 2 * len(blocks()), "a block does not end, or ends otherwise than it begins"


def test_json_is_json() -> None:
    for block in of_kind("json"):
        try:
            json.loads(block.text)
        except ValueError as error:
            pytest.fail(f"{block.where}: {error}")


def test_ini_is_ini() -> None:
    for block in of_kind("ini"):
        try:
            configparser.ConfigParser(interpolation=None).read_string(block.text)
        except configparser.Error as error:
            pytest.fail(f"{block.where}: {error}")


def options() -> dict[str, Any]:
    """Return the options of all roles by name."""
    return {name: option for role in ROLES for name, option in role_tables.options_of(role).items()}


def declared() -> set[str]:
    """Return the variables that inventories declare."""
    found: set[str] = set()
    for path in [*(ROOT / "inventories").glob("*/group_vars/**/*.yml"), *(ROOT / "inventories/common").glob("*.yml")]:
        found |= set(yaml.safe_load(path.read_text()))
    return found


def unknown(data: Any, known: dict[str, Any]) -> list[str]:
    """Return the names in an example that no role has: of variables named as a role's are, and of what is in one."""
    if isinstance(data, list):
        return [name for item in data for name in unknown(item, known)]
    found = []
    for name, value in data.items() if isinstance(data, dict) else []:
        inside = known.get(name, {}).get("options", {})
        if inside and isinstance(value, list):
            found += [f"{name}[].{key}" for part in value for key in part if key not in inside]
        elif name not in known and any(name.startswith(f"{role.name}_") for role in ROLES):
            found.append(name)
        found += unknown(value, known)
    return found


def lacking(play: dict[str, Any]) -> list[str]:
    """Return what the roles of a play need and are not given."""
    return [
        f"{role['role']} needs {name}"
        for role in play.get("roles", [])
        for name, option in role_tables.options_of(ROOT / "roles" / role["role"]).items()
        if option.get("required") and name not in role
    ]


def test_yaml_is_yaml_and_its_variables_are_there() -> None:
    known, inventories = options(), declared()
    wrong = []
    for block in of_kind("yaml"):
        try:
            data = yaml.safe_load(block.text)
        except yaml.YAMLError as error:
            pytest.fail(f"{block.where}: {error}")
        wrong += [f"{block.where}: no role has {name}" for name in unknown(data, known)]
        for play in data if isinstance(data, list) else []:
            wrong += [f"{block.where}: {lack}" for lack in lacking(play)]
        if isinstance(data, dict) and not block.where.startswith("roles/"):
            wrong += [f"{block.where}: nothing has {name}" for name in data if name not in {*inventories, *known}]
    assert wrong == []


def test_an_example_with_a_variable_that_no_role_has_is_found() -> None:
    play = {"roles": [{"role": "redis", "redis_bnid": [], "redis_users": [{"name": "a", "pasword": "b"}]}]}
    assert unknown([play], options()) == ["redis_bnid", "redis_users[].pasword"]
    assert lacking({"roles": [{"role": "nginx"}]}) == ["nginx needs nginx_upstream_servers"]


def test_hosts_in_examples_are_like_those_of_the_inventory() -> None:
    plan = yaml.safe_load((ROOT / "inventories/pneumonia/group_vars/all/network.yml").read_text())
    keys = {key for host in plan["instances"] for key in host} | {"market"}
    roles = {host["role"] for host in plan["instances"]}
    subnets = {subnet["name"] for subnet in plan["network"]["subnets"]}
    shown = []
    for block in of_kind("yaml"):
        data = yaml.safe_load(block.text)
        for host in [item for item in data if "subnet" in item] if isinstance(data, list) else []:
            assert set(host) <= keys and host["role"] in roles and host["subnet"] in subnets, block.where
            shown.append(host["name"])
    assert {"api2", "trainer2"} <= set(shown)


def test_a_new_system_takes_the_shared_data_in_as_the_page_says(tmp_path: Path) -> None:
    (block,) = [one for one in of_kind("shell") if one.where.startswith("docs/adding") and "ln -s" in one.text]
    shutil.copytree(ROOT / "inventories", tmp_path / "inventories", symlinks=True)
    subprocess.run(["bash", "-euc", block.text.replace("NAME", "fruits")], cwd=tmp_path, check=True)
    link = tmp_path / "inventories/fruits/group_vars/all/common"
    assert link.resolve() == tmp_path / "inventories/common"
