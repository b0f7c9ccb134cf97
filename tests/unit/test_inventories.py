"""The inventories of the systems: what each says, and what follows for its hosts; nothing is created."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parents[2] / "plugins/filter"))
from flows import check_flows, flow_matrix, flow_rules, known_ports

ROOT = Path(__file__).parents[2]
INVENTORIES = ROOT / "inventories"
SYSTEMS = ("pneumonia", "mnist")
CIDRS = ["203.0.113.0/24"]
NAMES = (
    "flows", "network", "closed_ports", "optional_roles", "release_policy", "model", "expected_services", "api_tuning",
    "nginx_upload_paths", "ansible_host", "compute", "group_names", "python_app_lock",
)  # fmt: skip
MONITOR = {"name": "monitor", "role": "monitor", "subnet": "public", "type": "t3.small", "disk_gb": 20, "public": True}


def own(system: str, name: str) -> Any:
    """Return a variable of a system's own network, as it is written."""
    return yaml.safe_load((INVENTORIES / system / "group_vars/all/network.yml").read_text())[name]


class Rendered:
    """A system's variables by host, and the configuration of its proxy."""

    def __init__(self, directory: Path, system: str, where: str = "lab", monitor: bool = False, **extra: Any) -> None:
        self.system, self.instances = system, own(system, "instances") + ([MONITOR] if monitor else [])
        (directory / "inventories").mkdir(parents=True)
        (directory / "out").mkdir()
        shutil.copytree(INVENTORIES / where / "group_vars", directory / f"inventories/{where}/group_vars")
        self.hosts = [
            (f"{system}-{one['name']}", one["role"], f"10.9.0.{number}") for number, one in enumerate(self.instances, 4)
        ]
        groups: dict[str, Any] = {}
        for (name, role, address), one in zip(self.hosts, self.instances, strict=True):
            public = address.replace("10.9.0", "198.51.100") if one["public"] else ""
            known = {"private_address": address, "public_address": public, "aws_instance_id": f"i-{name}"}
            groups.setdefault(f"{system}_{role}", {"hosts": {}})["hosts"][name] = known
        hosts = directory / f"inventories/{where}/hosts.yml"
        hosts.write_text(yaml.safe_dump({"all": {"children": groups}}))
        variables = directory / "variables.yml"
        variables.write_text(yaml.safe_dump(self.of_playbooks()))
        given = {"directory": str(directory / "out"), "variables": str(variables), "names": NAMES, **extra}
        done = subprocess.run(
            [ROOT / ".venv/bin/ansible-playbook", "-i", hosts.parent, "-i", INVENTORIES / system,
             "tests/inventories/render.yml", "-e", json.dumps(given)],
            cwd=ROOT, text=True, check=False, capture_output=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        self.of = {name: json.loads((directory / f"out/{name}.json").read_text()) for name, _, _ in self.hosts}
        self.all = next(iter(self.of.values()))
        self.nginx = (directory / "out/nginx.conf").read_text()

    @staticmethod
    def of_playbooks() -> dict[str, Any]:
        """Return the variables that playbooks give to roles, and those of the role nginx."""
        tasks = ROOT / "playbooks/tasks/configure"
        plays = yaml.safe_load((ROOT / "playbooks/configure.yml").read_text())
        by_role = next(play for play in plays if play["name"] == "Each role has a host that plays it")["tasks"]
        proxy = yaml.safe_load((tasks / "proxy.yml").read_text())[0]
        return {
            **yaml.safe_load((ROOT / "roles/nginx/defaults/main.yml").read_text()),
            **yaml.safe_load((ROOT / "roles/nginx/vars/main.yml").read_text()),
            **proxy["vars"],
            **proxy["block"][0]["vars"],
            **next(task for task in by_role if task["name"] == "Cases and predictions")["vars"],
            **yaml.safe_load((tasks / "trainer.yml").read_text())[0]["vars"],
        }

    @property
    def roles(self) -> list[str]:
        return list(dict.fromkeys(role for _, role, _ in self.hosts))

    def open_to(self, source: str) -> set[tuple[str, int]]:
        """Return host and port of everything that is open to a role, to `admins` or to `internet`."""
        flows = self.all["flows"]
        others = [host for host in self.hosts if host[1] != source]
        found = flow_matrix(flows, source, others, known_ports(flows, self.all["closed_ports"]))
        return {(item["name"].removeprefix(f"{self.system}-"), item["port"]) for item in found if item["open"]}

    def locations(self) -> dict[str, list[str]]:
        """Return by path the servers that answer it."""
        upstreams = {
            name: list(dict.fromkeys(re.findall(r"server ([\d.:]+) ", body)))
            for name, body in re.findall(r"upstream (\w+) \{(.*?)\}", self.nginx, re.DOTALL)
        }
        found = re.findall(r"location (?:= |~ \^)?([^\s$]+)\$? \{[^}]*?proxy_pass http://(\w+);", self.nginx)
        return {path: upstreams[name] for path, name in found}


@pytest.fixture(scope="module")
def xrays(tmp_path_factory: pytest.TempPathFactory) -> Rendered:
    return Rendered(tmp_path_factory.mktemp("xrays") / "here", "pneumonia")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Rendered:
    return Rendered(tmp_path_factory.mktemp("digits") / "here", "mnist", "aws")


@pytest.fixture(scope="module", params=["xrays", "digits"])
def system(request: pytest.FixtureRequest) -> Rendered:
    found: Rendered = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Rendered:
    """The digits with a monitor host and an API that is open."""
    return Rendered(
        tmp_path_factory.mktemp("watched") / "here", "mnist", monitor=True, api_public=True,
        instances=[*own("mnist", "instances"), MONITOR],
    )  # fmt: skip


@pytest.mark.parametrize("name", SYSTEMS)
def test_what_systems_share_is_linked_and_not_copied(name: str) -> None:
    link = INVENTORIES / name / "group_vars/all/common"
    assert link.is_symlink() and not link.readlink().is_absolute()
    assert link.resolve() == INVENTORIES / "common"
    files = sorted((INVENTORIES / name / "group_vars/all").glob("*.yml"))
    assert min(file.name for file in files) > link.name, "what a system says itself comes after what is shared"


def test_no_system_declares_a_group_that_another_lacks() -> None:
    groups = [
        set(yaml.safe_load((INVENTORIES / name / "groups.yml").read_text())["all"]["children"]) for name in SYSTEMS
    ]
    assert groups[0] == groups[1]


def test_the_systems_have_networks_of_their_own(system: Rendered) -> None:
    other = own("mnist" if system.system == "pneumonia" else "pneumonia", "network")
    assert system.all["network"]["cidr"] != other["cidr"]


def test_the_flows_are_without_fault(system: Rendered) -> None:
    assert check_flows(system.all["flows"], system.roles, system.all["optional_roles"]) == []
    ids = {role: f"sg-{role}" for role in system.roles}
    for role in system.roles:
        assert flow_rules(system.all["flows"], role, system.roles, CIDRS, ids, system.all["optional_roles"])


def test_administrators_reach_hosts_through_the_bastion_alone(system: Rendered) -> None:
    assert {host for host, port in system.open_to("admins") if port == 22} == {
        name.removeprefix(f"{system.system}-") for name, role, _ in system.hosts if role == "proxy"
    }
    for name, role, address in system.hosts:
        assert system.of[name]["ansible_host"] == (
            address.replace("10.9.0", "198.51.100") if role == "proxy" else address
        )


def test_the_digits_are_open_where_they_must_be(digits: Rendered) -> None:
    assert digits.open_to("internet") == {("frontend", 80), ("frontend", 443)}
    assert digits.open_to("admins") == {("frontend", 80), ("frontend", 443), ("frontend", 22), ("training", 8888)}
    assert digits.open_to("proxy") == {("training", 22), ("backend", 22), ("backend", 5000)}
    assert digits.open_to("trainer") == {("frontend", 80), ("frontend", 443), ("backend", 6379)}
    assert digits.open_to("api") == {("frontend", 80), ("frontend", 443)}
    assert not any("LIGHTBOX_CORS_ORIGINS" in one["api_tuning"] for one in digits.of.values())


def test_the_digits_need_no_gpu_wherever_they_run(digits: Rendered) -> None:
    assert digits.all["compute"] == "cpu"
    assert digits.all["model"]["architecture"] == "mnist"
    assert digits.all["release_policy"]["gate"]["metric"] == "accuracy"
    assert digits.all["release_policy"]["watch"]["seconds"] == 60
    assert digits.of["mnist-training"]["python_app_lock"].endswith("/notebook.txt")


def test_without_a_monitor_the_proxy_leads_to_none(digits: Rendered) -> None:
    assert digits.locations() == {
        "/": ["10.9.0.4:5001"], "/upload_predict": ["10.9.0.4:5001"], "/predict/": ["10.9.0.6:5000"],
    }  # fmt: skip
    assert digits.all["expected_services"]["managed"] == ["ssh", "prometheus-node-exporter"]
    assert digits.all["nginx_upload_paths"] == ["/upload_predict", "/predict", "/predict/"]


def test_the_proxy_of_a_system_with_a_monitor_leads_there(xrays: Rendered) -> None:
    assert xrays.locations() == {
        "/": ["10.9.0.6:5001"], "/upload_predict": ["10.9.0.6:5001"],
        "/status": ["10.9.0.5:5002"], "/grafana/": ["10.9.0.5:3000"],
    }  # fmt: skip
    assert xrays.all["expected_services"]["managed"] == ["ssh", "prometheus-node-exporter", "systemd-journal-upload"]
    assert xrays.of["pneumonia-trainer"]["python_app_lock"].endswith("/trainer.txt")
    assert xrays.all["release_policy"]["gate"] == {"metric": "auroc", "minimum": 0.7, "tolerance": 0.01}


def test_a_line_more_has_the_digits_watched(watched: Rendered) -> None:
    assert {"/status", "/grafana/", "/predict/"} <= watched.locations().keys()
    assert "systemd-journal-upload" in watched.all["expected_services"]["managed"]
    assert {(host, 9100) for host in ("frontend", "training", "backend")} <= watched.open_to("monitor")
    assert ("monitor", 19532) in watched.open_to("api")
    assert "monitor" in watched.of["mnist-monitor"]["group_names"]


def test_an_open_api_is_open_to_the_pages_origin_alone(watched: Rendered) -> None:
    assert ("backend", 5000) in watched.open_to("internet")
    assert watched.of["mnist-backend"]["api_tuning"]["LIGHTBOX_CORS_ORIGINS"] == "https://198.51.100.4"
