"""Instances as podman containers: what is put into one before its first boot, and its life after that."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import select
import subprocess
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lab.hosts import image
from lab.hosts.system import METADATA, NETNS, RESOLVER, HostError, Names, run
from lab.settings import Settings
from lab.world import Instance

log = logging.getLogger(__name__)

LABEL: Final = "lightbox.lab"
IDENTITY: Final = "lightbox.lab.identity"
UV_CACHE: Final = "/var/cache/uv"
ADMIN: Final = 1000  # the first user of the image, admin
STOP_SECONDS: Final = 20
CGROUPS: Final = Path("/sys/fs/cgroup")

# What the reboot(2) of a container's init leaves as its exit status: the signal that the kernel ends it with.
REBOOTED: Final = 129
POWERED_OFF: Final = 130


@dataclass(frozen=True)
class Found:
    """A container of this lab, as podman shows it.

    Attributes:
        instance_id: the instance that it is.
        identity: digest of what its first boot was made from.
        running: whether its init runs.
        pid: process id of its init, 0 if it does not run.
        exit_code: how its init ended last.
    """

    instance_id: str
    identity: str
    running: bool
    pid: int
    exit_code: int


def private_name(instance: Instance) -> str:
    """Return the host name that EC2 gives an instance by default."""
    return f"ip-{instance.private_ip.replace('.', '-')}"


def domain(region: str) -> str:
    """Return the domain of private host names."""
    return "ec2.internal" if region == "us-east-1" else f"{region}.compute.internal"


def identity(instance: Instance) -> str:
    """Return a digest of what cannot change in an instance's life; another one means another instance."""
    fixed = [
        instance.id,
        instance.image,
        instance.private_ip,
        instance.subnet_id,
        instance.authorized_key,
    ]
    return hashlib.sha256(json.dumps(fixed).encode()).hexdigest()[:16]


def memory_limit(instance_type: str) -> int | None:
    """Return an instance type's memory in bytes, or None for a type that is not known."""
    from moto.ec2.models.instance_types import INSTANCE_TYPES

    entry = INSTANCE_TYPES.get(instance_type)
    return int(entry["MemoryInfo"]["SizeInMiB"]) * 1024 * 1024 if entry else None


def limit_memory(cgroup: str, limit: int) -> bool:
    """Set a container's memory limit, in bytes; tell whether this machine's cgroups let us."""
    for file in (
        CGROUPS / cgroup.strip("/") / "memory.max",
        CGROUPS / "memory" / cgroup.strip("/") / "memory.limit_in_bytes",
    ):
        if file.exists():
            try:
                file.write_text(str(limit))
            except OSError as error:
                log.debug("memory of %s is not limited: %s", cgroup, error)
                return False
            return True
    return False


def _archive(files: dict[str, tuple[bytes, int, int]]) -> bytes:
    """Return a tar archive of files, given as content, mode and owner by path."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path, (content, mode, owner) in files.items():
            entry = tarfile.TarInfo(path)
            entry.mode, entry.uid, entry.gid, entry.mtime = mode, owner, owner, int(time.time())
            if path.endswith("/"):
                entry.type = tarfile.DIRTYPE
                tar.addfile(entry)
            else:
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


class Containers:
    """The lab's containers on this machine."""

    def __init__(self, settings: Settings, names: Names) -> None:
        """Take the settings; touch nothing but containers.conf and the cache directory."""
        self.settings = settings
        self.names = names
        self._env = {"CONTAINERS_CONF": str(image.containers_conf(settings))}
        self.cache = Path(getattr(settings, "cache_dir", "") or settings.lab_dir.parent / ".cache" / "lab") / "uv"
        self.cache.mkdir(parents=True, exist_ok=True)

    def _podman(self, *arguments: str, check: bool = True) -> str:
        return run("podman", *arguments, check=check, env=self._env)

    def environment(self) -> dict[str, str]:
        """Return the variables that hosts of this lab see beside those of the image."""
        return {
            **image.environment(),
            "AWS_ENDPOINT_URL": f"http://{METADATA}:{self.settings.port}",
            "AWS_REGION": self.settings.region,
            "AWS_DEFAULT_REGION": self.settings.region,
            "UV_CACHE_DIR": UV_CACHE,
            "UV_LINK_MODE": "copy",
        }

    def first_boot_files(self, instance: Instance) -> dict[str, tuple[bytes, int, int]]:
        """Return the files that make an instance of the image, as content, mode and owner by path."""
        short = private_name(instance)
        full = f"{short}.{domain(self.settings.region)}"
        pairs = self.environment().items()
        listed = " ".join(f'"{name}={value}"' for name, value in pairs)
        hosts = (
            "127.0.0.1 localhost",
            "::1 localhost ip6-localhost ip6-loopback",
            f"{instance.private_ip} {full} {short}",
        )
        texts = {
            "etc/hosts": "".join(f"{line}\n" for line in hosts),
            "etc/hostname": f"{short}\n",
            "etc/resolv.conf": f"nameserver {RESOLVER}\nsearch {domain(self.settings.region)}\n",
            "etc/environment": "".join(f'{name}="{value}"\n' for name, value in pairs),
            "etc/systemd/system.conf.d/20-instance.conf": f"[Manager]\nDefaultEnvironment={listed}\n",
        }
        files = {path: (text.encode(), 0o644, 0) for path, text in texts.items()}
        if instance.authorized_key:
            files["home/admin/.ssh/"] = (b"", 0o700, ADMIN)
            files["home/admin/.ssh/authorized_keys"] = (f"{instance.authorized_key}\n".encode(), 0o600, ADMIN)
        if instance.user_data:
            files["var/lib/cloud/instance/user-data.txt"] = (instance.user_data.encode(), 0o600, 0)
        return files

    def create(self, instance: Instance) -> None:
        """Make an instance's container, ready for its first boot; podman wants its namespace to be there."""
        name, draft = self.names.host(instance.id), f"{self.names.host(instance.id)}.draft"
        self._podman("rm", "--force", "--time", "0", "--ignore", name, draft)
        self._podman(
            "create",
            "--name",
            draft,
            "--hostname",
            private_name(instance),
            *image.RUN_OPTIONS,
            f"--network=ns:{NETNS / name}",
            "--no-hosts",
            "--dns=none",
            "--shm-size=0",
            f"--label={LABEL}={self.names.prefix}",
            f"--label={IDENTITY}={identity(instance)}",
            f"--volume={self.cache}:{UV_CACHE}",
            image.image_name(instance.image),
            "/sbin/init",
        )
        done = subprocess.run(
            ["podman", "cp", "--archive=false", "-", f"{draft}:/"],
            input=_archive(self.first_boot_files(instance)),
            capture_output=True,
            check=False,
            env={**os.environ, **self._env},
        )
        if done.returncode:
            raise HostError(f"podman cp: {done.stderr.decode(errors='replace').strip()[-600:]}")
        # Only a complete container gets the name under which a lab that was killed would find it again.
        self._podman("rename", draft, name)

    def start(self, instance: Instance) -> int:
        """Boot an instance; return the process id of its init."""
        name = self.names.host(instance.id)
        self._podman("start", name)
        state = json.loads(self._podman("inspect", "--type=container", "--format={{json .State}}", name))
        limit = memory_limit(instance.instance_type)
        if limit and state.get("CgroupPath"):
            limit_memory(state["CgroupPath"], limit)
        return int(state["Pid"])

    def stop(self, instance_id: str) -> None:
        """Shut an instance down in order, by force after a while; its files stay."""
        self._podman("stop", "--ignore", "--time", str(STOP_SECONDS), self.names.host(instance_id))

    def remove(self, instance_id: str) -> None:
        """Remove an instance's container and files, at once."""
        self._podman("rm", "--force", "--volumes", "--time", "0", "--ignore", self.names.host(instance_id))

    def exit_code(self, instance_id: str) -> int:
        """Return how an instance's init ended, once podman has taken note of it."""
        return int(self._podman("wait", "--interval", "50ms", self.names.host(instance_id)).split()[-1])

    def found(self) -> dict[str, Found]:
        """Return this lab's containers by instance id."""
        listing = json.loads(
            self._podman("ps", "--all", f"--filter=label={LABEL}={self.names.prefix}", "--format=json") or "[]"
        )
        start = f"{self.names.prefix}-"
        return {
            (instance_id := entry["Names"][0].removeprefix(start)): Found(
                instance_id=instance_id,
                identity=entry["Labels"].get(IDENTITY, ""),
                running=entry["State"] == "running",
                pid=int(entry.get("Pid") or 0),
                exit_code=int(entry.get("ExitCode") or 0),
            )
            for entry in listing
        }

    def ensure_image(self, release: str) -> None:
        """Build a release's image if it is not there."""
        image.build(self.settings, release)


class Watch:
    """Notices at no cost when a process that is not our child ends."""

    def __init__(self, pid: int) -> None:
        """Watch a process; one that is gone already counts as ended."""
        try:
            self._descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            self._descriptor = -1

    def ended(self) -> bool:
        """Tell whether the process has ended."""
        if self._descriptor < 0:
            return True
        readable, _, _ = select.select([self._descriptor], [], [], 0)
        return bool(readable)

    def close(self) -> None:
        """Stop watching."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
