"""The front door: TLS, redirects, limits, headers, recovery."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from testinfra.host import Host

UPSTREAM = Path(__file__).with_name("upstream.py").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def behind(host: Host) -> Iterator[None]:
    """Servers behind the proxy on 5001 and 3000; none on 3001."""
    encoded = base64.b64encode(UPSTREAM.encode()).decode()
    host.check_output(f"echo {encoded} | base64 -d > /run/upstream.py")
    for port in (5001, 3000):
        host.check_output(f"systemd-run --collect --unit=upstream-{port} python3 /run/upstream.py {port}")
        eventually(host, lambda port=port: host.socket(f"tcp://127.0.0.1:{port}").is_listening)
    yield
    host.run("systemctl stop upstream-5001 upstream-3000")


def eventually(host: Host, true: Callable[[], bool], seconds: float = 10) -> None:
    """Wait until something holds, or fail with Nginx's last words."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            pytest.fail(host.check_output("journalctl --no-pager --unit nginx -n 60"))
        time.sleep(0.3)


def get(host: Host, arguments: str) -> tuple[int, str]:
    """Ask with curl; return status and body."""
    answer = host.check_output(f"curl --silent --insecure --write-out '\\n%{{http_code}}' {arguments}")
    body, _, status = answer.rpartition("\n")
    return int(status), body


def test_listens_where_it_should(host: Host) -> None:
    assert host.socket("tcp://0.0.0.0:80").is_listening
    assert host.socket("tcp://0.0.0.0:443").is_listening
    assert host.socket("tcp://127.0.0.1:8089").is_listening
    assert not host.socket("tcp://0.0.0.0:8089").is_listening
    assert host.service("nginx").is_enabled
    assert host.run("nginx -t").rc == 0


def test_http_leads_to_https(host: Host) -> None:
    answer = host.check_output("curl --silent --head 'http://127.0.0.1/table?page=2'")
    assert " 308 " in answer.splitlines()[0]
    assert "Location: https://127.0.0.1/table?page=2" in answer


def test_certificate(host: Host) -> None:
    shown = host.check_output(
        "openssl s_client -connect 127.0.0.1:443 -servername proxy.example.org </dev/null 2>/dev/null"
        " | openssl x509 -noout -ext subjectAltName -checkend 25920000"
    )
    assert "DNS:proxy.example.org" in shown
    assert "IP Address:192.0.2.1" in shown
    assert "will not expire" in shown
    assert host.file("/etc/nginx/tls/self_signed.key").mode == 0o600
    assert host.run("openssl s_client -connect 127.0.0.1:443 -tls1_1 </dev/null").rc != 0
    # A browser must not be locked out of a host whose certificate it cannot check.
    answer = host.check_output("curl --silent --insecure --head https://127.0.0.1/")
    assert "strict-transport-security" not in answer.lower()


@pytest.mark.usefixtures("behind")
def test_servers_behind_learn_who_asked(host: Host) -> None:
    claims = "-H 'Host: proxy.example.org' -H 'X-Forwarded-For: 203.0.113.9' -H 'X-Request-ID: forged'"
    status, body = get(host, f"{claims} 'https://127.0.0.1/table?page=2'")
    assert status == 200
    said = json.loads(body)
    headers = {name.lower(): value for name, value in said["headers"].items()}
    assert said["path"] == "/table?page=2"
    assert headers["host"] == "proxy.example.org"
    assert headers["x-forwarded-for"] == headers["x-real-ip"] == "127.0.0.1"
    assert headers["x-forwarded-proto"] == "https"
    assert len(headers["x-request-id"]) == 32


@pytest.mark.usefixtures("behind")
def test_a_server_that_is_down_costs_no_answer(host: Host) -> None:
    assert {get(host, "https://127.0.0.1/grafana/")[0] for _ in range(10)} == {200}


def broken_off(host: Host, path: str, name: str, method: str = "POST", times: int = 1) -> tuple[int, list[str]]:
    """Ask for something that the server breaks off at first; return the status and the ids it was asked under."""
    data = f"--data content={name}" if method == "POST" else ""
    status, _ = get(host, f"--request {method} {data} -H 'X-Break-Off: {name} {times}' https://127.0.0.1{path}")
    return status, host.check_output(f"cat /run/broken-{name}").split()


@pytest.mark.usefixtures("behind")
@pytest.mark.parametrize(
    ("method", "path", "tries", "status"),
    [
        ("GET", "/cases", 2, 200),
        ("DELETE", "/cases/1", 2, 200),
        ("POST", "/repeatable", 2, 200),
        ("POST", "/cases/1/feedback", 1, 502),
    ],
)
def test_what_may_be_sent_again_is(host: Host, method: str, path: str, tries: int, status: int) -> None:
    """The server takes the request, body and all, and closes the connection without a word, once."""
    name = f"{method}-{path.replace('/', '-')}"
    answered, ids = broken_off(host, path, name, method)
    assert answered == status
    assert len(ids) == tries
    assert len(set(ids)) == 1, "the service must be able to tell that it is the same request"


@pytest.mark.usefixtures("behind")
def test_a_request_that_kills_whoever_reads_it_does_not_go_round(host: Host) -> None:
    answered, ids = broken_off(host, "/repeatable", "poison", times=99)
    assert answered == 502
    assert len(ids) == 3
    assert get(host, "https://127.0.0.1/")[0] == 200, "a lone server is never given up"


@pytest.mark.usefixtures("behind")
def test_the_servers_own_refusal_is_passed_on(host: Host) -> None:
    for _ in range(3):
        status, body = get(host, "-H 'X-Status: 503' https://127.0.0.1/")
        assert status == 503
        assert json.loads(body)["port"] == 5001


@pytest.mark.usefixtures("behind")
def test_other_paths_have_other_servers(host: Host) -> None:
    said = json.loads(get(host, "https://127.0.0.1/grafana/d/1")[1])
    assert said["port"] == 3000
    assert said["path"] == "/grafana/d/1"
    # An exact path takes none beside it: a prefix that ends with a slash would be where the path without one is sent.
    found = [json.loads(get(host, f"https://127.0.0.1{path}")[1])["port"] for path in ("/exact/", "/exact", "/exact/1")]
    assert found == [3000, 5001, 5001]


@pytest.mark.usefixtures("behind")
def test_uploads_have_a_size(host: Host) -> None:
    host.check_output("head -c 10000000 /dev/zero > /tmp/image; head -c 30000000 /dev/zero > /tmp/large")
    status, body = get(host, "--data-binary @/tmp/image https://127.0.0.1/elsewhere")
    assert (status, json.loads(body)["bytes"]) == (200, 10_000_000)
    for protocol in ("--http1.1", "--http2"):
        status, body = get(host, f"{protocol} --data-binary @/tmp/large https://127.0.0.1/elsewhere")
        assert status == 413
        assert "larger than the 20 MB" in body


@pytest.mark.usefixtures("behind")
def test_uploads_have_a_rate(host: Host) -> None:
    answers = [get(host, "--data x=1 https://127.0.0.1/upload_predict") for _ in range(8)]
    statuses = [status for status, _ in answers]
    assert statuses[:5] == [200] * 5
    assert set(statuses[5:]) == {429}
    assert "Too many uploads" in answers[-1][1]
    # Looking is not uploading, nor is giving an opinion.
    assert get(host, "https://127.0.0.1/upload_predict")[0] == 200
    assert get(host, "--data x=1 https://127.0.0.1/cases/1/feedback")[0] == 200
    unlimited = [get(host, "--interface 127.0.0.2 --data x=1 https://127.0.0.1/upload_predict") for _ in range(8)]
    assert {status for status, _ in unlimited} == {200}


def test_nothing_behind_is_no_verdict(host: Host) -> None:
    host.run("systemctl stop upstream-3000 upstream-5001")
    status, body = get(host, "https://127.0.0.1/")
    assert status == 502
    assert "Nothing was decided" in body


def test_log_is_json_without_query(host: Host) -> None:
    asked = "-H 'X-Request-ID: forged-by-client' 'https://127.0.0.1/logged?patient=secret'"
    status, body = get(host, f"--write-out '%header{{x-request-id}}\\n%{{http_code}}' {asked}")
    assert status == 502, "what is said about servers that do not answer must not quote the request either"

    def entries() -> list[str]:
        return host.check_output("journalctl --identifier=nginx --output=cat --no-pager").splitlines()

    eventually(host, lambda: any('"/logged"' in line for line in entries()))
    (line,) = [line for line in entries() if '"/logged"' in line]
    assert json.loads(line)["id"] == body.rpartition("\n")[2]
    assert not [line for line in entries() if "secret" in line or "forged-by-client" in line]
    assert host.run("grep --recursive --quiet secret /var/log/nginx").rc != 0


def test_status_is_for_this_host(host: Host) -> None:
    assert "Active connections" in host.check_output("curl --silent http://127.0.0.1:8089/status")


def test_a_broken_configuration_would_be_refused(host: Host) -> None:
    """The check that guards the file does find a mistake."""
    host.check_output("sed 's/least_conn/most_conn/' /etc/nginx/nginx.conf > /tmp/nginx.conf")
    assert host.run("nginx -t -c /tmp/nginx.conf").rc != 0


def test_comes_back_when_killed(host: Host) -> None:
    for victim in ("master", "worker"):
        before = host.check_output(f"pgrep --full --oldest 'nginx: {victim}'")
        host.check_output(f"kill -KILL {before}")
        eventually(host, lambda: host.run("curl --silent --fail http://127.0.0.1:8089/status").rc == 0)
        assert host.check_output(f"pgrep --full --oldest 'nginx: {victim}'") != before
