"""Redis for named users only."""

from __future__ import annotations

import time

import pytest
from testinfra.host import Host

PASSWORD = "molecule-password-of-app"


def ask(host: Host, command: str, *, user: str = "app", password: str = PASSWORD) -> str:
    """Send one command as a user; return the answer."""
    return host.check_output(f"REDISCLI_AUTH='{password}' redis-cli --no-auth-warning --user {user} {command}")


def eventually_up(host: Host, seconds: float = 10) -> None:
    """Wait until Redis answers, or fail with its last words."""
    end = time.monotonic() + seconds
    while "NOAUTH" not in host.run("redis-cli ping").stdout:
        if time.monotonic() > end:
            pytest.fail(host.check_output("systemctl status redis-server; journalctl -u redis-server -n 40"))
        time.sleep(0.3)


def test_listens_on_its_own_addresses_only(host: Host) -> None:
    address = host.interface.default().addresses[0]
    assert host.socket("tcp://127.0.0.1:6379").is_listening
    assert host.socket(f"tcp://{address}:6379").is_listening
    assert not host.socket("tcp://0.0.0.0:6379").is_listening
    assert not host.socket("tcp://:::6379").is_listening
    # From the private address too: protected mode lets in who has a password.
    assert ask(host, f"-h {address} ping") == "PONG"


def test_rewrites_its_log_as_told(host: Host) -> None:
    def setting(name: str) -> str:
        return ask(host, f"config get {name}", user="operator", password="molecule-password-of-operator").split()[1]

    assert setting("rdbcompression") == "no"
    assert setting("auto-aof-rewrite-min-size") == str(100 * 1024 * 1024)


def test_nobody_comes_in_without_a_password(host: Host) -> None:
    assert "NOAUTH" in host.run("redis-cli get lightbox:a").stdout
    wrong = host.run("redis-cli --user app --pass wrong-password ping")
    assert "WRONGPASS" in wrong.stdout + wrong.stderr


def test_a_user_does_what_it_needs(host: Host) -> None:
    assert ask(host, "hset lightbox:case:1 label Normal") in ("0", "1")
    assert ask(host, "hgetall lightbox:case:1") == "label\nNormal"
    assert ask(host, "zadd lightbox:cases 1 1") in ("0", "1")
    assert ask(host, "zcard lightbox:cases") == "1"
    assert ask(host, "expire lightbox:case:1 100") == "1"
    assert ask(host, "ping") == "PONG"
    assert ask(host, "multi") == "OK"


@pytest.mark.parametrize(
    "command",
    [
        "set other:a 1",
        "get other:a",
        "keys 'lightbox:*'",
        "flushall",
        "config get dir",
        "eval 'return 1' 0",
        "acl list",
        "info",
        "shutdown",
        "client list",
        "replicaof 192.0.2.1 6379",
    ],
)
def test_and_nothing_else(host: Host, command: str) -> None:
    assert "NOPERM" in ask(host, command)


def test_the_operator_may_do_more(host: Host) -> None:
    operator = {"user": "operator", "password": "molecule-password-of-operator"}
    settings = ask(host, "config get 'max*' 'append*' protected-mode", **operator).splitlines()
    found = dict(zip(settings[::2], settings[1::2], strict=True))
    assert found["maxmemory"] == str(256 * 1024 * 1024)
    assert found["maxmemory-policy"] == "noeviction"
    assert found["appendonly"] == "yes"
    assert found["protected-mode"] == "yes"


def test_the_password_is_nowhere(host: Host) -> None:
    assert host.file("/etc/redis/users.acl").mode == 0o640
    assert host.file("/etc/redis/users.acl").group == "redis"
    assert host.run(f"grep -rl {PASSWORD} /etc /var/log /var/lib/redis /run/redis").stdout == ""
    assert PASSWORD not in host.check_output("journalctl --no-pager --boot")


def test_a_mistake_would_be_refused(host: Host) -> None:
    """The trial that guards both files does find a mistake."""
    broken = host.run("echo 'appendfsync sometimes' > /tmp/redis.conf; redis-try-config configuration /tmp/redis.conf")
    assert broken.rc == 1
    assert "appendfsync" in broken.stderr
    broken = host.run("echo 'user app on +@nothing' > /tmp/users.acl; redis-try-config users /tmp/users.acl")
    assert broken.rc == 1
    assert host.run("redis-try-config configuration /etc/redis/redis.conf").rc == 0
    assert host.run("redis-try-config users /etc/redis/users.acl").rc == 0
    assert host.check_output("pgrep --count --exact redis-server") == "1"


def test_comes_back_when_killed_with_its_data(host: Host) -> None:
    ask(host, "set lightbox:kept yes")
    time.sleep(1.2)  # appendfsync everysec
    before = host.check_output("systemctl show --property=MainPID --value redis-server")
    host.check_output(f"kill -KILL {before}")
    eventually_up(host)
    assert host.check_output("systemctl show --property=MainPID --value redis-server") != before
    assert ask(host, "get lightbox:kept") == "yes"
