"""What AWS refuses, the lab refuses with AWS's code: a tear-down in the wrong order, quotas, addresses, permissions."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from botocore.exceptions import ClientError

from lab.api import enforcement
from lab.tests.conftest import Lab


def refused(code: str) -> Any:
    return pytest.raises(ClientError, match=rf"\({code}\)")


def test_tear_down_in_the_wrong_order_is_refused_and_in_the_right_one_works(lab: Lab) -> None:
    ec2, place = lab.ec2, lab.network()
    launched = place.run()
    address = ec2.allocate_address(Domain="vpc")["AllocationId"]
    association = ec2.associate_address(AllocationId=address, InstanceId=launched)["AssociationId"]
    other = ec2.create_security_group(GroupName="other", Description="o", VpcId=place.vpc)["GroupId"]
    permission = [{"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "UserIdGroupPairs": [{"GroupId": place.group}]}]
    ec2.authorize_security_group_ingress(GroupId=other, IpPermissions=permission)

    with refused("InvalidIPAddress.InUse"):
        ec2.release_address(AllocationId=address)
    with refused("DependencyViolation"):
        ec2.delete_subnet(SubnetId=place.subnet)
    with refused("DependencyViolation"):
        ec2.delete_security_group(GroupId=place.group)
    with refused("DependencyViolation"):
        ec2.detach_internet_gateway(InternetGatewayId=place.gateway, VpcId=place.vpc)
    with refused("DependencyViolation"):
        ec2.delete_internet_gateway(InternetGatewayId=place.gateway)
    with refused("DependencyViolation"):
        ec2.delete_vpc(VpcId=place.vpc)

    ec2.disassociate_address(AssociationId=association)
    ec2.release_address(AllocationId=address)
    ec2.terminate_instances(InstanceIds=[launched])
    with refused("DependencyViolation"):  # another group's rule names it
        ec2.delete_security_group(GroupId=place.group)
    ec2.revoke_security_group_ingress(GroupId=other, IpPermissions=permission)
    ec2.delete_security_group(GroupId=place.group)
    with refused("DependencyViolation"):
        ec2.delete_vpc(VpcId=place.vpc)
    ec2.delete_security_group(GroupId=other)
    ec2.delete_subnet(SubnetId=place.subnet)
    with refused("DependencyViolation"):
        ec2.delete_vpc(VpcId=place.vpc)
    ec2.detach_internet_gateway(InternetGatewayId=place.gateway, VpcId=place.vpc)
    ec2.delete_internet_gateway(InternetGatewayId=place.gateway)
    ec2.delete_vpc(VpcId=place.vpc)
    assert [vpc for vpc in ec2.describe_vpcs()["Vpcs"] if not vpc["IsDefault"]] == []


def test_standard_and_gpu_vcpus_are_counted_apart(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(standard_vcpus=4, gpu_vcpus=4)
    place = lab.network()
    quotas = {
        one["QuotaCode"]: one["Value"]
        for one in lab.client("service-quotas").list_service_quotas(ServiceCode="ec2")["Quotas"]
    }
    assert (quotas["L-1216C47A"], quotas["L-DB2E81BA"]) == (4, 4)
    first = place.run("a")
    place.run("b")
    with refused("VcpuLimitExceeded"):
        place.run("c")
    place.run("gpu", InstanceType="g4dn.xlarge")
    with refused("VcpuLimitExceeded"):
        place.run("gpus", InstanceType="g4dn.xlarge")
    lab.ec2.stop_instances(InstanceIds=[first])  # stopped instances do not count ...
    place.run("c")
    with refused("VcpuLimitExceeded"):  # ... until they are started
        lab.ec2.start_instances(InstanceIds=[first])
    assert len(lab.api.observe().instances) == 4


def test_quotas_are_told_one_by_one(lab: Lab) -> None:
    quotas = lab.client("service-quotas")
    found = quotas.get_service_quota(ServiceCode="ec2", QuotaCode="L-DB2E81BA")["Quota"]
    assert found["QuotaName"] == "Running On-Demand G and VT instances"
    assert found["Value"] == 8
    with refused("NoSuchResourceException"):
        quotas.get_service_quota(ServiceCode="ec2", QuotaCode="L-00000000")


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("t3.micro", "L-1216C47A"), ("m7i-flex.large", "L-1216C47A"), ("g5.xlarge", "L-DB2E81BA"),
        ("vt1.3xlarge", "L-DB2E81BA"), ("p4d.24xlarge", "L-417A185B"), ("trn1.2xlarge", None), ("x2idn.16xlarge", None),
    ],
)  # fmt: skip
def test_quota_of(name: str, code: str | None) -> None:
    quota = enforcement.quota_of(name)
    assert (quota.code if quota else None) == code


def test_elastic_addresses_are_few(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(elastic_addresses=1)
    lab.ec2.allocate_address(Domain="vpc")
    with refused("AddressLimitExceeded"):
        lab.ec2.allocate_address(Domain="vpc")


def test_a_private_address_is_in_the_subnet_and_free(lab: Lab) -> None:
    place = lab.network()
    place.run("a", PrivateIpAddress="10.0.1.20")
    for address, code in {
        "10.0.2.20": "InvalidParameterValue",
        "10.0.1.1": "InvalidParameterValue",
        "10.0.1.255": "InvalidParameterValue",
        "10.0.1.20": "InvalidIPAddress.InUse",
    }.items():
        with refused(code):
            place.run("b", PrivateIpAddress=address)
    assert len(lab.api.observe().instances) == 1


def test_states_allow_what_they_allow_on_aws(lab: Lab) -> None:
    place = lab.network()
    launched = place.run()
    lab.ec2.stop_instances(InstanceIds=[launched])
    lab.ec2.stop_instances(InstanceIds=[launched])
    with refused("IncorrectInstanceState"):
        lab.ec2.reboot_instances(InstanceIds=[launched])
    lab.ec2.start_instances(InstanceIds=[launched])
    lab.ec2.reboot_instances(InstanceIds=[launched])
    assert lab.api.observe().instances[0].reboots == 1
    lab.ec2.terminate_instances(InstanceIds=[launched])
    with refused("IncorrectInstanceState"):
        lab.ec2.start_instances(InstanceIds=[launched])
    with refused("IncorrectInstanceState"):
        lab.ec2.stop_instances(InstanceIds=[launched])


def test_policies_and_signatures_are_checked_when_asked(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(enforce_iam=True)
    iam = lab.client("iam")
    iam.create_user(UserName="clerk")
    key = iam.create_access_key(UserName="clerk")["AccessKey"]
    allowed = {"Effect": "Allow", "Action": ["ec2:Describe*", "s3:GetObject"], "Resource": "*"}
    iam.put_user_policy(
        UserName="clerk",
        PolicyName="reads",
        PolicyDocument=json.dumps({"Version": "2012-10-17", "Statement": [allowed]}),
    )
    clerk = lab.client("ec2", key["AccessKeyId"], key["SecretAccessKey"])
    assert clerk.describe_vpcs()["Vpcs"]
    with refused("UnauthorizedOperation") as refusal:
        clerk.create_vpc(CidrBlock="10.9.0.0/16")
    assert "ec2:CreateVpc" in str(refusal.value)
    lab.client("s3").create_bucket(Bucket="models")
    with refused("AccessDenied"):
        lab.client("s3", key["AccessKeyId"], key["SecretAccessKey"]).put_object(Bucket="models", Key="a", Body=b"1")
    with refused("AuthFailure"):
        lab.client("ec2", "AKIAUNKNOWN000000000", "0" * 40).describe_vpcs()
    with refused("SignatureDoesNotMatch|AuthFailure"):
        lab.client("ec2", key["AccessKeyId"], "0" * 40).describe_vpcs()
    lab.network()  # the lab's own key may do everything


def test_a_profiles_credentials_may_do_what_its_role_may(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(enforce_iam=True)
    iam, s3 = lab.client("iam"), lab.client("s3")
    s3.create_bucket(Bucket="models")
    s3.put_object(Bucket="models", Key="a", Body=b"1")
    trust = {"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}
    iam.create_role(
        RoleName="host-role", AssumeRolePolicyDocument=json.dumps({"Version": "2012-10-17", "Statement": [trust]})
    )
    allowed = {"Effect": "Allow", "Action": ["s3:GetObject"], "Resource": ["arn:aws:s3:::models/*"]}
    iam.put_role_policy(
        RoleName="host-role",
        PolicyName="reads",
        PolicyDocument=json.dumps({"Version": "2012-10-17", "Statement": [allowed]}),
    )
    iam.create_instance_profile(InstanceProfileName="host")
    assert lab.hooks.credentials("host") == {}
    iam.add_role_to_instance_profile(InstanceProfileName="host", RoleName="host-role")
    given = lab.hooks.credentials("host")
    assert lab.hooks.credentials("host") == given
    assert given["RoleName"] == "host-role"
    token = given["Token"]
    mine = lab.client("s3", given["AccessKeyId"], given["SecretAccessKey"], aws_session_token=token)
    assert mine.get_object(Bucket="models", Key="a")["Body"].read() == b"1"
    with refused("AccessDenied"):
        mine.put_object(Bucket="models", Key="b", Body=b"1")
    arn = lab.client("sts", given["AccessKeyId"], given["SecretAccessKey"], aws_session_token=token)
    assert arn.get_caller_identity()["Arn"].endswith(":assumed-role/host-role/host")
    assert lab.hooks.credentials("nobody") == {}
