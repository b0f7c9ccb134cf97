"""The playbooks against the lab's API alone: no hosts, no root.

Provisioning makes the network and the instances once, changes nothing the second time, stops before it creates
anything when the account cannot hold the plan, and destroys exactly what it made.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
BIN = ROOT / ".venv/bin"


class Cloud:
    """A lab without hosts, and the playbooks pointed at it."""

    def __init__(self, directory: Path, **settings: str) -> None:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self.port = sock.getsockname()[1]
        self.directory = directory
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("AWS_")},
            "LAB_DIR": str(directory / ".lab"),
            "LAB_PORT": str(self.port),
            "PYTHONPATH": str(ROOT),
            **settings,
        }
        shutil.copytree(ROOT / "inventories", directory / "inventories")
        for path in (directory / "inventories/lab").rglob("*.yml"):
            path.write_text(path.read_text().replace(":4566", f":{self.port}"))
        self.keys = yaml.safe_load((directory / "inventories/lab/aws_ec2.yml").read_text())

    def lab(self, *arguments: str) -> None:
        subprocess.run([sys.executable, "-m", "lab", *arguments], env=self.environment, check=True, cwd=ROOT)

    def play(self, playbook: str, *arguments: str) -> tuple[int, dict[str, Any], str]:
        """Run a playbook; return the exit status, localhost's figures and the output."""
        command = [
            str(BIN / "ansible-playbook"), "-i", str(self.directory / "inventories/lab"),
            "-i", str(self.directory / "inventories/pneumonia"), f"playbooks/{playbook}",
            "--skip-tags", "ssh", *arguments,
        ]  # fmt: skip
        environment = {**self.environment, "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json", "ANSIBLE_FORCE_COLOR": "0"}
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
        text = done.stdout[done.stdout.index("{") :] if "{" in done.stdout else ""
        stats = json.loads(text)["stats"].get("localhost", {}) if text else {}
        return done.returncode, stats, done.stdout + done.stderr

    def client(self, service: str) -> Any:
        return boto3.client(
            service,
            region_name="us-east-1",
            endpoint_url=self.keys["endpoint_url"],
            aws_access_key_id=self.keys["access_key"],
            aws_secret_access_key=self.keys["secret_key"],
        )

    def instances(self) -> list[dict[str, Any]]:
        found = self.client("ec2").describe_instances(
            Filters=[{"Name": "instance-state-name", "Values": ["pending", "running", "stopping", "stopped"]}]
        )
        return [instance for reservation in found["Reservations"] for instance in reservation["Instances"]]


@pytest.fixture
def cloud(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Cloud]:
    cloud = Cloud(tmp_path, **getattr(request, "param", {}))
    cloud.lab("up", "--api-only")
    yield cloud
    cloud.lab("down")


@pytest.mark.timeout(600)
def test_made_once_kept_and_destroyed(cloud: Cloud) -> None:
    code, stats, output = cloud.play("provision.yml")
    assert code == 0, output
    assert stats["changed"] > 0
    instances = {instance["PrivateIpAddress"]: instance for instance in cloud.instances()}
    assert len(instances) == 5
    assert all(instance["MetadataOptions"]["HttpTokens"] == "required" for instance in instances.values())
    public = [instance for instance in instances.values() if instance.get("PublicIpAddress")]
    assert [next(tag["Value"] for tag in found["Tags"] if tag["Key"] == "Role") for found in public] == ["proxy"]
    volumes = cloud.client("ec2").describe_volumes()["Volumes"]
    assert len(volumes) == 5
    assert all(volume["Encrypted"] for volume in volumes)

    code, stats, output = cloud.play("provision.yml")
    assert code == 0, output
    assert stats["changed"] == 0, output
    assert {instance["InstanceId"] for instance in cloud.instances()} == {
        instance["InstanceId"] for instance in instances.values()
    }

    # A stopped instance is started, not made again.
    stopped = next(iter(instances.values()))["InstanceId"]
    cloud.client("ec2").stop_instances(InstanceIds=[stopped])
    code, stats, output = cloud.play("provision.yml")
    assert code == 0, output
    assert len(cloud.instances()) == 5
    assert all(instance["State"]["Name"] == "running" for instance in cloud.instances())

    bucket = cloud.client("s3").list_buckets()["Buckets"][0]["Name"]
    cloud.client("s3").put_object(Bucket=bucket, Key="models/pneumonia/1/model.json", Body=b"{}")
    code, stats, output = cloud.play("destroy.yml")
    assert code == 0, output
    ec2 = cloud.client("ec2")
    assert cloud.instances() == []
    assert [vpc for vpc in ec2.describe_vpcs()["Vpcs"] if not vpc["IsDefault"]] == []
    assert ec2.describe_addresses()["Addresses"] == []
    assert ec2.describe_key_pairs()["KeyPairs"] == []
    assert [role for role in cloud.client("iam").list_roles()["Roles"] if role["RoleName"].startswith("lightbox")] == []
    assert len(cloud.client("s3").list_buckets()["Buckets"]) == 1, "the bucket stays unless told"

    code, stats, output = cloud.play("destroy.yml", "-e", "destroy_bucket=true")
    assert code == 0, output
    assert cloud.client("s3").list_buckets()["Buckets"] == []


@pytest.mark.timeout(900)
def test_a_training_host_that_is_not_kept_is_there_when_something_trains(cloud: Cloud) -> None:
    def trainers() -> list[tuple[str, str]]:
        named = [(item, {tag["Key"]: tag["Value"] for tag in item["Tags"]}) for item in cloud.instances()]
        return [(item["InstanceId"], item["State"]["Name"]) for item, tags in named if tags["Role"] == "trainer"]

    here = cloud.directory / "here.yml"
    here.write_text(f"all: {{hosts: {{localhost: {{ansible_python_interpreter: {BIN / 'python'}}}}}}}\n")

    def play(playbook: str, lifecycle: str) -> tuple[dict[str, Any], str]:
        # There are no hosts behind the instances: the plays that go to them are left out.
        code, stats, output = cloud.play(
            playbook, "-i", str(here), "--limit", "localhost", "-e", f"trainer_lifecycle={lifecycle}"
        )
        assert code == 0, output
        return stats, output

    play("provision.yml", "stop")
    assert len(cloud.instances()) == 4 and trainers() == []

    play("trainer_start.yml", "stop")
    ((first, state),) = trainers()
    assert state == "running"
    behaviour = cloud.client("ec2").describe_instance_attribute(
        InstanceId=first, Attribute="instanceInitiatedShutdownBehavior"
    )
    assert behaviour["InstanceInitiatedShutdownBehavior"]["Value"] == "stop"
    _, output = play("trainer_stop.yml", "keep")
    assert "It stays up" in output and trainers() == [(first, "running")]
    _, output = play("trainer_stop.yml", "stop")
    assert "pneumonia-trainer (g4dn.xlarge) has been up for 0:0" in output
    assert "USD at 0.526 USD an hour, on demand. It is stopped now" in output
    assert trainers() == [(first, "stopped")]
    stats, output = play("provision.yml", "stop")
    assert stats["changed"] == 0 and trainers() == [(first, "stopped")], output
    play("trainer_start.yml", "stop")
    assert trainers() == [(first, "running")]

    play("trainer_stop.yml", "terminate")
    assert trainers() == []


def on_spot(cloud: Cloud) -> None:
    """Let the inventory have the training host on spot."""
    network = cloud.directory / "inventories/pneumonia/group_vars/all/network.yml"
    text = network.read_text()
    network.write_text(text.replace("bucket: write}", "bucket: write, market: spot}"))
    assert network.read_text() != text


def trainer_of(cloud: Cloud) -> dict[str, Any]:
    (found,) = [one for one in cloud.instances() if {"Key": "Role", "Value": "trainer"} in one["Tags"]]
    return found


@pytest.mark.timeout(900)
def test_a_training_host_on_spot_is_bought_kept_and_let_go(cloud: Cloud) -> None:
    on_spot(cloud)
    code, _, output = cloud.play("provision.yml")
    assert code == 0, output
    trainer = trainer_of(cloud)
    assert trainer["InstanceLifecycle"] == "spot"
    assert [one["Groups"][0]["GroupName"] for one in trainer["NetworkInterfaces"]] == ["pneumonia-trainer"]
    ec2 = cloud.client("ec2")
    subnets = ec2.describe_subnets(SubnetIds=[trainer["SubnetId"]])["Subnets"]
    assert [one["CidrBlock"] for one in subnets] == ["10.0.3.0/24"]
    (request,) = ec2.describe_spot_instance_requests()["SpotInstanceRequests"]
    assert (request["Type"], request["InstanceInterruptionBehavior"]) == ("persistent", "stop")
    code, stats, output = cloud.play("provision.yml")
    assert code == 0 and stats["changed"] == 0, output

    # Taken back, it is stopped; the next run starts it again.
    cloud.lab("interrupt", "trainer", "--seconds", "0")
    ec2.get_waiter("instance_stopped").wait(
        InstanceIds=[trainer["InstanceId"]], WaiterConfig={"Delay": 1, "MaxAttempts": 20}
    )
    code, _, output = cloud.play("provision.yml")
    assert code == 0, output
    assert trainer_of(cloud)["InstanceId"] == trainer["InstanceId"]
    assert trainer_of(cloud)["State"]["Name"] == "running"

    here = cloud.directory / "here.yml"
    here.write_text(f"all: {{hosts: {{localhost: {{ansible_python_interpreter: {BIN / 'python'}}}}}}}\n")
    code, _, output = cloud.play(
        "trainer_stop.yml", "-i", str(here), "--limit", "localhost", "-e", "trainer_lifecycle=stop"
    )
    assert code == 0 and "on spot: at most the on-demand price of" in output, output
    # The request of a stopped instance is cancelled too, or EC2 would start another one.
    code, _, output = cloud.play("destroy.yml")
    assert code == 0, output
    assert cloud.instances() == []
    assert ec2.describe_spot_instance_requests()["SpotInstanceRequests"] == []
    assert ec2.describe_launch_templates()["LaunchTemplates"] == []


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("cloud", "words"),
    [
        ({"LAB_SPOT_ROOM": "0"}, "trainer (g4dn.xlarge) is not to be had on spot in us-east-1a"),
        ({"LAB_SPOT_GPU_VCPU_LIMIT": "2"}, "g4dn.xlarge will run on demand: on spot 4 vCPUs would run"),
    ],
    indirect=["cloud"],
)
def test_without_room_on_spot_the_host_runs_on_demand(cloud: Cloud, words: str) -> None:
    on_spot(cloud)
    code, _, output = cloud.play("provision.yml")
    assert code == 0, output
    assert words in output, output
    assert "is not to be had on spot" in output and "It runs on demand" in output
    assert "InstanceLifecycle" not in trainer_of(cloud)
    assert cloud.client("ec2").describe_spot_instance_requests()["SpotInstanceRequests"] == []
    code, stats, output = cloud.play("provision.yml")
    assert code == 0 and stats["changed"] == 0, output


@pytest.mark.timeout(300)
@pytest.mark.parametrize("cloud", [{"LAB_VCPU_LIMIT": "4"}], indirect=True)
def test_too_small_a_quota_stops_before_anything_is_made(cloud: Cloud) -> None:
    code, _, output = cloud.play("provision.yml")
    assert code != 0
    assert "L-1216C47A" in output
    assert "request-service-quota-increase" in output
    assert [vpc for vpc in cloud.client("ec2").describe_vpcs()["Vpcs"] if not vpc["IsDefault"]] == []


@pytest.mark.timeout(300)
def test_a_plan_that_cannot_work_is_refused_in_words(cloud: Cloud) -> None:
    for setting, words in {
        '{"admin_cidrs": ["0.0.0.0/0"]}': "admits the whole Internet",
        '{"admin_cidrs": []}': "admin_cidrs is empty",
        '{"data": "./no-such-directory"}': "does not exist on this machine",
        '{"trainer_lifecycle": "pause"}': "it can be keep, stop or terminate",
        '{"flows": [{"from": "nobody", "to": "ui", "ports": [1]}]}': "neither a role",
    }.items():
        code, _, output = cloud.play("preflight.yml", "-e", setting)
        assert code != 0, setting
        assert words in output, output


def test_without_credentials_one_message_says_so(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("AWS_")}
    environment |= {"HOME": str(tmp_path), "AWS_EC2_METADATA_DISABLED": "true"}
    done = subprocess.run(
        [str(BIN / "ansible-playbook"), "-i", "inventories/aws", "-i", "inventories/pneumonia", "site.yml",
         "-e", '{"admin_cidrs": ["203.0.113.7/32"]}'],
        env=environment, cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    output = done.stdout + done.stderr
    assert done.returncode != 0
    assert "AWS did not answer with an account" in output
    assert output.count("fatal:") == 1, output
