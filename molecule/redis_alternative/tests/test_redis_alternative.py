"""Redis as a cache: on another port, on loopback alone, with nothing kept on disk."""

from __future__ import annotations

from testinfra.host import Host


def ask(host: Host, command: str, user: str = "operator") -> str:
    """Send one command as a user; return the answer."""
    password = f"molecule-password-of-{user}"
    return host.check_output(f"REDISCLI_AUTH={password} redis-cli -p 6380 --no-auth-warning --user {user} {command}")


def test_listens_on_loopback_alone_and_on_its_port(host: Host) -> None:
    listening = host.check_output("ss --listening --tcp --numeric --no-header --processes | grep redis-server")
    assert [line.split()[3] for line in listening.splitlines()] == ["127.0.0.1:6380"]


def test_is_set_as_told(host: Host) -> None:
    names = ["maxmemory", "maxmemory-policy", "appendonly", "appendfsync", "save", "timeout", "maxclients"]
    found = {name: ask(host, f"config get {name}").partition("\n")[2] for name in names}
    assert found == {
        "maxmemory": str(64 * 1024 * 1024),
        "maxmemory-policy": "allkeys-lru",
        "appendonly": "no",
        "appendfsync": "always",
        "save": "",
        "timeout": "2",
        "maxclients": "50",
    }


def test_users_without_rules_of_their_own_get_the_other_default(host: Host) -> None:
    assert ask(host, "set shelf:book 1") == "OK"
    assert ask(host, "get shelf:book", "reader") == "1"
    assert "NOPERM" in ask(host, "set shelf:book 2", "reader")
    assert "NOPERM" in ask(host, "get elsewhere", "reader")


def test_what_says_nothing_for_a_while_is_let_go(host: Host) -> None:
    silent = "import socket; peer = socket.create_connection(('127.0.0.1', 6380), 15); print(peer.recv(1) == b'')"
    assert host.check_output(f'python3 -c "{silent}"') == "True"


def test_nothing_is_left_of_it_by_a_restart(host: Host) -> None:
    ask(host, "set shelf:gone 1")
    host.check_output("systemctl restart redis-server")
    assert ask(host, "exists shelf:gone") == "0"
