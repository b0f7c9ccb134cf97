"""JupyterLab as a service: who gets in, what runs there, and that the notebook trains."""

from __future__ import annotations

import json
import time

import pytest
from testinfra.host import Host

UNIT = "lightbox-jupyter.service"
USER = "lightbox-jupyter"
SETTINGS = "/etc/lightbox/jupyter"
NOTEBOOKS = "/var/lib/lightbox/notebooks"
PYTHON = "/opt/lightbox/trainer/current/bin/python"
PASSWORD = "molecule-password-of-jupyter"
URL = "https://localhost:8888"
CERTIFICATE = f"$(ls {SETTINGS}/tls/self_signed-*.crt)"


def main_pid(host: Host) -> str:
    return host.check_output(f"systemctl show --property=MainPID --value {UNIT}")


def ask(host: Host, path: str, options: str = "") -> tuple[int, str]:
    """Return status and body of an answer; the certificate is checked."""
    found = host.check_output(
        f"curl --silent --cacert {CERTIFICATE} --max-time 20 --write-out '\\n%{{http_code}}' {options} '{URL}{path}'"
    )
    body, _, status = found.rpartition("\n")
    return int(status), body


def login(host: Host, password: str, jar: str) -> int:
    """Log in as a browser does, keeping the cookies in a file; return the status."""
    host.check_output(f"rm -f {jar}")
    ask(host, "/login", f"--cookie-jar {jar}")
    token = host.check_output(f"awk '$6 == \"_xsrf\" {{print $7}}' {jar}")
    fields = f"--data-urlencode 'password={password}' --data-urlencode '_xsrf={token}'"
    return ask(host, "/login?next=%2Fapi%2Fstatus", f"--cookie {jar} --cookie-jar {jar} {fields}")[0]


def test_is_up_and_says_no_more_than_its_version(host: Host) -> None:
    service = host.service("lightbox-jupyter")
    assert service.is_running and service.is_enabled
    status, body = ask(host, "/api")
    assert status == 200 and list(json.loads(body)) == ["version"]
    for path in ("/api/kernelspecs", "/api/contents", "/api/status", "/api/kernels"):
        assert ask(host, path)[0] == 403, path
    assert ask(host, "/lab")[0] == 302


def test_speaks_tls_only(host: Host) -> None:
    assert host.run("curl --silent --max-time 5 http://localhost:8888/api").rc != 0
    old = host.run(f"curl --silent --tls-max 1.1 --cacert {CERTIFICATE} {URL}/api")
    assert old.rc == 35
    key = host.file(f"{SETTINGS}/tls/self_signed.key")
    assert (key.user, key.mode) == ("root", 0o600)


def test_a_wrong_password_is_refused_and_the_right_one_lists_the_kernel(host: Host) -> None:
    assert login(host, "not-the-password", "/tmp/wrong") == 401
    assert ask(host, "/api/kernelspecs", "--cookie /tmp/wrong")[0] == 403
    assert login(host, PASSWORD, "/tmp/right") == 302
    status, body = ask(host, "/api/kernelspecs", "--cookie /tmp/right")
    found = json.loads(body)
    assert (status, found["default"], list(found["kernelspecs"])) == (200, "lightbox", ["lightbox"])
    assert found["kernelspecs"]["lightbox"]["spec"]["argv"][0] == PYTHON
    listed = json.loads(ask(host, "/api/contents/lightbox", "--cookie /tmp/right")[1])
    assert [item["name"] for item in listed["content"]] == ["train_digits.ipynb"]
    assert ask(host, "/lab", "--cookie /tmp/right")[0] == 200
    assert ask(host, "/api/terminals", "--cookie /tmp/right")[0] == 404


def test_the_password_is_nowhere_to_be_read(host: Host) -> None:
    hashed = host.file(f"{SETTINGS}/jupyter_server_config.json")
    assert (hashed.user, hashed.group, hashed.mode) == ("root", USER, 0o640)
    assert json.loads(hashed.content_string)["PasswordIdentityProvider"]["hashed_password"].startswith("argon2:")
    assert PASSWORD not in host.check_output(f"cat {SETTINGS}/*.* /etc/systemd/system/{UNIT}")
    assert PASSWORD not in host.check_output("journalctl --no-pager --boot")
    assert host.run(f"runuser -u nobody -- cat {hashed.path}").rc != 0


def test_a_kernel_runs_in_the_training_environment(host: Host) -> None:
    """Started through the API, in the service's own confinement."""
    assert login(host, PASSWORD, "/tmp/right") == 302
    token = host.check_output("awk '$6 == \"_xsrf\" {print $7}' /tmp/right")
    session = f"--cookie /tmp/right --header 'X-XSRFToken: {token}'"
    status, body = ask(host, "/api/kernels", f"{session} --json '{{}}'")
    assert status == 201, body
    kernel = json.loads(body)["id"]
    end = time.monotonic() + 30
    while "ipykernel_launcher" not in (processes := host.check_output(f"pgrep --uid {USER} --list-full python")):
        assert time.monotonic() < end, processes
        time.sleep(0.5)
    # Other users of the host cannot speak to it: its sockets are files in a folder of the service's user.
    runtime = host.file("/run/lightbox-jupyter")
    assert (runtime.user, runtime.mode & 0o777) == (USER, 0o700)
    assert json.loads(host.check_output(f"cat /run/lightbox-jupyter/kernel-{kernel}.json"))["transport"] == "ipc"
    assert ask(host, f"/api/kernels/{kernel}", f"{session} --request DELETE")[0] == 204


def test_the_notebook_trains(host: Host) -> None:
    """Headless, as the service's user with the service's environment and mounts."""
    environment = host.check_output(f"tr '\\0' '\\n' < /proc/{main_pid(host)}/environ").splitlines()
    assert 'GREETING=it said "100 %" \\ $HOME' in environment
    wanted = [line for line in environment if line.startswith(("LIGHTBOX_", "JUPYTER", "HOME=", "PYTHON"))]
    inside = f"nsenter --target {main_pid(host)} --mount setpriv --reuid {USER} --regid {USER} --clear-groups"
    done = host.run(
        f"{inside} env -i PATH=/usr/bin:/bin {' '.join(wanted)} {PYTHON} -m jupyter nbconvert --to notebook --execute "
        f"--output-dir {NOTEBOOKS} --output trained {NOTEBOOKS}/lightbox/train_digits.ipynb"
    )
    assert done.rc == 0, done.stderr[-3000:]
    cells = json.loads(host.file(f"{NOTEBOOKS}/trained.ipynb").content_string)["cells"]
    told = "".join(text for cell in cells for out in cell.get("outputs", []) for text in out.get("text", []))
    assert "accuracy" in told and "test images" in told
    bundle = "/var/lib/lightbox/jupyter/runs/latest"
    contract = json.loads(host.check_output(f"cat {bundle}/model.json"))
    assert (contract["name"], contract["training"]["epochs"], contract["input"]["form"]) == ("mnist", 1, "canvas")
    assert contract["preprocessing"]["resize"] == "centred"
    assert "is whole and predicts" in host.check_output(f"{PYTHON} -m lightbox.bundle verify {bundle} --smoke")


def test_is_confined(host: Host) -> None:
    status = dict(line.split(":", 1) for line in host.check_output(f"cat /proc/{main_pid(host)}/status").splitlines())
    assert status["CapBnd"].strip() == "0" * 16
    assert status["Uid"].split()[0] == str(host.user(USER).uid)
    inside = f"nsenter --target {main_pid(host)} --mount setpriv --reuid {USER} --regid {USER} --clear-groups"
    assert host.run(f"{inside} touch {NOTEBOOKS}/mine.ipynb").rc == 0
    for path in (f"{NOTEBOOKS}/lightbox/theirs", f"{SETTINGS}/theirs", "/opt/lightbox/trainer/current/theirs"):
        assert host.run(f"{inside} touch {path}").rc != 0, path


@pytest.mark.parametrize("signal", ["KILL", "TERM"])
def test_comes_back_when_killed(host: Host, signal: str) -> None:
    before = main_pid(host)
    host.check_output(f"kill -{signal} {before}")
    end = time.monotonic() + 40
    while main_pid(host) in ("0", before) or host.run(f"curl --silent --insecure --fail {URL}/api").rc:
        assert time.monotonic() < end
        time.sleep(0.5)
