"""Real hosts on this machine: containers, namespaces, routes. Needs root, podman and the image's packages."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lab.hosts.network import Fabric
from lab.hosts.reconciler import Reconciler
from lab.hosts.system import NETNS, Names, inside
from lab.settings import Settings
from lab.world import Instance, Network, Rule, Subnet, World

pytestmark = [
    pytest.mark.hosts,
    pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("podman"), reason="needs root and podman"),
]

PREFIX = "lt"
CONTROLLER = "198.19.128.1"
PROXY_IP, NAT_IP, SECOND_IP = "198.19.128.10", "198.19.128.11", "198.19.128.12"
ALL = Rule("all", None, None, ("0.0.0.0/0",))


@dataclass(frozen=True)
class RigSettings(Settings):
    """A lab beside the one that may be running on this machine."""

    prefix: str = PREFIX
    transit_cidr: str = "198.19.240.0/20"
    cache_dir: str = ""


CLOUD_CONFIG = """#cloud-config
write_files:
  - {path: /etc/made/by, content: cloud-config, permissions: "0640"}
runcmd:
  - [sh, -c, "echo $0 ran > /etc/made/ran", first]
  - echo shell line >> /etc/made/ran
power_state: {mode: reboot}
"""


def tcp(port: int, *cidrs: str) -> Rule:
    return Rule("tcp", port, port, cidrs)


def until(condition: Callable[[], Any], seconds: float = 60, what: str = "") -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if result := condition():
            return result
        time.sleep(0.05)
    pytest.fail(f"not within {seconds} s: {what or condition}")


@dataclass
class Ec2:
    """A very small EC2: holds a world, moves pending instances to running when a host answers."""

    world: World = field(default_factory=World)
    running: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    stopped: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def change(self, instance_id: str, **values: Any) -> None:
        with self.lock:
            self.world = replace(
                self.world,
                instances=tuple(
                    replace(one, **values) if one.id == instance_id else one for one in self.world.instances
                ),
            )

    def remove(self, instance_id: str) -> None:
        with self.lock:
            kept = tuple(one for one in self.world.instances if one.id != instance_id)
            self.world = replace(self.world, instances=kept)

    def mark_running(self, instance_id: str) -> None:
        self.running.append(instance_id)
        self.change(instance_id, state="running")

    def mark_failed(self, instance_id: str, reason: str) -> None:
        self.failed[instance_id] = reason

    def mark_stopped(self, instance_id: str) -> None:
        self.stopped.append(instance_id)
        self.change(instance_id, state="stopped")

    def credentials(self, profile: str) -> dict[str, str]:
        return {
            "AccessKeyId": f"ASIA{profile}",
            "SecretAccessKey": "not-a-secret",
            "SessionToken": "token",
            "Expiration": "2036-01-01T00:00:00Z",
        }


class Rig:
    """A lab with its EC2, and the ways in which a test looks at it."""

    def __init__(self, lab_dir: Path) -> None:
        self.settings = RigSettings(
            lab_dir=lab_dir,
            public_cidr="198.19.128.0/20",
            controller_address=CONTROLLER,
            cache_dir=str(lab_dir.parent / "cache"),
        )
        self.ec2 = Ec2()
        self.key = lab_dir.parent / "key"
        if not self.key.exists():
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.key], check=True)
        self.lab = self.start()

    def start(self) -> Reconciler:
        def greet(environ: dict[str, Any], start_response: Any) -> list[bytes]:
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [f"api for {environ['REMOTE_ADDR']}".encode()]

        self.lab = Reconciler(self.settings, self.ec2, greet)
        return self.lab

    def settle(self, seconds: float = 120) -> None:
        """Apply the world until nothing is pending and every host is as wished."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.lab.apply(self.ec2.world)
            pending = any(one.state == "pending" for one in self.ec2.world.instances)
            if self.lab.wait(0.1) and not pending:
                self.lab.apply(self.ec2.world)
                return
            if self.ec2.failed:
                break
            time.sleep(0.05)
        pytest.fail(f"not settled: {self.ec2.failed or self.ec2.world.instances}")

    def instance(self, instance_id: str) -> Instance:
        return next(one for one in self.ec2.world.instances if one.id == instance_id)

    def inside(self, instance_id: str, *command: str, check: bool = True) -> str:
        done = subprocess.run(
            ["podman", "exec", f"{PREFIX}-{instance_id}", *command],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "CONTAINERS_CONF": str(self.settings.lab_dir / "containers.conf")},
        )
        if check:
            assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    def reaches(self, instance_id: str, address: str, port: int, timeout: float = 1.5) -> bool:
        """Tell whether a host's namespace gets a connection to an address."""

        def connect() -> bool:
            try:
                socket.create_connection((address, port), timeout).close()
            except OSError:
                return False
            return True

        return inside(f"{PREFIX}-{instance_id}", connect)

    def ssh(self, address: str, command: str) -> subprocess.CompletedProcess[str]:
        options = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o ConnectTimeout=3 -o BatchMode=yes"
        return subprocess.run(
            ["ssh", "-q", *options.split(), "-i", str(self.key), f"admin@{address}", command],
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )


def opens(address: str, port: int, timeout: float = 1.5) -> bool:
    """Tell whether this machine gets a connection to an address."""
    try:
        socket.create_connection((address, port), timeout).close()
    except OSError:
        return False
    return True


def traces() -> dict[str, list[str]]:
    """Return everything on this machine that carries the test lab's name or addresses."""

    def lines(*command: str) -> list[str]:
        output = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
        return [line for line in output if f"{PREFIX}-" in line or f"{PREFIX}_lab" in line or "198.19.12" in line]

    return {
        "containers": lines("podman", "ps", "--all", "--format", "{{.Names}}"),
        "namespaces": [path.name for path in NETNS.glob(f"{PREFIX}-*")],
        "links": lines("ip", "-o", "link"),
        "routes": lines("ip", "route", "show", "table", "all"),
        "rules": lines("nft", "list", "ruleset"),
        "mounts": [line for line in Path("/proc/mounts").read_text().splitlines() if f"{PREFIX}-" in line],
    }


def make_world(key: str) -> World:
    network = Network(
        "vpc-0test",
        "10.77.0.0/16",
        (
            Subnet("subnet-public", "10.77.1.0/24", "internet", None),
            Subnet("subnet-app", "10.77.2.0/24", "nat", NAT_IP),
            Subnet("subnet-shut", "10.77.3.0/24", "none", None),
        ),
    )

    def host(number: int, name: str, subnet: str, address: str, **values: Any) -> Instance:
        defaults: dict[str, Any] = {
            "id": f"i-0000000000000000{number}",
            "name": name,
            "state": "pending",
            "image": "bookworm",
            "instance_type": "t3.micro",
            "vpc_id": network.id,
            "subnet_id": subnet,
            "private_ip": address,
            "public_ip": None,
            "mac": f"02:00:00:00:00:0{number}",
            "ingress": (),
            "egress": (ALL,),
            "authorized_key": key,
            "key_name": "test",
            "user_data": None,
            "profile": None,
            "imds_tokens": "required",
            "tags": (("Name", name),),
            "reboots": 0,
            "availability_zone": "us-east-1a",
            "launch_time": "2026-01-01T00:00:00Z",
            "groups": (f"{name}-sg",),
        }
        return Instance(**(defaults | values))

    return World(
        (network,),
        (
            host(
                1,
                "proxy",
                "subnet-public",
                "10.77.1.4",
                public_ip=PROXY_IP,
                ingress=(tcp(22, f"{CONTROLLER}/32"),),
                user_data="#!/bin/sh\necho made by user data > /root/made\n",
            ),
            host(
                2,
                "app",
                "subnet-app",
                "10.77.2.4",
                ingress=(tcp(22, "10.77.1.4/32"),),
                profile="app-profile",
                user_data=CLOUD_CONFIG,
            ),
        ),
    )


PROXY, APP = "i-00000000000000001", "i-00000000000000002"


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    rig = Rig(tmp_path_factory.mktemp("lab") / "state")
    rig.lab.destroy()
    rig.start()
    rig.ec2.world = make_world(Path(f"{rig.key}.pub").read_text().strip())
    rig.settle(180)
    yield rig
    rig.lab.destroy()


def is_running(rig: Rig, instance_id: str) -> bool:
    return rig.inside(instance_id, "systemctl", "is-system-running", check=False) == "running"


def test_hosts_boot_to_running(rig: Rig) -> None:
    assert sorted(rig.ec2.running) == [PROXY, APP]
    for one in (PROXY, APP):
        until(partial(is_running, rig, one), what=one)


def test_host_has_its_own_address_name_and_user_data(rig: Rig) -> None:
    assert "10.77.1.4/24" in rig.inside(PROXY, "ip", "-4", "address", "show", "eth0")
    assert rig.inside(PROXY, "hostname") == "ip-10-77-1-4"
    assert rig.inside(PROXY, "hostname", "-i") == "10.77.1.4"
    until(lambda: rig.inside(PROXY, "cat", "/root/made", check=False) == "made by user data")


def test_cloud_config_is_applied_once_and_says_what_it_left_out(rig: Rig) -> None:
    until(lambda: rig.inside(APP, "ls", "/var/lib/cloud/instance/boot-finished", check=False))
    assert rig.inside(APP, "stat", "-c", "%a", "/etc/made/by") == "640"
    assert rig.inside(APP, "cat", "/etc/made/by", "/etc/made/ran") == "cloud-configfirst ran\nshell line"
    assert "power_state is not supported" in rig.inside(APP, "cat", "/var/log/cloud-init-output.log")


def test_controller_reaches_a_public_host_and_no_private_one(rig: Rig) -> None:
    answer = rig.ssh(PROXY_IP, "hostname; echo $SSH_CLIENT; sudo id -u; sudo env")
    assert answer.returncode == 0, answer.stderr
    lines = answer.stdout.splitlines()
    assert lines[0] == "ip-10-77-1-4"
    assert lines[1].split()[0] == CONTROLLER
    assert lines[2] == "0"
    assert "AWS_ENDPOINT_URL=http://169.254.169.254:4566" in lines
    assert "UV_CACHE_DIR=/var/cache/uv" in lines
    assert not opens("10.77.2.4", 22)
    assert not opens("10.77.1.4", 22)


def test_what_is_not_there_is_refused_at_once(rig: Rig) -> None:
    for address in ("198.19.128.99", "10.77.2.4", "10.77.9.9"):
        began = time.monotonic()
        assert not opens(address, 22, timeout=5)
        assert time.monotonic() - began < 1, address


def test_private_host_is_reached_through_the_bastion(rig: Rig) -> None:
    command = (
        f"ssh -i {rig.key} -q -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -W %h:%p admin@{PROXY_IP}"
    )
    done = subprocess.run(
        [
            "ssh",
            "-q",
            "-i",
            str(rig.key),
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "UserKnownHostsFile=/dev/null",
            "-o",
            f"ProxyCommand={command}",
            "admin@10.77.2.4",
            "hostname",
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.stdout.strip() == "ip-10-77-2-4", done.stderr


def test_security_groups_hold_and_change_live(rig: Rig) -> None:
    assert rig.reaches(PROXY, "10.77.2.4", 22)
    assert not rig.reaches(APP, "10.77.1.4", 22), "the proxy admits only the controller"
    rig.ec2.change(APP, ingress=())
    began = time.monotonic()
    rig.lab.apply(rig.ec2.world)
    assert time.monotonic() - began < 3
    assert not rig.reaches(PROXY, "10.77.2.4", 22)
    rig.ec2.change(APP, ingress=(tcp(22, "10.77.1.4/32"),))
    rig.ec2.change(PROXY, egress=())
    rig.lab.apply(rig.ec2.world)
    assert not rig.reaches(PROXY, "10.77.2.4", 22), "the output gate is a gate of its own"
    assert rig.reaches(PROXY, "169.254.169.254", 80), "metadata is outside of security groups"
    rig.ec2.change(PROXY, egress=(ALL,))
    rig.lab.apply(rig.ec2.world)
    assert rig.reaches(PROXY, "10.77.2.4", 22)


def test_an_established_connection_outlives_a_revoked_rule(rig: Rig) -> None:
    with socket.create_connection((PROXY_IP, 22), 2) as connection:
        assert connection.recv(4) == b"SSH-"
        rig.ec2.change(PROXY, ingress=())
        rig.lab.apply(rig.ec2.world)
        assert not opens(PROXY_IP, 22)
        connection.settimeout(2)
        connection.sendall(b"SSH-2.0-test\r\n")
        assert connection.recv(64)
    rig.ec2.change(PROXY, ingress=(tcp(22, f"{CONTROLLER}/32"),))
    rig.lab.apply(rig.ec2.world)
    assert opens(PROXY_IP, 22)


def test_root_on_a_host_cannot_change_its_network(rig: Rig) -> None:
    for command in ("link set dev eth0 down", "address flush dev eth0", "route delete default"):
        refused = rig.inside(APP, "sh", "-c", f"ip {command} 2>&1; echo status $?")
        assert refused.splitlines()[-1] != "status 0", command
    assert rig.reaches(PROXY, "10.77.2.4", 22)


class _Echo:
    """A listener on this machine that tells who called."""

    def __init__(self, address: str) -> None:
        self.socket = socket.create_server((address, 0))
        self.port = self.socket.getsockname()[1]
        self.callers: list[str] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, peer = self.socket.accept()
            except OSError:
                return
            self.callers.append(peer[0])
            connection.close()


def test_the_way_out_is_what_the_route_table_says(rig: Rig) -> None:
    echo = _Echo(CONTROLLER)
    try:
        assert rig.reaches(PROXY, CONTROLLER, echo.port)
        assert rig.reaches(APP, CONTROLLER, echo.port)
        until(lambda: len(echo.callers) == 2)
        assert echo.callers == [PROXY_IP, NAT_IP]
        network = rig.ec2.world.networks[0]
        shut = replace(network, subnets=tuple(replace(one, egress="none") for one in network.subnets))
        rig.ec2.world = replace(rig.ec2.world, networks=(shut,))
        rig.lab.apply(rig.ec2.world)
        assert not rig.reaches(PROXY, CONTROLLER, echo.port)
        assert not rig.reaches(APP, CONTROLLER, echo.port)
        assert not opens(PROXY_IP, 22), "without an Internet gateway nobody comes in"
        assert rig.reaches(PROXY, "10.77.2.4", 22), "inside the VPC nothing changed"
        rig.ec2.world = replace(rig.ec2.world, networks=(network,))
        rig.lab.apply(rig.ec2.world)
        assert rig.reaches(APP, CONTROLLER, echo.port)
    finally:
        echo.socket.close()


def test_a_public_address_moves_within_a_second(rig: Rig) -> None:
    began = time.monotonic()
    rig.ec2.change(PROXY, public_ip=SECOND_IP)
    rig.lab.apply(rig.ec2.world)
    assert opens(SECOND_IP, 22)
    assert time.monotonic() - began < 3
    assert not opens(PROXY_IP, 22)
    rig.ec2.change(PROXY, public_ip=PROXY_IP)
    rig.lab.apply(rig.ec2.world)
    assert opens(PROXY_IP, 22)


def test_metadata_needs_a_token_and_knows_who_asks(rig: Rig) -> None:
    base = "http://169.254.169.254/latest"
    assert rig.inside(APP, "curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", f"{base}/meta-data/") == "401"
    script = (
        f"T=$(curl -sf -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' {base}/api/token); "
        f"for p in meta-data/instance-id meta-data/local-ipv4 meta-data/iam/security-credentials/; do "
        f'curl -sf -H "X-aws-ec2-metadata-token: $T" {base}/$p; echo; done'
    )
    assert rig.inside(APP, "sh", "-c", script).split() == [APP, "10.77.2.4", "app-profile"]
    assert rig.inside(PROXY, "sh", "-c", script).split()[:2] == [PROXY, "10.77.1.4"]


def test_the_api_is_served_inside_the_vpc(rig: Rig) -> None:
    assert rig.inside(APP, "curl", "-sf", "http://169.254.169.254:4566/") == "api for 10.77.2.4"


def test_stop_and_start_keep_the_files(rig: Rig) -> None:
    rig.inside(APP, "sh", "-c", "echo kept > /root/kept; cat /etc/machine-id > /root/machine")
    rig.ec2.change(APP, state="stopped")
    rig.settle()
    assert not rig.reaches(PROXY, "10.77.2.4", 22)
    assert not (NETNS / f"{PREFIX}-{APP}").exists()
    rig.ec2.running.clear()
    rig.ec2.change(APP, state="pending")
    rig.settle()
    assert rig.ec2.running == [APP]
    assert rig.inside(APP, "cat", "/root/kept") == "kept"
    assert rig.inside(APP, "cat", "/root/machine") == rig.inside(APP, "cat", "/etc/machine-id")
    assert rig.reaches(PROXY, "10.77.2.4", 22)


def boot_id(rig: Rig, instance_id: str) -> str:
    return rig.inside(instance_id, "sh", "-c", "stat -c %Z /proc/1; cat /proc/1/stat | cut -d' ' -f22", check=False)


def test_reboot_through_the_api(rig: Rig) -> None:
    before = boot_id(rig, APP)
    rig.ec2.change(APP, reboots=1)
    rig.settle()
    assert boot_id(rig, APP) != before
    assert rig.inside(APP, "cat", "/root/kept") == "kept"


def test_reboot_and_poweroff_from_within(rig: Rig) -> None:
    before = boot_id(rig, APP)
    rig.inside(APP, "sh", "-c", "echo still here > /root/still")
    rig.inside(APP, "systemctl", "reboot", check=False)

    def came_back() -> bool:
        rig.lab.apply(rig.ec2.world)
        return boot_id(rig, APP) not in ("", before)

    until(came_back, what="boot after a reboot from within")
    until(lambda: rig.reaches(PROXY, "10.77.2.4", 22))
    rig.lab.wait()
    rig.inside(APP, "logger", "-t", "still", "still here")
    rig.inside(APP, "journalctl", "--sync")
    rig.inside(APP, "systemctl", "poweroff", check=False)

    def noticed() -> bool:
        rig.lab.apply(rig.ec2.world)
        return rig.ec2.stopped == [APP]

    until(noticed, what="stop after a shutdown from within")
    rig.ec2.change(APP, state="pending")
    rig.settle()
    assert rig.inside(APP, "cat", "/root/still") == "still here"
    assert rig.inside(APP, "journalctl", "--identifier=still", "--output=cat", "--quiet") == "still here"


def test_a_new_host_name_outlives_a_reboot(rig: Rig) -> None:
    rig.inside(APP, "hostnamectl", "set-hostname", "named-anew")
    rig.ec2.change(APP, reboots=2)
    rig.settle()
    until(lambda: rig.inside(APP, "hostname", check=False) == "named-anew")


def test_sandboxed_services_get_their_credentials(rig: Rig) -> None:
    rig.inside(APP, "sh", "-c", "umask 077; echo secret > /root/password")
    script = "cat $CREDENTIALS_DIRECTORY/password; touch /usr/local/bad 2>/dev/null || echo sealed; id -u"
    shown = rig.inside(
        APP,
        "systemd-run",
        "--quiet",
        "--pipe",
        "--wait",
        "--property=DynamicUser=yes",
        "--property=ProtectSystem=strict",
        "--property=PrivateTmp=yes",
        "--property=LoadCredential=password:/root/password",
        "--",
        "sh",
        "-c",
        script,
    ).split()
    assert shown[:2] == ["secret", "sealed"]
    assert int(shown[2]) > 60000


def test_memory_is_the_instance_types(rig: Rig) -> None:
    from lab.hosts.containers import CGROUPS

    if not ((CGROUPS / "memory").exists() or "memory" in (CGROUPS / "cgroup.controllers").read_text()):
        pytest.skip("this machine has no memory cgroups")
    inspected = subprocess.run(
        ["podman", "inspect", "--format={{.State.CgroupPath}}", f"{PREFIX}-{PROXY}"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    files = (
        CGROUPS / "memory" / inspected.strip("/") / "memory.limit_in_bytes",
        CGROUPS / inspected.strip("/") / "memory.max",
    )
    limit = next(int(file.read_text()) for file in files if file.exists())
    assert limit == 1024**3


def test_a_killed_lab_is_continued(rig: Rig) -> None:
    """The hosts live on when the lab dies; the next one finds them and removes what the world dropped meanwhile."""
    before = boot_id(rig, PROXY)
    rig.lab.close()
    assert opens(PROXY_IP, 22)
    assert not rig.reaches(PROXY, "169.254.169.254", 80)
    rig.ec2.change(PROXY, state="pending")  # as after replayed requests
    rig.ec2.running.clear()
    rig.start()
    rig.settle()
    assert rig.ec2.running == [PROXY]
    assert boot_id(rig, PROXY) == before
    assert rig.reaches(PROXY, "169.254.169.254", 80)
    assert rig.reaches(PROXY, "10.77.2.4", 22)
    rig.ec2.change(APP, ingress=())
    rig.lab.apply(rig.ec2.world)
    assert not rig.reaches(PROXY, "10.77.2.4", 22)


def test_one_bad_host_does_not_stop_the_others(rig: Rig) -> None:
    good = replace(
        rig.instance(APP), id="i-00000000000000003", private_ip="10.77.2.5", mac="02:00:00:00:00:03", state="pending"
    )
    bad = replace(good, id="i-00000000000000004", private_ip="10.77.2.6", mac="02:00:00:00:00:04", image="slink")
    rig.ec2.world = replace(rig.ec2.world, instances=(*rig.ec2.world.instances, bad, good))
    rig.ec2.running.clear()
    rig.lab.apply(rig.ec2.world)
    until(lambda: rig.ec2.running == [good.id] and bad.id in rig.ec2.failed)
    assert "slink" in rig.ec2.failed.pop(bad.id)
    rig.ec2.remove(bad.id)
    rig.ec2.remove(good.id)
    rig.settle()


def test_terminate_is_at_once_and_leaves_nothing(rig: Rig) -> None:
    rig.ec2.remove(APP)
    began = time.monotonic()
    rig.lab.apply(rig.ec2.world)
    assert not rig.reaches(PROXY, "10.77.2.4", 22)
    assert time.monotonic() - began < 5
    assert rig.lab.wait()
    assert not any(APP in line for found in traces().values() for line in found)


def test_overlapping_vpcs_do_not_meet(rig: Rig) -> None:
    proxy = rig.instance(PROXY)
    twin = replace(
        proxy,
        id="i-00000000000000005",
        vpc_id="vpc-0twin",
        public_ip=SECOND_IP,
        state="pending",
        user_data=None,
        ingress=(tcp(22, f"{CONTROLLER}/32"), tcp(22, f"{PROXY_IP}/32")),
    )
    network = rig.ec2.world.networks[0]
    rig.ec2.world = replace(
        rig.ec2.world,
        networks=(network, replace(network, id="vpc-0twin")),
        instances=(proxy, twin),
    )
    rig.settle()
    rig.inside(twin.id, "sh", "-c", "echo twin > /tmp/who")
    rig.inside(PROXY, "sh", "-c", "echo proxy > /tmp/who")
    assert rig.ssh(PROXY_IP, "cat /tmp/who").stdout.strip() == "proxy"
    assert rig.ssh(SECOND_IP, "cat /tmp/who").stdout.strip() == "twin"


def test_another_programs_firewall_neither_stops_the_lab_nor_is_changed_by_it(rig: Rig) -> None:
    assert rig.reaches(PROXY, SECOND_IP, 22), "from one VPC to a public address of another"
    table = "other_firewall"
    lines = (
        f"table ip {table} {{",
        "chain forward {",
        "type filter hook forward priority filter; policy accept;",
        f'iifname "{PREFIX}-*" drop',
        f'oifname "{PREFIX}-*" drop',
        "}",
        "}",
    )
    script = "".join(f"{line}\n" for line in lines)
    subprocess.run(["nft", "-f", "-"], input=script, text=True, check=True)
    try:
        before = subprocess.run(
            ["nft", "list", "table", "ip", table], capture_output=True, text=True, check=True
        ).stdout
        assert not rig.reaches(PROXY, SECOND_IP, 22)
        rig.lab.fabric.admit()
        rig.lab.fabric.admit()
        assert rig.reaches(PROXY, SECOND_IP, 22)
        rig.lab.destroy()
        after = subprocess.run(["nft", "list", "table", "ip", table], capture_output=True, text=True, check=True).stdout
        assert after == before
    finally:
        subprocess.run(["nft", "delete", "table", "ip", table], check=True)


def test_destroy_leaves_nothing(rig: Rig) -> None:
    rig.lab.destroy()
    assert traces() == {name: [] for name in traces()}
    names = [thread.name for thread in threading.enumerate()]
    assert not any(name.startswith("vpc-") for name in names), json.dumps(names)


def test_forwarding_is_switched_back_only_if_the_lab_switched_it(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    switch = tmp_path / "ip_forward"
    monkeypatch.setattr("lab.hosts.network.FORWARD_SWITCH", switch)
    for before in ("0\n", "1\n"):
        switch.write_text(before)
        Fabric(Names.of(rig.settings)).prepare()
        assert switch.read_text().strip() == "1"
        Fabric(Names.of(rig.settings)).prepare()  # a lab that was killed starts again
        Fabric(Names.of(rig.settings)).destroy()
        assert switch.read_text().strip() == before.strip()
