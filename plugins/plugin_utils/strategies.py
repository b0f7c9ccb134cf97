# License: Apache-2.0 OR GPL-3.0-or-later (the GNU General Public License, version 3 or later)
"""What the strategy plugins share."""

from __future__ import annotations

try:
    from ansible_mitogen import affinity
    from ansible_mitogen.strategy import StrategyMixin
except ImportError:
    StrategyMixin = None
else:
    # It would keep all of a run but its connections on one core of two, and on the second and third of four.
    affinity.policy = affinity.Policy()


def through_mitogen(own: type) -> type:
    """Return a strategy of Ansible's behind what Mitogen puts before it; itself where Mitogen is missing."""
    return type("StrategyModule", (StrategyMixin, own), {}) if StrategyMixin else own
