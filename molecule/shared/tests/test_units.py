"""In every scenario: the services that the roles write, or confine, can do little beside their work."""

from __future__ import annotations

import os
from pathlib import Path

from testinfra.host import Host

ROLES = Path(__file__).parents[3] / "roles"
MOST = 3.0
# Nginx' first process opens the ports below 1024 and then becomes another user: the role does not confine it.
UNCONFINED = {"nginx.service"}


def test_services_can_do_little_beside_their_work(host: Host) -> None:
    listing = host.check_output(
        "cd /etc/systemd/system && find . -name 'lightbox-*.service' -type f -o -path '*.service.d/lightbox.conf'"
    )
    found = {name.removeprefix("./").split(".d/")[0] for name in listing.split()}
    # In the others nothing is there to be found, or the services are those of several roles.
    role = ROLES / os.environ["MOLECULE_SCENARIO_NAME"].removesuffix("_alternative")
    assert found or not list(role.glob("templates/etc/systemd/system/*.service*"))
    said = {unit: host.check_output(f"systemd-analyze security --no-pager {unit}") for unit in found - UNCONFINED}
    exposures = {unit: float(text.splitlines()[-1].split(": ")[1].split()[0]) for unit, text in said.items()}
    assert {unit: exposure for unit, exposure in exposures.items() if exposure > MOST} == {}
