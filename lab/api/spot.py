"""Spot instances: their requests, and the notice with which EC2 takes them back.

moto reads neither the market that a launch template names nor keeps the request behind an instance. Both are here as on
AWS, as far as playbooks depend on them: a persistent request outlives its instance until it is cancelled.
"""

from __future__ import annotations

import json
import time
from typing import Any

from lab.api import clock, lifecycle
from lab.api.patching import replace

# Seconds from the notice to the end, as on AWS.
NOTICE_SECONDS = 120.0
_applied = False


def options(backend: Any, arguments: dict[str, Any]) -> dict[str, Any] | None:
    """Return the options of the spot request that a call of RunInstances makes; None for an on-demand instance.

    Args:
        backend: EC2's records.
        arguments: of moto's run_instances.
    """
    if arguments.get("instance_market_options") == "spot" or arguments.get("lifecycle") == "spot":
        return {}
    if not arguments.get("launch_template"):
        return None
    template = backend._get_template_from_args(arguments["launch_template"])
    market = template.data.get("InstanceMarketOptions") or {}
    return dict(market.get("SpotOptions") or {}) if market.get("MarketType") == "spot" else None


def is_spot(instance: Any) -> bool:
    """Say whether an instance is a spot instance."""
    return bool(instance.lifecycle == "spot")


def interrupt(backend: Any, instance_id: str, seconds: float) -> dict[str, str]:
    """Give a running spot instance its notice; return it in the form of the instance's metadata.

    Raises:
        ValueError: it is no spot instance, or does not run.
    """
    instance = lifecycle.find(backend, instance_id)
    if instance is None or instance.state != "running":
        raise ValueError(f"{instance_id} does not run")
    if not is_spot(instance):
        raise ValueError(f"{instance_id} is an on-demand instance, which EC2 does not take back")
    request = backend.spot_instance_requests.get(instance.spot_instance_request_id)
    action = request.instance_interruption_behaviour if request else "terminate"
    ends = clock.now() + seconds
    notice = {"action": action, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(ends))}
    instance.spot_notice, instance.spot_ends = json.dumps(notice), ends
    return notice


def due(backend: Any) -> list[str]:
    """Return the ids of instances whose notice is over."""
    now = clock.now()
    return [one.id for one in lifecycle.instances(backend) if (ends := getattr(one, "spot_ends", None)) and ends <= now]


def end(backend: Any, instance_ids: list[str]) -> None:
    """The notice is over: the instances are stopped or terminated, as their requests say."""
    for instance in list(lifecycle.instances(backend)):
        if instance.id not in instance_ids or getattr(instance, "spot_notice", None) is None:
            continue
        action = json.loads(instance.spot_notice)["action"]
        instance.spot_notice = instance.spot_ends = None
        if instance.state in ("pending", "running"):
            (backend.stop_instances if action == "stop" else backend.terminate_instances)([instance.id])


def apply() -> None:
    """Give moto's spot instances their requests, once per process."""
    global _applied  # noqa: PLW0603
    if _applied:
        return
    from moto.ec2.models import EC2Backend
    from moto.ec2.models.instances import Instance
    from moto.ec2.models.spot_requests import SpotInstanceRequest
    from moto.ec2.utils import random_spot_request_id

    class RequestOfInstance(SpotInstanceRequest):
        """The request behind an instance that RunInstances made; its state follows the instance's."""

        def __init__(self, backend: Any, instance: Any, wanted: dict[str, Any]) -> None:
            self._launched = instance
            super().__init__(
                backend,
                random_spot_request_id(),
                price=str(wanted.get("MaxPrice") or ""),
                image_id=instance.image_id,
                spot_instance_type=str(wanted.get("SpotInstanceType") or "one-time"),
                valid_from=None,
                valid_until=None,
                launch_group=None,
                availability_zone_group=None,
                key_name=instance.key_name,
                security_groups=[group.id for group in instance.security_groups],
                user_data=None,
                instance_type=instance.instance_type,
                placement=None,
                kernel_id=None,
                ramdisk_id=None,
                monitoring_enabled=False,
                subnet_id=instance.subnet_id,
                tags={},
                spot_fleet_id=None,
                instance_interruption_behaviour=wanted.get("InstanceInterruptionBehavior"),
            )

        def launch_instance(self) -> Any:
            return self._launched

        @property
        def state(self) -> str:
            if self._launched.state in ("stopping", "stopped"):
                return "disabled"
            if self._launched.state in ("pending", "running"):
                return "active"
            # EC2 would now start another one for a request that persists.
            return "open" if self.type == "persistent" else "closed"

        @state.setter
        def state(self, value: str) -> None:
            """Nobody sets it."""

        def get_filter_value(self, filter_name: str, method_name: str | None = None) -> Any:
            if filter_name == "instance-id":
                return self._launched.id
            return super().get_filter_value(filter_name, method_name)

    def make_run(original: Any) -> Any:
        def run_instances(self: Any, image_id: str, count: int, *args: Any, **kwargs: Any) -> Any:
            wanted = options(self, kwargs)
            reservation = original(self, image_id, count, *args, **kwargs)
            # A request that came first has its own place in moto.
            if wanted is not None and kwargs.get("lifecycle") != "spot":
                for instance in reservation.instances:
                    instance.lifecycle = "spot"
                    request = RequestOfInstance(self, instance, wanted)
                    instance.spot_instance_request_id = request.id
                    self.spot_instance_requests[request.id] = request
            return reservation

        return run_instances

    replace(EC2Backend, "run_instances", make_run, parameters="self image_id count")
    Instance.spot_instance_request_id = None  # type: ignore[attr-defined]
    if hasattr(Instance, "instance_lifecycle"):
        raise RuntimeError("moto's Instance has an instance_lifecycle of its own now")
    Instance.instance_lifecycle = property(lambda self: self.lifecycle)  # type: ignore[attr-defined]
    _applied = True
