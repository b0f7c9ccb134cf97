"""JupyterLab with a given certificate, on another address and port, with a group to read with."""

from __future__ import annotations

from testinfra.host import Host

UNIT = "lightbox-jupyter.service"
TLS = "/etc/lightbox/jupyter/tls"


def show(host: Host, name: str) -> str:
    return host.check_output(f"systemctl show --property={name} --value {UNIT}")


def test_it_answers_with_the_given_certificate(host: Host) -> None:
    reached = "--resolve given.example.org:8443:127.0.0.2 https://given.example.org:8443"
    asked = f"curl --silent --fail --cacert {TLS}/files.crt --output /dev/null --write-out '%{{http_code}}'"
    assert host.check_output(f"{asked} {reached}/login") == "200"
    assert host.run(f"curl --silent --output /dev/null {reached}/login").rc == 60, "nobody else vouches for it"
    assert host.socket("tcp://127.0.0.2:8443").is_listening
    assert not host.socket("tcp://0.0.0.0:8443").is_listening
    assert host.check_output(f"ls {TLS}").split() == ["files.crt", "files.key"]


def test_key_and_password_are_for_few(host: Host) -> None:
    key = host.file(f"{TLS}/files.key")
    assert (key.user, key.mode) == ("root", 0o600)
    assert host.run(f"runuser -u lightbox-jupyter -- cat {key.path}").rc != 0
    assert "molecule-password" not in host.check_output("journalctl --no-pager --boot")
    assert host.run("grep --recursive --quiet molecule-password /etc/lightbox /etc/systemd/system").rc == 1


def test_the_unit_has_its_limit_and_groups(host: Host) -> None:
    assert show(host, "MemoryMax") == str(2 * 1024**3)
    assert "readers" in host.user("lightbox-jupyter").groups
    assert "KERAS_BACKEND=tensorflow" in show(host, "Environment")


def test_kernels_that_do_nothing_are_stopped_soon(host: Host) -> None:
    settings = host.file("/etc/lightbox/jupyter/jupyter_server_config.py").content_string
    assert "c.MappingKernelManager.cull_idle_timeout = 30\n" in settings
