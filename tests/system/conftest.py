"""A whole system in the lab, and the hands that the tests lay on it.

A test that fails ends with what the journals of all hosts say of what went wrong.

The first test brings the system up and the last takes it away, so that all files share one. With ``LIGHTBOX_KEEP=1``
the lab stays when the tests end, and a file can be run alone against a system that is up. Screenshots are kept in
``$LIGHTBOX_SCREENSHOTS``, or else in ``.lab-artefacts/screenshots``.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import boto3
import botocore.exceptions
import pytest
import yaml
from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
BIN = ROOT / ".venv/bin"
# Units that have failed with their last words, then what a host warns of.
LAST_WORDS = """
for unit in $(systemctl --failed --plain --no-legend | cut --delimiter=" " --fields=1); do
    echo "$unit has failed:"
    journalctl --boot --no-pager --output=short-iso --unit="$unit" --lines=50
done
echo Warnings:
journalctl --boot --no-pager --output=short-iso --priority=warning --lines=50
"""


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
    """A system as its users and its administrators see it."""

    def __init__(self, name: str = "pneumonia") -> None:
        self.name = name
        self.secrets = ROOT / ".lab/secrets" / name
        self.keys = yaml.safe_load((ROOT / "inventories/lab/aws_ec2.yml").read_text())
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith("AWS_")}

    # --- administrators -------------------------------------------------------------------------------------------

    def make(self, *arguments: str) -> str:
        """Run make; return its output, or fail with it."""
        done = subprocess.run(
            ["make", f"SYSTEM={self.name}", *arguments], cwd=ROOT, env=self.environment, text=True, check=False,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert done.returncode == 0, f"make {' '.join(arguments)}\n{done.stdout[-15000:]}"
        return done.stdout

    def play(self, playbook: str, *arguments: str, callback: str = "default") -> subprocess.CompletedProcess[str]:
        """Run a playbook by hand, on the inventories of this system unless others are named."""
        inventories = [] if "-i" in arguments else ["-i", "inventories/lab", "-i", f"inventories/{self.name}"]
        return subprocess.run(
            [str(BIN / "ansible-playbook"), playbook, *inventories, *arguments], cwd=ROOT, text=True, check=False,
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
        """Return the instances by name, without the system's."""
        found = self.client("ec2").describe_instances(
            Filters=[
                {"Name": "instance-state-name", "Values": ["pending", "running", "stopping", "stopped"]},
                {"Name": "tag:System", "Values": [self.name]},
            ]
        )
        instances = [instance for reservation in found["Reservations"] for instance in reservation["Instances"]]
        names = [next(tag["Value"] for tag in item["Tags"] if tag["Key"] == "Name") for item in instances]
        return {name.removeprefix(f"{self.name}-"): item for name, item in zip(names, instances, strict=True)}

    def on(self, host: str, command: str, check: bool = True, seconds: float | None = None) -> str:
        """Run a shell command as root on a host; return what it printed."""
        done = subprocess.run(
            [sys.executable, "-m", "lab", "ssh", f"{self.name}-{host}", f"sudo sh -c {shlex.quote(command)}"],
            cwd=ROOT, env=self.environment, text=True, check=False, capture_output=True, stdin=subprocess.DEVNULL,
            timeout=seconds,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{host}: {command}\n{done.stdout}{done.stderr}"
        return done.stdout.strip()

    def last_words(self) -> dict[str, str]:
        """Return by host what its journal says of what went wrong; of one that cannot be asked, why."""
        try:
            found = dict.fromkeys(self.instances(), "")
        except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
            return {"nobody": str(error)}
        for host in found:
            try:
                found[host] = self.on(host, LAST_WORDS, check=False, seconds=20) or "It says nothing."
            except subprocess.TimeoutExpired as error:
                found[host] = str(error)
        return found

    # --- users ------------------------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """The address of the page."""
        proxy = next(one for one in self.instances().values() if {"Key": "Role", "Value": "proxy"} in one["Tags"])
        return f"https://{proxy['PublicIpAddress']}"

    def context(self) -> ssl.SSLContext:
        """Return what trusts the proxy's certificate."""
        return ssl.create_default_context(cafile=str(self.secrets / "proxy.crt"))

    def fetch(
        self, path: str, data: bytes | None = None, headers: dict[str, str] | None = None,
        url: str | None = None, context: ssl.SSLContext | None = None,
    ) -> tuple[int, str]:  # fmt: skip
        """Ask the page; return status and text. 0 stands for no answer at all."""
        request = urllib.request.Request((url or self.url) + path, data=data, headers=headers or {})
        try:
            with urllib.request.urlopen(request, context=context or self.context(), timeout=20) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)

    def upload(
        self, content: bytes, name: str = "xray.png", url: str | None = None, context: ssl.SSLContext | None = None
    ) -> tuple[int, str]:
        """Upload a file as the page's form does."""
        boundary = uuid.uuid4().hex
        body = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'
            "Content-Type: image/png\r\n\r\n"
        ).encode() + content + f"\r\n--{boundary}--\r\n".encode()  # fmt: skip
        headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        return self.fetch("/upload_predict", body, headers, url, context)

    def smoke(self) -> bytes:
        """Return the smoke image of the live model."""
        return (self.secrets / "smoke.png").read_bytes()

    def model(self, host: str = "api") -> dict[str, Any]:
        """Return what an API host has loaded."""
        return dict(json.loads(self.on(host, "curl -sS http://127.0.0.1:5000/v1/model")))

    def ready(self) -> bool:
        """Return whether an upload is answered with a verdict."""
        status, text = self.upload(self.smoke())
        return status == 200 and "data-verdict=" in text


class Visitors:
    """People who upload an image each, look for a moment and upload the next, while something happens to the system.

    They share one address, so together they stay below the five uploads a second that the proxy takes from one.
    """

    def __init__(self, system: System, people: int = 1, pause: float = 1.2) -> None:
        self.system, self.image, self.pause = system, system.smoke(), pause
        # Address and certificate are asked for once: the lab's own process may be what something happens to.
        self.url, self.context = system.url, system.context()
        self.answers: list[tuple[float, int, str]] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._visit, daemon=True) for _ in range(people)]

    def _visit(self) -> None:
        while not self._stop.is_set():
            begun = time.monotonic()
            status, text = self.system.upload(self.image, url=self.url, context=self.context)
            self.answers.append((begun, status, text))
            self._stop.wait(self.pause)

    def __enter__(self) -> Visitors:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def failed(self, since: float = 0) -> list[tuple[int, str]]:
        """Return the answers that were not a verdict, of requests begun at ``since`` (monotonic) or later."""
        return [
            (status, text[:300])
            for begun, status, text in self.answers
            if begun >= since and (status != 200 or "data-verdict=" not in text)
        ]


@pytest.fixture(scope="session")
def system() -> Iterator[System]:
    """The pneumonia system, brought up by `make up` and removed at the end."""
    system = System()
    yield system
    if not os.environ.get("LIGHTBOX_KEEP"):
        subprocess.run(["make", "down"], cwd=ROOT, check=True, stdin=subprocess.DEVNULL)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Function) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the journals of a system's hosts to the report of a failed test."""
    report = yield
    if report.failed:
        for system in (value for value in item.funcargs.values() if isinstance(value, System)):
            for host, words in system.last_words().items():
                report.sections.append((f"journal of {system.name}-{host}", words))
    return report


# --- a browser ------------------------------------------------------------------------------------------------------

# A browser that talks to nobody but the page.
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
SHOTS = Path(os.environ.get("LIGHTBOX_SCREENSHOTS") or ROOT / ".lab-artefacts/screenshots")
DESK = {"width": 1200, "height": 800}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The distribution's Chromium."""
    path = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if not path:
        pytest.fail("these tests need a browser: install Debian's package chromium, or name one in CHROMIUM")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield launched
        launched.close()


def opened(browser: Browser, system: System, **options: object) -> Iterator[Page]:
    """Open a page; whatever it asks elsewhere, throws or does against its own policy is a failure."""
    # The lab's certificate is made on the proxy; the doctor (playbooks/verify.yml) checks it.
    settings = {"viewport": DESK, "base_url": system.url, "ignore_https_errors": True, **options}
    context = browser.new_context(**settings)  # type: ignore[arg-type]
    context.set_default_timeout(20_000)
    page = context.new_page()
    foreign: list[str] = []
    thrown: list[str] = []
    page.on("request", lambda request: foreign.append(request.url))
    page.on("pageerror", lambda error: thrown.append(str(error)))
    page.on("console", lambda message: thrown.append(message.text) if "Security Policy" in message.text else None)
    yield page
    context.close()
    assert [url for url in foreign if not url.startswith((system.url, "data:", "blob:"))] == []
    assert thrown == []


def shot(page: Page, name: str) -> None:
    """Keep a picture of the page."""
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / f"{name}.png", full_page=True)


ORDER = ("test_pneumonia", "test_pages", "test_status", "test_logs", "test_alerts", "test_two_api_hosts",
         "test_collection", "test_mnist", "test_down")  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files into the order in which the system lives."""
    items.sort(key=lambda item: ORDER.index(item.path.stem) if item.path.stem in ORDER else -1)
