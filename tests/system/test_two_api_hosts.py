"""A second API host and a second training host by a line of the inventory each: one case store, no request lost when an
API host goes, and one model that both training hosts trained.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from .conftest import ROOT, System, Visitors, wait_until
from .test_pneumonia import copy_of_the_live_bundle

pytestmark = [pytest.mark.system, pytest.mark.timeout(1800)]

LINES = (
    "  - {name: api2, role: api, subnet: private-app, type: t3.medium, disk_gb: 20, public: false, bucket: read}\n"
    "  - {name: trainer2, role: trainer, subnet: private-training, type: g4dn.xlarge, disk_gb: 100, public: false, "
    "bucket: write}\n"
)


@pytest.fixture(scope="module")
def inventory(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The inventory with two more lines; keys and passwords are those of the lab."""
    directory = tmp_path_factory.mktemp("two")
    shutil.copytree(ROOT / "inventories", directory / "inventories")
    (directory / ".lab").symlink_to(ROOT / ".lab")
    network = directory / "inventories/pneumonia/group_vars/all/network.yml"
    text = network.read_text()
    network.write_text(re.sub(r"(?m)^(  - \{name: trainer,)", LINES + r"\1", text))
    assert len(network.read_text().splitlines()) == len(text.splitlines()) + 2
    return ["-i", str(directory / "inventories/lab"), "-i", str(directory / "inventories/pneumonia")]


def ready(system: System, host: str) -> bool:
    return system.on(host, "curl -s -o /dev/null -w '%{http_code}' http://127.0.0.1:5000/ready", check=False) == "200"


def total(system: System, host: str, search: str) -> int:
    answer = system.on(host, f"curl -sS 'http://127.0.0.1:5000/v1/cases?search={search}'")
    return int(json.loads(answer)["total"])


def test_a_line_more_is_a_host_more(system: System, inventory: list[str], tmp_path: Path) -> None:
    version, was = system.model()["version"], set(system.instances())
    done = system.play("site.yml", *inventory, "-e", f"verify_out={tmp_path}/report.json")
    assert done.returncode == 0, done.stdout[-8000:]
    assert set(system.instances()) - was == {"api2", "trainer2"}
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["ok"], report
    names = {check["name"] for check in report["checks"]}
    assert {"API ready on pneumonia-api", "API ready on pneumonia-api2", "flows from pneumonia-api2",
            "services on pneumonia-api2", "no second case store on pneumonia-api2",
            "flows from pneumonia-trainer2", "services on pneumonia-trainer2"} <= names  # fmt: skip
    # It serves what the other one serves; nothing was trained for it.
    assert system.model("api2")["version"] == version
    assert "images/s" not in done.stdout


def test_nothing_changes_the_second_time(system: System, inventory: list[str]) -> None:
    done = system.play("playbooks/configure.yml", *inventory)
    assert done.returncode == 0, done.stdout[-8000:]
    counts = re.findall(r"^(\S+)\s+: ok=\d+\s+changed=(\d+)", done.stdout, re.MULTILINE)
    assert {count for _, count in counts} == {"0"}, done.stdout[-8000:]
    assert {"pneumonia-api2", "pneumonia-trainer2"} <= set(dict(counts))


def test_there_is_one_case_store(system: System) -> None:
    mark = f"both-{int(time.time())}"
    for number in range(6):
        status, text = system.upload(system.smoke(), f"{mark}-{number}.png")
        assert status == 200
        assert "data-verdict=" in text
    assert total(system, "api", mark) == total(system, "api2", mark) == 6
    asked = [
        int(system.on(host, "journalctl -u lightbox-api --no-pager -o cat --since=-60s | grep -c '\"status\": 20'"))
        for host in ("api", "api2")
    ]
    assert all(asked), f"both API hosts are asked: {asked}"
    assert system.on("api2", "ss -tlnH 'sport = :6379'") == ""
    assert "active" not in system.on("api2", "systemctl is-active redis-server", check=False).split()
    targets = json.loads(system.on("monitor", "curl -sS http://127.0.0.1:9090/api/v1/targets?state=active"))
    api = [target for target in targets["data"]["activeTargets"] if target["labels"]["job"] == "api"]
    assert sorted(target["labels"]["instance"] for target in api) == ["pneumonia-api", "pneumonia-api2"]
    assert {target["health"] for target in api} == {"up"}


def test_a_stopped_api_service_fails_no_visitor(system: System) -> None:
    with Visitors(system, people=4, pause=0.8) as visitors:
        time.sleep(2)
        system.on("api2", "systemctl stop lightbox-api")
        stopped = time.monotonic()
        time.sleep(6)
        system.on("api2", "systemctl start lightbox-api")
        time.sleep(2)
    assert len(visitors.answers) > 20
    assert visitors.failed(since=stopped + 1) == []
    wait_until("the second API is ready", lambda: ready(system, "api2"), 20)


def test_a_killed_api_service_fails_no_visitor(system: System) -> None:
    with Visitors(system, people=4, pause=0.8) as visitors:
        time.sleep(2)
        system.on("api2", "systemctl kill --signal=KILL --kill-whom=all lightbox-api")
        killed = time.monotonic()
        time.sleep(6)
    assert len(visitors.answers) > 20
    assert visitors.failed(since=killed + 1) == []
    wait_until("the second API is ready", lambda: ready(system, "api2"), 20)


def test_a_stopped_api_host_fails_no_visitor(system: System) -> None:
    instance = system.instances()["api2"]["InstanceId"]
    ec2 = system.client("ec2")
    with Visitors(system, people=4, pause=0.8) as visitors:
        time.sleep(2)
        ec2.stop_instances(InstanceIds=[instance])
        stopped = time.monotonic()
        ec2.get_waiter("instance_stopped").wait(InstanceIds=[instance], WaiterConfig={"Delay": 1, "MaxAttempts": 60})
        time.sleep(8)
    assert len(visitors.answers) > 20
    assert visitors.failed(since=stopped + 1) == []
    ec2.start_instances(InstanceIds=[instance])
    wait_until("the second API is ready", lambda: ready(system, "api2"), 90)


def test_a_minute_of_kills_and_a_release_under_load(system: System, tmp_path: Path) -> None:
    version = system.model()["version"]
    done = subprocess.run(
        [sys.executable, "benchmarks/soak.py", "--minutes", "1", "--rate", "20", "--kill-every", "5",
         "--out", f"{tmp_path}/soak.json"],
        cwd=ROOT, env=system.environment, text=True, check=False, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:]
    found = json.loads((tmp_path / "soak.json").read_text())
    assert sum(found["kills"].values()) >= 5
    assert found["failed_otherwise"] == 0
    assert found["every_upload_is_one_case"]
    assert {host: system.model(host)["version"] for host in ("api", "api2")} == {"api": version, "api2": version}


def test_two_hosts_train_one_model_together_and_the_result_is_released(system: System, inventory: list[str]) -> None:
    before = system.model()["version"]
    begun = system.on("trainer2", "date +%s")
    # Drawn images, so that it takes a minute; the gate is not what is tried here.
    model = {"seed": 2, "architecture": "compact", "epochs": 2, "synthetic_images": 300, "image_size": 64, "width": 8}
    gate = {"gate": {"metric": "auroc", "minimum": 0.0, "tolerance": 1.0}, "approval": "auto",
            "watch": {"seconds": 0, "errors": 1, "p99_seconds": 60, "requests": 1000}}  # fmt: skip
    given = {"data": "synthetic", "model": model, "release_policy": gate}
    done = system.play("train.yml", *inventory, "-e", json.dumps(given))
    assert done.returncode == 0, done.stdout[-8000:]
    assert "on 2 hosts" in done.stdout
    contract = system.model()
    assert contract["version"] != before and contract["training"]["hosts"] == 2
    assert system.model("api2")["version"] == contract["version"]
    for host in ("trainer", "trainer2"):
        unit = system.on(host, "systemctl show --property=ActiveState,Result,ExecMainStatus lightbox-train")
        assert set(unit.split()) == {"ActiveState=inactive", "Result=success", "ExecMainStatus=0"}, host
        journal = system.on(host, f"journalctl -u lightbox-train --no-pager -o cat --since=@{begun}")
        assert "training on 2 hosts" in journal and "epoch 2/2" in journal and "images/s" in journal, host
    assert f"run {contract['training']['run']}" in system.on(
        "trainer2", f"journalctl -u lightbox-train --no-pager -o cat --since=@{begun}"
    )
    # The second has no bundle, and only the two talk to one another.
    run = f"/var/lib/lightbox/runs/{contract['training']['run']}"
    assert system.on("trainer2", f"ls {run}").split() == ["lock", "manifest.json"]
    assert "bundle" in system.on("trainer", f"ls {run}").split()


# --- a model comes to all of them, or to none -----------------------------------------------------------------------


class People(Visitors):
    """Visitors with a browser each, whom the pages know by a cookie; each answer is kept with the person it was for."""

    def __init__(self, system: System, image: bytes, count: int = 8) -> None:
        super().__init__(system, people=0, pause=count / 4)  # together four uploads a second
        self.image = image
        self.cookies = [f"person-{number}".ljust(32, "_") for number in range(count)]
        self.told: list[tuple[float, str, str]] = []
        self._threads = [threading.Thread(target=self._live, args=(one,), daemon=True) for one in self.cookies]

    def _live(self, who: str) -> None:
        headers = {"Cookie": f"__Host-lightbox={who}", "Sec-Fetch-Site": "same-origin"}
        _, page = self.system.fetch("/predict", None, headers, self.url, self.context)
        token = re.findall(r'name="csrf_token" value="([^"]+)"', page)[0]
        head = "--people\r\nContent-Disposition: form-data; name="
        parts = f'{head}"csrf_token"\r\n\r\n{token}\r\n{head}"file"; filename="{who}.png"\r\n'
        sent = f"{parts}Content-Type: image/png\r\n\r\n".encode() + self.image + b"\r\n--people--\r\n"
        headers |= {"Content-Type": "multipart/form-data; boundary=people", "X-Partial": "1"}
        while not self._stop.is_set():
            begun = time.monotonic()
            status, text = self.system.fetch("/upload_predict", sent, headers, self.url, self.context)
            self.answers.append((begun, status, text))
            self.told += [(begun, who, version) for version in re.findall(r"<dt>Model</dt><dd><code>(.*?)<", text)]
            self._stop.wait(self.pause)

    def of_the_canary(self, version: str, percent: float) -> set[str]:
        """Return those whom the canary serves, by the rule that docs/decisions/0017-canary.md states."""
        shares = {who: hashlib.sha256(f"{version}\n{who}".encode()).digest()[:8] for who in self.cookies}
        return {who for who, share in shares.items() if int.from_bytes(share, "big") < percent / 100 * 2**64}


def policy(**changes: Any) -> list[str]:
    """Return the arguments that give a playbook a release policy with a canary for half of the people."""
    rules = {
        "gate": {"metric": "auroc", "minimum": 0, "tolerance": 1},
        "approval": "auto",
        "canary": 50,
        "watch": {"seconds": 30, "errors": 0.05, "p99_seconds": 20, "requests": 5},
    }
    return ["-e", json.dumps({"release_policy": {**rules, **changes}})]


def record(system: System, host: str) -> list[str]:
    """Return the lines of a host's record of releases, each without its time."""
    lines = system.on(host, "cat /var/lib/lightbox/model/releases.log").splitlines()
    return [line.split(maxsplit=1)[1] for line in lines]


def versions(system: System) -> set[str]:
    return {system.model(host)["version"] for host in ("api", "api2")}


def canary_of(system: System) -> str:
    return system.on("ui", "cat /etc/lightbox/canary.json", check=False)


def test_a_bad_canary_goes_alone(system: System, inventory: list[str], tmp_path: Path) -> None:
    """A model that predicts what it predicted in training and fails on black pictures."""
    version, bad, others = system.model()["version"], "20260108T000000Z-onblack0", record(system, "api2")
    bundles = [ROOT / ".venv-app/bin/python", ROOT / "molecule/release/files/bundles.py", tmp_path / "bundles"]
    subprocess.run(bundles, check=True)
    s3 = system.client("s3")
    bucket = next(item["Name"] for item in s3.list_buckets()["Buckets"])
    for file in (tmp_path / "bundles" / bad).iterdir():
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        key = f"models/pneumonia/{bad}/{file.name}"
        s3.put_object(Bucket=bucket, Key=key, Body=file.read_bytes(), Metadata={"sha256": digest})

    with People(system, (tmp_path / "bundles/black.png").read_bytes()) as people:
        assert 0 < len(people.of_the_canary(bad, 50)) < len(people.cookies)
        done = system.play("playbooks/release.yml", *inventory, "-e", f"version={bad}", *policy())
        time.sleep(3)
    assert done.returncode != 0
    assert f"{bad} is not released. pneumonia-api: {bad} was live and has been taken back" in done.stdout
    assert record(system, "api")[-2].startswith(f"released {bad} ")
    assert re.match(rf"rolled-back-to {version} automatic .*more than 5.0% failed", record(system, "api")[-1])
    assert versions(system) == {version}
    # The other host never had it, and those whom the canary failed were served by it.
    assert record(system, "api2") == others
    assert bad not in system.on("api2", "ls /var/lib/lightbox/model/releases /var/lib/lightbox/model/incoming")
    assert len(people.answers) > 20 and people.failed() == []
    assert {told for _, _, told in people.told} == {version}
    assert canary_of(system) == ""


def test_an_approved_model_comes_as_a_canary_first(system: System, inventory: list[str]) -> None:
    version, new = system.model()["version"], "99990104T000000Z-canary00"
    copy_of_the_live_bundle(system, new, lambda _, body: body)
    seen: list[float] = []
    ended = threading.Event()

    def watch_the_canary() -> None:
        while not ended.is_set():
            asked = time.monotonic()
            if new in canary_of(system):
                seen.append(asked)

    watcher = threading.Thread(target=watch_the_canary, daemon=True)
    with People(system, system.smoke()) as people:
        watcher.start()
        done = system.play(
            "playbooks/approve.yml", *inventory, "-e", f"version={new}", "-e", "approved_by=ada",
            *policy(approval="manual"),
        )  # fmt: skip
        time.sleep(5)
    ended.set()
    watcher.join(30)
    assert done.returncode == 0, done.stdout[-8000:]
    assert people.answers and people.failed() == []
    assert versions(system) == {new}
    assert all("approved by ada at " in record(system, host)[-1] for host in ("api", "api2"))
    assert canary_of(system) == ""

    # While the canary sang, its people alone were served by the new model, and from then on by no other. An answer is
    # begun a moment before it is given, so those of the last second do not count.
    chosen = people.of_the_canary(new, 50)
    during = [(who, told) for begun, who, told in people.told if seen[0] <= begun <= seen[-1] - 1]
    assert {told for who, told in during if who not in chosen} == {version}
    for who in chosen:
        told = [one for person, one in during if person == who]
        assert told == sorted(told) and told[-1] == new, told
    assert {told for begun, _, told in people.told if begun > people.told[-1][0] - 3} == {new}

    done = system.play("playbooks/rollback.yml", *inventory, "-e", f"version={version}")
    assert done.returncode == 0, done.stdout[-6000:]
    assert versions(system) == {version}


def test_a_model_that_the_second_host_refuses_stays_on_none(system: System, inventory: list[str]) -> None:
    version, new = system.model()["version"], "99990105T000000Z-noroom00"
    copy_of_the_live_bundle(system, new, lambda _, body: body)
    others = record(system, "api2")
    system.on("api2", "mount -t tmpfs -o size=1m full /var/lib/lightbox/model/incoming")
    try:
        with Visitors(system, people=4, pause=0.8) as visitors:
            done = system.play(
                "playbooks/release.yml", *inventory, "-e", f"version={new}",
                *policy(watch={"seconds": 5, "errors": 0.05, "p99_seconds": 20, "requests": 5}),
            )  # fmt: skip
            time.sleep(2)
    finally:
        system.on("api2", "umount /var/lib/lightbox/model/incoming")
    assert done.returncode != 0
    assert f"{new} is not released. pneumonia-api2: The release of {new} stopped at" in done.stdout, done.stdout[-6000:]
    assert versions(system) == {version}
    assert record(system, "api")[-2].startswith(f"released {new} ")
    assert re.match(rf"rolled-back-to {version} automatic .*pneumonia-api2: .*MB free", record(system, "api")[-1])
    assert record(system, "api2") == others
    assert len(visitors.answers) > 20 and visitors.failed() == []
