"""The few ways in which the lab's hosts touch the machine: programs, network namespaces, names."""

from __future__ import annotations

import ctypes
import json
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any, Final, TypeVar

from lab.settings import Settings

NETNS: Final = Path("/run/netns")
METADATA: Final = "169.254.169.254"
RESOLVER: Final = "169.254.169.253"
CLONE_NEWNET: Final = 0x40000000
LONGEST_PREFIX: Final = 5  # an interface's name has at most 15 characters

_libc = ctypes.CDLL(None, use_errno=True)
T = TypeVar("T")


class HostError(RuntimeError):
    """Something on this machine refused; the message is what it said."""


def run(*arguments: str, text: str | None = None, check: bool = True, env: dict[str, str] | None = None) -> str:
    """Run a program with ``text`` on its standard input; return its output.

    Raises:
        HostError: the program failed and ``check`` is true.
    """
    done = subprocess.run(
        arguments,
        input=text,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **env} if env else None,
    )
    if check and done.returncode:
        said = " ".join((done.stderr or done.stdout).split())[-600:]
        raise HostError(f"{' '.join(arguments[:4])}: {said}")
    return done.stdout


def ip_batch(lines: Iterable[str], namespace: str | None = None, *, force: bool = False) -> None:
    """Run ``ip`` commands in one process; with ``force`` go on after one that fails."""
    text = "\n".join(lines)
    if text:
        where = ["-n", namespace] if namespace else []
        run("ip", *where, *(["-force"] if force else []), "-batch", "-", text=text + "\n", check=not force)


def ip_json(*arguments: str, namespace: str | None = None) -> list[dict[str, Any]]:
    """Return what an ``ip`` listing prints as JSON; empty if the namespace or device is not there."""
    where = ["-n", namespace] if namespace else []
    output = run("ip", *where, "-json", *arguments, check=False)
    return [entry for entry in json.loads(output or "[]") if entry]


def nft(text: str, namespace: str | None = None) -> None:
    """Load an nftables script as one transaction."""
    enter = ["nsenter", f"--net={NETNS / namespace}"] if namespace else []
    run(*enter, "nft", "-f", "-", text=text)


def inside(namespace: str, function: Callable[[], T]) -> T:
    """Call a function in a network namespace, on a thread of its own; sockets it returns stay in that namespace."""
    result: list[T] = []
    failure: list[BaseException] = []

    def enter() -> None:
        try:
            with (NETNS / namespace).open("rb") as file:
                if _libc.setns(file.fileno(), CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), f"cannot enter network namespace {namespace}")
            result.append(function())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=enter, name=f"inside {namespace}")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return result[0]


def listen(namespace: str, address: str, port: int) -> socket.socket:
    """Return a TCP socket that listens in a network namespace."""

    def open_socket() -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, port))
        sock.listen(128)
        return sock

    return inside(namespace, open_socket)


def sysctl(values: dict[str, str], namespace: str) -> None:
    """Set kernel parameters of a network namespace; names use slashes."""

    def write() -> None:
        for name, value in values.items():
            path = Path("/proc/sys/net", name)
            if path.exists():
                path.write_text(value)

    inside(namespace, write)


@dataclass(frozen=True)
class Names:
    """How this lab calls what it makes on the machine, so that it finds all of it again and nothing else.

    Attributes:
        prefix: begins every name; two labs on one machine differ in it and in their ranges.
        public: range of the addresses that stand for the Internet's.
        controller: this machine's address in that range.
        transit: range for the links between this machine and the VPCs' routers.
    """

    prefix: str
    public: IPv4Network
    controller: IPv4Address
    transit: IPv4Network

    @classmethod
    def of(cls, settings: Settings) -> Names:
        """Take the names from the lab's settings.

        Raises:
            ValueError: the prefix is too long for the names of network interfaces.
        """
        prefix = str(getattr(settings, "prefix", "") or os.environ.get("LAB_PREFIX") or "lb")
        if not prefix.isalnum() or len(prefix) > LONGEST_PREFIX:
            raise ValueError(f"the lab's prefix '{prefix}' must be 1 to {LONGEST_PREFIX} letters or digits")
        transit = str(getattr(settings, "transit_cidr", "") or os.environ.get("LAB_TRANSIT_CIDR") or "198.19.0.0/20")
        return cls(
            prefix,
            IPv4Network(settings.public_cidr),
            IPv4Address(settings.controller_address),
            IPv4Network(transit),
        )

    def router(self, vpc_id: str) -> str:
        """Network namespace of a VPC's router."""
        return f"{self.prefix}-{vpc_id}"

    def host(self, instance_id: str) -> str:
        """Network namespace and container of an instance."""
        return f"{self.prefix}-{instance_id}"

    @property
    def table(self) -> str:
        """Nftables table in the machine's own network namespace."""
        return f"{self.prefix}_lab"

    @property
    def links(self) -> str:
        """Pattern of the interfaces towards the routers, in nftables' notation."""
        return f"{self.prefix}-*"

    @property
    def protocol(self) -> int:
        """Number that marks this lab's routes in the machine's table (rtnetlink protocol)."""
        return 100 + sum(self.prefix.encode()) % 80

    def namespaces(self) -> list[str]:
        """Network namespaces of this lab that exist now."""
        starts = (f"{self.prefix}-vpc-", f"{self.prefix}-i-")
        return sorted(path.name for path in NETNS.glob(f"{self.prefix}-*") if path.name.startswith(starts))
