"""The pneumonia system, from nothing to served, in the lab.

The tests run in the order they stand in: the first brings the system up.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shlex
import shutil
import struct
import subprocess
import time
import zlib
from pathlib import Path
from typing import Any

import pytest

from .conftest import ROOT, System, Visitors, wait_until

pytestmark = [pytest.mark.system, pytest.mark.timeout(1800)]

PASSWORDS = ("redis_api", "redis_trainer", "redis_exporter", "grafana_admin", "csrf", "status")
OUTPUTS: list[str] = []


def changed(text: str) -> dict[str, int]:
    """Return how much each host changed, from a play recap."""
    return {host: int(count) for host, count in re.findall(r"^(\S+)\s+: ok=\d+\s+changed=(\d+)", text, re.MULTILINE)}


def secrets(system: System) -> list[str]:
    """Return the passwords that must show nowhere."""
    return [(system.secrets / name).read_text().strip() for name in PASSWORDS if (system.secrets / name).exists()]


def measured(system: System, query: str) -> list[dict[str, Any]]:
    """Return what Prometheus answers to a query."""
    asked = f"curl -sS --get --data-urlencode {shlex.quote('query=' + query)} http://127.0.0.1:9090/api/v1/query"
    return list(json.loads(system.on("monitor", asked))["data"]["result"])


def alerts(system: System, name: str = "") -> list[dict[str, Any]]:
    """Return the alerts that fire or are about to, all or those of a name.

    The series ALERTS is not asked: what Prometheus wrote last before its host was stopped can be read for five minutes.
    """
    answer = json.loads(system.on("monitor", "curl -sS http://127.0.0.1:9090/api/v1/alerts"))
    return [one for one in answer["data"]["alerts"] if name in ("", one["labels"]["alertname"])]


def test_make_up_ends_with_a_url_the_figures_and_a_green_table(system: System) -> None:
    output = system.make("up")
    OUTPUTS.append(output)
    assert f"Pneumonia detection: {system.url}" in output
    assert "test accuracy" in output
    assert "  ok    flows from outside  " in output
    # What has just begun is asked until it answers, and Ansible says so.
    assert "FAIL" not in re.sub(r"^FAILED - RETRYING: .*", "", output, flags=re.MULTILINE)
    assert "images/s" in output, "progress is shown while the model trains"


def test_prometheus_has_watched_the_training_and_does_not_miss_it_now(system: System) -> None:
    assert measured(system, "max_over_time(lightbox_training_step[2h]) > 0")
    assert measured(system, "max_over_time(lightbox_training_validation_auroc[2h]) > 0.5")
    assert measured(system, 'up{job="training"} == 0')
    assert alerts(system, "TargetDown") == []


def test_a_second_run_changes_nothing(system: System) -> None:
    done = system.play("site.yml", "--diff", "-v")
    OUTPUTS.append(done.stdout)
    assert done.returncode == 0, done.stdout[-8000:]
    assert len(changed(done.stdout)) == 6, done.stdout[-3000:]
    assert set(changed(done.stdout).values()) == {0}, done.stdout[-8000:]


def test_a_host_that_cannot_be_configured_ends_the_run(system: System) -> None:
    done = system.play("site.yml", "--tags", "grafana,train", "--extra-vars", "grafana_admin_password=")
    assert done.returncode != 0
    assert "pneumonia-monitor could not be configured" in done.stdout, done.stdout[-8000:]
    assert "PLAY [A model is trained]" not in done.stdout


def test_training_again_trains_nothing(system: System) -> None:
    version = system.model()["version"]
    done = system.play("train.yml")
    assert done.returncode == 0, done.stdout[-8000:]
    assert "unchanged" in done.stdout
    assert system.model()["version"] == version


def test_the_doctor_writes_its_findings(system: System, tmp_path: Path) -> None:
    OUTPUTS.append(system.make("verify", f"OUT={tmp_path}/report.json"))
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["ok"] is True
    assert all(check["ok"] for check in report["checks"])
    assert len(report["checks"]) >= 15
    assert {"name", "ok", "detail"} == set(report["checks"][0])


def test_the_doctor_sees_a_stopped_service_and_a_path_that_should_be_closed(system: System, tmp_path: Path) -> None:
    group = system.instances()["api"]["SecurityGroups"][0]["GroupId"]
    opening: dict[str, Any] = {
        "GroupId": group,
        "IpPermissions": [
            {"IpProtocol": "tcp", "FromPort": 6379, "ToPort": 6379, "IpRanges": [{"CidrIp": "10.0.0.0/16"}]}
        ],
    }
    system.client("ec2").authorize_security_group_ingress(**opening)
    system.on("monitor", "systemctl stop prometheus-node-exporter")
    try:
        wait_until("Prometheus misses it", lambda: measured(system, 'up{job="node"} == 0'), 60)
        done = system.play(
            "playbooks/verify.yml", "-e", f"verify_out={tmp_path}/report.json", "-e", "verify_configure=false"
        )
        failed = [
            check["name"] for check in json.loads((tmp_path / "report.json").read_text())["checks"] if not check["ok"]
        ]
        assert done.returncode != 0
        assert "flows from pneumonia-proxy" in failed
        assert "services on pneumonia-monitor" in failed
        assert "Prometheus targets" in failed
    finally:
        system.client("ec2").revoke_security_group_ingress(**opening)
        system.on("monitor", "systemctl start prometheus-node-exporter")


def test_only_the_declared_paths_are_open(system: System) -> None:
    address = {role: item["PrivateIpAddress"] for role, item in system.instances().items()}
    for role, port in (("api", 6379), ("api", 5000), ("trainer", 22), ("trainer", 9100)):
        answer = system.on("proxy", f"curl -s -o /dev/null -m 3 http://{address[role]}:{port}/ ; echo $?")
        expected = {("trainer", 22)}  # the bastion's own way
        assert (answer != "28") == ((role, port) in expected), (role, port, answer)
    assert system.on("ui", f"curl -sf http://{address['api']}:5000/health")
    assert [role for role, item in system.instances().items() if item.get("PublicIpAddress")] == ["proxy"]
    # This machine has no way to a private host but through the bastion: its routes know nothing of the VPC.
    route = subprocess.run(["ip", "route", "get", address["api"]], capture_output=True, text=True, check=False)
    assert "lb-" not in route.stdout
    assert system.on("api", "hostname -I").split()[0] == address["api"], "through the bastion it answers"


def test_redis_is_closed_to_strangers(system: System) -> None:
    private = system.instances()["api"]["PrivateIpAddress"]
    assert "NOAUTH" in system.on("api", f"redis-cli -h {private} get x", check=False)
    listening = [line.split()[3] for line in system.on("api", "ss -tlnH 'sport = :6379'").splitlines()]
    assert sorted(set(listening) - {"[::1]:6379"}) == sorted({"127.0.0.1:6379", f"{private}:6379"})


def test_no_secret_is_in_logs_process_lists_or_readable_files(system: System) -> None:
    assert len(secrets(system)) == len(PASSWORDS)
    for role in system.instances():
        places = system.on(role, "journalctl --no-pager -o cat; ps -eo args; find / -xdev -type f -perm -o=r -size -1M"
                                 " -not -path '/proc/*' -not -path '/sys/*' -not -path '/usr/*' -newer /etc/machine-id"
                                 " -exec cat {} + 2>/dev/null | tr -d '\\000'", check=False)  # fmt: skip
        for number, secret in enumerate(secrets(system)):
            assert secret not in places, f"password {PASSWORDS[number]} shows on {role}"
    for output in OUTPUTS:
        for number, secret in enumerate(secrets(system)):
            assert secret not in output, f"password {PASSWORDS[number]} was printed"
    assert system.secrets.stat().st_mode & 0o077 == 0


def test_passwords_are_made_anew_by_one_command(system: System) -> None:
    def status_page(password: str) -> int:
        authorization = {"Authorization": "Basic " + base64.b64encode(f"operator:{password}".encode()).decode()}
        return system.fetch("/status", headers=authorization)[0]

    names = ("redis_api", "status")
    before = {name: (system.secrets / name).read_text().strip() for name in names}
    assert status_page(before["status"]) == 200
    done = system.play("playbooks/rotate.yml", "-e", f"only={','.join(names)}", "--diff")
    assert done.returncode == 0, done.stdout[-8000:]
    OUTPUTS.append(done.stdout)
    after = {name: (system.secrets / name).read_text().strip() for name in names}
    assert not set(before.values()) & set(after.values())
    assert [value for value in before.values() if value in done.stdout] == []
    assert (status_page(before["status"]), status_page(after["status"])) == (401, 200)
    command = f"REDISCLI_AUTH={before['redis_api']} redis-cli --user api ping"
    assert "PONG" not in system.on("api", command, check=False)
    status, text = system.upload(system.smoke())
    assert status == 200 and "data-verdict=" in text and "data-notice" not in text


def test_passwords_in_a_vault_are_those_of_the_files(system: System, tmp_path: Path) -> None:
    kept, key = tmp_path / "kept", tmp_path / "vault-password"
    shutil.copytree(system.secrets, kept)
    key.write_text("a password of the vault")
    vaulted = System()
    vaulted.environment["ANSIBLE_VAULT_PASSWORD_FILE"] = str(key)
    try:
        done = vaulted.play("playbooks/secrets.yml", "--diff")
        assert done.returncode == 0, done.stdout[-8000:]
        OUTPUTS.append(done.stdout)
        assert not any((system.secrets / name).exists() for name in PASSWORDS)
        done = vaulted.play("playbooks/configure.yml")
        assert done.returncode == 0, done.stdout[-8000:]
        assert set(changed(done.stdout).values()) == {0}, done.stdout[-8000:]
        # Who does not know the vault's password changes nothing.
        done = system.play("playbooks/configure.yml", "--tags", "status")
        assert done.returncode != 0 and "vault" in done.stdout.lower()
    finally:
        (system.secrets / "vault.yml").unlink(missing_ok=True)
        shutil.copytree(kept, system.secrets, dirs_exist_ok=True)


def test_plain_http_leads_to_https_and_errors_are_never_verdicts(system: System) -> None:
    status, text = system.upload(b"this is no image", "notes.png")
    assert "data-verdict=" not in text
    assert status >= 400 or "error" in text.lower()
    status, text = system.upload(b"", "empty.png")
    assert "data-verdict=" not in text


KILLED = {
    "proxy": ("nginx", "prometheus-node-exporter", "prometheus-nginx-exporter"),
    "ui": ("gunicorn",),
    "api": ("gunicorn", "redis-server", "prometheus-redis-exporter"),
    "monitor": ("prometheus", "prometheus-alertmanager", "prometheus-blackbox-exporter", "gunicorn"),
}
# Applications that are not called as their host's role.
APPS = {"monitor": "status"}


def test_a_killed_service_is_back_within_ten_seconds(system: System) -> None:
    for role, programs in KILLED.items():
        for program in programs:
            unit = {"gunicorn": f"lightbox-{APPS.get(role, role)}"}.get(program, program)
            before = system.on(role, f"systemctl show -P MainPID {unit}")
            system.on(role, f"kill -9 {before}")

            def back(role: str = role, unit: str = unit, before: str = before) -> bool:
                state = system.on(role, f"systemctl show -P ActiveState -P MainPID {unit}", check=False).split()
                return len(state) == 2 and "active" in state and not {"0", before} & set(state)

            wait_until(f"{unit} on {role} is back", back, 10)
    wait_until("an upload is answered", system.ready, 20)


def test_a_killed_worker_of_pages_or_api_fails_no_visitor(system: System) -> None:
    """Nginx asks another worker of the UI, and the UI another of the API; the request's id makes it one case."""
    total = "curl -sS http://127.0.0.1:5000/v1/cases?size=1"
    before = json.loads(system.on("api", total))["total"]
    with Visitors(system, people=4, pause=0.8) as visitors:
        for host in ("ui", "api") * 4:
            system.on(host, f"pkill -KILL -o -P $(systemctl show -P MainPID lightbox-{host})")
            time.sleep(1)
        time.sleep(1)
    assert len(visitors.answers) >= 20
    assert visitors.failed() == []
    assert json.loads(system.on("api", total))["total"] == before + len(visitors.answers)


def test_a_stopped_and_started_host_serves_again_by_itself(system: System) -> None:
    instance = system.instances()["api"]["InstanceId"]
    ec2 = system.client("ec2")
    ec2.stop_instances(InstanceIds=[instance])
    ec2.get_waiter("instance_stopped").wait(InstanceIds=[instance], WaiterConfig={"Delay": 1, "MaxAttempts": 60})
    _, text = system.upload(system.smoke())
    assert "data-verdict=" not in text
    ec2.start_instances(InstanceIds=[instance])
    wait_until("an upload is answered", system.ready, 90)


# --- releases that must not happen --------------------------------------------------------------------------------


def copy_of_the_live_bundle(system: System, version: str, change: Any) -> None:
    """Put a changed copy of the live bundle into the artefact store, under a version of its own."""
    s3 = system.client("s3")
    bucket = next(item["Name"] for item in s3.list_buckets()["Buckets"])
    live = f"models/pneumonia/{system.model()['version']}/"
    for item in s3.list_objects_v2(Bucket=bucket, Prefix=live)["Contents"]:
        name = item["Key"].removeprefix(live)
        found = s3.get_object(Bucket=bucket, Key=item["Key"])
        body = found["Body"].read()
        if name == "model.json":
            body = body.replace(system.model()["version"].encode(), version.encode())
        s3.put_object(
            Bucket=bucket, Key=f"models/pneumonia/{version}/{name}", Body=change(name, body), Metadata=found["Metadata"]
        )


def refused(system: System, version: str) -> str:
    """Release a version that must be refused, with visitors at the page; return what the playbook said."""
    live = system.model()["loaded_sha256"]
    with Visitors(system) as visitors:
        done = system.play("playbooks/release.yml", "-e", f"version={version}")
    assert done.returncode != 0, done.stdout[-6000:]
    assert visitors.answers and visitors.failed() == []
    assert system.model()["loaded_sha256"] == live
    assert "keeps serving" in done.stdout, done.stdout[-6000:]
    return done.stdout


def test_a_bundle_with_one_byte_changed_is_refused(system: System) -> None:
    def change(name: str, body: bytes) -> bytes:
        return body[:-1] + bytes([body[-1] ^ 1]) if name == "model.onnx" else body

    copy_of_the_live_bundle(system, "99990101T000000Z-corrupt0", change)
    assert "model.onnx" in refused(system, "99990101T000000Z-corrupt0")


def test_a_bundle_worse_than_the_live_one_is_refused(system: System) -> None:
    def change(name: str, body: bytes) -> bytes:
        if name != "model.json":
            return body
        contract = json.loads(body)
        contract["metrics"]["test"]["auroc"] -= 0.1
        return json.dumps(contract).encode()

    copy_of_the_live_bundle(system, "99990101T000000Z-worse000", change)
    assert "auroc" in refused(system, "99990101T000000Z-worse000")


def test_a_full_disk_stops_a_release(system: System) -> None:
    copy_of_the_live_bundle(system, "99990101T000000Z-nospace0", lambda _, body: body)
    system.on("api", "mount -t tmpfs -o size=1m full /var/lib/lightbox/model/incoming")
    try:
        assert "MB free" in refused(system, "99990101T000000Z-nospace0")
    finally:
        system.on("api", "umount /var/lib/lightbox/model/incoming")


def test_a_release_and_a_rollback_fail_no_request(system: System) -> None:
    version = system.model()["version"]
    copy_of_the_live_bundle(system, "99990101T000000Z-another0", lambda _, body: body)
    with Visitors(system) as visitors:
        done = system.play("playbooks/release.yml", "-e", "version=99990101T000000Z-another0")
        assert done.returncode == 0, done.stdout[-6000:]
        assert system.model()["version"] == "99990101T000000Z-another0"
        done = system.play("playbooks/rollback.yml")
        assert done.returncode == 0, done.stdout[-6000:]
        time.sleep(2)
    assert system.model()["version"] == version
    assert visitors.answers and visitors.failed() == []


def record(system: System) -> list[str]:
    """Return the lines of the API host's record of releases, each without its time."""
    lines = system.on("api", "cat /var/lib/lightbox/model/releases.log").splitlines()
    return [line.split(maxsplit=1)[1] for line in lines]


def test_a_version_is_gone_back_to_by_its_name(system: System) -> None:
    version = system.model()["version"]
    with Visitors(system) as visitors:
        done = system.play(
            "playbooks/rollback.yml", "-e", "version=99990101T000000Z-another0", "-e", "why='to see it again'",
            "-e", "operator=ada",
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-6000:]
        assert system.model()["version"] == "99990101T000000Z-another0"
        assert record(system)[-1] == "rolled-back-to 99990101T000000Z-another0 ada to see it again"
        # What is not on the host any more comes from the store.
        system.on("api", f"rm -r /var/lib/lightbox/model/releases/{version}")
        done = system.play("playbooks/rollback.yml", "-e", f"version={version}")
        assert done.returncode == 0, done.stdout[-6000:]
        time.sleep(2)
    assert system.model()["version"] == version
    assert visitors.answers and visitors.failed() == []


def test_there_is_no_way_back_to_a_version_that_was_never_live(system: System) -> None:
    version, lines = system.model()["version"], record(system)
    done = system.play("playbooks/rollback.yml", "-e", "version=99990101T000000Z-worse000")
    assert done.returncode != 0
    assert "was never live" in done.stdout, done.stdout[-6000:]
    assert system.model()["version"] == version
    assert record(system) == lines


MANUAL = json.dumps(
    {
        "release_policy": {
            "gate": {"metric": "auroc", "minimum": 0.5, "tolerance": 0.01},
            "approval": "manual",
            "watch": {"seconds": 2, "errors": 0.05, "p99_seconds": 10, "requests": 20},
        }
    }
)


def test_a_model_waits_until_somebody_approves_it(system: System) -> None:
    version, new = system.model()["version"], "99990102T000000Z-approve0"
    copy_of_the_live_bundle(system, new, lambda _, body: body)
    # A version that was just trained waits; one that is asked for is refused.
    done = system.play("playbooks/release.yml", "-e", MANUAL, "-e", f"trained_version={new}")
    assert done.returncode == 0, done.stdout[-6000:]
    assert f"{new} waits for approval" in done.stdout
    assert re.search(rf"version\s+{new}\s+{version}", done.stdout), done.stdout[-6000:]
    assert "The gate lets it pass" in done.stdout
    assert f"playbooks/approve.yml -e version={new}" in done.stdout
    done = system.play("playbooks/release.yml", "-e", MANUAL, "-e", f"version={new}")
    assert done.returncode != 0
    assert f"{new} is not approved" in done.stdout, done.stdout[-6000:]
    assert system.model()["version"] == version

    with Visitors(system) as visitors:
        done = system.play("playbooks/approve.yml", "-e", MANUAL, "-e", f"version={new}", "-e", "approved_by=ada")
        assert done.returncode == 0, done.stdout[-6000:]
    assert visitors.answers and visitors.failed() == []
    assert system.model()["version"] == new
    assert f"released {new}" in record(system)[-1]
    assert "approved by ada at " in record(system)[-1]

    # The first approval stands.
    done = system.play("playbooks/approve.yml", "-e", MANUAL, "-e", f"version={new}", "-e", "approved_by=bob")
    assert done.returncode == 0, done.stdout[-6000:]
    done = system.play("playbooks/models.yml")
    assert done.returncode == 0, done.stdout[-6000:]
    assert re.search(rf"{new} .* live on pneumonia-api; approved by ada", done.stdout), done.stdout[-6000:]
    assert re.search(rf"{version} .* was live", done.stdout), done.stdout[-6000:]
    assert system.play("playbooks/rollback.yml").returncode == 0
    assert system.model()["version"] == version


def test_nobody_approves_what_is_not_there(system: System) -> None:
    done = system.play("playbooks/approve.yml", "-e", "version=99990103T000000Z-nothing0")
    assert done.returncode != 0
    assert "There is no bundle 99990103T000000Z-nothing0" in done.stdout, done.stdout[-6000:]


# --- other models ---------------------------------------------------------------------------------------------------

# Short trainings, whose models are released however good they are.
SHORT = json.dumps({"model_profiles": {"cpu": {"architecture": "compact", "epochs": 2, "image_size": 64}}})
LENIENT = json.dumps({"release_policy": {"gate": {"metric": "auroc", "minimum": 0, "tolerance": 1}, "approval": "auto",
                      "watch": {"seconds": 0, "errors": 1, "p99_seconds": 60, "requests": 1}}})  # fmt: skip


def grey_noise(number: int, side: int = 64) -> bytes:
    """Return a PNG of noise that differs from that of any other number."""
    grey = hashlib.shake_128(str(number).encode()).digest(side * side)
    rows = b"".join(b"\0" + grey[row * side : (row + 1) * side] for row in range(side))

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def films(directory: Path, count: int, seed: int) -> Path:
    """Draw labelled films; return the directory."""
    code = "import sys; from pathlib import Path; from lightbox.synthetic import generate; "
    code += "generate(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))"
    subprocess.run([ROOT / ".venv-app/bin/python", "-c", code, directory, str(count), str(seed)], check=True)
    return directory


def test_what_people_judged_on_the_pages_is_trained_on_and_counted(system: System) -> None:
    version = system.model()["version"]
    for number in range(50):
        status, text = system.upload(grey_noise(number), f"{number}.png")
        assert status == 200
        case = re.search(r"/cases/([\w-]+)", text)
        assert case
        status, _ = system.fetch(f"/cases/{case[1]}/feedback", b"label=Pneumonia")
        assert status == 200
    done = system.play("train.yml", "-e", SHORT, "-e", LENIENT, "-e", "feedback_weight=2")
    assert done.returncode == 0, done.stdout[-8000:]
    # Others may have judged cases before.
    judged = re.search(r"(\d+) judged cases", done.stdout)
    assert judged, done.stdout[-6000:]
    model = system.model()
    assert model["version"] != version
    counts = model["data"]["feedback"]
    assert counts["PNEUMONIA"] >= 50 and counts["weight"] == 2
    # The same image twice counts once.
    assert counts["PNEUMONIA"] + counts["NORMAL"] <= int(judged[1])
    report = (ROOT / f"reports/{model['version']}.html").read_text()
    assert "Judged on these pages" in report and f"PNEUMONIA {counts['PNEUMONIA']}" in report
    # Two epochs and noise make no model that other tests could rely on.
    done = system.play("playbooks/rollback.yml", "-e", f"version={version}")
    assert done.returncode == 0, done.stdout[-6000:]
    assert system.model()["version"] == version


def test_a_model_of_shuffled_labels_is_stopped_in_words(system: System, tmp_path: Path) -> None:
    version = system.model()["version"]
    directory = films(tmp_path / "films", 300, seed=5)
    files = sorted(directory.rglob("*.png"), key=lambda file: hashlib.sha256(file.name.encode()).digest())
    for number, file in enumerate(files):
        # Whatever it shows, every other image is called healthy.
        file.rename(directory / "train" / ("NORMAL", "PNEUMONIA")[number % 2] / f"IM-{number:04d}-0001.png")
    # On so few test images chance alone reaches 0.7 now and then, and this never.
    gate = json.dumps({"policy_gate": {"metric": "auroc", "minimum": 0.85, "tolerance": 0.01}})
    with Visitors(system) as visitors:
        done = system.play("train.yml", "-e", SHORT, "-e", gate, "-e", f"data={directory}")
    assert done.returncode != 0
    assert "auroc" in done.stdout and "the gate lets" in done.stdout, done.stdout[-6000:]
    assert system.model()["version"] == version
    assert visitors.answers and visitors.failed() == []


def test_the_threshold_is_chosen_anew_on_films_of_another_house(system: System, tmp_path: Path) -> None:
    version = system.model()["version"]
    directory = films(tmp_path / "films", 160, seed=6)
    with Visitors(system) as visitors:
        done = system.play("playbooks/calibrate.yml", "-e", f"films={directory}", "-e", "rule=balanced", "-e", LENIENT)
        assert done.returncode == 0, done.stdout[-8000:]
        model = system.model()
        assert model["recalibrated"]["from"] == version
        assert (ROOT / f"reports/{model['version']}.html").is_file()
        done = system.play("playbooks/rollback.yml")
        assert done.returncode == 0, done.stdout[-6000:]
    assert system.model()["version"] == version
    assert visitors.answers and visitors.failed() == []


# --- the lab ----------------------------------------------------------------------------------------------------------


def test_the_lab_survives_a_crash_of_its_process(system: System) -> None:
    before = {role: (item["InstanceId"], item["PrivateIpAddress"]) for role, item in system.instances().items()}
    pid = int((ROOT / ".lab/lab.pid").read_text())
    subprocess.run(["kill", "-9", str(pid)], check=True)
    system.make("lab")
    assert {role: (item["InstanceId"], item["PrivateIpAddress"]) for role, item in system.instances().items()} == before
    wait_until("an upload is answered", system.ready, 20)
