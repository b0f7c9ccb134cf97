"""A whole system in the lab, and the hands that the tests lay on it."""

from __future__ import annotations

import json
import os
import shlex
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
BIN = ROOT / ".venv/bin"
SECRETS = ROOT / ".lab/secrets/pneumonia"


def wait_until(what: str, condition: Callable[[], Any], seconds: float) -> Any:
    """Return the first true answer of a condition; fail, naming what was waited for, when none comes in time."""
    deadline = time.monotonic() + seconds
    while True:
        answer = condition()
        if answer:
            return answer
        if time.monotonic() >= deadline:
            pytest.fail(f"{what}: not within {seconds} s")
        time.sleep(0.5)


class System:
    """The pneumonia system as its users and its administrators see it."""

    def __init__(self) -> None:
        self.keys = yaml.safe_load((ROOT / "inventories/lab/aws_ec2.yml").read_text())
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith("AWS_")}

    # --- administrators -------------------------------------------------------------------------------------------

    def make(self, *arguments: str) -> str:
        """Run make; return its output, or fail with it."""
        done = subprocess.run(
            ["make", *arguments], cwd=ROOT, env=self.environment, text=True, check=False, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert done.returncode == 0, f"make {' '.join(arguments)}\n{done.stdout[-15000:]}"
        return done.stdout

    def play(self, playbook: str, *arguments: str, callback: str = "default") -> subprocess.CompletedProcess[str]:
        """Run a playbook by hand."""
        return subprocess.run(
            [str(BIN / "ansible-playbook"), playbook, *arguments], cwd=ROOT, text=True, check=False,
            env={**self.environment, "ANSIBLE_STDOUT_CALLBACK": callback, "ANSIBLE_FORCE_COLOR": "0"},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def client(self, service: str) -> Any:
        """Return a boto3 client of the lab's API."""
        return boto3.client(
            service,
            region_name="us-east-1",
            endpoint_url=self.keys["endpoint_url"],
            aws_access_key_id=self.keys["access_key"],
            aws_secret_access_key=self.keys["secret_key"],
        )

    def instances(self) -> dict[str, dict[str, Any]]:
        """Return the instances by role."""
        found = self.client("ec2").describe_instances(
            Filters=[{"Name": "instance-state-name", "Values": ["pending", "running", "stopping", "stopped"]}]
        )
        instances = [instance for reservation in found["Reservations"] for instance in reservation["Instances"]]
        return {next(tag["Value"] for tag in item["Tags"] if tag["Key"] == "Role"): item for item in instances}

    def on(self, role: str, command: str, check: bool = True) -> str:
        """Run a shell command as root on the host of a role; return what it printed."""
        done = subprocess.run(
            [sys.executable, "-m", "lab", "ssh", f"pneumonia-{role}", f"sudo sh -c {shlex.quote(command)}"],
            cwd=ROOT, env=self.environment, text=True, check=False, capture_output=True, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{role}: {command}\n{done.stdout}{done.stderr}"
        return done.stdout.strip()

    # --- users ------------------------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """The address of the page."""
        return f"https://{self.instances()['proxy']['PublicIpAddress']}"

    def fetch(self, path: str, data: bytes | None = None, headers: dict[str, str] | None = None) -> tuple[int, str]:
        """Ask the page; return status and text. 0 stands for no answer at all."""
        context = ssl.create_default_context(cafile=str(SECRETS / "proxy.crt"))
        request = urllib.request.Request(self.url + path, data=data, headers=headers or {})
        try:
            with urllib.request.urlopen(request, context=context, timeout=20) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)

    def upload(self, content: bytes, name: str = "xray.png") -> tuple[int, str]:
        """Upload a file as the page's form does."""
        boundary = uuid.uuid4().hex
        body = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'
            "Content-Type: image/png\r\n\r\n"
        ).encode() + content + f"\r\n--{boundary}--\r\n".encode()  # fmt: skip
        return self.fetch("/upload_predict", body, {"Content-Type": f"multipart/form-data; boundary={boundary}"})

    def smoke(self) -> bytes:
        """Return the smoke image of the live model."""
        return (SECRETS / "smoke.png").read_bytes()

    def model(self) -> dict[str, Any]:
        """Return what the API has loaded."""
        return dict(json.loads(self.on("api", "curl -sS http://127.0.0.1:5000/v1/model")))

    def ready(self) -> bool:
        """Return whether an upload is answered with a verdict."""
        status, text = self.upload(self.smoke())
        return status == 200 and "data-verdict=" in text


class Visitors:
    """People who upload an image every second or so, while something happens to the system."""

    def __init__(self, system: System) -> None:
        self.system, self.image = system, system.smoke()
        self.answers: list[tuple[int, str]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._visit, daemon=True)

    def _visit(self) -> None:
        while not self._stop.is_set():
            self.answers.append(self.system.upload(self.image))
            self._stop.wait(1.2)

    def __enter__(self) -> Visitors:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)

    def failed(self) -> list[tuple[int, str]]:
        """Return the answers that were not a verdict."""
        return [(status, text[:300]) for status, text in self.answers if status != 200 or "data-verdict=" not in text]


@pytest.fixture(scope="session")
def system() -> Iterator[System]:
    """The pneumonia system, brought up by `make up` and removed at the end."""
    system = System()
    yield system
    subprocess.run(["make", "down"], cwd=ROOT, check=True, stdin=subprocess.DEVNULL)
