"""Nothing is lost: what was answered is there again after a crash, with the same ids, addresses and times."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest

from lab import cli, daemon
from lab.api.journal import INLINE_BYTES, JournalError, writes
from lab.settings import ROOT, Settings
from lab.tests.conftest import Lab, free_port


def everything(lab: Lab) -> dict[str, Any]:
    """Return what a client can see of the account."""
    ec2, iam, s3 = lab.ec2, lab.client("iam"), lab.client("s3")
    answers = {
        "instances": ec2.describe_instances()["Reservations"],
        "vpcs": ec2.describe_vpcs()["Vpcs"],
        "subnets": ec2.describe_subnets()["Subnets"],
        "groups": ec2.describe_security_groups()["SecurityGroups"],
        "addresses": ec2.describe_addresses()["Addresses"],
        "interfaces": ec2.describe_network_interfaces()["NetworkInterfaces"],
        "volumes": ec2.describe_volumes()["Volumes"],
        "nat": ec2.describe_nat_gateways()["NatGateways"],
        "users": iam.list_users()["Users"],
        "keys": iam.list_access_keys(UserName="clerk")["AccessKeyMetadata"],
        "objects": [
            {key: value for key, value in one.items() if key != "ResponseMetadata"}
            for one in s3.list_object_versions(Bucket="models").get("Versions", [])
        ],
    }
    return answers


def fill(lab: Lab) -> None:
    """Make a bit of everything, a failure, a released address and a terminated instance among it."""
    place = lab.network()
    nat_address = lab.ec2.allocate_address(Domain="vpc")["AllocationId"]
    lab.ec2.create_nat_gateway(SubnetId=place.subnet, AllocationId=nat_address)
    gone = place.run("gone")
    first = place.run("first")
    lab.ec2.terminate_instances(InstanceIds=[gone])
    place.run("second")
    with pytest.raises(Exception, match="InUse"):
        place.run("third", PrivateIpAddress="10.0.1.6")
    spare = lab.ec2.allocate_address(Domain="vpc")["AllocationId"]
    used = lab.ec2.allocate_address(Domain="vpc")["AllocationId"]
    lab.ec2.release_address(AllocationId=spare)
    lab.ec2.associate_address(AllocationId=used, InstanceId=first)
    lab.ec2.describe_instances()
    iam, s3 = lab.client("iam"), lab.client("s3")
    iam.create_user(UserName="clerk")
    iam.create_access_key(UserName="clerk")
    s3.create_bucket(Bucket="models")
    s3.put_bucket_versioning(Bucket="models", VersioningConfiguration={"Status": "Enabled"})
    s3.put_object(Bucket="models", Key="small", Body=b"1")
    s3.put_object(Bucket="models", Key="large", Body=b"x" * (INLINE_BYTES * 5))
    s3.put_object(Bucket="models", Key="small", Body=b"2")


def test_a_restart_restores_everything(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab()
    fill(lab)
    before = everything(lab)
    again = lab.restarted()
    try:
        assert again.replayed > 15
        assert everything(again) == before
        assert again.client("s3").get_object(Bucket="models", Key="large")["Body"].read() == b"x" * (INLINE_BYTES * 5)
        assert not list(again.settings.journal_dir.glob("bodies/*.part"))
        # Life goes on: the next address is not one that is taken.
        taken = {one["PublicIp"] for one in again.ec2.describe_addresses()["Addresses"]}
        assert again.ec2.allocate_address(Domain="vpc")["PublicIp"] not in taken
    finally:
        again.close()


def test_a_large_upload_in_parts_survives(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab()
    s3 = lab.client("s3")
    s3.create_bucket(Bucket="models")
    upload = s3.create_multipart_upload(Bucket="models", Key="m")["UploadId"]
    parts = [
        {
            "PartNumber": number,
            "ETag": s3.upload_part(Bucket="models", Key="m", PartNumber=number, UploadId=upload, Body=body)["ETag"],
        }
        for number, body in ((1, os.urandom(5 * 1024 * 1024)), (2, b"end"))
    ]
    s3.complete_multipart_upload(Bucket="models", Key="m", UploadId=upload, MultipartUpload={"Parts": parts})
    tag = s3.head_object(Bucket="models", Key="m")["ETag"]
    again = lab.restarted()
    try:
        head = again.client("s3").head_object(Bucket="models", Key="m")
        assert (head["ETag"], head["ContentLength"]) == (tag, 5 * 1024 * 1024 + 3)
    finally:
        again.close()


def test_the_journal_is_private_and_its_reads_are_few(lab: Lab) -> None:
    lab.ec2.describe_vpcs()
    journal = lab.settings.journal_dir / "journal.jsonl"
    before = journal.read_text().count("\n")
    lab.ec2.describe_vpcs()
    lab.client("s3").list_buckets()
    assert journal.read_text().count("\n") == before
    lab.ec2.create_vpc(CidrBlock="10.1.0.0/16")
    assert journal.read_text().count("\n") == before + 1
    assert journal.stat().st_mode & 0o077 == 0
    assert lab.settings.journal_dir.stat().st_mode & 0o077 == 0


def test_an_unfinished_last_line_is_dropped_and_any_other_damage_is_told(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab()
    vpc = lab.ec2.create_vpc(CidrBlock="10.1.0.0/16")["Vpc"]["VpcId"]
    lab.close()
    journal = lab.settings.journal_dir / "journal.jsonl"
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"n": 3, "t": 1')
    again = lab.restarted()
    assert vpc in [one["VpcId"] for one in again.ec2.describe_vpcs()["Vpcs"]]
    again.close()
    again = again.restarted()  # what followed the dropped line can be read too
    again.close()
    journal.write_bytes(b"nonsense\n" + whole)
    with pytest.raises(JournalError, match=r"line 1 .* is damaged"):
        again.restarted()


def test_a_raised_quota_is_remembered_where_it_mattered(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(standard_vcpus=4)
    place = lab.network()
    for name in ("a", "b"):
        place.run(name)
    ids = {one.id for one in lab.api.observe().instances}
    again = lab.restarted(standard_vcpus=2)
    try:
        assert {one.id for one in again.api.observe().instances} == ids
    finally:
        again.close()


def test_hosts_are_unknown_after_a_restart(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(api_only=False, hold_seconds=0)
    place = lab.network()
    launched, other = place.run("a"), place.run("b")
    lab.hooks.mark_running(launched)
    lab.hooks.mark_failed(other, "no room")
    again = lab.restarted()
    try:
        assert [(one.id, one.state) for one in again.api.observe().instances] == [(launched, "pending")]
        again.hooks.mark_running(launched)
        assert again.api.observe().instances[0].state == "running"
    finally:
        again.close()


def test_calls_at_the_same_time_are_one_after_the_other_in_the_journal(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab()
    ec2 = lab.ec2
    threads = [
        threading.Thread(target=ec2.create_vpc, kwargs={"CidrBlock": f"10.{number}.0.0/16"}) for number in range(1, 13)
    ]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    before = ec2.describe_vpcs()["Vpcs"]
    assert len(before) == 13
    again = lab.restarted()
    try:
        assert again.ec2.describe_vpcs()["Vpcs"] == before
    finally:
        again.close()


FORM = {"REQUEST_METHOD": "POST", "CONTENT_TYPE": "application/x-www-form-urlencoded"}


@pytest.mark.parametrize(
    ("environ", "body", "expected"),
    [
        ({"REQUEST_METHOD": "GET"}, b"", False),
        ({"REQUEST_METHOD": "PUT"}, b"", True),
        ({"REQUEST_METHOD": "GET", "QUERY_STRING": "Action=RunInstances"}, b"", True),
        ({"REQUEST_METHOD": "POST", "HTTP_X_AMZ_TARGET": "AmazonSSM.GetParameter"}, b"{}", False),
        ({"REQUEST_METHOD": "POST", "HTTP_X_AMZ_TARGET": "AmazonSSM.PutParameter"}, b"{}", True),
        (FORM, b"Action=DescribeVpcs", False),
        (FORM, b"Action=GetSessionToken", True),
        ({"REQUEST_METHOD": "POST", "QUERY_STRING": "uploads"}, b"", True),
    ],
)
def test_what_writes(environ: dict[str, Any], body: bytes, expected: bool) -> None:
    assert writes(environ, body) is expected


def test_kill_dash_nine_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(lab_dir=tmp_path / ".lab", port=free_port(), api_only=True)
    monkeypatch.setenv("LAB_DIR", str(settings.lab_dir))
    monkeypatch.setenv("LAB_PORT", str(settings.port))

    def lab(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "lab", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert lab("status").returncode == 3
    started = lab("up", "--api-only")
    assert started.returncode == 0, started.stderr
    assert settings.endpoint in started.stdout
    try:
        ec2: Any = boto3.client(
            "ec2",
            region_name=settings.region,
            endpoint_url=settings.endpoint,
            aws_access_key_id=settings.access_key,
            aws_secret_access_key=settings.secret_key,
        )
        vpc = ec2.create_vpc(CidrBlock="10.1.0.0/16")["Vpc"]["VpcId"]
        ec2.create_subnet(VpcId=vpc, CidrBlock="10.1.1.0/24")
        address = ec2.allocate_address(Domain="vpc")
        before = ec2.describe_subnets()["Subnets"]
        first = daemon.process(settings.lock_file)
        assert first is not None
        os.kill(first, signal.SIGKILL)
        while daemon.process(settings.lock_file) is not None:
            time.sleep(0.01)
        assert "finds it again" in lab("status").stdout
        assert lab("up", "--api-only").returncode == 0
        second = daemon.process(settings.lock_file)
        assert second not in (None, first)
        assert ec2.describe_subnets()["Subnets"] == before
        found = ec2.describe_addresses()["Addresses"]
        assert found[0]["PublicIp"] == address["PublicIp"]
        assert found[0]["AllocationId"] == address["AllocationId"]
        assert "already up" in lab("up", "--api-only").stdout
        assert daemon.process(settings.lock_file) == second
        refused = lab("up", "--api-only", "--enforce-iam")
        assert refused.returncode == 1
        assert "'lab down' first" in refused.stderr
    finally:
        gone = lab("down")
    assert gone.returncode == 0, gone.stderr
    assert not settings.lab_dir.exists()
    assert cli._state(settings) is None
    assert "no lab" in lab("down").stdout
