"""What the role base leaves on a host."""

from __future__ import annotations

from testinfra.host import Host


def test_ssh_accepts_keys_of_people_only(host: Host) -> None:
    settings = host.check_output("/usr/sbin/sshd -T").splitlines()
    for line in (
        "permitrootlogin no",
        "passwordauthentication no",
        "kbdinteractiveauthentication no",
        "x11forwarding no",
        "allowagentforwarding no",
        "allowtcpforwarding local",
        "maxauthtries 4",
    ):
        assert line in settings
    assert host.service("ssh").is_running
    assert host.socket("tcp://0.0.0.0:22").is_listening


def test_broken_ssh_settings_would_be_refused(host: Host) -> None:
    """The check that guards the file does find a mistake."""
    assert host.run("echo 'PermitRootLogin perhaps' > /tmp/sshd.conf; ! /usr/sbin/sshd -t -f /tmp/sshd.conf").rc == 0


def test_accounts(host: Host) -> None:
    ada = host.user("ada")
    assert ada.shell == "/bin/bash"
    assert ada.password.startswith("!")
    keys = host.file("/home/ada/.ssh/authorized_keys")
    assert keys.mode == 0o600
    assert keys.user == "ada"
    assert "ada@example.org" in keys.content_string
    assert not host.user("eve").exists


def test_root_rights_are_given_by_name(host: Host) -> None:
    assert host.check_output("runuser -u ada -- sudo -n id -u") == "0"
    assert host.run("runuser -u bob -- sudo -n id -u").rc != 0
    assert host.file("/etc/sudoers.d/lightbox-ada").mode == 0o440


def test_time(host: Host) -> None:
    assert host.file("/etc/localtime").linked_to == "/usr/share/zoneinfo/Etc/UTC"
    assert host.service("systemd-timesyncd").is_enabled
    assert "NTP=192.0.2.123" in host.check_output("systemd-analyze cat-config systemd/timesyncd.conf")


def test_security_updates_are_daily_and_limited(host: Host) -> None:
    settings = host.check_output("apt-config dump").splitlines()
    assert 'APT::Periodic::Update-Package-Lists "1";' in settings
    assert 'APT::Periodic::Unattended-Upgrade "1";' in settings
    assert 'Unattended-Upgrade::Automatic-Reboot "false";' in settings
    lists = ("Unattended-Upgrade::Origins-Pattern::", "Unattended-Upgrade::Allowed-Origins::")
    origins = [line for line in settings if line.startswith(lists)]
    assert len(origins) == 1
    assert "security" in origins[0]


def test_names_and_packages(host: Host) -> None:
    assert host.check_output("getent hosts case-store.example.org").split()[0] == "192.0.2.10"
    assert host.package("less").is_installed
