#!/usr/bin/python
# License: Apache-2.0 OR GPL-3.0-or-later (the GNU General Public License, version 3 or later)
"""Ansible module: the documentation of the action plugin of this name."""

from __future__ import annotations

DOCUMENTATION = r"""
module: training_progress
short_description: Follow a training run until it ends
version_added: 0.1.0
description:
  - Reads the progress file of a run every few seconds and prints a line whenever something worth reading changed.
  - Fails, with the end of the unit's journal, when the run fails or its unit stops before it is done.
  - It is an action plugin. Nothing of it is copied to the host.
options:
  path:
    description: The progress file on the host.
    type: str
    required: true
  unit:
    description: The systemd unit that trains.
    type: str
    required: true
  interval:
    description: Seconds between two looks.
    type: float
    default: 3
  timeout:
    description: Seconds after which the run counts as stuck. With 0 it never does.
    type: float
    default: 0
author: The Lightbox authors (@lightbox-mlops)
"""

EXAMPLES = r"""
- name: The model is trained
  lightbox.mlops.training_progress:
    path: /var/lib/lightbox/runs/progress.json
    unit: lightbox-train.service
"""

RETURN = r"""
progress:
  description: The last contents of the progress file.
  type: dict
  returned: when the run ended well
"""
