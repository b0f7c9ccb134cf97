"""Data on the host and training as a service, after everything that side_effect.yml did."""

from __future__ import annotations

import json
import subprocess
import time

from testinfra.host import Host

UNIT = "lightbox-train.service"


def test_data_is_what_came_last(host: Host) -> None:
    files = host.check_output("cd /var/lib/lightbox/data && find . -type f").splitlines()
    assert files == ["./train/NORMAL/web.jpeg"]
    record = json.loads(host.file("/var/lib/lightbox/data.json").content_string)
    assert record["files"] == 1
    assert record["bytes"] == len("web\n")
    assert record["source"] == "https://localhost:8443/chest.tar.gz"
    assert host.check_output("ls /var/lib/lightbox").split() == ["data", "data.json", "runs"]


def test_data_is_the_trainers_to_read(host: Host) -> None:
    path = "/var/lib/lightbox/data/train/NORMAL/web.jpeg"
    assert host.run(f"runuser -u lightbox-trainer -- cat {path}").stdout == "web\n"
    assert host.run(f"runuser -u lightbox-trainer -- touch {path}").rc != 0
    assert host.run(f"runuser -u nobody -- cat {path}").rc != 0


def test_settings(host: Host) -> None:
    settings = json.loads(host.file("/etc/lightbox/train.json").content_string)
    metrics = {"metrics_address": "127.0.0.1", "metrics_port": 8000}
    assert settings == {"data": "/var/lib/lightbox/data", "refuse": True, **metrics}


def test_password_is_in_one_file(host: Host) -> None:
    file = host.file("/etc/lightbox/trainer/redis_password")
    assert (file.mode, file.user, file.group) == (0o440, "root", "lightbox-trainer")
    assert file.content_string == "molecule-password-of-trainer"
    assert "molecule-password-of-trainer" not in host.check_output("journalctl --no-pager --boot")


def test_a_refusal_is_not_repeated(host: Host) -> None:
    """The last run was refused by the program: it is not started again by itself."""
    time.sleep(7)
    assert host.check_output(f"systemctl show --property=ActiveState --value {UNIT}") == "failed"
    assert host.check_output(f"systemctl show --property=NRestarts --value {UNIT}") == "0"
    # Nothing starts it at boot.
    assert host.check_output(f"systemctl is-enabled {UNIT}") == "static"


def test_the_host_goes_down_when_nothing_trains_and_at_the_deadline_at_the_latest(host: Host) -> None:
    assert host.check_output("systemctl is-enabled lightbox-shutdown-deadline.timer") == "enabled"
    left = {}
    for name in ("deadline", "idle"):
        assert host.check_output(f"systemctl is-active lightbox-shutdown-{name}.timer") == "active", name
        timer = f"lightbox-shutdown-{name}.timer"
        due = host.check_output(f"systemctl show --property=NextElapseUSecMonotonic --value {timer}")
        left[name] = due
        assert host.check_output(f"systemctl show --property=Unit --value {timer}") == "lightbox-shutdown.service"
    assert left["idle"] != left["deadline"]


def test_a_host_alone_knows_of_no_others(host: Host) -> None:
    """The last settings named none, those before two."""
    assert "TF_CONFIG" not in host.file(f"/etc/systemd/system/{UNIT}").content_string


def test_the_program_is_told_what_keras_trains_with(host: Host) -> None:
    told = host.check_output(f"systemctl show --property=Environment --value {UNIT}").split()
    assert "KERAS_BACKEND=jax" in told


def test_the_host_does_go_down(host: Host) -> None:
    """The last test, for nothing can be asked of the host afterwards."""
    host.check_output("systemctl start --no-block lightbox-shutdown.service")
    end = time.monotonic() + 60
    running = ["podman", "inspect", "--format", "{{.State.Running}}", host.backend.get_hostname()]
    while subprocess.check_output(running, text=True).strip() == "true":
        assert time.monotonic() < end, host.check_output("journalctl --no-pager --unit lightbox-shutdown")
        time.sleep(0.5)
