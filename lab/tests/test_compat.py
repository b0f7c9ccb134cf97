"""Each gap that compat closes, seen from outside as the modules see it."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import Any

import pytest
from botocore.exceptions import ClientError

from lab.api import compat, patching
from lab.tests.conftest import Lab


def test_public_addresses_come_from_the_pool_and_return_to_it(lab: Lab) -> None:
    ec2 = lab.ec2
    taken = [ec2.allocate_address(Domain="vpc") for _ in range(3)]
    addresses = [ipaddress.ip_address(one["PublicIp"]) for one in taken]
    pool = ipaddress.ip_network("198.18.0.0/16")
    assert len(set(addresses)) == 3
    assert all(address in pool and int(address) - int(pool.network_address) >= 10 for address in addresses)

    place = lab.network()
    interfaces: Any = [{"DeviceIndex": 0, "SubnetId": place.subnet, "AssociatePublicIpAddress": True}]
    launched = place.run(NetworkInterfaces=interfaces, SubnetId=None, SecurityGroupIds=None)
    assert ipaddress.ip_address(place.show(launched)["PublicIpAddress"]) in pool


def test_the_pool_hands_out_freed_addresses_again() -> None:
    pool = compat.PublicPool("198.18.0.0/28")
    used: set[str] = set()
    for _ in range(5):
        used.add(pool.take(used))
    assert used == {f"198.18.0.{last}" for last in range(10, 15)}
    with pytest.raises(RuntimeError, match="in use"):
        pool.take(used)
    used.remove("198.18.0.12")
    assert pool.take(used) == "198.18.0.12"


def test_private_addresses_are_the_lowest_free_ones_of_the_subnet(lab: Lab) -> None:
    place = lab.network()
    first, second = place.run("a"), place.run("b")
    interface = lab.ec2.create_network_interface(SubnetId=place.subnet)["NetworkInterface"]
    nat = lab.ec2.create_nat_gateway(
        SubnetId=place.subnet, AllocationId=lab.ec2.allocate_address(Domain="vpc")["AllocationId"]
    )["NatGateway"]
    assert place.show(first)["PrivateIpAddress"] == "10.0.1.4"
    assert place.show(second)["PrivateIpAddress"] == "10.0.1.5"
    assert interface["PrivateIpAddress"] == "10.0.1.6"
    assert nat["NatGatewayAddresses"][0]["PrivateIp"] == "10.0.1.7"
    lab.ec2.terminate_instances(InstanceIds=[first])
    assert place.show(place.run("c"))["PrivateIpAddress"] == "10.0.1.4"
    assert place.show(place.run("d"))["PrivateIpAddress"] == "10.0.1.8"


def test_elastic_address_outlives_a_stop(lab: Lab) -> None:
    place = lab.network()
    interfaces: Any = [{"DeviceIndex": 0, "SubnetId": place.subnet, "AssociatePublicIpAddress": True}]
    launched = place.run(NetworkInterfaces=interfaces, SubnetId=None, SecurityGroupIds=None)
    assigned = place.show(launched)["PublicIpAddress"]
    lab.ec2.stop_instances(InstanceIds=[launched])
    assert "PublicIpAddress" not in place.show(launched)
    lab.ec2.start_instances(InstanceIds=[launched])
    assert place.show(launched)["PublicIpAddress"] != assigned

    address = lab.ec2.allocate_address(Domain="vpc")
    lab.ec2.associate_address(AllocationId=address["AllocationId"], InstanceId=launched)
    for call in (lab.ec2.stop_instances, lab.ec2.start_instances):
        call(InstanceIds=[launched])
        assert place.show(launched)["PublicIpAddress"] == address["PublicIp"]


def test_tags_are_found_by_awss_names_of_types(lab: Lab) -> None:
    place = lab.network()
    address = lab.ec2.allocate_address(
        Domain="vpc", TagSpecifications=[{"ResourceType": "elastic-ip", "Tags": [{"Key": "Name", "Value": "x"}]}]
    )
    lab.ec2.create_nat_gateway(
        SubnetId=place.subnet,
        AllocationId=address["AllocationId"],
        TagSpecifications=[{"ResourceType": "natgateway", "Tags": [{"Key": "Name", "Value": "x"}]}],
    )
    types = {tag["ResourceType"] for tag in lab.ec2.describe_tags()["Tags"]}
    assert {"elastic-ip", "natgateway"} <= types


def test_aws_managed_policies_can_be_attached(lab: Lab) -> None:
    iam = lab.client("iam")
    iam.create_role(RoleName="host", AssumeRolePolicyDocument="{}")
    iam.attach_role_policy(RoleName="host", PolicyArn="arn:aws:iam::aws:policy/AmazonSSMManagedInstanceCore")
    assert len(iam.list_attached_role_policies(RoleName="host")["AttachedPolicies"]) == 1


def test_a_volume_says_that_it_is_not_multi_attach(lab: Lab) -> None:
    volume = lab.ec2.create_volume(AvailabilityZone="us-east-1a", Size=1)["VolumeId"]
    assert lab.ec2.describe_volumes(VolumeIds=[volume])["Volumes"][0]["MultiAttachEnabled"] is False


def test_instances_are_found_by_their_interface(lab: Lab) -> None:
    place = lab.network()
    wanted, _ = place.run("a"), place.run("b")
    interface = place.show(wanted)["NetworkInterfaces"][0]
    for name, value in {
        "network-interface.network-interface-id": interface["NetworkInterfaceId"],
        "network-interface.addresses.private-ip-address": interface["PrivateIpAddress"],
    }.items():
        found = lab.ec2.describe_instances(Filters=[{"Name": name, "Values": [value]}])["Reservations"]
        assert [one["InstanceId"] for part in found for one in part["Instances"]] == [wanted], name


def test_a_group_that_was_left_is_out_of_force(lab: Lab) -> None:
    place = lab.network()
    other = lab.ec2.create_security_group(GroupName="other", Description="o", VpcId=place.vpc)["GroupId"]
    launched = place.run()
    lab.ec2.modify_instance_attribute(InstanceId=launched, Groups=[other])
    shown = place.show(launched)
    assert [one["GroupId"] for one in shown["SecurityGroups"]] == [other]
    assert [one["GroupId"] for one in shown["NetworkInterfaces"][0]["Groups"]] == [other]
    interface = shown["NetworkInterfaces"][0]["NetworkInterfaceId"]
    lab.ec2.modify_network_interface_attribute(NetworkInterfaceId=interface, Groups=[place.group])
    shown = place.show(launched)
    assert [one["GroupId"] for one in shown["SecurityGroups"]] == [place.group]
    assert lab.api.observe().instances[0].groups == ("hosts",)


def test_the_root_volume_is_where_the_image_has_it(lab: Lab) -> None:
    place = lab.network()
    assert [one["DeviceName"] for one in place.show(place.run())["BlockDeviceMappings"]] == ["/dev/xvda"]


def test_a_deleted_nat_gateway_lets_its_address_go(lab: Lab) -> None:
    place = lab.network()
    allocation = lab.ec2.allocate_address(Domain="vpc")["AllocationId"]
    nat = lab.ec2.create_nat_gateway(SubnetId=place.subnet, AllocationId=allocation)["NatGateway"]["NatGatewayId"]
    lab.ec2.delete_nat_gateway(NatGatewayId=nat)
    assert "AssociationId" not in lab.ec2.describe_addresses()["Addresses"][0]
    assert lab.ec2.describe_network_interfaces()["NetworkInterfaces"] == []
    lab.ec2.release_address(AllocationId=allocation)


def test_a_terminated_instance_lets_its_address_go(lab: Lab) -> None:
    place = lab.network()
    launched = place.run()
    allocation = lab.ec2.allocate_address(Domain="vpc")["AllocationId"]
    lab.ec2.associate_address(AllocationId=allocation, InstanceId=launched)
    lab.ec2.terminate_instances(InstanceIds=[launched])
    assert lab.ec2.describe_network_interfaces()["NetworkInterfaces"] == []
    lab.ec2.release_address(AllocationId=allocation)
    lab.ec2.terminate_instances(InstanceIds=[launched])


def test_bucket_notifications_take_what_the_module_sends(lab: Lab) -> None:
    s3, sqs = lab.client("s3"), lab.client("sqs")
    s3.create_bucket(Bucket="news")
    queue = sqs.create_queue(QueueName="news")["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    rules = [{"Name": "Prefix", "Value": "models/"}, {"Name": "Suffix", "Value": ""}]
    s3.put_bucket_notification_configuration(
        Bucket="news",
        NotificationConfiguration={
            "QueueConfigurations": [
                {"QueueArn": arn, "Events": ["s3:ObjectCreated:*"], "Filter": {"Key": {"FilterRules": rules}}}
            ]
        },
    )
    found = s3.get_bucket_notification_configuration(Bucket="news")["QueueConfigurations"][0]
    assert found["Filter"]["Key"]["FilterRules"] == [{"Name": "prefix", "Value": "models/"}]


def test_a_bucket_that_insists_on_tls_can_be_used(lab: Lab) -> None:
    s3 = lab.client("s3")
    s3.create_bucket(Bucket="private")
    policy = (
        '{"Version": "2012-10-17", "Statement": [{"Effect": "Deny", "Principal": "*", "Action": "s3:*",'
        ' "Resource": ["arn:aws:s3:::private/*"], "Condition": {"Bool": {"aws:SecureTransport": "%s"}}}]}'
    )
    s3.put_bucket_policy(Bucket="private", Policy=policy % "false")
    s3.put_object(Bucket="private", Key="a", Body=b"1")
    assert s3.get_object(Bucket="private", Key="a")["Body"].read() == b"1"
    s3.put_bucket_policy(Bucket="private", Policy=policy % "true")
    with pytest.raises(ClientError, match="403"):
        s3.put_object(Bucket="private", Key="b", Body=b"1")


@pytest.mark.parametrize(
    ("conditions", "met"),
    [
        ({}, True),
        ({"Bool": {"aws:SecureTransport": "TRUE"}}, True),
        ({"Bool": {"aws:securetransport": False}}, False),
        ({"StringEquals": {"aws:RequestTag/System": ["a", "b"]}}, True),
        ({"StringEquals": {"aws:RequestTag/System": "c"}}, False),
        ({"StringEquals": {"aws:missing": "c"}}, False),
        ({"StringEqualsIfExists": {"aws:missing": "c"}}, True),
        ({"StringNotEquals": {"aws:missing": "c"}}, True),
        ({"StringNotEquals": {"aws:RequestTag/System": "a"}}, False),
        ({"StringLike": {"aws:RequestTag/System": "?"}, "Bool": {"aws:SecureTransport": "false"}}, False),
        ({"Null": {"aws:missing": "true"}}, True),
        ({"Null": {"aws:SecureTransport": "true"}}, False),
    ],
)
def test_conditions(conditions: dict[str, dict[str, Any]], met: bool) -> None:
    values = {"aws:SecureTransport": "true", "aws:RequestTag/System": "a"}
    assert compat.conditions_hold(conditions, values) is met


def test_a_region_starts_alike_whoever_comes_first(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab()
    first = lab.client("ec2", region="eu-west-1").describe_vpcs()["Vpcs"][0]["VpcId"]
    again = lab.restarted()
    try:
        again.client("s3").create_bucket(Bucket="first")
        again.client("sts", region="eu-west-1").get_caller_identity()
        assert again.client("ec2", region="eu-west-1").describe_vpcs()["Vpcs"][0]["VpcId"] == first
    finally:
        again.close()


def test_debian_is_published_and_has_aliases(lab: Lab) -> None:
    ssm = lab.client("ssm")
    for number in ("12", "13"):
        alias = ssm.get_parameter(Name=f"/aws/service/debian/release/{number}/latest/amd64")["Parameter"]["Value"]
        image = lab.ec2.describe_images(ImageIds=[alias])["Images"][0]
        assert image["Name"].startswith(f"debian-{number}-amd64-")
        assert (image["OwnerId"], image["Public"], image["Architecture"]) == ("136693071363", True, "x86_64")
        assert image["RootDeviceName"] == "/dev/xvda"


def test_wrong_names_are_refused(lab: Lab) -> None:
    place = lab.network()
    for wrong, code in {
        "ImageId=ami-00000000000000000": "InvalidAMIID.NotFound",
        "KeyName=nobody": "InvalidKeyPair.NotFound",
        "InstanceType=t9.huge": "InvalidInstanceType",
    }.items():
        name, value = wrong.split("=")
        with pytest.raises(ClientError, match=code):
            place.run(**{name: value})
    assert lab.api.observe().instances == ()


def test_an_instance_needs_no_key_pair(lab: Lab) -> None:
    place = lab.network()
    launched = place.run(KeyName=None)
    assert "KeyName" not in place.show(launched)
    assert lab.api.observe().instances[0].authorized_key is None


def test_the_account_is_the_labs_own(lab: Lab) -> None:
    assert lab.client("sts").get_caller_identity()["Account"] == "000000424242"


def test_another_moto_is_refused() -> None:
    class Moto:
        def known(self, one: int) -> int:
            return one

    with pytest.raises(patching.PatchPointError, match="has no unknown"):
        patching.replace(Moto, "unknown", lambda original: original)
    with pytest.raises(patching.PatchPointError, match=r"takes \(self, one\), not \(self two\)"):
        patching.replace(Moto, "known", lambda original: original, parameters="self two")
    patching.replace(Moto, "known", lambda original: lambda self, one: original(self, one) + 1, parameters="self one")
    assert Moto().known(1) == 2
