"""Where the lab lives, which addresses it uses and what its account may do."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# The credentials of the lab. They are fakes, the same on every machine, and open nothing but a lab on loopback. They
# are long because Ansible censors a secret wherever its text appears in a result: a short one would mask plain words.
ACCESS_KEY = "LKIALIGHTBOXLAB00000"
SECRET_KEY = "the-lab-accepts-any-key-this-one-opens-nothing-elsewhere"  # noqa: S105

ACCOUNT = "000000424242"
REGION = "us-east-1"

# The owner of Debian's images on AWS, and what the lab boots for each of them.
DEBIAN_OWNER = "136693071363"
RELEASES = {"bookworm": "12", "trixie": "13"}
DEFAULT_RELEASE = "bookworm"


@dataclass(frozen=True)
class Settings:
    """Everything about a lab that can differ between two labs on one machine.

    Attributes:
        lab_dir: directory of all state; removed by ``lab down``.
        port: TCP port of the API, on loopback and, for instances, on ``instance_api_address``.
        public_cidr: range that stands for the Internet's addresses; the first nine are the lab's own.
        controller_address: the address as which hosts see this machine.
        standard_vcpus: quota L-1216C47A, running on-demand vCPUs of the A, C, D, H, I, M, R, T and Z families.
        gpu_vcpus: quota L-DB2E81BA, running on-demand vCPUs of the G and VT families.
        spot_standard_vcpus: quota L-34B43A08, running spot vCPUs of the same families as the on-demand ones.
        spot_gpu_vcpus: quota L-3819A6DF, running spot vCPUs of the G and VT families.
        spot_room_vcpus: vCPUs that the spot market has room for at all.
        elastic_addresses: quota L-0263D0A3, Elastic IPs of a region.
        hold_seconds: how long DescribeInstances waits for an instance in it to leave a passing state.
        prune_seconds: how long a terminated instance stays listed.
    """

    lab_dir: Path
    port: int = 4566
    account: str = ACCOUNT
    region: str = REGION
    access_key: str = ACCESS_KEY
    secret_key: str = SECRET_KEY
    public_cidr: str = "198.18.0.0/16"
    controller_address: str = "198.18.0.1"
    instance_api_address: str = "169.254.169.254"
    standard_vcpus: float = 32
    gpu_vcpus: float = 8
    spot_standard_vcpus: float = 32
    spot_gpu_vcpus: float = 8
    spot_room_vcpus: float = 40
    elastic_addresses: float = 5
    hold_seconds: float = 20
    prune_seconds: float = 300
    api_only: bool = False
    enforce_iam: bool = False

    @classmethod
    def load(
        cls, environment: Mapping[str, str] = os.environ, *, api_only: bool = False, enforce_iam: bool = False
    ) -> Settings:
        """Read the settings from LAB_* variables; raise ValueError naming a variable that cannot be read."""
        return cls(
            lab_dir=Path(environment.get("LAB_DIR") or ROOT / ".lab").absolute(),
            port=int(_number(environment, "LAB_PORT", cls.port)),
            standard_vcpus=_number(environment, "LAB_VCPU_LIMIT", cls.standard_vcpus),
            gpu_vcpus=_number(environment, "LAB_GPU_VCPU_LIMIT", cls.gpu_vcpus),
            spot_standard_vcpus=_number(environment, "LAB_SPOT_VCPU_LIMIT", cls.spot_standard_vcpus),
            spot_gpu_vcpus=_number(environment, "LAB_SPOT_GPU_VCPU_LIMIT", cls.spot_gpu_vcpus),
            spot_room_vcpus=_number(environment, "LAB_SPOT_ROOM", cls.spot_room_vcpus),
            elastic_addresses=_number(environment, "LAB_EIP_LIMIT", cls.elastic_addresses),
            hold_seconds=_number(environment, "LAB_HOLD_SECONDS", cls.hold_seconds),
            prune_seconds=_number(environment, "LAB_PRUNE_SECONDS", cls.prune_seconds),
            api_only=api_only,
            enforce_iam=enforce_iam,
        )

    @property
    def endpoint(self) -> str:
        """URL of the API on this machine."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def journal_dir(self) -> Path:
        """Directory of the journal of requests."""
        return self.lab_dir / "journal"

    @property
    def lock_file(self) -> Path:
        """File that the lab's process holds locked while it lives; contains its process id."""
        return self.lab_dir / "lab.pid"

    @property
    def log_file(self) -> Path:
        """The lab's own log."""
        return self.lab_dir / "lab.log"

    @property
    def mode_file(self) -> Path:
        """JSON file that says with which options the lab was started."""
        return self.lab_dir / "lab.json"


def _number(environment: Mapping[str, str], name: str, default: float) -> float:
    text = environment.get(name)
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = -1
    if value < 0:
        raise ValueError(f"{name} is '{text}', which is not a number of at least 0")
    return value
