"""A host with a GPU whose driver is not wanted stays as it is."""

from __future__ import annotations

from testinfra.host import Host


def test_nothing_was_installed(host: Host) -> None:
    assert not host.file("/etc/apt/sources.list.d/lightbox-nvidia.sources").exists
    packages = host.check_output("dpkg-query --show --showformat='${Package}\\n'").splitlines()
    of_a_driver = ("nvidia-", "libnvidia", "libcuda", "linux-headers", "dkms")
    assert [name for name in packages if name.startswith(of_a_driver)] == []
