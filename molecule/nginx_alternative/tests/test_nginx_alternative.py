"""The front door with a certificate of one's own, on other ports, with other limits."""

from __future__ import annotations

import time

from testinfra.host import Host

HERE = "--silent --insecure --resolve given.example.org:8443:127.0.0.1"
PAGE = "https://given.example.org:8443/"
# Takes connections, and never says a word.
SILENT = "import socket, time; server = socket.create_server(('127.0.0.1', 5001)); time.sleep(600)"


def test_listens_where_it_was_told_to_and_nowhere_else(host: Host) -> None:
    for socket in ("tcp://0.0.0.0:8080", "tcp://0.0.0.0:8443", "tcp://127.0.0.1:9090"):
        assert host.socket(socket).is_listening
    for port in (80, 443, 8089):
        assert not host.socket(f"tcp://0.0.0.0:{port}").is_listening
        assert not host.socket(f"tcp://127.0.0.1:{port}").is_listening
    assert "Active connections" in host.check_output("curl --silent http://127.0.0.1:9090/status")


def test_plain_http_leads_to_the_other_port(host: Host) -> None:
    answer = host.check_output(
        "curl --silent --head -H 'Host: given.example.org:8080' 'http://127.0.0.1:8080/table?page=2'"
    )
    assert " 308 " in answer.splitlines()[0]
    assert "Location: https://given.example.org:8443/table?page=2" in answer


def test_the_given_certificate_is_shown_and_its_key_is_roots(host: Host) -> None:
    shown = host.check_output("openssl s_client -connect 127.0.0.1:8443 < /dev/null 2> /dev/null | openssl x509")
    assert shown == host.file("/etc/nginx/tls/files.crt").content_string.strip()
    names = host.check_output("openssl x509 -noout -ext subjectAltName -in /etc/nginx/tls/files.crt")
    assert "DNS:given.example.org" in names
    key = host.file("/etc/nginx/tls/files.key")
    assert (key.user, key.mode) == ("root", 0o600)
    assert not host.file("/etc/nginx/tls/self_signed.key").exists


def test_browsers_are_told_to_insist_on_tls(host: Host) -> None:
    answer = host.check_output(f"curl {HERE} --head {PAGE}").lower().splitlines()
    assert "strict-transport-security: max-age=600" in answer


def test_bodies_have_the_other_size(host: Host) -> None:
    host.check_output("head -c 1500000 /dev/zero > /tmp/image; head -c 3000000 /dev/zero > /tmp/large")
    ask = f"curl {HERE} --write-out '\\n%{{http_code}}' --data-binary"
    body, _, status = host.check_output(f"{ask} @/tmp/large {PAGE}").rpartition("\n")
    assert status == "413"
    assert "larger than the 2 MB" in body
    # Nothing is behind the proxy, so what was not too large is not answered either, but for another reason.
    assert host.check_output(f"{ask} @/tmp/image {PAGE}").rpartition("\n")[2] == "502"


def test_no_upload_is_counted(host: Host) -> None:
    ask = f"curl {HERE} --output /dev/null --write-out '%{{http_code}} ' --data x=1 '{PAGE}upload_predict?[1-120]'"
    assert set(host.check_output(ask).split()) == {"502"}


def test_a_server_that_says_nothing_is_given_up_soon(host: Host) -> None:
    host.check_output(f'systemd-run --collect --unit=silent python3 -c "{SILENT}"')
    try:
        ask = f"curl {HERE} --max-time 30 --write-out '\\n%{{http_code}}' --data x=1 {PAGE}"
        body, status, end = "", "502", time.monotonic() + 30
        # Whoever failed twice is not asked for some seconds.
        while status == "502" and time.monotonic() < end:
            time.sleep(1)
            body, _, status = host.check_output(ask).rpartition("\n")
        assert status == "504"
        assert "Nothing was decided" in body
    finally:
        host.run("systemctl stop silent")
