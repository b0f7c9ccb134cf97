#!/usr/bin/python
# License: Apache-2.0 OR GPL-3.0-or-later (the GNU General Public License, version 3 or later)
"""Ansible module: the documentation of the action plugin of this name."""

from __future__ import annotations

DOCUMENTATION = r"""
module: journal_lines
short_description: Show lines of the collected journal
version_added: 0.1.0
description:
  - Reads the journals that a receiver has collected in a directory of the host and prints them with time, host and
    service, in the order of time.
  - Lines of one request are put in the order in which the services began with it, whichever of them was done first.
  - It is an action plugin. Nothing of it is copied to the host, where it runs C(journalctl).
options:
  directory:
    description: Where the receiver collects.
    type: path
    required: true
  hosts:
    description: The name of each host by the name it calls itself in its journal.
    type: dict
    required: true
  host:
    description: Show only lines of this host.
    type: str
    default: ""
  service:
    description: Show only lines of this unit, with or without C(.service).
    type: str
    default: ""
  id:
    description: Show only lines with this request id.
    type: str
    default: ""
  since:
    description: From when on, in the words of C(journalctl). Without, the last hour, or, with O(id), any time.
    type: str
    default: ""
  lines:
    description: Show so many at most, the newest.
    type: int
    default: 1000
  follow:
    description: Go on with what comes until it is interrupted.
    type: bool
    default: false
author: The Lightbox authors (@lightbox-mlops)
"""

EXAMPLES = r"""
- name: The lines of one request are shown
  lightbox.mlops.journal_lines:
    directory: /var/log/journal/remote
    hosts: {ip-10-0-2-5: pneumonia-api}
    id: 0123456789abcdef
"""

RETURN = r"""
count:
  description: How many lines were shown.
  type: int
  returned: when lines were found and O(follow) is not set
"""
