"""One file as data, on a disk of its own; another program, backend and limit; a host that goes down only when idle."""

from __future__ import annotations

import json

from testinfra.host import Host

UNIT = "lightbox-train.service"
FILE = "/srv/disk/sets/drawings/drawings.npz"


def show(host: Host, unit: str, name: str) -> str:
    return host.check_output(f"systemctl show --property={name} --value {unit}")


def test_the_file_is_on_its_disk(host: Host) -> None:
    assert host.file(FILE).size == 4 * 1024 * 1024
    assert host.check_output("ls /srv/disk/sets").split() == ["drawings", "drawings.json"]
    assert host.run(f"runuser -u lightbox-trainer -- cat {FILE} | cmp --bytes=4194304 - /dev/zero").rc == 0
    assert host.run(f"runuser -u nobody -- cat {FILE}").rc != 0
    assert not host.file("/var/lib/lightbox/data").exists


def test_the_program_got_its_settings(host: Host) -> None:
    progress = json.loads(host.file("/var/lib/lightbox/runs/progress.json").content_string)
    assert (progress["state"], progress["cluster"], progress["starts"]) == ("done", None, 1)
    metrics = {"metrics_address": "0.0.0.0", "metrics_port": 9100}
    assert progress["config"] == {"system": "mnist", "seed": 7, "seconds": 8, "data": FILE, **metrics}


def test_the_unit_has_its_limit_and_backend(host: Host) -> None:
    assert show(host, UNIT, "MemoryMax") == str(1024**3)
    assert "KERAS_BACKEND=torch" in show(host, UNIT, "Environment").split()
    assert "/srv/program/bin/python" in show(host, UNIT, "ExecStart")


def test_the_host_goes_down_only_after_idle_hours(host: Host) -> None:
    assert host.run("systemctl is-active lightbox-shutdown-idle.timer").stdout.strip() == "active"
    assert host.check_output("ls /etc/systemd/system | grep shutdown").split() == [
        "lightbox-shutdown-idle.timer", "lightbox-shutdown.service",
    ]  # fmt: skip


def test_the_password_is_in_one_file(host: Host) -> None:
    file = host.file("/etc/lightbox/trainer/redis_password")
    assert (file.mode, file.user, file.group) == (0o440, "root", "lightbox-trainer")
    assert "molecule-password" not in host.check_output("journalctl --no-pager --boot")
    assert "molecule-password" not in host.check_output(f"cat /etc/systemd/system/{UNIT} /etc/lightbox/train.json")
