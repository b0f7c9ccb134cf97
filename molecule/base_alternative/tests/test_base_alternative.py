"""What the role base leaves on a host that is to be otherwise than by default."""

from __future__ import annotations

from testinfra.host import Host


def test_ssh_is_for_those_who_are_named(host: Host) -> None:
    settings = host.check_output("/usr/sbin/sshd -T").splitlines()
    for line in (
        "allowusers root",
        "allowusers ada",
        "allowtcpforwarding no",
        "maxauthtries 2",
        "clientalivecountmax 3",
    ):
        assert line in settings


def test_an_account_has_no_more_rights_than_given(host: Host) -> None:
    assert host.user("ada").exists
    assert not host.file("/etc/sudoers.d/lightbox-ada").exists
    assert host.run("runuser -u ada -- sudo -n id -u").rc != 0


def test_time_is_that_of_the_place_and_from_the_distributions_servers(host: Host) -> None:
    assert host.file("/etc/localtime").linked_to == "/usr/share/zoneinfo/Europe/Berlin"
    assert host.check_output("date -d @1751364000 +%H:%M") == "12:00"  # summer: two hours before Greenwich
    assert not host.file("/etc/systemd/timesyncd.conf.d/lightbox.conf").exists


def test_updates_are_left_to_people(host: Host) -> None:
    settings = host.check_output("apt-config dump").splitlines()
    assert 'APT::Periodic::Update-Package-Lists "0";' in settings
    assert 'APT::Periodic::Unattended-Upgrade "0";' in settings
    # For whoever runs them by hand.
    assert 'Unattended-Upgrade::Automatic-Reboot "true";' in settings
    assert 'Unattended-Upgrade::Automatic-Reboot-Time "03:15";' in settings


def test_no_name_is_known_that_was_not_given(host: Host) -> None:
    assert "hosts of this system" not in host.file("/etc/hosts").content_string
