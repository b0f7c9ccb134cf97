"""The API's server: moto in this process, journaled, with AWS's behaviour put back, on loopback."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from lab import world
from lab.api import clock, compat, enforcement, journal, lifecycle, seed, spot
from lab.settings import Settings

log = logging.getLogger(__name__)

# moto reads these when it is imported.
SWITCHES = {
    "MOTO_IAM_LOAD_MANAGED_POLICIES": "true",  # roles can be given AWS's own policies
    "MOTO_ENABLE_KEYPAIR_VALIDATION": "true",  # a wrong key pair, image or type is refused
    "MOTO_ENABLE_AMI_VALIDATION": "true",
    "MOTO_EC2_ENABLE_INSTANCE_TYPE_VALIDATION": "true",
    "MOTO_DISABLE_GLOBAL_CORS": "true",  # a web page open on this machine gets no access
}


class Api:
    """The lab's AWS account and the applications that serve it.

    Args:
        settings: the lab's settings.
        on_change: called after everything that may have changed the world; must return at once.
    """

    def __init__(self, settings: Settings, on_change: Callable[[], None] = lambda: None) -> None:
        self.settings = settings
        self._on_change = on_change
        _prepare(settings)
        from moto.moto_api._internal import mock_random
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app

        self._moto: Any = DomainDispatcherApplication(create_backend_app)
        self.journal = journal.Journal(settings.journal_dir, self._moto, self._handlers(), mock_random.seed)

    @property
    def ec2(self) -> Any:
        """EC2's records in the lab's account and region."""
        from moto.backends import get_backend

        return get_backend("ec2")[self.settings.account][self.settings.region]

    def open(self) -> int:
        """Restore the state on disk; return the number of calls it took."""
        from moto import settings as moto_settings

        moto_settings.INITIAL_NO_AUTH_ACTION_COUNT = float("inf")
        seed.plant(self.settings)
        replayed = self.journal.open()
        self.journal.perform(
            "session",
            hosts=not self.settings.api_only,
            limits={
                enforcement.STANDARD: self.settings.standard_vcpus,
                enforcement.GPU: self.settings.gpu_vcpus,
                enforcement.SPOT_STANDARD: self.settings.spot_standard_vcpus,
                enforcement.SPOT_GPU: self.settings.spot_gpu_vcpus,
                enforcement.SPOT_ROOM: self.settings.spot_room_vcpus,
                enforcement.ADDRESSES: self.settings.elastic_addresses,
            },
        )
        if self.settings.enforce_iam:
            moto_settings.INITIAL_NO_AUTH_ACTION_COUNT = 0
        return replayed

    def close(self) -> None:
        """Finish the journal."""
        self.journal.close()

    def observe(self) -> world.World:
        """Return the world as it is now."""
        found: world.World = self.journal.read(lambda: world.observe(self.ec2))
        return found

    # --- the applications -------------------------------------------------------------------------------------------

    def instance_app(self, environ: dict[str, Any], start_response: journal.StartResponse) -> Iterable[bytes]:
        """WSGI application for instances: AWS's API and nothing of the lab's own."""
        path = environ.get("PATH_INFO", "")
        if path.startswith(("/moto-api", "/latest/", "/lab/")):
            return _send(start_response, _plain_answer("404 Not Found", "not part of the AWS API\n"))
        version = self.journal.version
        answer = self._held(environ) if self._may_be_held(environ) else self.journal.call(environ)
        if self.journal.version != version:
            self._on_change()
        return _send(start_response, answer)

    def app(self, environ: dict[str, Any], start_response: journal.StartResponse) -> Iterable[bytes]:
        """WSGI application for this machine: AWS's API, ``/lab/state`` and ``/lab/interrupt``."""
        path = environ.get("PATH_INFO")
        if path in ("/lab/state", "/lab/interrupt"):
            # Only names that a program on this machine uses: a web page that names its server so gets no answer.
            if environ.get("HTTP_HOST", "").rpartition(":")[0] not in ("127.0.0.1", "localhost"):
                return _send(start_response, _plain_answer("403 Forbidden", "ask 127.0.0.1\n"))
            return _send(start_response, _json_answer(self.state()) if path == "/lab/state" else self._asked(environ))
        return self.instance_app(environ, start_response)

    def state(self) -> dict[str, Any]:
        """Return what ``lab status`` shows."""
        return {
            "pid": os.getpid(),
            "endpoint": self.settings.endpoint,
            "account": self.settings.account,
            "region": self.settings.region,
            "hosts": not self.settings.api_only,
            "enforce_iam": self.settings.enforce_iam,
            **self.observe().as_dict(),
        }

    def _asked(self, environ: dict[str, Any]) -> journal.Answer:
        """Give a spot instance its notice. A web page cannot send JSON's media type without asking us first."""
        if environ.get("REQUEST_METHOD") != "POST" or environ.get("CONTENT_TYPE") != "application/json":
            return _plain_answer("405 Method Not Allowed", "POST application/json\n")
        try:
            said = json.loads(environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)))
            instance, seconds = str(said["instance"]), float(said["seconds"])
            notice = self.journal.perform("interrupt", instance_id=instance, seconds=seconds)
        except (ValueError, TypeError, KeyError) as error:
            return _plain_answer("400 Bad Request", f"{error}\n")
        self._on_change()
        return _json_answer(notice)

    def _may_be_held(self, environ: dict[str, Any]) -> bool:
        return environ.get("REQUEST_METHOD") == "POST" and "/ec2/aws4_request" in environ.get("HTTP_AUTHORIZATION", "")

    def _held(self, environ: dict[str, Any]) -> journal.Answer:
        """Answer DescribeInstances once no instance in the answer is in a passing state, or when patience ends.

        AWS answers at once, and its clients then sleep for 15 seconds between two questions; a host of the lab is up
        in three. The lock is free while the answer is held.
        """
        deadline = time.monotonic() + self.settings.hold_seconds
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        held = journal.action(environ, body) == "DescribeInstances"
        while True:
            version = self.journal.version
            answer = self.journal.call({**environ, "wsgi.input": _Again(body)})
            passing = held and any(f"<name>{state}</name>".encode() in answer.body for state in lifecycle.PASSING)
            if not passing or not self.journal.wait_beyond(version, deadline - time.monotonic()):
                return answer

    # --- events -----------------------------------------------------------------------------------------------------

    def _handlers(self) -> dict[str, Callable[..., Any]]:
        return {
            "session": self._session,
            "running": lambda instance_id: lifecycle.mark_running(self.ec2, instance_id),
            "stopped": lambda instance_ids: lifecycle.mark_stopped(self.ec2, instance_ids),
            "failed": lambda instance_id, reason: lifecycle.mark_failed(self.ec2, instance_id, reason),
            "interrupt": lambda instance_id, seconds: spot.interrupt(self.ec2, instance_id, seconds),
            "interrupted": lambda instance_ids: spot.end(self.ec2, instance_ids),
            "prune": lambda instance_ids: lifecycle.prune(self.ec2, instance_ids),
            "credentials": self._credentials,
        }

    def _session(self, hosts: bool, limits: dict[str, float]) -> None:
        """The lab was started: with or without hosts, and with these quotas."""
        enforcement.limits.update(limits)
        lifecycle.hosts = hosts
        if hosts:
            lifecycle.hosts_are_unknown(self.ec2)
        else:
            lifecycle.nothing_is_passing(self.ec2)

    def _credentials(self, profile: str) -> dict[str, str]:
        """Return temporary credentials of the role in an instance profile, as the metadata service hands them out."""
        from moto.backends import get_backend

        iam = get_backend("iam")[self.settings.account]["aws"]
        found = next((one for one in iam.instance_profiles.values() if one.name == profile), None)
        if found is None or not found.roles:
            return {}
        sts: Any = get_backend("sts")[self.settings.account]["aws"]
        issued = sts.assume_role(
            region_name=self.settings.region,
            role_session_name=profile,
            role_arn=found.roles[0].arn,
            policy=None,
            duration=CREDENTIAL_SECONDS,
            external_id=None,
        )
        return {
            "Code": "Success",
            "Type": "AWS-HMAC",
            "AccessKeyId": issued.access_key_id,
            "SecretAccessKey": issued.secret_access_key,
            "Token": issued.session_token,
            "LastUpdated": _iso(clock.now()),
            "Expiration": _iso(clock.now() + CREDENTIAL_SECONDS),
            "RoleName": found.roles[0].name,
            "InstanceProfileArn": found.arn,
            "InstanceProfileId": found.id,
        }


CREDENTIAL_SECONDS = 6 * 3600


class Hooks:
    """What the hosts tell the API, and ask of it."""

    def __init__(self, api: Api, on_change: Callable[[], None] = lambda: None) -> None:
        self._api = api
        self._on_change = on_change
        self._issued: dict[str, tuple[float, dict[str, str]]] = {}
        self._lock = threading.Lock()

    def mark_running(self, instance_id: str) -> None:
        """The host of a pending instance answers on port 22."""
        instance = lifecycle.find(self._api.ec2, instance_id)
        if instance is not None and instance.state == "pending":
            self._api.journal.perform("running", instance_id=instance_id)
            self._on_change()

    def mark_stopped(self, instance_id: str) -> None:
        """The host of an instance has stopped, as it was told to or by itself."""
        instance = lifecycle.find(self._api.ec2, instance_id)
        if instance is not None and instance.state in ("stopping", "pending", "running"):
            self._api.journal.perform("stopped", instance_ids=[instance_id])
            self._on_change()

    def mark_failed(self, instance_id: str, reason: str) -> None:
        """The host of a pending instance could not be started; the instance is terminated."""
        log.error("instance %s failed: %s", instance_id, reason)
        self._api.journal.perform("failed", instance_id=instance_id, reason=reason)
        self._on_change()

    def credentials(self, profile: str) -> dict[str, str]:
        """Return credentials of an instance profile in the form of the metadata service; nothing without a role.

        They are good for six hours and renewed an hour before they end. ``RoleName``, ``InstanceProfileArn`` and
        ``InstanceProfileId`` are beside what the metadata service shows.
        """
        with self._lock:
            until, issued = self._issued.get(profile, (0.0, {}))
            if time.time() < until:
                return issued
            fresh: dict[str, str] = self._api.journal.perform("credentials", profile=profile)
            if fresh:
                self._issued[profile] = (time.time() + CREDENTIAL_SECONDS - 3600, fresh)
            return fresh


class _Again:
    """A stream over bytes that were read before."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read(self, size: int = -1) -> bytes:
        taken = self._data if size < 0 else self._data[:size]
        self._data = self._data[len(taken) :]
        return taken


def serve(api: Api) -> Any:
    """Listen on loopback and serve in a thread; return the server, whose ``port`` tells where.

    Raises:
        OSError: the port is taken.
    """
    server = listen("127.0.0.1", api.settings.port, api.app)
    threading.Thread(target=server.serve_forever, name="api", daemon=True).start()
    return server


def listen(address: str, port: int, app: journal.Application) -> Any:
    """Return a server, already bound, of an application."""
    import socket

    from moto.moto_server.werkzeug_app import MotoRequestHandler
    from werkzeug.serving import make_server

    class Quiet(MotoRequestHandler):
        def log(self, type: str, message: str, *args: Any) -> None:
            log.debug(message, *args)

    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    with bound:
        bound.bind((address, port))
        bound.listen(128)
        return make_server(address, port, app, threaded=True, request_handler=Quiet, fd=bound.fileno())


def _prepare(settings: Settings) -> None:
    """Bring moto into this process, changed where it must be."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]
    os.environ.update(SWITCHES, MOTO_ACCOUNT_ID=settings.account)
    clock.install()
    compat.apply(settings.public_cidr)
    lifecycle.apply()
    spot.apply()
    enforcement.apply()


def _iso(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def _json_answer(value: Any) -> journal.Answer:
    body = json.dumps(value).encode()
    return journal.Answer("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))], body)


def _plain_answer(status: str, text: str) -> journal.Answer:
    body = text.encode()
    return journal.Answer(status, [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))], body)


def _send(start_response: journal.StartResponse, answer: journal.Answer) -> Iterable[bytes]:
    start_response(answer.status, answer.headers)
    return [answer.body]
