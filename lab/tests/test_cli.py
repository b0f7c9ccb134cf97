"""What a person sees of the lab."""

from __future__ import annotations

import argparse
import json
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lab import cli, daemon
from lab.settings import Settings
from lab.tests.conftest import PUBLIC_KEY, Lab


def rule(protocol: str, first: int | None, last: int | None, *cidrs: str) -> dict[str, Any]:
    return {"protocol": protocol, "from_port": first, "to_port": last, "cidrs": cidrs}


def instance(name: str, private: str, public: str | None = None, **more: Any) -> dict[str, Any]:
    return {
        "id": f"i-{name}", "name": f"pneumonia-{name}", "state": "running", "private_ip": private, "public_ip": public,
        "instance_type": "t3.micro", "tags": [["Role", name]], "groups": [f"pneumonia-{name}"], "vpc_id": "vpc-1",
        "ingress": [], "authorized_key": PUBLIC_KEY, **more,
    }  # fmt: skip


STATE: dict[str, Any] = {
    "pid": 1, "endpoint": "http://127.0.0.1:4566", "account": "000000424242", "region": "us-east-1", "hosts": True,
    "enforce_iam": False,
    "instances": [
        instance(
            "ui", "10.0.2.4",
            ingress=[rule("tcp", 5001, 5001, "10.0.1.4/32"), rule("tcp", 22, 22, "10.0.1.4/32")],
        ),
        instance(
            "proxy", "10.0.1.4", "198.18.0.10",
            ingress=[
                rule("tcp", 443, 443, "0.0.0.0/0"), rule("tcp", 80, 80, "0.0.0.0/0"),
                rule("tcp", 22, 22, "198.18.0.1/32"), rule("udp", 100, 200, "10.0.2.4/32"),
                rule("icmp", -1, -1, "10.0.2.4/32"), rule("all", None, None, "10.0.9.9/32"),
            ],
        ),
        instance("ui2", "10.0.2.5", state="stopped"),
    ],
    "networks": [
        {
            "id": "vpc-1", "cidr": "10.0.0.0/16",
            "subnets": [
                {"id": "subnet-1", "cidr": "10.0.1.0/24", "egress": "internet", "nat_public_ip": None},
                {"id": "subnet-2", "cidr": "10.0.2.0/24", "egress": "nat", "nat_public_ip": "198.18.0.11"},
            ],
        }
    ],
}  # fmt: skip


def test_status_shows_instances_networks_and_rules_at_a_glance() -> None:
    text = cli.render(STATE)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert lines[0] == "http://127.0.0.1:4566 account 000000424242 us-east-1 with hosts"
    assert "pneumonia-proxy i-proxy running 10.0.1.4 198.18.0.10 t3.micro proxy pneumonia-proxy" in lines
    assert "pneumonia-ui i-ui running 10.0.2.4 - t3.micro ui pneumonia-ui" in lines
    assert "vpc-1 subnet-2 10.0.2.0/24 NAT gateway 198.18.0.11" in lines
    assert "vpc-1 subnet-1 10.0.1.0/24 Internet gateway" in lines
    assert "pneumonia-proxy 80 443 anyone" in lines
    assert "pneumonia-proxy 22 198.18.0.1/32" in lines
    assert "pneumonia-proxy ping 100-200/udp pneumonia-ui" in lines
    assert "pneumonia-proxy all 10.0.9.9/32" in lines
    assert "pneumonia-ui 22 5001 pneumonia-proxy" in lines
    assert not any(line != line.rstrip() for line in text.splitlines())


def test_status_of_an_empty_lab() -> None:
    assert "No instances" in cli.render({**STATE, "instances": [], "networks": []})


def ssh(tmp_path: Path, host: str, key: Path | None = None, *command: str) -> list[str]:
    options = argparse.Namespace(host=host, key=key, user="admin", command=list(command))
    return cli.ssh_arguments(Settings(lab_dir=tmp_path), STATE, options)


def test_ssh_goes_straight_or_through_the_host_with_a_public_address(tmp_path: Path) -> None:
    secrets = tmp_path / "secrets/pneumonia"
    secrets.mkdir(parents=True)
    (secrets / "id_ed25519").touch()
    (secrets / "id_ed25519.pub").write_text(f"{PUBLIC_KEY} someone@else\n")
    (tmp_path / "secrets/mnist").mkdir()
    (tmp_path / "secrets/mnist/id_ed25519").touch()
    straight = ssh(tmp_path, "pneumonia-proxy", None, "uptime", "-p")
    assert straight[-3:] == ["admin@198.18.0.10", "uptime", "-p"]
    assert str(secrets / "id_ed25519") in straight
    assert not any("ProxyCommand" in word for word in straight)
    through = ssh(tmp_path, "ui", tmp_path / "key")
    assert through[-1] == "admin@10.0.2.4"
    (proxy,) = [word for word in through if word.startswith("ProxyCommand")]
    assert "admin@198.18.0.10" in proxy
    assert f"-i {tmp_path / 'key'}" in proxy
    assert "HostKeyAlias=i-proxy" in proxy


def test_ssh_goes_round_a_public_address_that_lets_it_not_in(tmp_path: Path) -> None:
    closed = instance("api", "10.0.1.5", "198.18.0.12", ingress=[rule("tcp", 22, 22, "10.0.1.4/32")])
    state = {**STATE, "instances": [closed, *STATE["instances"]]}
    options = argparse.Namespace(host="api", key=tmp_path / "key", user="admin", command=[])
    through = cli.ssh_arguments(Settings(lab_dir=tmp_path), state, options)
    assert through[-1] == "admin@10.0.1.5"
    assert any("admin@198.18.0.10" in word for word in through)
    options.host = "ui"
    nobody = {**state, "instances": [one for one in state["instances"] if one["name"] != "pneumonia-proxy"]}
    with pytest.raises(cli.LabError, match="lets SSH in from here"):
        cli.ssh_arguments(Settings(lab_dir=tmp_path), nobody, options)


def test_ssh_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(cli.LabError, match="'db' is not a host of the lab; hosts: pneumonia-proxy, pneumonia-ui"):
        ssh(tmp_path, "db")
    with pytest.raises(cli.LabError, match="pneumonia-ui2 is stopped"):
        ssh(tmp_path, "ui2")
    with pytest.raises(cli.LabError, match="--key"):
        ssh(tmp_path, "ui")


def test_the_state_is_told_to_this_machine_only(lab: Lab) -> None:
    lab.network().run()
    state = cli._state(lab.settings)
    assert state is not None
    assert json.loads(json.dumps(lab.api.state())) == state
    assert "10.0.1.4" in cli.render(state)
    request = urllib.request.Request(f"{lab.settings.endpoint}/lab/state", headers={"Host": "evil.example:80"})
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(request)


@pytest.mark.parametrize("path", ["/lab/state", "/moto-api/reset", "/moto-api/data.json", "/latest/meta-data/"])
def test_instances_get_the_api_and_nothing_else(lab: Lab, path: str) -> None:
    answered: list[str] = []
    environ = {"REQUEST_METHOD": "POST", "PATH_INFO": path, "HTTP_HOST": "127.0.0.1:4566"}
    list(lab.api.instance_app(environ, lambda status, headers: answered.append(status)))
    assert answered == ["404 Not Found"]


def test_help_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["up"], ["down"], ["status"], ["ssh"], ["logs"], ["image"]):
        with pytest.raises(SystemExit) as stop:
            cli.main([*arguments, "--help"])
        assert stop.value.code == 0
        assert len(capsys.readouterr().out.splitlines()) > 5


def test_hosts_need_root_and_the_lab_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LAB_DIR", str(tmp_path / ".lab"))
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert cli.main(["up"]) == 1
    assert "needs root" in capsys.readouterr().err
    assert not (tmp_path / ".lab").exists()


def test_a_setting_that_cannot_be_read_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LAB_VCPU_LIMIT", "many")
    assert cli.main(["up", "--api-only"]) == 1
    assert "LAB_VCPU_LIMIT is 'many'" in capsys.readouterr().err


def test_down_leaves_a_directory_alone_that_is_no_labs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis").touch()
    monkeypatch.setenv("LAB_DIR", str(precious))
    assert cli.main(["down"]) == 1
    assert "left alone" in capsys.readouterr().err
    assert (precious / "thesis").exists()


def test_a_taken_port_is_told(
    make_lab: Callable[..., Lab], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = make_lab()
    monkeypatch.setenv("LAB_DIR", str(tmp_path / "second/.lab"))
    monkeypatch.setenv("LAB_PORT", str(other.settings.port))
    assert cli.main(["up", "--api-only"]) == 1
    assert "Address already in use" in capsys.readouterr().err


def test_under_sudo_the_directory_belongs_to_the_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owners: list[tuple[Path, int, int]] = []
    monkeypatch.setenv("SUDO_UID", "1000")
    monkeypatch.setenv("SUDO_GID", "1001")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr("os.chown", lambda path, user, group: owners.append((path, user, group)))
    settings = Settings(lab_dir=tmp_path / ".lab")
    daemon.make_directory(settings)
    assert settings.lab_dir.is_dir()
    assert owners == [(settings.lab_dir, 1000, 1001)]


def test_the_lock_tells_who_holds_it(tmp_path: Path) -> None:
    path = tmp_path / "lab.pid"
    assert daemon.process(path) is None
    with daemon.held(path):
        assert daemon.process(path) is not None
        with pytest.raises(daemon.AlreadyRunningError), daemon.held(path):
            pass
    assert daemon.process(path) is None
