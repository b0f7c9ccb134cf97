"""The lab's command line: ``python -m lab up|down|status|ssh|logs|interrupt|image``."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Sequence
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

from lab import daemon
from lab.settings import DEFAULT_RELEASE, RELEASES, Settings

UP_SECONDS = 120
DOWN_SECONDS = 60

DESCRIPTION = """\
The lab: AWS rehearsed on this machine. An EC2-compatible API answers on loopback, and behind every instance stands a
real host: a container with systemd, at the private address that EC2 gave it, behind its security groups.
"""
EPILOG = """\
The lab's state is in .lab/ under the repository (LAB_DIR), its API on port 4566 (LAB_PORT). The account's quotas are
LAB_VCPU_LIMIT (32 standard vCPUs), LAB_GPU_VCPU_LIMIT (8) and LAB_EIP_LIMIT (5 Elastic IPs), on the spot market
LAB_SPOT_VCPU_LIMIT (32) and LAB_SPOT_GPU_VCPU_LIMIT (8); that market has room for LAB_SPOT_ROOM (40) vCPUs. 'up' after
a crash or a reboot finds everything again; 'down' removes everything.
"""


class LabError(Exception):
    """Something a person has to be told; the message says what to do."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return the exit status."""
    options = _parser().parse_args(arguments)
    try:
        code: int = options.run(options)
    except (LabError, ValueError) as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output has gone, as `lab status | head` does; that is no failure.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lab", description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    up = commands.add_parser("up", help="start the lab, or find it again after a crash", description=up_command.__doc__)
    up.add_argument("--api-only", action="store_true", help="no hosts: instances run at once; needs no root")
    up.add_argument("--enforce-iam", action="store_true", help="check signatures and IAM policies, as AWS does")
    up.set_defaults(run=up_command)

    down = commands.add_parser("down", help="remove the lab and everything in it", description=down_command.__doc__)
    down.set_defaults(run=down_command)

    status = commands.add_parser("status", help="show instances and rules", description=status_command.__doc__)
    status.add_argument("--json", action="store_true", help="everything, as JSON")
    status.set_defaults(run=status_command)

    ssh = commands.add_parser("ssh", help="log in to a host, or run a command on it", description=ssh_command.__doc__)
    ssh.add_argument("--key", type=Path, help="private key (default: the key pair's, under .lab/secrets/)")
    ssh.add_argument("--user", default="admin", help="user to log in as (default: admin)")
    ssh.add_argument("host", help="Name tag, or its end if that is unambiguous, or instance id")
    ssh.add_argument("command", nargs=argparse.REMAINDER, help="command to run instead of a shell")
    ssh.set_defaults(run=ssh_command)

    logs = commands.add_parser("logs", help="show the lab's own log", description=logs_command.__doc__)
    logs.add_argument("-f", "--follow", action="store_true", help="keep showing what is added")
    logs.add_argument("-n", "--lines", type=int, default=100, help="how many of the last lines (default: 100)")
    logs.set_defaults(run=logs_command)

    interrupt = commands.add_parser(
        "interrupt", help="take a spot instance back, as EC2 does", description=interrupt_command.__doc__
    )
    interrupt.add_argument("host", help="Name tag, or its end if that is unambiguous, or instance id")
    interrupt.add_argument("--seconds", type=float, default=120, help="from the notice to the end (default: 120)")
    interrupt.set_defaults(run=interrupt_command)

    image = commands.add_parser("image", help="build the hosts' image", description=image_command.__doc__)
    image.add_argument("release", nargs="?", choices=sorted(RELEASES), default=DEFAULT_RELEASE)
    image.set_defaults(run=image_command)
    return parser


# --- up and down ----------------------------------------------------------------------------------------------------


def up_command(options: argparse.Namespace) -> int:
    """Start the lab in the background and wait until its API answers. A lab that is up is left as it is."""
    settings = Settings.load(api_only=options.api_only, enforce_iam=options.enforce_iam)
    running = daemon.process(settings.lock_file)
    if running is not None:
        state = _wait_for_state(settings, None)
        wanted = (not settings.api_only, settings.enforce_iam)
        if (state["hosts"], state["enforce_iam"]) != wanted:
            raise LabError(
                f"the lab is up {_mode(state['hosts'], state['enforce_iam'])}, not {_mode(*wanted)}; 'lab down' first"
            )
        print(f"The lab is already up at {settings.endpoint} (process {running})")
        return 0
    if not settings.api_only:
        _need_root("the lab's hosts are containers with networks of their own")
        daemon.make_directory(settings)
        from lab.hosts import image

        image.build(settings, DEFAULT_RELEASE)
    found = (settings.journal_dir / "journal.jsonl").exists()
    process = daemon.start(settings)
    state = _wait_for_state(settings, process)
    hosts = f"{len(state['instances'])} instances" if found else "empty"
    print(f"The lab is up at {settings.endpoint} ({hosts}; {_mode(state['hosts'], state['enforce_iam'])})")
    return 0


def _mode(hosts: bool, enforce_iam: bool) -> str:
    return ("with hosts" if hosts else "with its API only") + (", IAM enforced" if enforce_iam else "")


def _need_root(why: str) -> None:
    if os.geteuid() != 0:
        raise LabError(
            f"this needs root, for {why}: run it with sudo, or 'lab up --api-only' for the API without hosts"
        )


def _wait_for_state(settings: Settings, process: subprocess.Popen[bytes] | None) -> dict[str, Any]:
    deadline = time.monotonic() + UP_SECONDS
    while time.monotonic() < deadline:
        if process is not None and process.poll() is not None:
            raise LabError(f"the lab did not start; the end of {settings.log_file}:\n{_tail(settings.log_file, 15)}")
        state = _state(settings)
        expected = daemon.process(settings.lock_file) if process is None else process.pid
        if state is not None and state["pid"] == expected:
            return state
        time.sleep(0.1)
    raise LabError(f"the API at {settings.endpoint} does not answer; see {settings.log_file}")


def _state(settings: Settings) -> dict[str, Any] | None:
    """Ask the lab's process what there is; None when it does not answer."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{settings.endpoint}/lab/state", timeout=30) as answer:
            state: dict[str, Any] = json.load(answer)
            return state
    except (urllib.error.URLError, OSError, ValueError):
        return None


def down_command(_options: argparse.Namespace) -> int:
    """Remove the lab: its hosts, networks and rules, its process and the directory .lab/, secrets included."""
    settings = Settings.load()
    if not settings.lab_dir.exists():
        print("There is no lab")
        return 0
    known = any(path.exists() for path in (settings.mode_file, settings.lock_file, settings.journal_dir))
    if not known and settings.lab_dir.name != ".lab":
        raise LabError(f"{settings.lab_dir} does not look like a lab's directory; it is left alone")
    with_hosts = _had_hosts(settings)
    if with_hosts:
        _need_root("the lab's hosts are containers with networks of their own")
    _end_process(settings)
    if with_hosts:
        from lab.hosts.reconciler import Reconciler

        Reconciler(settings, _NoHooks()).destroy()
    mounted = _mounts_under(settings.lab_dir)
    if mounted:
        raise LabError(f"something is still mounted under {settings.lab_dir}: {', '.join(mounted)}; unmount it first")
    shutil.rmtree(settings.lab_dir)
    print("The lab is gone")
    return 0


class _NoHooks:
    """Stands for the API when it is gone: nobody is left to be told anything."""

    def mark_running(self, instance_id: str) -> None:
        """Nobody asks."""

    def mark_failed(self, instance_id: str, reason: str) -> None:
        """Nobody asks."""

    def credentials(self, profile: str) -> dict[str, str]:
        """There are none."""
        del profile
        return {}


def _had_hosts(settings: Settings) -> bool:
    try:
        return bool(json.loads(settings.mode_file.read_text())["hosts"])
    except (OSError, ValueError, KeyError):
        # It crashed before it said: look for what it may have left, if we may.
        return os.geteuid() == 0


def _end_process(settings: Settings) -> None:
    running = daemon.process(settings.lock_file)
    if running is None:
        return
    for number, seconds in ((signal.SIGTERM, DOWN_SECONDS), (signal.SIGKILL, 10)):
        try:
            os.kill(running, number)
        except ProcessLookupError:
            return
        except PermissionError as error:
            raise LabError(f"process {running} belongs to another user: run this with sudo") from error
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if daemon.process(settings.lock_file) is None:
                return
            time.sleep(0.05)
    raise LabError(f"process {running} does not end")


def _mounts_under(directory: Path) -> list[str]:
    with Path("/proc/self/mounts").open() as stream:
        points = [line.split()[1] for line in stream]
    return sorted(point for point in points if point.startswith(f"{directory.resolve()}/"))


# --- status ---------------------------------------------------------------------------------------------------------


def status_command(options: argparse.Namespace) -> int:
    """Show the lab's instances with their addresses, roles, states and groups, and every rule between them."""
    settings = Settings.load()
    running = daemon.process(settings.lock_file)
    if running is None:
        crashed = (settings.journal_dir / "journal.jsonl").exists()
        print("The lab is down" + (" but was not taken down: 'lab up' finds it again" if crashed else ""))
        return 3
    state = _state(settings)
    if state is None:
        raise LabError(f"process {running} does not answer at {settings.endpoint}; see {settings.log_file}")
    if options.json:
        print(json.dumps(state, indent=2))
    else:
        print(render(state))
    return 0


def render(state: dict[str, Any]) -> str:
    """Return the lab's state as text: a table of instances, one of networks and one of rules."""
    instances = sorted(state["instances"], key=lambda one: (one["vpc_id"], one["name"]))
    mode = _mode(state["hosts"], state["enforce_iam"])
    head = f"{state['endpoint']}  account {state['account']}  {state['region']}  {mode}"
    if not instances:
        return f"{head}\n\nNo instances"
    rows = [
        (
            one["name"], one["id"], one["state"], one["private_ip"], one["public_ip"] or "-", one["instance_type"],
            dict(one["tags"]).get("Role", "-"), ", ".join(one["groups"]),
        )
        for one in instances
    ]  # fmt: skip
    parts = [head, _table(("NAME", "INSTANCE", "STATE", "PRIVATE", "PUBLIC", "TYPE", "ROLE", "GROUPS"), rows)]
    parts.append(_table(("NETWORK", "SUBNET", "CIDR", "OUTWARD"), _network_rows(state["networks"])))
    parts.append(_table(("TO", "PORTS", "FROM"), _rule_rows(instances)))
    return "\n\n".join(parts)


def _network_rows(networks: Iterable[dict[str, Any]]) -> list[tuple[str, ...]]:
    outward = {"internet": "Internet gateway", "nat": "NAT gateway", "none": "nowhere"}
    return [
        (
            network["id"],
            subnet["id"],
            subnet["cidr"],
            outward[subnet["egress"]] + (f" {subnet['nat_public_ip']}" if subnet["nat_public_ip"] else ""),
        )
        for network in networks
        for subnet in network["subnets"]
    ]


def _rule_rows(instances: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Say who may reach which instance on which ports, addresses of the lab's instances replaced by their names."""
    rows: list[tuple[str, ...]] = []
    for one in instances:
        neighbours = {
            f"{other['private_ip']}/32": other["name"] for other in instances if other["vpc_id"] == one["vpc_id"]
        }
        sources: dict[str, set[str]] = {}
        for rule in one["ingress"]:
            for cidr in rule["cidrs"]:
                name = {"0.0.0.0/0": "anyone", **neighbours}.get(cidr, cidr)
                sources.setdefault(name, set()).add(_ports(rule))
        merged: dict[tuple[str, ...], list[str]] = {}
        for source, ports in sources.items():
            merged.setdefault(tuple(sorted(ports, key=_by_number)), []).append(source)
        rows += [
            (one["name"], " ".join(ports), ", ".join(sorted(names)))
            for ports, names in sorted(merged.items(), key=lambda item: [_by_number(port) for port in item[0]])
        ]
    return rows


def _ports(rule: dict[str, Any]) -> str:
    if rule["protocol"] == "all":
        return "all"
    if rule["protocol"] in ("icmp", "1"):
        return "ping"
    span = str(rule["from_port"]) if rule["from_port"] == rule["to_port"] else f"{rule['from_port']}-{rule['to_port']}"
    return span if rule["protocol"] == "tcp" else f"{span}/{rule['protocol']}"


def _by_number(port: str) -> tuple[int, str]:
    digits = port.partition("/")[0].partition("-")[0]
    return (int(digits) if digits.isdigit() else -1, port)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


# --- ssh, logs, image -----------------------------------------------------------------------------------------------


def ssh_command(options: argparse.Namespace) -> int:
    """Log in to a host by its name. A host without a public address is reached through the one that has one."""
    settings = Settings.load()
    state = _state(settings)
    if state is None:
        raise LabError("the lab is down; 'lab up' starts it")
    arguments = ssh_arguments(settings, state, options)
    os.execvp("ssh", arguments)  # noqa: S606


def ssh_arguments(settings: Settings, state: dict[str, Any], options: argparse.Namespace) -> list[str]:
    """Return the ssh command that reaches a host.

    Raises:
        LabError: there is no such host, no way to it, or no key.
    """
    host = _host_named(state["instances"], options.host)
    if host["state"] != "running":
        raise LabError(f"{host['name']} is {host['state']}")
    key = options.key or _key_of(settings, host)
    common = [
        "-i", str(key), "-o", "IdentitiesOnly=yes", "-o", "StrictHostKeyChecking=accept-new",
        "-o", f"UserKnownHostsFile={key.parent / 'known_hosts'}",
    ]  # fmt: skip
    through: list[str] = []
    address = host["public_ip"]
    if not (address and _admits_ssh(host, settings.controller_address)):
        doors = [
            one
            for one in state["instances"]
            if one["public_ip"] and one["vpc_id"] == host["vpc_id"] and one["state"] == "running"
            if _admits_ssh(one, settings.controller_address)
        ]
        if not doors:
            raise LabError(
                f"no running instance in the network of {host['name']} has a public address and lets SSH in from here"
            )
        door, address = doors[0], host["private_ip"]
        jump = " ".join(["ssh", "-q", "-W", "%h:%p", *common, "-o", f"HostKeyAlias={door['id']}"])
        through = ["-o", f"ProxyCommand={jump} {options.user}@{door['public_ip']}"]
    return ["ssh", *common, "-o", f"HostKeyAlias={host['id']}", *through, f"{options.user}@{address}", *options.command]


def _admits_ssh(host: dict[str, Any], address: str) -> bool:
    return any(
        rule["protocol"] in ("tcp", "all")
        and (rule["from_port"] is None or rule["from_port"] <= 22 <= rule["to_port"])
        and any(ip_address(address) in ip_network(cidr) for cidr in rule["cidrs"] if ":" not in cidr)
        for rule in host["ingress"]
    )


def _host_named(instances: list[dict[str, Any]], name: str) -> dict[str, Any]:
    exact = [one for one in instances if name in (one["name"], one["id"])]
    found = exact or [one for one in instances if one["name"].endswith(f"-{name}")]
    if len(found) == 1:
        return found[0]
    names = ", ".join(sorted(one["name"] for one in (found or instances))) or "none"
    raise LabError(f"'{name}' is {'ambiguous' if found else 'not a host of the lab'}; hosts: {names}")


def _key_of(settings: Settings, host: dict[str, Any]) -> Path:
    """Return the private key whose public half the host was given."""
    wanted = (host["authorized_key"] or "").split()[:2]
    for public in sorted(settings.lab_dir.glob("secrets/*/id_*.pub")):
        if public.read_text().split()[:2] == wanted:
            return public.with_suffix("")
    keys = sorted(settings.lab_dir.glob("secrets/*/id_ed25519"))
    if len(keys) == 1:
        return keys[0]
    raise LabError(f"no private key for {host['name']} under {settings.lab_dir / 'secrets'}; give one with --key")


def logs_command(options: argparse.Namespace) -> int:
    """Show the lab's own log: its start, failures of hosts, requests that could not be replayed."""
    settings = Settings.load()
    if not settings.log_file.exists():
        raise LabError("there is no log: the lab was not started")
    if options.follow:
        os.execvp("tail", ["tail", "-n", str(options.lines), "-F", str(settings.log_file)])  # noqa: S606
    print(_tail(settings.log_file, options.lines))
    return 0


def _tail(path: Path, lines: int) -> str:
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except OSError as error:
        return str(error)


def interrupt_command(options: argparse.Namespace) -> int:
    """Give a spot instance its notice: it stands in the instance's metadata, at /latest/meta-data/spot/instance-action,
    and after two minutes, or --seconds, the instance is stopped or terminated, as its spot request says.
    """
    settings = Settings.load()
    state = _state(settings)
    if state is None:
        raise LabError("the lab is down; 'lab up' starts it")
    host = _host_named(state["instances"], options.host)
    request = urllib.request.Request(  # noqa: S310  the lab's own endpoint, on loopback
        f"{settings.endpoint}/lab/interrupt",
        data=json.dumps({"instance": host["id"], "seconds": options.seconds}).encode(),
        headers={"Content-Type": "application/json"},
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=30) as answer:
            notice = json.load(answer)
    except urllib.error.HTTPError as error:
        raise LabError(error.read().decode(errors="replace").strip()) from error
    print(f"{host['name']} has its notice: {notice['action']} at {notice['time']}")
    return 0


def image_command(options: argparse.Namespace) -> int:
    """Build the image that hosts boot, from the distribution's archive, unless it is there."""
    _need_root("the image's files belong to root")
    from lab.hosts import image

    image.build(Settings.load(), options.release)
    return 0
