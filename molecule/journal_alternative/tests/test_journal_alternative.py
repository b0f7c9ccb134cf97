"""A journal on its way over another port, with certificates of another place, name and time."""

from __future__ import annotations

import time

from testinfra.host import Host

REMOTE = "/var/log/journal/remote"


def test_lines_arrive(host: Host) -> None:
    host.check_output("logger -t elsewhere a line")
    end = time.monotonic() + 60
    while host.run(f"journalctl --directory={REMOTE} --identifier=elsewhere --quiet --output=cat | grep 'a line'").rc:
        assert time.monotonic() < end, host.check_output("journalctl --no-pager -n 40 -u systemd-journal-upload")
        time.sleep(0.5)


def test_only_the_given_address_takes_them(host: Host) -> None:
    listening = host.check_output("ss --listening --tcp --numeric --no-header | awk '{print $4}'").split()
    assert "127.0.0.1:20443" in listening
    assert not [address for address in listening if address.endswith(":19532")]
    refused = host.run("curl --silent --cacert /etc/house/ca.crt https://127.0.0.1:20443/upload")
    assert refused.rc != 0, "without a certificate nobody is let in"


def test_the_certificate_is_as_told(host: Host) -> None:
    verify = "openssl verify -CAfile /etc/house/ca.crt"
    host.check_output(f"{verify} -verify_hostname receiver.example.org -verify_ip 127.0.0.1 /etc/house/host.crt")
    assert "Authority of the house" in host.check_output("openssl x509 -in /etc/house/host.crt -noout -issuer")
    for file, days in (("host", 20), ("ca", 30)):
        ends = f"openssl x509 -in /etc/house/{file}.crt -noout -checkend"
        host.check_output(f"{ends} {(days - 1) * 86400}")
        assert host.run(f"{ends} {days * 86400}").rc == 1
    assert not host.file("/etc/lightbox/pki").exists


def test_its_end_is_told_where_it_was_wanted(host: Host) -> None:
    host.check_output("systemctl start lightbox-host-certificate")
    assert "lightbox_host_certificate_expiry" in host.file("/srv/told/host_certificate.prom").content_string


def test_the_bounds_are_those_given(host: Host) -> None:
    journal = host.check_output("systemd-analyze cat-config systemd/journald.conf")
    assert "SystemMaxUse=150M" in journal and "SystemKeepFree=300M" in journal
    prune = host.check_output("systemctl cat lightbox-journal-prune.service lightbox-journal-prune.timer")
    assert f"lightbox-journal-prune {REMOTE} 3 128" in prune
    assert "OnCalendar=Sun *-*-* 04:00:00" in prune
    assert "RestartUSec=3s" in host.check_output("systemctl show --property=RestartUSec systemd-journal-upload")
