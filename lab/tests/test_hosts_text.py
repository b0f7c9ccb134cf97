"""What the hosts' parts write and answer, tested without a host."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lab.hosts import containers, firewall, image, network
from lab.hosts.metadata import MetadataApp
from lab.hosts.system import Names
from lab.settings import Settings
from lab.world import Instance, Network, Rule, Subnet

NETWORK = Network(
    "vpc-1",
    "10.0.0.0/16",
    (
        Subnet("subnet-a", "10.0.1.0/24", "internet", None),
        Subnet("subnet-b", "10.0.2.0/24", "nat", "198.18.0.20"),
        Subnet("subnet-c", "10.0.3.0/24", "none", None),
    ),
)
HOST = Instance(
    id="i-0123456789abcdef0",
    name="proxy",
    state="running",
    image="bookworm",
    instance_type="t3.micro",
    vpc_id="vpc-1",
    subnet_id="subnet-a",
    private_ip="10.0.1.4",
    public_ip="198.18.0.10",
    mac="02:00:00:00:00:01",
    ingress=(Rule("tcp", 22, 22, ("198.18.0.1/32",)),),
    egress=(Rule("all", None, None, ("0.0.0.0/0",)),),
    authorized_key="ssh-ed25519 AAAA test",
    key_name="test",
    user_data="#!/bin/sh\ntrue\n",
    profile="api-profile",
    imds_tokens="required",
    tags=(("Name", "proxy"),),
    reboots=0,
    availability_zone="us-east-1a",
    launch_time="2026-01-01T00:00:00Z",
    groups=("lb-proxy", "lb-all"),
)


def accepts(text: str, hook: str) -> list[str]:
    """Return the rules of one gate that admit new conversations beyond what always passes."""
    part = text.split(f"chain {hook} {{")[1].split("}", maxsplit=1)[0]
    rules = [line.strip() for line in part.splitlines() if line.strip().endswith("accept")]
    always = ("iif lo", "oif lo", "ct state", "ip daddr 169.254.169.25")
    return [rule for rule in rules if not rule.startswith(always)]


# --- firewall ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (Rule("tcp", 22, 22, ("10.0.0.1/32",)), ["ip saddr 10.0.0.1/32 tcp dport 22 accept"]),
        (Rule("tcp", 8000, 8100, ("0.0.0.0/0",)), ["meta nfproto ipv4 tcp dport 8000-8100 accept"]),
        (Rule("udp", 0, 65535, ("10.0.0.0/8",)), ["ip saddr 10.0.0.0/8 meta l4proto udp accept"]),
        (Rule("tcp", None, None, ("10.0.0.0/8",)), ["ip saddr 10.0.0.0/8 meta l4proto tcp accept"]),
        (Rule("all", None, None, ("0.0.0.0/0",)), ["meta nfproto ipv4 accept"]),
        (Rule("-1", -1, -1, ("10.0.0.5/32",)), ["ip saddr 10.0.0.5/32 accept"]),
        (Rule("icmp", -1, -1, ("10.0.0.0/8",)), ["ip saddr 10.0.0.0/8 meta l4proto icmp accept"]),
        (Rule("icmp", 8, -1, ("10.0.0.0/8",)), ["ip saddr 10.0.0.0/8 meta l4proto icmp icmp type 8 accept"]),
        (Rule("icmp", 3, 4, ("10.0.0.0/8",)), ["ip saddr 10.0.0.0/8 meta l4proto icmp icmp type 3 icmp code 4 accept"]),
        (Rule("50", None, None, ("10.0.0.0/8",)), ["ip saddr 10.0.0.0/8 meta l4proto 50 accept"]),
        (Rule("tcp", 22, 22, ("::/0",)), ["meta nfproto ipv6 tcp dport 22 accept"]),
        (Rule("tcp", 22, 22, ()), []),
    ],
)
def test_a_rule_becomes_exactly_its_matches(rule: Rule, expected: list[str]) -> None:
    text = firewall.ruleset(replace(HOST, ingress=(rule,)))
    assert accepts(text, "input") == expected


def test_gates_refuse_what_no_rule_admits_and_know_nothing_of_each_other() -> None:
    text = firewall.ruleset(replace(HOST, ingress=(), egress=()))
    assert text.count("policy drop;") == 2
    assert accepts(text, "input") == accepts(text, "output") == []
    opened = firewall.ruleset(replace(HOST, ingress=(Rule("tcp", 80, 80, ("10.0.0.0/8",)),), egress=()))
    assert accepts(opened, "output") == []


def test_metadata_and_resolver_are_beyond_security_groups() -> None:
    text = firewall.ruleset(replace(HOST, ingress=(), egress=()))
    assert "ip daddr 169.254.169.254 accept" in text
    assert "ip daddr 169.254.169.253 udp dport 53 accept" in text


def test_the_same_rule_of_two_groups_is_written_once() -> None:
    rule = Rule("tcp", 22, 22, ("10.0.0.1/32",))
    assert len(accepts(firewall.ruleset(replace(HOST, ingress=(rule, rule))), "input")) == 1


@pytest.mark.skipif(not shutil.which("nft"), reason="needs nft")
def test_nft_understands_every_form() -> None:
    far = ("10.0.0.0/8", "10.0.0.5/32", "0.0.0.0/0", "fd00::/8")
    ports = [("tcp", 1, 2), ("udp", 5, 5), ("all", None, None), ("47", None, None)]
    types = [("icmp", 8, 0), ("icmp", -1, -1), ("icmpv6", -1, -1)]
    rules = tuple(Rule(protocol, first, last, far) for protocol, first, last in [*ports, *types])
    texts = [
        firewall.ruleset(replace(HOST, ingress=rules, egress=rules)),
        network.router_ruleset(NETWORK, [HOST], "198.19.0.1", "192.0.2.53"),
        network.router_ruleset(replace(NETWORK, subnets=()), [], "198.19.0.1", None),
    ]
    for text in texts:
        done = subprocess.run(
            ["unshare", "--net", "nft", "--check", "-f", "-"], input=text, capture_output=True, text=True, check=False
        )
        if "unshare failed" in done.stderr:
            pytest.skip("needs the right to make a network namespace")
        assert done.returncode == 0, done.stderr


# --- router -----------------------------------------------------------------------------------------------------------


def router(*instances: Instance, of: Network = NETWORK) -> str:
    return network.router_ruleset(of, instances, "198.19.0.1", None)


def test_public_address_is_translated_both_ways() -> None:
    text = router(HOST)
    assert "dnat to ip daddr map { 198.18.0.10 : 10.0.1.4 }" in text
    assert 'oifname "uplink" snat to ip saddr map { 10.0.1.4 : 198.18.0.10 }' in text


def test_a_stopped_host_is_not_led_to() -> None:
    assert "10.0.1.4" not in router(replace(HOST, state="stopped"))


def test_a_public_address_without_an_internet_gateway_leads_nowhere() -> None:
    stranded = replace(HOST, subnet_id="subnet-c", private_ip="10.0.3.4")
    assert "10.0.3.4" not in router(stranded)
    assert network.public_addresses(NETWORK, [stranded]) == ["198.18.0.20"]


def test_only_subnets_with_a_way_out_may_leave() -> None:
    text = router(replace(HOST, public_ip=None))
    assert 'iifname "vpc" ip saddr 10.0.2.0/24 accept' in text
    assert "10.0.3.0/24" not in text
    assert "10.0.1.4" not in text, "an Internet gateway serves only hosts with a public address"
    assert 'oifname "uplink" ip saddr 10.0.2.0/24 snat to 198.18.0.20' in text


def test_gateway_is_the_first_address() -> None:
    assert network.gateway(NETWORK.subnets[0]) == "10.0.1.1"


# --- names ------------------------------------------------------------------------------------------------------------


def test_interface_names_fit_the_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAB_PREFIX", "abcde")
    names = Names.of(Settings(lab_dir=tmp_path))
    assert len(network.Fabric(names).link("vpc-0123456789abcdef0")) <= 15
    monkeypatch.setenv("LAB_PREFIX", "too-long")
    with pytest.raises(ValueError, match="prefix 'too-long'"):
        Names.of(Settings(lab_dir=tmp_path))


# --- metadata ---------------------------------------------------------------------------------------------------------


class Imds:
    """A metadata service with one instance, asked as WSGI servers ask."""

    def __init__(self, instance: Instance = HOST) -> None:
        self.asked: list[str] = []
        self.app = MetadataApp(
            lambda address: (instance, NETWORK) if address == instance.private_ip else None,
            self.credentials,
            "123456789012",
            "us-east-1",
        )

    def credentials(self, profile: str) -> dict[str, Any]:
        self.asked.append(profile)
        return {
            "RoleName": "api-role",
            "AccessKeyId": "ASIA1",
            "SecretAccessKey": "hidden",
            "Token": "t",
            "Expiration": "2036-01-01T00:00:00Z",
        }

    def ask(self, path: str, method: str = "GET", peer: str = HOST.private_ip, **headers: str) -> tuple[int, str]:
        status: list[str] = []
        environ = {"PATH_INFO": path, "REQUEST_METHOD": method, "REMOTE_ADDR": peer}
        environ |= {f"HTTP_{name}": value for name, value in headers.items()}
        body = b"".join(self.app(environ, lambda line, _: status.append(line)))  # type: ignore[arg-type]
        return int(status[0].split()[0]), body.decode()

    def token(self, ttl: str = "60") -> str:
        status, token = self.ask("/latest/api/token", "PUT", X_AWS_EC2_METADATA_TOKEN_TTL_SECONDS=ttl)
        assert status == 200
        return token

    def get(self, path: str) -> tuple[int, str]:
        return self.ask(path, X_AWS_EC2_METADATA_TOKEN=self.token())


def test_no_token_no_metadata_where_tokens_are_required() -> None:
    assert Imds().ask("/latest/meta-data/instance-id")[0] == 401
    assert Imds(replace(HOST, imds_tokens="optional")).ask("/latest/meta-data/instance-id") == (200, HOST.id)
    assert Imds(replace(HOST, imds_tokens="optional")).ask("/latest/", X_AWS_EC2_METADATA_TOKEN="made-up")[0] == 401


@pytest.mark.parametrize("ttl", ["", "0", "21601", "-1", "ten", "1.5"])
def test_a_token_needs_a_lifetime_within_six_hours(ttl: str) -> None:
    assert Imds().ask("/latest/api/token", "PUT", X_AWS_EC2_METADATA_TOKEN_TTL_SECONDS=ttl)[0] == 400


def test_a_proxied_request_gets_no_token() -> None:
    headers = {"X_AWS_EC2_METADATA_TOKEN_TTL_SECONDS": "60", "X_FORWARDED_FOR": "203.0.113.1"}
    assert Imds().ask("/latest/api/token", "PUT", **headers)[0] == 403


def test_a_token_expires_and_is_its_owners(monkeypatch: pytest.MonkeyPatch) -> None:
    imds = Imds()
    token = imds.token("1")
    assert imds.ask("/latest/meta-data/mac", X_AWS_EC2_METADATA_TOKEN=token)[0] == 200
    now = __import__("time").monotonic()
    monkeypatch.setattr("lab.hosts.metadata.time.monotonic", lambda: now + 2)
    assert imds.ask("/latest/meta-data/mac", X_AWS_EC2_METADATA_TOKEN=token)[0] == 401
    assert imds.ask("/latest/meta-data/mac", peer="10.0.9.9", X_AWS_EC2_METADATA_TOKEN=token)[0] == 404


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/latest/meta-data/local-ipv4", "10.0.1.4"),
        ("/latest/meta-data/public-ipv4", "198.18.0.10"),
        ("/latest/meta-data/hostname", "ip-10-0-1-4.ec2.internal"),
        ("/latest/meta-data/placement/availability-zone", "us-east-1a"),
        ("/latest/meta-data/placement/region", "us-east-1"),
        ("/2021-07-15/meta-data/security-groups", "lb-proxy\nlb-all"),
        ("/latest/meta-data/public-keys/", "0=test"),
        ("/latest/meta-data/public-keys/0/openssh-key", "ssh-ed25519 AAAA test"),
        ("/latest/meta-data/network/interfaces/macs/", "02:00:00:00:00:01/"),
        ("/latest/meta-data/network/interfaces/macs/02:00:00:00:00:01/subnet-ipv4-cidr-block", "10.0.1.0/24"),
        ("/latest/meta-data/iam/security-credentials/", "api-role"),
        ("/latest/user-data", "#!/bin/sh\ntrue\n"),
        ("/latest/", "meta-data/\ndynamic/\nuser-data"),
    ],
)
def test_metadata_says(path: str, expected: str) -> None:
    assert Imds().get(path) == (200, expected)


def test_credentials_are_made_only_when_asked_for() -> None:
    imds = Imds()
    assert "iam/" in imds.get("/latest/meta-data/")[1].split()
    assert imds.asked == []
    shown = json.loads(imds.get("/latest/meta-data/iam/security-credentials/api-role")[1])
    assert (shown["Code"], shown["AccessKeyId"], shown["Token"]) == ("Success", "ASIA1", "t")
    assert imds.asked == ["api-profile"]


def test_what_an_instance_has_not_is_not_found() -> None:
    bare = Imds(replace(HOST, profile=None, user_data=None, public_ip=None, authorized_key=None))
    for path in ("meta-data/iam/info", "user-data", "meta-data/public-ipv4", "meta-data/public-keys/", "nothing"):
        assert bare.get(f"/latest/{path}")[0] == 404, path
    assert bare.get("/ancient/meta-data/mac")[0] == 404
    assert bare.ask("/latest/meta-data/mac", "POST")[0] == 405


def test_identity_document_names_the_instance() -> None:
    document = json.loads(Imds().get("/latest/dynamic/instance-identity/document")[1])
    assert (document["instanceId"], document["privateIp"], document["region"]) == (HOST.id, "10.0.1.4", "us-east-1")


# --- containers -------------------------------------------------------------------------------------------------------


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> containers.Containers:
    monkeypatch.setattr(image, "containers_conf", lambda settings: settings.lab_dir / "containers.conf")
    settings = Settings(lab_dir=tmp_path / ".lab")
    return containers.Containers(settings, Names.of(settings))


def test_first_boot_files_are_owned_by_whom_they_serve(made: containers.Containers) -> None:
    archive = containers._archive(made.first_boot_files(HOST))
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        entries = {entry.name: (oct(entry.mode), entry.uid) for entry in tar.getmembers()}
        environment = tar.extractfile("etc/environment")
        assert environment is not None
        assert 'AWS_ENDPOINT_URL="http://169.254.169.254:4566"' in environment.read().decode()
    assert entries["home/admin/.ssh"] == ("0o700", 1000)
    assert entries["home/admin/.ssh/authorized_keys"] == ("0o600", 1000)
    assert entries["var/lib/cloud/instance/user-data.txt"] == ("0o600", 0)


def test_without_key_and_user_data_there_are_no_such_files(made: containers.Containers) -> None:
    files = made.first_boot_files(replace(HOST, authorized_key=None, user_data=None))
    assert not [path for path in files if "ssh" in path or "cloud" in path]


def test_the_cache_outlives_the_lab(made: containers.Containers) -> None:
    assert made.cache.is_dir()
    assert made.settings.lab_dir not in made.cache.parents


def test_memory_follows_the_instance_type() -> None:
    assert containers.memory_limit("t3.micro") == 1024**3
    assert containers.memory_limit("t3.enormous") is None


def test_identity_changes_with_what_the_first_boot_was_made_from() -> None:
    assert containers.identity(HOST) == containers.identity(replace(HOST, state="stopped", public_ip=None, reboots=3))
    assert containers.identity(HOST) != containers.identity(replace(HOST, private_ip="10.0.1.5"))
    assert containers.identity(HOST) != containers.identity(replace(HOST, authorized_key="ssh-ed25519 BBBB"))


# --- image ------------------------------------------------------------------------------------------------------------


def test_unknown_release_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(image.ImageError, match="unknown release 'slink': choose one of bookworm, trixie"):
        image.build(SimpleNamespace(lab_dir=tmp_path), "slink")


def test_missing_program_is_named_with_its_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image.shutil, "which", lambda name: None if name == "mmdebstrap" else f"/usr/bin/{name}")
    with pytest.raises(image.ImageError, match=r"^mmdebstrap not found: install lab/packages.txt"):
        image.build(SimpleNamespace(lab_dir=tmp_path), "bookworm")


def test_recipe_changes_with_the_authorities_and_the_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image, "AUTHORITIES", tmp_path)
    plain = image.recipe_digest("bookworm")
    assert image.recipe_digest("bookworm") == plain
    assert image.recipe_digest("trixie") != plain
    (tmp_path / "own.crt").write_text("certificate")
    trusting = image.recipe_digest("bookworm")
    assert trusting != plain
    monkeypatch.setenv("LAB_MIRROR", "http://mirror.invalid/debian")
    assert image.recipe_digest("bookworm") not in (plain, trusting)


def test_containers_conf_is_made_for_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image, "_can_raise_limits", lambda: False)
    limits = image.containers_conf_text().splitlines()[2]
    assert limits.startswith('default_ulimits = ["nofile=')
    monkeypatch.setattr(image, "_can_raise_limits", lambda: True)
    assert "default_ulimits" not in image.containers_conf_text()
    settings = SimpleNamespace(lab_dir=tmp_path / "new")
    assert image.containers_conf(settings).read_text() == image.containers_conf_text()


def test_proxy_settings_reach_the_hosts_but_not_the_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert "no_proxy" not in image.environment()
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.invalid:3128")
    assert image.environment()["https_proxy"] == "http://proxy.invalid:3128"
    assert image.environment()["no_proxy"] == "169.254.169.254"
