"""The world derived from EC2's records, and the states that last until the hosts have followed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from lab import daemon, world
from lab.tests.conftest import PUBLIC_KEY, Lab


def permission(port: int, **source: Any) -> dict[str, Any]:
    return {"IpProtocol": "tcp", "FromPort": port, "ToPort": port, **source}


def test_the_world_is_what_was_asked_for(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(api_only=False, hold_seconds=0)
    ec2, place = lab.ec2, lab.network()
    assert lab.api.observe() == world.World()

    private = ec2.create_subnet(VpcId=place.vpc, CidrBlock="10.0.2.0/24")["Subnet"]["SubnetId"]
    lonely = ec2.create_subnet(VpcId=place.vpc, CidrBlock="10.0.3.0/24")["Subnet"]["SubnetId"]
    address = ec2.allocate_address(Domain="vpc")
    made = ec2.create_nat_gateway(SubnetId=place.subnet, AllocationId=address["AllocationId"])["NatGateway"]
    nat = made["NatGatewayId"]
    for subnet, target in ((place.subnet, {"GatewayId": place.gateway}), (private, {"NatGatewayId": nat})):
        table = ec2.create_route_table(VpcId=place.vpc)["RouteTable"]["RouteTableId"]
        ec2.create_route(RouteTableId=table, DestinationCidrBlock="0.0.0.0/0", **target)
        ec2.associate_route_table(RouteTableId=table, SubnetId=subnet)
    workers = ec2.create_security_group(GroupName="workers", Description="w", VpcId=place.vpc)["GroupId"]
    ec2.authorize_security_group_ingress(
        GroupId=workers,
        IpPermissions=[
            permission(22, UserIdGroupPairs=[{"GroupId": place.group}]),
            permission(80, IpRanges=[{"CidrIp": "0.0.0.0/0"}]),
            {"IpProtocol": "icmp", "FromPort": -1, "ToPort": -1, "IpRanges": [{"CidrIp": "10.0.0.0/16"}]},
            permission(81, UserIdGroupPairs=[{"GroupId": workers}]),
        ],
    )
    iam = lab.client("iam")
    iam.create_instance_profile(InstanceProfileName="worker")
    door = place.run("door")
    worker = place.run(
        "worker",
        ImageId=lab.image("13"),
        SubnetId=private,
        SecurityGroupIds=[workers],
        UserData="#!/bin/sh\ntrue\n",
        IamInstanceProfile={"Name": "worker"},
        MetadataOptions={"HttpTokens": "required"},
    )
    ec2.associate_address(AllocationId=ec2.allocate_address(Domain="vpc")["AllocationId"], InstanceId=door)

    found = lab.api.observe()
    (network,) = found.networks
    assert (network.id, network.cidr) == (place.vpc, "10.0.0.0/16")
    ways = {subnet.id: (subnet.cidr, subnet.egress, subnet.nat_public_ip) for subnet in network.subnets}
    assert ways == {
        place.subnet: ("10.0.1.0/24", "internet", None),
        private: ("10.0.2.0/24", "nat", address["PublicIp"]),
        lonely: ("10.0.3.0/24", "none", None),
    }
    by_name = {one.name: one for one in found.instances}
    one = by_name["worker"]
    assert (one.id, one.state, one.image) == (worker, "pending", "trixie")
    assert (one.private_ip, one.public_ip) == ("10.0.2.4", None)
    assert (one.user_data, one.profile, one.imds_tokens) == ("#!/bin/sh\ntrue\n", "worker", "required")
    assert one.authorized_key == PUBLIC_KEY
    assert one.groups == ("workers",)
    assert one.tags == (("Name", "worker"),)
    assert one.ingress == (
        world.Rule("tcp", 22, 22, ("10.0.1.5/32",)),
        world.Rule("tcp", 80, 80, ("0.0.0.0/0",)),
        world.Rule("icmp", -1, -1, ("10.0.0.0/16",)),
        world.Rule("tcp", 81, 81, ("10.0.2.4/32",)),
    )
    assert one.egress == (world.Rule("all", None, None, ("0.0.0.0/0",)),)
    assert by_name["door"].image == "bookworm"
    assert by_name["door"].public_ip is not None
    assert by_name["door"].private_ip == "10.0.1.5"

    ec2.terminate_instances(InstanceIds=[door])
    after = {one.name: one for one in lab.api.observe().instances}
    assert list(after) == ["worker"]
    assert after["worker"].ingress[0].cidrs == ()

    ec2.delete_nat_gateway(NatGatewayId=nat)
    ec2.detach_internet_gateway(InternetGatewayId=place.gateway, VpcId=place.vpc)
    assert {subnet.egress for subnet in lab.api.observe().networks[0].subnets} == {"none"}


def test_a_disturbed_observation_is_made_again() -> None:
    class Backend:
        tries = 0

        def __init__(self) -> None:
            self.vpcs: dict[str, Any] = {}

        @property
        def reservations(self) -> dict[str, Any]:
            self.tries += 1
            if self.tries < 3:
                raise RuntimeError("dictionary changed size during iteration")
            return {}

    backend = Backend()
    assert world.observe(backend) == world.World()
    assert backend.tries == 3
    backend.tries = -10_000_000
    with pytest.raises(RuntimeError, match="undisturbed"):
        world.observe(backend)


def test_instances_pend_until_their_host_answers_and_the_answer_is_held(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(api_only=False, hold_seconds=10)
    place = lab.network()
    launched = place.run()
    timer = threading.Timer(1, lab.hooks.mark_running, [launched])
    started = time.monotonic()
    timer.start()
    # Others are not held up meanwhile, neither readers nor writers.
    assert lab.ec2.describe_vpcs()["Vpcs"]
    lab.ec2.create_tags(Resources=[launched], Tags=[{"Key": "A", "Value": "1"}])
    running = [{"Name": "instance-state-name", "Values": ["running"]}]
    assert lab.ec2.describe_instances(Filters=running)["Reservations"] == []
    assert time.monotonic() - started < 0.9
    assert place.show(launched)["State"]["Name"] == "running"
    assert 0.8 < time.monotonic() - started < 5


def test_patience_with_a_slow_host_ends(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(api_only=False, hold_seconds=0.5)
    place = lab.network()
    launched = place.run()
    started = time.monotonic()
    assert place.show(launched)["State"]["Name"] == "pending"
    assert time.monotonic() - started >= 0.5


def test_stop_start_and_shutdown_from_within(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(api_only=False, hold_seconds=0)
    place = lab.network()
    launched = place.run()
    lab.hooks.mark_running(launched)
    lab.ec2.stop_instances(InstanceIds=[launched])
    assert place.show(launched)["State"]["Name"] == "stopping"
    with pytest.raises(Exception, match="IncorrectInstanceState"):
        lab.ec2.start_instances(InstanceIds=[launched])
    lab.hooks.mark_stopped(launched)
    assert place.show(launched)["State"]["Name"] == "stopped"
    lab.ec2.start_instances(InstanceIds=[launched])
    assert place.show(launched)["State"]["Name"] == "pending"
    lab.hooks.mark_running(launched)
    lab.hooks.mark_stopped(launched)  # poweroff
    assert place.show(launched)["State"]["Name"] == "stopped"
    mortal = place.run("mortal", InstanceInitiatedShutdownBehavior="terminate")
    lab.hooks.mark_running(mortal)
    lab.hooks.mark_stopped(mortal)
    assert place.show(mortal)["State"]["Name"] == "terminated"


def test_a_host_that_cannot_start_is_a_terminated_instance_that_says_why(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(api_only=False, hold_seconds=0)
    place = lab.network()
    launched = place.run()
    lab.hooks.mark_failed(launched, "the image is missing")
    shown = place.show(launched)
    assert shown["State"]["Name"] == "terminated"
    assert "the image is missing" in shown["StateReason"]["Message"]


def test_terminated_instances_are_forgotten_in_time(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(prune_seconds=0)
    place = lab.network()
    gone, kept = place.run("gone"), place.run("kept")
    lab.ec2.terminate_instances(InstanceIds=[gone])
    assert place.show(gone)["State"]["Name"] == "terminated"
    daemon.Housekeeper(lab.api).step()
    listed = [one["InstanceId"] for part in lab.ec2.describe_instances()["Reservations"] for one in part["Instances"]]
    assert listed == [kept]


class Machine:
    """A reconciler that notes what it is told, and fails or is busy when asked to."""

    def __init__(self) -> None:
        self.worlds: list[world.World] = []
        self.trouble: Exception | None = None
        self.busy = False

    def apply(self, wanted: world.World) -> None:
        if self.trouble is not None:
            raise self.trouble
        self.worlds.append(wanted)

    def wait(self, seconds: float) -> bool:
        del seconds
        return not self.busy


def test_the_keeper_follows_every_change_and_outlives_trouble(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(api_only=False, hold_seconds=5)
    place, machine, wake = lab.network(), Machine(), threading.Event()
    lab.api._on_change = wake.set
    keeper = daemon.Keeper(lab.api, machine, lab.hooks, wake)
    keeper.start()
    try:
        machine.trouble = OSError("no space left")
        launched = place.run()
        time.sleep(0.2)
        machine.trouble = None
        deadline = time.monotonic() + 5
        while not any(one.instances for one in machine.worlds) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert machine.worlds[-1].instances[0].id == launched
        lab.hooks.mark_running(launched)
        lab.ec2.stop_instances(InstanceIds=[launched])
        assert place.show(launched)["State"]["Name"] == "stopped"
    finally:
        keeper.end()
    assert not keeper.is_alive()


def test_an_instance_stops_only_when_its_host_has(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(api_only=False, hold_seconds=0)
    place, machine = lab.network(), Machine()
    keeper = daemon.Keeper(lab.api, machine, lab.hooks, threading.Event())
    launched = place.run()
    lab.hooks.mark_running(launched)
    lab.ec2.stop_instances(InstanceIds=[launched])
    machine.busy = True
    keeper.step()
    assert place.show(launched)["State"]["Name"] == "stopping"
    machine.busy = False
    keeper.step()
    assert place.show(launched)["State"]["Name"] == "stopped"
