#!/usr/bin/python
# License: Apache-2.0 OR GPL-3.0-or-later (the GNU General Public License, version 3 or later)
"""Ansible module: knock at many TCP ports at once and say which paths are open."""

from __future__ import annotations

DOCUMENTATION = r"""
module: reachability
short_description: Find out which TCP ports can be reached from here
version_added: 0.1.0
description:
  - Opens a connection to every target at the same time. A port that accepts or refuses is reachable; one that stays
    silent, or is unreachable, is closed by the network. Changes nothing.
  - It takes as long as the longest silence, which is O(silence) where everything is as it should be.
options:
  targets:
    description: What to try.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: What to call the target in the result.
        type: str
        required: true
      address:
        description: IP address.
        type: str
        required: true
      port:
        description: TCP port.
        type: int
        required: true
      open:
        description: Whether it should be reachable.
        type: bool
        required: true
  timeout:
    description: Seconds of silence after which a port that should be reachable counts as closed.
    type: float
    default: 5.0
  silence:
    description:
      - Seconds of silence after which a port that should not be reachable counts as closed.
      - TCP asks a second time after one second.
    type: float
    default: 1.5
author: The Lightbox authors (@lightbox-mlops)
"""

EXAMPLES = r"""
- name: The API is reachable and Redis is not
  lightbox.mlops.reachability:
    targets:
      - {name: api, address: 10.0.2.5, port: 5000, open: true}
      - {name: api, address: 10.0.2.5, port: 6379, open: false}
"""

RETURN = r"""
tried:
  description: How many targets were tried.
  type: int
  returned: always
wrong:
  description: The targets that were not as they should be, each with what was found in C(state).
  type: list
  elements: dict
  returned: always
"""

import concurrent.futures
import errno
import socket
import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule


def knock(address: str, port: int, timeout: float) -> str:
    """Return `open`, `refused` (the path is open, nothing listens) or `closed`."""
    deadline = time.monotonic() + timeout
    while True:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
            sock.settimeout(max(0.1, deadline - time.monotonic()))
            code = sock.connect_ex((address, port))
        if code == 0:
            return "open"
        if code == errno.ECONNREFUSED:
            return "refused"
        # A connection table that is full for a moment is not an answer about the target.
        if code not in (errno.EAGAIN, errno.EADDRNOTAVAIL) or time.monotonic() >= deadline:
            return "closed"
        time.sleep(0.05)


def amiss(targets: list[dict[str, Any]], states: list[str]) -> list[dict[str, Any]]:
    """Return the targets that were found otherwise than they should be; a refusal shows an open path."""
    return [
        {**target, "state": state}
        for target, state in zip(targets, states, strict=True)
        if target["open"] != (state != "closed")
    ]


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "targets": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "name": {"type": "str", "required": True},
                    "address": {"type": "str", "required": True},
                    "port": {"type": "int", "required": True},
                    "open": {"type": "bool", "required": True},
                },
            },
            "timeout": {"type": "float", "default": 5.0},
            "silence": {"type": "float", "default": 1.5},
        },
        supports_check_mode=True,
    )
    targets = module.params["targets"]

    def state(target: dict[str, Any]) -> str:
        patience = module.params["timeout" if target["open"] else "silence"]
        return knock(target["address"], target["port"], patience)

    with concurrent.futures.ThreadPoolExecutor(max_workers=max(1, len(targets))) as pool:
        states = list(pool.map(state, targets))
    module.exit_json(changed=False, tried=len(targets), wrong=amiss(targets, states))


if __name__ == "__main__":
    main()
