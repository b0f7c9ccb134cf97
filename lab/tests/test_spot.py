"""Spot instances: their requests and quotas, and what happens when EC2 takes one back."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from lab import cli, daemon
from lab.tests.conftest import Lab, Place
from lab.tests.test_enforcement import refused
from lab.tests.test_hosts_text import HOST, Imds


def spot(place: Place, name: str = "spot", kind: str = "persistent", **more: Any) -> str:
    """Run a spot instance as a launch template says; return its id."""
    behaviour = "stop" if kind == "persistent" else "terminate"
    spot_options = {"SpotInstanceType": kind, "InstanceInterruptionBehavior": behaviour}
    ec2 = place.lab.ec2
    if not ec2.describe_launch_templates(Filters=[{"Name": "launch-template-name", "Values": [kind]}])[
        "LaunchTemplates"
    ]:
        data = {"InstanceMarketOptions": {"MarketType": "spot", "SpotOptions": spot_options}}
        ec2.create_launch_template(LaunchTemplateName=kind, LaunchTemplateData=data)
    return place.run(name, LaunchTemplate={"LaunchTemplateName": kind}, **more)


def request_of(lab: Lab, instance_id: str) -> list[tuple[str, str]]:
    """Return type and state of the requests behind an instance."""
    found = lab.ec2.describe_spot_instance_requests(Filters=[{"Name": "instance-id", "Values": [instance_id]}])
    return [(one["Type"], one["State"]) for one in found["SpotInstanceRequests"]]


def test_an_instance_of_a_spot_template_is_one_and_its_request_follows_it(lab: Lab) -> None:
    place = lab.network()
    launched = spot(place)
    shown = place.show(launched)
    assert shown["InstanceLifecycle"] == "spot"
    (request,) = lab.ec2.describe_spot_instance_requests()["SpotInstanceRequests"]
    assert request["SpotInstanceRequestId"] == shown["SpotInstanceRequestId"]
    assert (request["InstanceId"], request["InstanceInterruptionBehavior"]) == (launched, "stop")
    lab.ec2.stop_instances(InstanceIds=[launched])
    assert request_of(lab, launched) == [("persistent", "disabled")]
    lab.ec2.start_instances(InstanceIds=[launched])
    assert request_of(lab, launched) == [("persistent", "active")]
    # It would have EC2 start another one, until it is cancelled.
    lab.ec2.terminate_instances(InstanceIds=[launched])
    assert request_of(lab, launched) == [("persistent", "open")]
    lab.ec2.cancel_spot_instance_requests(SpotInstanceRequestIds=[request["SpotInstanceRequestId"]])
    assert request_of(lab, launched) == []
    other = spot(place, kind="one-time")
    lab.ec2.terminate_instances(InstanceIds=[other])
    assert request_of(lab, other) == [("one-time", "closed")]
    assert "InstanceLifecycle" not in place.show(place.run())


def test_spot_has_quotas_of_its_own_and_a_market_that_can_be_empty(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(standard_vcpus=2, spot_standard_vcpus=4, spot_room_vcpus=2)
    place = lab.network()
    first = spot(place)
    place.run()
    with refused("VcpuLimitExceeded"):
        place.run("on demand")
    with refused("InsufficientInstanceCapacity"):
        spot(place)
    with refused("MaxSpotInstanceCountExceeded"):
        spot(place, InstanceType="t3.xlarge")
    lab.ec2.stop_instances(InstanceIds=[first])
    spot(place)
    with refused("InsufficientInstanceCapacity"):
        lab.ec2.start_instances(InstanceIds=[first])
    assert len(lab.api.observe().instances) == 3
    quota = lab.client("service-quotas").get_service_quota(ServiceCode="ec2", QuotaCode="L-34B43A08")["Quota"]
    assert quota["Value"] == 4


def notice_of(lab: Lab, instance_id: str) -> Any:
    (found,) = [one for one in lab.api.observe().instances if one.id == instance_id]
    return found.spot_notice and json.loads(found.spot_notice)


@pytest.fixture
def on_path(monkeypatch: pytest.MonkeyPatch) -> Callable[[Lab], None]:
    """Return a function that lets the command line find a lab."""

    def set_up(lab: Lab) -> None:
        monkeypatch.setenv("LAB_DIR", str(lab.settings.lab_dir))
        monkeypatch.setenv("LAB_PORT", str(lab.settings.port))

    return set_up


def test_an_interruption_gives_notice_and_then_stops_the_host(
    lab: Lab, on_path: Callable[[Lab], None], capsys: pytest.CaptureFixture[str]
) -> None:
    on_path(lab)
    place = lab.network()
    launched, other = spot(place, "trainer"), spot(place, "other", kind="one-time")
    keeper = daemon.Housekeeper(lab.api)
    assert cli.interrupt_command(Namespace(host="trainer", seconds=120)) == 0
    assert "trainer has its notice: stop at " in capsys.readouterr().out
    keeper.step()
    notice = notice_of(lab, launched)
    ends = time.strptime(notice["time"], "%Y-%m-%dT%H:%M:%SZ")
    assert notice["action"] == "stop" and 110 < time.mktime(ends) - time.mktime(time.gmtime()) < 125
    assert place.show(launched)["State"]["Name"] == "running"

    # A lab that crashed in between remembers.
    lab = lab.restarted()
    place.lab = lab
    keeper = daemon.Housekeeper(lab.api)
    assert notice_of(lab, launched) == notice
    for name in ("trainer", "other"):
        assert cli.interrupt_command(Namespace(host=name, seconds=0)) == 0
    keeper.step()
    assert place.show(launched)["State"]["Name"] == "stopped"
    assert place.show(other)["State"]["Name"] == "terminated"
    assert notice_of(lab, launched) is None
    lab.ec2.start_instances(InstanceIds=[launched])
    keeper.step()
    assert place.show(launched)["State"]["Name"] == "running"
    lab.close()


def test_only_a_running_spot_instance_is_interrupted_and_only_from_here(
    lab: Lab, on_path: Callable[[Lab], None]
) -> None:
    on_path(lab)
    place = lab.network()
    place.run("steady")
    stopped = spot(place, "stopped")
    lab.ec2.stop_instances(InstanceIds=[stopped])
    for name, words in (("steady", "on-demand instance"), ("stopped", "does not run"), ("none", "not a host")):
        with pytest.raises(cli.LabError, match=words):
            cli.interrupt_command(Namespace(host=name, seconds=1))
    body = json.dumps({"instance": stopped, "seconds": 0}).encode()
    for headers in ({"Content-Type": "text/plain"}, {"Content-Type": "application/json", "Host": "evil.example:1"}):
        forged = urllib.request.Request(f"{lab.settings.endpoint}/lab/interrupt", data=body, headers=headers)
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(forged)
    place.run("after")


def test_the_notice_stands_in_the_metadata_and_nowhere_without_one() -> None:
    path = "/latest/meta-data/spot/instance-action"

    def ask(**changes: Any) -> tuple[int, str]:
        imds = Imds(replace(HOST, **changes))
        return imds.ask(path, X_AWS_EC2_METADATA_TOKEN=imds.token("60"))

    assert ask()[0] == 404
    assert ask(market="spot")[0] == 404
    notice = json.dumps({"action": "stop", "time": "2026-01-01T00:02:00Z"})
    assert ask(market="spot", spot_notice=notice) == (200, notice)
