"""Brings this machine to the world that EC2 describes: networks at once, hosts side by side.

Every host has one worker at a time, which takes it to the latest wish however often that changes meanwhile. What the
machine holds is read from the machine: a lab that was killed continues with the hosts that are there.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Literal, Protocol

from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

from lab.hosts import firewall
from lab.hosts.containers import POWERED_OFF, Containers, Found, Watch, identity
from lab.hosts.metadata import MetadataApp
from lab.hosts.network import RUNNING, Fabric, answers_ssh
from lab.hosts.system import METADATA, HostError, Names, listen
from lab.settings import Settings
from lab.world import Instance, Network, World

log = logging.getLogger(__name__)

WORKERS: Final = 8
BOOT_SECONDS: Final = 120
Wish = Literal["up", "down", "gone"]


class Hooks(Protocol):
    """What the hosts tell and ask the lab's EC2. A ``mark_stopped(instance_id)`` is called too where there is one."""

    def mark_running(self, instance_id: str) -> None:
        """Say that a pending instance answers."""

    def mark_failed(self, instance_id: str, reason: str) -> None:
        """Say that an instance could not be brought to the state that EC2 wants."""

    def credentials(self, profile: str) -> Mapping[str, Any]:
        """Return temporary credentials of an instance profile, in STS's words."""


class _Host:
    """One instance on this machine. ``lock`` guards all of it; only its worker changes ``phase``."""

    def __init__(self, instance: Instance, network: Network | None) -> None:
        self.lock = threading.RLock()
        self.instance = instance
        self.network = network
        self.wish: tuple[Wish, int] = ("down", instance.reboots)
        self.settled: tuple[Wish, int] | None = None
        self.failed: tuple[Wish, int] | None = None
        self.busy = False
        self.phase: Literal["absent", "stopped", "running"] = "absent"
        self.reboots = instance.reboots
        self.rules: str | None = None
        self.watch: Watch | None = None

    def unwatch(self) -> None:
        if self.watch:
            self.watch.close()
            self.watch = None


class _Quiet(WSGIRequestHandler):
    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Leave the log to what matters."""


class Reconciler:
    """The lab's hands on this machine. ``apply`` is called by one thread at a time.

    Args:
        settings: the lab's settings.
        hooks: how to reach the lab's EC2.
        api_app: WSGI application of the AWS API, served to the instances; None for no API inside the VPCs.
    """

    def __init__(self, settings: Settings, hooks: Hooks, api_app: Any = None) -> None:
        self.settings = settings
        self.hooks = hooks
        self.api_app = api_app
        self.names = Names.of(settings)
        self.fabric = Fabric(self.names)
        self.containers = Containers(settings, self.names)
        self._hosts: dict[str, _Host] = {}
        self._world: World | None = None
        self._residents: dict[tuple[str, str], tuple[Instance, Network]] = {}
        self._servers: dict[str, list[BaseWSGIServer]] = {}
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="host")
        self._apply_lock = threading.Lock()
        self._image_lock = threading.Lock()
        self._images: set[str] = set()
        self._closed = False

    # --- the contract ------------------------------------------------------------------------------------------------

    def apply(self, world: World) -> None:
        """Bring the machine to a world: networks and security groups on return, hosts as soon as they can.

        What cannot be done is logged or told to ``hooks.mark_failed`` and does not stop the rest.
        """
        with self._apply_lock:
            if self._closed:
                return
            first = self._world is None
            fallen = [host for host in self._hosts.values() if self._fell(host)]
            if world == self._world and not fallen:
                return
            if first:
                self.fabric.prepare()
            else:
                self.fabric.admit()
            networks = {network.id: network for network in world.networks}
            wanted = {one.id: one for one in world.instances if one.vpc_id in networks}
            self._residents = {(one.vpc_id, one.private_ip): (one, networks[one.vpc_id]) for one in wanted.values()}
            broken = self._sync_networks(networks, wanted)
            if first:
                self._adopt(wanted, networks)
            for instance in wanted.values():
                if instance.vpc_id in broken:
                    self._fail(instance.id, broken[instance.vpc_id])
                else:
                    self._want(instance, networks[instance.vpc_id])
            for instance_id in [one for one in self._hosts if one not in wanted]:
                self._dismiss(instance_id)
            for host in fallen:
                self._rise(host)
            self._drop_networks(networks)
            self._world = world

    def wait(self, timeout: float = 60) -> bool:
        """Wait until every host is as wished, in seconds at most; tell whether all are."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if not any(host.busy for host in list(self._hosts.values())):
                return True
            time.sleep(0.02)
        return False

    def close(self) -> None:
        """Stop serving and working; leave networks and hosts as they are."""
        self._closed = True
        for vpc_id in list(self._servers):
            self._stop_serving(vpc_id)
        self._pool.shutdown(wait=True, cancel_futures=True)
        for host in self._hosts.values():
            host.unwatch()

    def destroy(self) -> None:
        """Remove every host and network of this lab, also those of a lab that was killed."""
        self.close()
        with ThreadPoolExecutor(WORKERS) as pool:
            for instance_id in self.fabric.attached():
                self.fabric.detach(instance_id)
            for failure in pool.map(self._remove_quietly, self.containers.found()):
                if failure:
                    log.error("%s", failure)
        self.fabric.destroy()
        self._hosts.clear()
        self._world = None

    def _remove_quietly(self, instance_id: str) -> str | None:
        try:
            self.containers.remove(instance_id)
        except HostError as error:
            return str(error)
        return None

    # --- networks ----------------------------------------------------------------------------------------------------

    def _sync_networks(self, networks: Mapping[str, Network], wanted: Mapping[str, Instance]) -> dict[str, str]:
        """Bring the routers up to date; return why it could not be done, by VPC."""
        broken = {}
        for network in networks.values():
            try:
                if not self.fabric.has_router(network.id):
                    self._stop_serving(network.id)
                self.fabric.sync_router(network, wanted.values())
                self._serve(network.id)
            except (HostError, OSError, ValueError, StopIteration) as error:
                log.exception("network %s", network.id)
                broken[network.id] = f"network {network.id} ({network.cidr}): {error}"
        return broken

    def _drop_networks(self, networks: Mapping[str, Network]) -> None:
        for vpc_id in self.fabric.routers():
            if vpc_id not in networks:
                self._stop_serving(vpc_id)
                self.fabric.remove_router(vpc_id)
        self.fabric.forget_networks(networks.values())

    def _serve(self, vpc_id: str) -> None:
        """Open the metadata service and the AWS API in a VPC's router."""
        if vpc_id in self._servers:
            return
        metadata = MetadataApp(
            lambda address: self._residents.get((vpc_id, address)),
            self.hooks.credentials,
            self.settings.account,
            self.settings.region,
        )
        offers: list[tuple[int, Any, type[WSGIRequestHandler]]] = [(80, metadata, _Quiet)]
        if self.api_app is not None:
            from moto.moto_server.werkzeug_app import MotoRequestHandler

            handler = type("_QuietApi", (_Quiet, MotoRequestHandler), {})
            offers.append((self.settings.port, self.api_app, handler))
        servers = self._servers.setdefault(vpc_id, [])
        for port, app, handler in offers:
            with listen(self.names.router(vpc_id), METADATA, port) as sock:
                server = make_server(METADATA, port, app, threaded=True, request_handler=handler, fd=sock.fileno())
            servers.append(server)
            threading.Thread(target=server.serve_forever, name=f"{vpc_id}:{port}", args=(0.1,), daemon=True).start()

    def _stop_serving(self, vpc_id: str) -> None:
        for server in self._servers.pop(vpc_id, []):
            server.shutdown()
            server.server_close()

    # --- wishes ------------------------------------------------------------------------------------------------------

    def _adopt(self, wanted: Mapping[str, Instance], networks: Mapping[str, Network]) -> None:
        """Take over the hosts that an earlier lab left; remove those that the world does not know."""
        found = self.containers.found()
        for instance_id, container in found.items():
            instance = wanted.get(instance_id)
            if instance is None or container.identity != identity(instance):
                self.fabric.detach(instance_id)
                if failure := self._remove_quietly(instance_id):
                    log.error("%s", failure)
                continue
            host = _Host(instance, networks[instance.vpc_id])
            host.phase = "stopped"
            if container.running:
                self._adopt_running(host, container)
            self._hosts[instance_id] = host
        for instance_id in self.fabric.attached() - set(self._hosts):
            self.fabric.detach(instance_id)

    def _adopt_running(self, host: _Host, container: Found) -> None:
        if self.fabric.is_attached(host.instance):
            host.phase = "running"
            host.watch = Watch(container.pid)
        else:  # its network went; nothing but a restart joins it to a new one
            self.containers.stop(host.instance.id)

    def _want(self, instance: Instance, network: Network) -> None:
        """Take an instance's latest description; set its worker going if that asks for something."""
        host = self._hosts.get(instance.id)
        if host is None:
            host = self._hosts[instance.id] = _Host(instance, network)
        with host.lock:
            host.instance, host.network = instance, network
            host.wish = ("up" if instance.state in RUNNING else "down", instance.reboots)
            try:
                self._load_rules(host)
            except HostError as error:
                log.error("security groups of %s: %s", instance.id, error)
            # An instance that was stopped and started between two looks is pending though nothing is left to do.
            if instance.state == "pending" and not host.busy and host.failed != host.wish:
                host.settled = None
            if host.settled != host.wish:
                self._work(host)

    def _load_rules(self, host: _Host) -> None:
        """Put the security groups in force if they changed since; the caller holds the lock."""
        rules = firewall.ruleset(host.instance)
        if host.phase == "running" and rules != host.rules:
            firewall.load(host.instance, self.names.host(host.instance.id))
            host.rules = rules

    def _dismiss(self, instance_id: str) -> None:
        """Take a host that is no longer wanted off the network now, and have it removed."""
        host = self._hosts[instance_id]
        if host.wish[0] == "gone":
            if host.settled == host.wish:
                del self._hosts[instance_id]
            return
        with host.lock:
            host.wish = ("gone", 0)
            self.fabric.detach(instance_id)
            self._work(host)

    def _fell(self, host: _Host) -> bool:
        """Tell whether a host went down by itself, or a dismissed one may be forgotten."""
        with host.lock:
            if host.wish[0] == "gone":
                return host.settled == host.wish
            return not host.busy and host.phase == "running" and host.watch is not None and host.watch.ended()

    def _rise(self, host: _Host) -> None:
        """Treat a host that went down by itself: a reboot from within boots again, a shutdown is a stop."""
        instance_id = host.instance.id
        with host.lock:
            if host.wish[0] != "up" or host.busy:
                return
            host.phase = "stopped"
            host.rules = None
            host.unwatch()
            self.fabric.detach(instance_id)
            mark_stopped = getattr(self.hooks, "mark_stopped", None)
            if mark_stopped and self.containers.exit_code(instance_id) == POWERED_OFF:
                host.wish = host.settled = ("down", host.wish[1])
                mark_stopped(instance_id)
                return
            host.settled = None
            self._work(host)

    def _fail(self, instance_id: str, reason: str) -> None:
        log.error("%s: %s", instance_id, reason)
        try:
            self.hooks.mark_failed(instance_id, reason)
        except Exception:
            log.exception("mark_failed(%s)", instance_id)

    # --- work, one worker a host -------------------------------------------------------------------------------------

    def _work(self, host: _Host) -> None:
        """Have a worker take a host to its wish, unless one is at it; the caller holds the lock."""
        if not host.busy:
            host.busy = True
            self._pool.submit(self._labour, host)

    def _labour(self, host: _Host) -> None:
        while True:
            with host.lock:
                wish = host.wish
                if host.settled == wish or self._closed:
                    host.busy = False
                    return
            try:
                self._fulfil(host, wish)
            except Exception as error:
                if not isinstance(error, HostError):
                    log.exception("%s", host.instance.id)
                if host.wish == wish:
                    host.failed = wish
                    self._fail(host.instance.id, str(error))
            with host.lock:
                host.settled = wish

    def _fulfil(self, host: _Host, wish: tuple[Wish, int]) -> None:
        kind, reboots = wish
        instance_id = host.instance.id
        if kind == "gone":
            host.unwatch()
            self.containers.remove(instance_id)
            self.fabric.detach(instance_id)
            host.phase = "absent"
            log.info("%s (%s) is gone", host.instance.name, instance_id)
            return
        if host.phase == "running" and (kind == "down" or reboots > host.reboots):
            self._take_down(host)
        host.reboots = max(host.reboots, reboots)
        if kind == "down":
            return
        if host.phase != "running":
            self._bring_up(host)
        self._await_answer(host, wish)

    def _take_down(self, host: _Host) -> None:
        host.unwatch()
        self.containers.stop(host.instance.id)
        with host.lock:
            host.phase = "stopped"
            host.rules = None
            self.fabric.detach(host.instance.id)
        log.info("%s (%s) is stopped", host.instance.name, host.instance.id)

    def _bring_up(self, host: _Host) -> None:
        """Boot a host on its network; the first time, make it."""
        before = host.phase
        if before == "absent":
            self._ensure_image(host.instance.image)
        with host.lock:
            if host.network is None:
                raise HostError(f"the VPC of {host.instance.id} is gone")
            if host.wish[0] == "gone":
                return
            self.fabric.attach(host.instance, host.network)
            host.rules = firewall.ruleset(host.instance)
            host.phase = "running"
        try:
            if before == "absent":
                self.containers.create(host.instance)
                before = "stopped"
            host.watch = Watch(self.containers.start(host.instance))
        except BaseException:
            with host.lock:
                host.phase = before
                host.rules = None
                self.fabric.detach(host.instance.id)
            raise

    def _ensure_image(self, release: str) -> None:
        with self._image_lock:
            if release not in self._images:
                self.containers.ensure_image(release)
                self._images.add(release)

    def _await_answer(self, host: _Host, wish: tuple[Wish, int]) -> None:
        """Wait until a host that EC2 calls pending answers; say so."""
        instance_id = host.instance.id
        deadline = time.monotonic() + BOOT_SECONDS
        while host.wish == wish and not self._closed:
            if host.watch and host.watch.ended():
                raise HostError(f"{instance_id} ended while it booted")
            if answers_ssh(self.names.host(instance_id), host.instance.private_ip):
                log.info("%s (%s) answers at %s", host.instance.name, instance_id, host.instance.private_ip)
                if host.instance.state == "pending":
                    self.hooks.mark_running(instance_id)
                return
            if time.monotonic() > deadline:
                raise HostError(f"{instance_id} did not answer on port 22 within {BOOT_SECONDS} s")
            time.sleep(0.1)
