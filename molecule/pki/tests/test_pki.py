"""A certificate for the host, from an authority that is elsewhere."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

from testinfra.host import Host

AUTHORITY = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / "pki"
PKI = "/etc/lightbox/pki"


def noted(host: Host, moment: str, what: str) -> str:
    """Return what the side effect noted at a moment."""
    return host.check_output(f"cat /run/{moment}.{what}")


def test_the_certificate_is_the_hosts(host: Host) -> None:
    host.check_output(f"openssl verify -x509_strict -CAfile {PKI}/ca.crt -verify_hostname scenario-pki {PKI}/host.crt")
    host.check_output(f"openssl verify -CAfile {PKI}/ca.crt -verify_ip 192.0.2.9 {PKI}/host.crt")
    assert host.run(f"openssl verify -CAfile {PKI}/ca.crt -verify_ip 192.0.2.7 {PKI}/host.crt").rc != 0
    for purpose in ("sslserver", "sslclient"):
        host.check_output(f"openssl verify -CAfile {PKI}/ca.crt -purpose {purpose} {PKI}/host.crt")
    shown = host.check_output(f"openssl x509 -in {PKI}/host.crt -noout -ext basicConstraints,keyUsage")
    assert "CA:FALSE" in shown
    assert "Certificate Sign" not in shown


def test_keys_stay_where_they_were_made(host: Host) -> None:
    key = host.file(f"{PKI}/host.key")
    assert (key.mode, key.user) == (0o600, "root")
    assert {path.name for path in AUTHORITY.iterdir()} == {"ca.key", "ca.crt"}
    assert (AUTHORITY / "ca.key").stat().st_mode & 0o777 == 0o600
    assert AUTHORITY.stat().st_mode & 0o777 == 0o700
    assert host.check_output(f"ls {PKI}").split() == ["ca.crt", "host.crt", "host.key"]
    for secret in (key.content_string, (AUTHORITY / "ca.key").read_text()):
        line = secret.splitlines()[1]
        assert line not in host.check_output("journalctl --no-pager --boot")


def test_the_authority_makes_no_others(host: Host) -> None:
    shown = subprocess.run(
        ["openssl", "x509", "-in", AUTHORITY / "ca.crt", "-noout", "-text"], capture_output=True, text=True, check=True
    ).stdout
    assert "CA:TRUE, pathlen:0" in shown
    assert host.file(f"{PKI}/ca.crt").content_string == (AUTHORITY / "ca.crt").read_text()


def test_a_good_certificate_stays_and_one_that_ends_soon_is_renewed(host: Host) -> None:
    assert noted(host, "first", "serial") == noted(host, "quiet", "serial")
    assert noted(host, "quiet", "serial") != noted(host, "renewed", "serial")
    assert noted(host, "first", "key") == noted(host, "renewed", "key")


def test_who_uses_it_is_restarted_for_a_new_one_only(host: Host) -> None:
    assert int(noted(host, "first", "pid")) > 1
    assert noted(host, "first", "pid") == noted(host, "quiet", "pid")
    assert noted(host, "quiet", "pid") != noted(host, "renewed", "pid")


def test_another_address_or_key_is_another_certificate(host: Host) -> None:
    assert noted(host, "renewed", "serial") != noted(host, "moved", "serial")
    assert noted(host, "moved", "key") != noted(host, "lost", "key")
    assert noted(host, "moved", "serial") != noted(host, "lost", "serial")


def test_prometheus_is_told_when_the_certificate_ends(host: Host) -> None:
    assert host.service("lightbox-host-certificate.timer").is_enabled
    told = "/var/lib/exporter/host_certificate.prom"
    end = time.monotonic() + 15
    while host.run(f"test -e {told}").rc:
        assert time.monotonic() < end, "the timer told nothing"
        time.sleep(0.5)
    host.check_output("systemctl start lightbox-host-certificate")
    name, seconds = host.file(told).content_string.split()
    assert name == "lightbox_host_certificate_expiry_timestamp_seconds"
    assert host.check_output(f"date -u -d @{seconds} '+notAfter=%b %e %H:%M:%S %Y GMT'") == host.check_output(
        f"openssl x509 -in {PKI}/host.crt -noout -enddate"
    )
    # Without a certificate nothing is told anew, which is a failure, and what was told last stays.
    host.check_output(f"mv {PKI}/host.crt {PKI}/away")
    try:
        assert host.run("systemctl start lightbox-host-certificate").rc != 0
        assert host.file(told).content_string.split() == [name, seconds]
    finally:
        host.check_output(f"mv {PKI}/away {PKI}/host.crt && systemctl start lightbox-host-certificate")


def test_a_host_cannot_ask_to_be_another(host: Host) -> None:
    refusal = host.file("/run/refusal").content_string
    assert "asks for DNS:monitor" in refusal
    assert "Nothing was signed" in refusal
    assert noted(host, "lost", "serial") == noted(host, "refused", "serial")
