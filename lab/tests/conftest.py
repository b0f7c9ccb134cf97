"""A lab's API in this process, on a loopback port of its own."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config

from lab.settings import Settings

NETWORK = "10.0.0.0/16"
SUBNET = "10.0.1.0/24"
SESSION = boto3.session.Session()
# Making a client takes longer than most tests: each is made once and serves one lab after the other on the same port.
CLIENTS: dict[Any, Any] = {}
PUBLIC_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl admin"


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


PORT = free_port()


class Lab:
    """The API under test with clients for it."""

    def __init__(self, settings: Settings) -> None:
        from lab.api.server import Api, Hooks, serve

        self.settings = settings
        self.images: dict[str, str] = {}
        self.api = Api(settings)
        from moto.core.base_backend import BackendDict

        BackendDict.reset()
        self.replayed = self.api.open()
        self.hooks = Hooks(self.api)
        self.server = serve(self.api)

    def close(self) -> None:
        for client in CLIENTS.values():
            client.close()  # a connection kept alive would still be served by this lab
        self.server.shutdown()
        self.server.server_close()
        self.api.close()

    def restarted(self, **changes: Any) -> Lab:
        """Close this lab and open another on the same directory, as after a crash."""
        self.close()
        return Lab(replace(self.settings, **changes))

    def client(self, service: str, access_key: str | None = None, secret_key: str | None = None, **more: Any) -> Any:
        """Return a client."""
        wanted = (self.settings.port, service, access_key, secret_key, *more.items())
        if wanted not in CLIENTS:
            CLIENTS[wanted] = self._client(service, access_key, secret_key, **more)
        return CLIENTS[wanted]

    def _client(self, service: str, access_key: str | None, secret_key: str | None, **more: Any) -> Any:
        return SESSION.client(
            service,
            region_name=more.pop("region", self.settings.region),
            endpoint_url=self.settings.endpoint,
            aws_access_key_id=access_key or self.settings.access_key,
            aws_secret_access_key=secret_key or self.settings.secret_key,
            config=Config(retries={"max_attempts": 0}, read_timeout=30),
            **more,
        )

    @property
    def ec2(self) -> Any:
        return self.client("ec2")

    def image(self, number: str = "12") -> str:
        if number not in self.images:
            name = f"/aws/service/debian/release/{number}/latest/amd64"
            self.images[number] = self.client("ssm").get_parameter(Name=name)["Parameter"]["Value"]
        return self.images[number]

    def network(self) -> Place:
        """Make a VPC with a subnet, an Internet gateway and a key pair."""
        ec2 = self.ec2
        vpc = ec2.create_vpc(CidrBlock=NETWORK)["Vpc"]["VpcId"]
        subnet = ec2.create_subnet(VpcId=vpc, CidrBlock=SUBNET, AvailabilityZone="us-east-1a")["Subnet"]["SubnetId"]
        gateway = ec2.create_internet_gateway()["InternetGateway"]["InternetGatewayId"]
        ec2.attach_internet_gateway(InternetGatewayId=gateway, VpcId=vpc)
        group = ec2.create_security_group(GroupName="hosts", Description="hosts", VpcId=vpc)["GroupId"]
        ec2.import_key_pair(KeyName="admin", PublicKeyMaterial=PUBLIC_KEY.encode())
        return Place(self, vpc, subnet, gateway, group)


class Place:
    """A network in which instances can be run."""

    def __init__(self, lab: Lab, vpc: str, subnet: str, gateway: str, group: str) -> None:
        self.lab, self.vpc, self.subnet, self.gateway, self.group = lab, vpc, subnet, gateway, group

    def run(self, name: str = "one", **more: Any) -> str:
        """Run an instance and return its id."""
        wanted: dict[str, Any] = {
            "ImageId": self.lab.image(),
            "InstanceType": "t3.micro",
            "KeyName": "admin",
            "MinCount": 1,
            "MaxCount": 1,
            "SubnetId": self.subnet,
            "SecurityGroupIds": [self.group],
            "TagSpecifications": [{"ResourceType": "instance", "Tags": [{"Key": "Name", "Value": name}]}],
            **more,
        }
        wanted = {key: value for key, value in wanted.items() if value is not None}
        found: str = self.lab.ec2.run_instances(**wanted)["Instances"][0]["InstanceId"]
        return found

    def show(self, instance_id: str) -> dict[str, Any]:
        """Describe an instance."""
        found: dict[str, Any] = self.lab.ec2.describe_instances(InstanceIds=[instance_id])["Reservations"][0][
            "Instances"
        ][0]
        return found


@pytest.fixture
def make_lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Lab]]:
    """Return a function that opens a lab; what it opened is closed at the end."""
    for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_CONFIG_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    opened: list[Lab] = []

    def make(**settings: Any) -> Lab:
        defaults: dict[str, Any] = {"lab_dir": tmp_path / ".lab", "port": PORT, "api_only": True}
        opened.append(Lab(Settings(**{**defaults, **settings})))
        return opened[-1]

    yield make
    for one in opened:
        if one.server.socket.fileno() != -1:
            one.close()


@pytest.fixture
def lab(make_lab: Callable[..., Lab]) -> Lab:
    """A lab without hosts."""
    return make_lab()
