# License: Apache-2.0 OR GPL-3.0-or-later (the GNU General Public License, version 3 or later)
"""What the strategy plugins share."""

from __future__ import annotations

import functools
from typing import Any

import ansible.collections.list as installed

try:
    from ansible_mitogen import affinity, module_finder
    from ansible_mitogen.strategy import StrategyMixin
except ImportError:
    StrategyMixin = None
else:
    # It would keep all of a run but its connections on one core of two, and on the second and third of four.
    affinity.policy = affinity.Policy()
    # What a module imports it learns by compiling all of that, and most modules import the same.
    module_finder.compile = functools.cache(compile)


@functools.cache
def collections_known() -> None:
    """List the installed collections once for all of a run.

    Mitogen lists them at each module of a collection, in a process that was forked for that one task and forgets them.
    """
    found = tuple(installed.list_collection_dirs())
    listed = installed.list_collection_dirs
    installed.list_collection_dirs = lambda *narrowed, **by: listed(*narrowed, **by) if narrowed or by else iter(found)


def through_mitogen(own: type) -> type:
    """Return a strategy of Ansible's behind what Mitogen puts before it; itself where Mitogen is missing."""
    if StrategyMixin is None:
        return own

    class StrategyModule(StrategyMixin, own):
        """The strategy that plays ask for."""

        def run(self, *arguments: Any, **named: Any) -> Any:
            """Play."""
            collections_known()
            return super().run(*arguments, **named)

    return StrategyModule
