"""The journals of two hosts come together on one of them, and on nobody else's say."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
import testinfra
from testinfra.host import Host

REMOTE = "/var/log/journal/remote"
PKI = "/etc/lightbox/pki"
RECEIVER = "lightbox-journal-tls.service systemd-journal-remote.socket systemd-journal-remote.service"


@pytest.fixture(scope="module")
def sender() -> Host:
    """The host that only sends."""
    ways = f"{os.environ['MOLECULE_EPHEMERAL_DIRECTORY']}/ssh_config"
    return testinfra.get_host("ssh://lightbox-molecule-journal-sender", ssh_config=ways)


@pytest.fixture(scope="module")
def address(host: Host) -> str:
    """Where the receiver listens."""
    return f"{host.interface.default().addresses[0]}:19532"


@pytest.fixture(autouse=True)
def again(host: Host) -> Iterator[None]:
    """The receiver runs again after a test that stopped it."""
    yield
    host.check_output("systemctl start lightbox-journal-tls.service systemd-journal-remote.socket")


def eventually(host: Host, true: Callable[[], bool], seconds: float = 60) -> None:
    """Wait until something holds, or fail with the last words of those concerned."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            pytest.fail(host.check_output(f"journalctl --no-pager -n 40 -u systemd-journal-upload {_units()}"))
        time.sleep(0.5)


def _units() -> str:
    return " ".join(f"-u {unit}" for unit in RECEIVER.split())


def collected(host: Host, tag: str) -> Counter[str]:
    """Return how often each line of a tag is among what was collected."""
    shown = host.check_output(f"journalctl --directory={REMOTE} --identifier={tag} --output=cat --quiet || true")
    return Counter(shown.splitlines())


def write(host: Host, tag: str, first: int, last: int, pause: float = 0) -> None:
    """Write numbered lines into a host's journal."""
    host.check_output(f"for i in $(seq {first} {last}); do logger -t {tag} line $i; sleep {pause}; done")


def all_there(host: Host, tag: str, count: int) -> bool:
    """Tell whether every numbered line was collected."""
    return set(collected(host, tag)) == {f"line {number}" for number in range(1, count + 1)}


def test_both_hosts_lines_arrive_with_their_host_and_unit(host: Host, sender: Host) -> None:
    for one in (host, sender):
        one.check_output("systemd-run --wait --quiet --unit=arrival echo 'of this host'")
    eventually(host, lambda: collected(host, "echo")["of this host"] >= 2)
    lines = [
        json.loads(line)
        for line in host.check_output(f"journalctl --directory={REMOTE} -u arrival -t echo -o json").splitlines()
    ]
    assert {line["_HOSTNAME"] for line in lines} == {
        "lightbox-molecule-journal",
        "lightbox-molecule-journal-sender",
    }
    assert {line["_SYSTEMD_UNIT"] for line in lines} == {"arrival.service"}


def test_what_was_written_before_the_first_connection_arrived_too(host: Host, sender: Host) -> None:
    first = "--output=short-unix --no-pager --quiet | head --lines=1 | cut --delimiter=' ' --fields=1"
    collected_first = f"journalctl --directory={REMOTE} _HOSTNAME=lightbox-molecule-journal-sender {first}"
    assert host.check_output(collected_first) == sender.check_output(f"journalctl {first}")


@pytest.mark.parametrize(
    ("certificate", "why"),
    [
        ("", "peer did not return a certificate"),
        ("--cert /etc/strangers/host.crt --key /etc/strangers/host.key", "certificate verify failed"),
    ],
)
def test_a_stranger_is_refused(host: Host, sender: Host, address: str, certificate: str, why: str) -> None:
    entry = "__REALTIME_TIMESTAMP=1700000000000000\\nMESSAGE=forged\\n\\n"
    post = (
        f"printf '{entry}' | curl --silent --show-error --cacert {PKI}/ca.crt %s --data-binary @- "
        f"-H 'Content-Type: application/vnd.fdo.journal' https://{address}/upload"
    )
    assert sender.run(post % certificate).rc != 0
    assert why in host.check_output("journalctl --unit lightbox-journal-tls --output=cat --no-pager")
    # The same with the host's own certificate is taken: what was refused was the stranger.
    taken = sender.run(
        post.replace("forged", "admitted") % f"--cert {PKI}/host.crt --key {PKI}/host.key --write-out '%{{http_code}}'"
    )
    assert taken.stdout.strip().endswith(("202", "200")), taken.stdout + taken.stderr
    shown = host.check_output(
        f"journalctl --directory={REMOTE} --output=cat --grep='^(forged|admitted)$' --quiet || true"
    )
    assert "forged" not in shown
    assert "admitted" in shown


def test_the_way_round_tls_is_for_this_host_only(host: Host, sender: Host, address: str) -> None:
    assert host.socket("tcp://127.0.0.1:19533").is_listening
    assert not host.socket("tcp://0.0.0.0:19533").is_listening
    assert sender.run(f"curl --max-time 3 http://{address.replace('19532', '19533')}/upload").rc != 0
    assert not sender.socket("tcp://0.0.0.0:19532").is_listening
    # Nobody takes another for the receiver: the uploader wants a certificate of the authority for this very address.
    assert sender.run(f"curl --silent --cacert /etc/strangers/ca.crt https://{address}/").rc == 60


@pytest.mark.parametrize(("way", "tag"), [("stop", "numbered-stop"), ("kill --signal=KILL", "numbered-kill")])
def test_no_line_is_lost_while_the_receiver_is_away(host: Host, sender: Host, way: str, tag: str) -> None:
    write(sender, tag, 1, 20)
    sender.check_output(
        f"systemd-run --quiet --collect sh -c 'for i in $(seq 21 400); do logger -t {tag} line $i; sleep 0.03; done'"
    )
    time.sleep(1)
    host.run(f"systemctl {way} {RECEIVER}")
    host.check_output(f"systemctl stop {RECEIVER}")
    time.sleep(13)
    assert not all_there(host, tag, 400), "the receiver was away"
    host.check_output("systemctl start lightbox-journal-tls.service systemd-journal-remote.socket")
    eventually(host, lambda: all_there(host, tag, 400))
    # At least once: what was under way when the receiver went may come a second time.
    assert sum(collected(host, tag).values()) <= 420


def test_no_line_is_lost_when_the_uploader_is_killed(host: Host, sender: Host) -> None:
    for first in (1, 101, 201):
        write(sender, "numbered-uploader", first, first + 99)
        sender.run("systemctl kill --signal=KILL systemd-journal-upload")
    eventually(host, lambda: all_there(host, "numbered-uploader", 300))


def test_the_journal_is_on_disk_and_bounded(sender: Host) -> None:
    assert "SystemMaxUse=200M" in sender.check_output("systemd-analyze cat-config systemd/journald.conf")
    machine = sender.file("/etc/machine-id").content_string.strip()
    assert sender.file(f"/var/log/journal/{machine}/system.journal").exists


def test_nobody_has_more_rights_than_it_needs(host: Host, sender: Host) -> None:
    for one, unit in (
        (host, "lightbox-journal-tls"),
        (host, "systemd-journal-remote"),
        (sender, "systemd-journal-upload"),
    ):
        one.run(f"systemctl start {unit}")
        main = one.check_output(f"systemctl show --property=MainPID --value {unit}")
        status = one.file(f"/proc/{main}/status").content_string
        assert "CapEff:\t0000000000000000" in status, unit
        assert "NoNewPrivs:\t1" in status, unit
        assert "Seccomp:\t2" in status, unit
        assert one.check_output(f"stat --format=%U /proc/{main}") != "root"
    other = host.run(f"runuser -u nobody -- sh -c 'cat {REMOTE}/*.journal'")
    assert other.rc != 0


def test_old_and_too_many_lines_go(host: Host) -> None:
    write(host, "kept", 1, 5)
    eventually(host, lambda: len(collected(host, "kept")) == 5)
    prune = f"/usr/local/sbin/lightbox-journal-prune {REMOTE}"
    # A day begins: what there is is put away, and is still found.
    host.check_output(f"rm -f {REMOTE}/.day; {prune} 7 64")
    assert host.check_output(f"ls {REMOTE} | grep -c ^kept-") != "0"
    write(host, "kept", 6, 10)
    eventually(host, lambda: len(collected(host, "kept")) == 10)
    # Too old.
    host.check_output(f"cp {REMOTE}/$(ls {REMOTE} | grep -m 1 ^kept-) {REMOTE}/kept-20200101T000000-old.journal")
    host.check_output(f"touch --date=-9days {REMOTE}/kept-20200101T000000-old.journal")
    assert "kept-20200101T000000-old.journal" in host.check_output(f"{prune} 7 1000")
    assert len(collected(host, "kept")) == 10
    # Too much: the oldest go until the rest fits, and what is written to stays.
    assert "more than 1 MB are kept" in host.check_output(f"{prune} 7 1")
    eventually(host, lambda: set(collected(host, "kept")) == {f"line {number}" for number in range(6, 11)})
    write(host, "kept", 11, 12)
    eventually(host, lambda: "line 12" in collected(host, "kept"))
    # The same by the service, which has few rights of its own: a day begins, and what comes afterwards is received.
    host.check_output(f"rm -f {REMOTE}/.day")
    host.check_output("systemctl start lightbox-journal-prune.service")
    assert host.file(f"{REMOTE}/.day").exists
    write(host, "kept", 13, 14)
    eventually(host, lambda: "line 14" in collected(host, "kept"))
    assert host.service("lightbox-journal-prune.timer").is_enabled
