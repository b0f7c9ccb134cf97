# License: Apache-2.0 OR GPL-3.0-or-later (the GNU General Public License, version 3 or later)
"""Strategy plugin: Ansible's linear strategy, by way of Mitogen where that is installed."""

from __future__ import annotations

DOCUMENTATION = r"""
name: linear
author: The Lightbox authors (@lightbox-mlops)
version_added: 0.1.0
short_description: Ansible's linear strategy, faster where Mitogen is installed
description:
  - Plays as P(ansible.builtin.linear#strategy) does. Where the Python package C(mitogen) is installed beside Ansible,
    modules run in a Python that stays on the host as long as the playbook is played; where it is not, this is Ansible's
    own. C(ANSIBLE_STRATEGY=linear) does without it.
"""

from ansible.plugins.strategy.linear import StrategyModule as Linear
from ansible_collections.lightbox.mlops.plugins.plugin_utils.strategies import through_mitogen

StrategyModule = through_mitogen(Linear)
