"""The states of instances: passing states last until the host behind the instance has followed.

Without hosts (``hosts = False``) nothing has to follow, and every transition is over at once, as in moto.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from typing import Any

from lab.api import clock
from lab.api.patching import replace

CODES = {"pending": 0, "running": 16, "shutting-down": 32, "terminated": 48, "stopping": 64, "stopped": 80}
PASSING = ("pending", "stopping")

hosts = False
_applied = False


def instances(backend: Any) -> Iterator[Any]:
    """Iterate over every instance that the backend still lists."""
    for reservation in list(backend.reservations.values()):
        yield from list(reservation.instances)


def find(backend: Any, instance_id: str) -> Any | None:
    """Return an instance by its id, or None."""
    return next((one for one in instances(backend) if one.id == instance_id), None)


def put(instance: Any, state: str) -> None:
    """Set the state of an instance."""
    instance._state.name, instance._state.code = state, CODES[state]


def mark_running(backend: Any, instance_id: str) -> None:
    """A pending instance runs now."""
    instance = find(backend, instance_id)
    if instance is not None and instance.state == "pending":
        put(instance, "running")


def mark_stopped(backend: Any, instance_ids: list[str]) -> None:
    """The hosts of instances have stopped. One that was shut down from within may be set to be terminated by that."""
    for instance in instances(backend):
        if instance.id not in instance_ids:
            continue
        if instance.state == "stopping":
            put(instance, "stopped")
        elif instance.state in ("pending", "running"):
            if instance.instance_initiated_shutdown_behavior == "terminate":
                backend.terminate_instances([instance.id])
            else:
                instance.stop()
                put(instance, "stopped")


def mark_failed(backend: Any, instance_id: str, reason: str) -> None:
    """A pending instance could not be started and is terminated, as EC2 does it."""
    from moto.ec2.models.instances import StateReason

    instance = find(backend, instance_id)
    if instance is not None and instance.state in ("pending", "running"):
        backend.terminate_instances([instance_id])
        instance._reason = "Server.InternalError"
        instance.state_reason = StateReason(f"Server.InternalError: {reason}", "Server.InternalError")


def hosts_are_unknown(backend: Any) -> None:
    """After a restart of the lab no host is known to run: running instances are pending until theirs has answered."""
    for instance in instances(backend):
        if instance.state == "running":
            put(instance, "pending")


def nothing_is_passing(backend: Any) -> None:
    """Without hosts every transition under way is over."""
    for instance in instances(backend):
        put(instance, {"pending": "running", "stopping": "stopped"}.get(instance.state, instance.state))


def outdated(backend: Any, seconds: float) -> list[str]:
    """Return the ids of instances that have been terminated for longer than ``seconds``."""
    limit = clock.utcnow() - datetime.timedelta(seconds=seconds)
    return [
        instance.id
        for instance in instances(backend)
        if instance.state == "terminated" and getattr(instance, "terminated_at", limit) <= limit
    ]


def prune(backend: Any, instance_ids: list[str]) -> None:
    """Forget terminated instances, as EC2 does after about an hour."""
    for key, reservation in list(backend.reservations.items()):
        reservation.instances = [one for one in reservation.instances if one.id not in instance_ids]
        if not reservation.instances:
            del backend.reservations[key]


def apply() -> None:
    """Give moto's instances the states of EC2, once per process."""
    global _applied  # noqa: PLW0603
    if _applied:
        return
    from moto.ec2.exceptions import EC2ClientError
    from moto.ec2.models.instances import Instance

    def refuse(instance: Any, verb: str, *states: str) -> None:
        if instance.state not in states:
            raise EC2ClientError(
                "IncorrectInstanceState",
                f"The instance '{instance.id}' is not in a state from which it can be {verb}.",
            )

    def make_init(original: Any) -> Any:
        def init(self: Any, *args: Any, **kwargs: Any) -> None:
            original(self, *args, **kwargs)
            self.reboots = 0
            if hosts:
                put(self, "pending")

        return init

    def make_start(original: Any) -> Any:
        def start(self: Any) -> Any:
            if self.state in ("running", "pending"):
                return type(self._state)(self._state.name, self._state.code)
            refuse(self, "started", "stopped")
            previous = original(self)
            self.launch_time = clock.utcnow()
            if hosts:
                put(self, "pending")
            return previous

        return start

    def make_stop(original: Any) -> Any:
        def stop(self: Any) -> Any:
            if self.state in ("stopping", "stopped"):
                return type(self._state)(self._state.name, self._state.code)
            refuse(self, "stopped", "pending", "running")
            previous = original(self)
            if hosts:
                put(self, "stopping")
            return previous

        return stop

    def make_terminate(original: Any) -> Any:
        def terminate(self: Any) -> Any:
            if self.state == "terminated":
                return type(self._state)(self._state.name, self._state.code)
            self.terminated_at = clock.utcnow()
            return original(self)

        return terminate

    def make_reboot(original: Any) -> Any:
        def reboot(self: Any) -> None:
            refuse(self, "rebooted", "pending", "running")
            state = self.state
            original(self)
            put(self, state)
            self.reboots += 1

        return reboot

    replace(Instance, "__init__", make_init, parameters="self ec2_backend image_id")
    replace(Instance, "start", make_start, parameters="self")
    replace(Instance, "stop", make_stop, parameters="self")
    replace(Instance, "terminate", make_terminate, parameters="self")
    replace(Instance, "reboot", make_reboot, parameters="self")
    _applied = True
