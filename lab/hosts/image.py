"""The operating system image of the lab's hosts, and the containers.conf with which this machine can run it.

The image is a plain Debian made from the distribution's own archive, with what Debian's cloud images have: systemd,
an SSH server that makes its keys at first boot, and the user ``admin`` with sudo and without a password. It trusts the
certificate authorities that this machine trusts, so that package clients work behind a TLS-inspecting proxy.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Final, Protocol

HERE: Final = Path(__file__).parent
AUTHORITIES: Final = Path("/usr/local/share/ca-certificates")
BUNDLE: Final = "/etc/ssl/certs/ca-certificates.crt"
LABEL: Final = "lightbox.recipe"
RELEASES: Final = ("bookworm", "trixie")
PACKAGES: Final = (
    "systemd",
    "systemd-sysv",
    "dbus",
    "libpam-systemd",
    "openssh-server",
    "sudo",
    "python3",
    "python3-apt",
    "python3-yaml",
    "ca-certificates",
    "curl",
    "iproute2",
    "iputils-ping",
    "netbase",
    "procps",
    "tzdata",
)
PROXIES: Final = ("http_proxy", "https_proxy", "no_proxy")

# What a host needs beyond podman's default capabilities so that its own systemd can do what it does on a real machine:
# mount namespaces (ProtectSystem, PrivateTmp, LoadCredential, DynamicUser …), priorities, ping, reboot and poweroff.
# NET_ADMIN is left out on purpose: root on a host must not be able to lift its security groups.
RUN_OPTIONS: Final = (
    "--systemd=always",
    "--cap-add=SYS_ADMIN,SYS_BOOT,SYS_NICE,SYS_PTRACE,NET_RAW,AUDIT_WRITE,MKNOD",
    "--pids-limit=-1",
)


class Settings(Protocol):
    """What this module needs of the lab's settings."""

    @property
    def lab_dir(self) -> Path:
        """Directory of the lab's state."""


class ImageError(RuntimeError):
    """The image could not be built; the message says what to do."""


def image_name(release: str) -> str:
    """Return podman's name of the image for a Debian release."""
    return f"localhost/lightbox-host:{release}"


def environment() -> dict[str, str]:
    """Return the variables that every process on a host should see, however it was started."""
    found = {"SSL_CERT_FILE": BUNDLE, "REQUESTS_CA_BUNDLE": BUNDLE}
    for name in PROXIES:
        if value := os.environ.get(name) or os.environ.get(name.upper()):
            found[name] = value
    if "http_proxy" in found or "https_proxy" in found:
        found["no_proxy"] = ",".join(filter(None, (found.get("no_proxy"), "169.254.169.254")))
    return found


def recipe_digest(release: str) -> str:
    """Return the digest of everything that decides what the image holds, except the archive's own contents."""
    digest = hashlib.sha256()
    mirror = os.environ.get("LAB_MIRROR", "")
    digest.update(json.dumps([release, mirror, PACKAGES, sorted(environment().items())]).encode())
    files = [HERE / "customize.sh", *(HERE / "rootfs").rglob("*"), *AUTHORITIES.rglob("*.crt")]
    for file in sorted(file for file in files if file.is_file()):
        digest.update(str(file.relative_to(HERE) if file.is_relative_to(HERE) else file).encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _command(arguments: list[str], env: dict[str, str] | None = None) -> str:
    """Run a program; return what it printed, or raise ImageError with what it said."""
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, env={**os.environ, **(env or {})})
    if done.returncode:
        said = "\n".join((done.stderr.strip() or done.stdout.strip()).splitlines()[-12:])
        raise ImageError(f"{arguments[0]} failed ({done.returncode}):\n{said}")
    return done.stdout


def _present(release: str, env: dict[str, str]) -> bool:
    """Tell whether the image exists and was made with today's recipe."""
    template = "{{index .Labels " + f'"{LABEL}"' + "}}"
    done = subprocess.run(
        ["podman", "image", "inspect", "--format", template, image_name(release)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **env},
    )
    return done.returncode == 0 and done.stdout.strip() == recipe_digest(release)


def _write_environment(root: Path) -> None:
    """Write the common variables where logins (PAM) and services (systemd) find them."""
    pairs = environment().items()
    etc = root / "etc"
    (etc / "systemd/system.conf.d").mkdir(parents=True)
    (etc / "environment").write_text("".join(f'{name}="{value}"\n' for name, value in pairs))
    listed = " ".join(f'"{name}={value}"' for name, value in pairs)
    (etc / "systemd/system.conf.d/10-image.conf").write_text(f"[Manager]\nDefaultEnvironment={listed}\n")


def build(settings: Settings, release: str = "bookworm", *, force: bool = False) -> str:
    """Make the image for a Debian release unless it is there already; return its name.

    Raises:
        ImageError: the release is unknown, a needed program is missing, or a step failed.
    """
    if release not in RELEASES:
        raise ImageError(f"unknown release {release!r}: choose one of {', '.join(RELEASES)}")
    missing = [program for program in ("podman", "mmdebstrap") if not shutil.which(program)]
    if missing:
        raise ImageError(f"{', '.join(missing)} not found: install lab/packages.txt with apt-get")
    env = {"CONTAINERS_CONF": str(containers_conf(settings))}
    name = image_name(release)
    if not force and _present(release, env):
        return name
    with tempfile.TemporaryDirectory(prefix="lightbox-image-") as scratch:
        overlay, authorities, tarball = Path(scratch, "rootfs"), Path(scratch, "authorities"), Path(scratch, "root.tar")
        shutil.copytree(HERE / "rootfs", overlay)
        _write_environment(overlay)
        authorities.mkdir()
        for file in AUTHORITIES.rglob("*.crt"):
            shutil.copy(file, authorities / file.name)
        hook = f'sh {HERE / "customize.sh"} "$1" {overlay} {authorities}'
        mirror = os.environ.get("LAB_MIRROR")
        _command(
            [
                "mmdebstrap",
                "--quiet",
                "--mode=root",
                "--variant=minbase",
                f"--include={','.join(PACKAGES)}",
                f"--customize-hook={hook}",
                release,
                str(tarball),
                *([mirror] if mirror else []),
            ]
        )
        changes = [f"ENV {key}={value}" for key, value in environment().items()]
        changes += [f"LABEL {LABEL}={recipe_digest(release)}", 'CMD ["/sbin/init"]', "STOPSIGNAL SIGRTMIN+3"]
        options = [word for change in changes for word in ("--change", change)]
        _command(["podman", "import", "--quiet", *options, str(tarball), name], env)
    # The image that had this name before; one that a host still uses stays.
    _command(["podman", "image", "prune", "--force", "--filter", f"label={LABEL}"], env)
    return name


# --- containers.conf -------------------------------------------------------------------------------------------------


def _try_limits(wanted: dict[int, int]) -> None:
    for limit, value in wanted.items():
        resource.setrlimit(limit, (value, value))


def _can_raise_limits() -> bool:
    """Tell whether podman's own default limits can be set here (some machines withhold CAP_SYS_RESOURCE)."""
    wanted = {resource.RLIMIT_NOFILE: 1048576, resource.RLIMIT_NPROC: 4194304}
    child = multiprocessing.get_context("fork").Process(target=_quiet_try_limits, args=(wanted,))
    child.start()
    child.join()
    return child.exitcode == 0


def _quiet_try_limits(wanted: dict[int, int]) -> None:
    try:
        _try_limits(wanted)
    except (OSError, ValueError):
        sys.exit(1)


def _limit(name: str, number: int, ceiling: int) -> str:
    # podman lowers its own process limit to 32768 before it starts the runtime, which then cannot raise it again.
    hard = resource.getrlimit(number)[1]
    value = ceiling if hard == resource.RLIM_INFINITY else min(hard, ceiling)
    return f'"{name}={value}:{value}"'


def _has_netavark() -> bool:
    folders = ("/usr/lib/podman", "/usr/libexec/podman", "/usr/local/lib/podman", "/usr/local/libexec/podman")
    return any(Path(folder, "netavark").exists() for folder in folders)


def containers_conf_text() -> str:
    """Return the containers.conf for this machine, from what it shows: cgroups, limits, service manager, plugins.

    Raises:
        ImageError: no installed runtime can start a container here.
    """
    containers, engine, network = ["log_size_max = 1048576"], [], []
    if not _can_raise_limits():
        limits = _limit("nofile", resource.RLIMIT_NOFILE, 1048576), _limit("nproc", resource.RLIMIT_NPROC, 32768)
        containers.append(f"default_ulimits = [{', '.join(limits)}]")
    if not Path("/sys/fs/cgroup/cgroup.controllers").exists():
        # crun refuses hybrid cgroups; runc takes version 1 and hybrid alike.
        if not shutil.which("runc"):
            raise ImageError("this machine's cgroups are not version 2, which needs runc: apt-get install runc")
        engine.append('runtime = "runc"')
    if not Path("/run/systemd/system").exists():
        engine += ['cgroup_manager = "cgroupfs"', 'events_logger = "file"']
    if _has_netavark():
        network.append('network_backend = "netavark"')
    sections = {"containers": containers, "engine": engine, "network": network}
    return "\n".join(
        f"[{name}]\n" + "".join(f"{line}\n" for line in lines) for name, lines in sections.items() if lines
    )


def containers_conf(settings: Settings) -> Path:
    """Write the lab's containers.conf and return its path; podman reads it where CONTAINERS_CONF names it."""
    path = settings.lab_dir / "containers.conf"
    text = containers_conf_text()
    if not path.exists() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(f".{os.getpid()}")
        draft.write_text(text)
        draft.replace(path)
    return path


def main(arguments: list[str] | None = None) -> int:
    """Build the images named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m lab.hosts.image", description=main.__doc__)
    parser.add_argument("release", nargs="*", default=["bookworm"], help=f"one or more of {', '.join(RELEASES)}")
    parser.add_argument("--force", action="store_true", help="build even if the image is there")
    parser.add_argument("--lab-dir", type=Path, default=Path(os.environ.get("LAB_DIR", ".lab")))
    options = parser.parse_args(arguments)
    settings = SimpleNamespace(lab_dir=options.lab_dir.absolute())
    try:
        for release in options.release:
            print(build(settings, release, force=options.force))
    except ImageError as error:
        print(f"image: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
