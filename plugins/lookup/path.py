# License: Apache-2.0 OR GPL-3.0-or-later (the GNU General Public License, version 3 or later)
"""Lookup plugin: the absolute path of something that came with the collection."""

from __future__ import annotations

DOCUMENTATION = r"""
name: path
author: The Lightbox authors (@lightbox-mlops)
version_added: 0.1.0
short_description: Find what came with the collection
description:
  - Returns absolute paths of files and directories of this collection, be it installed or a checkout, and whichever
    playbook is played.
options:
  _terms:
    description: Paths within the collection.
    required: true
"""

EXAMPLES = r"""
- name: It is told where the source of the app is
  ansible.builtin.debug:
    msg: "{{ lookup('lightbox.mlops.path', 'app') }}"
"""

RETURN = r"""
_raw:
  description: The absolute paths, in the order of the terms.
  type: list
  elements: path
"""

from pathlib import Path
from typing import Any

from ansible.errors import AnsibleLookupError
from ansible.plugins.lookup import LookupBase


def root_of(plugin: Path) -> Path:
    """Return the directory of the collection that a plugin is in; of a checkout, which is linked, the checkout."""
    root = plugin.absolute().parents[2]
    return root.resolve() if root.is_symlink() else root


class LookupModule(LookupBase):
    """See DOCUMENTATION."""

    def run(self, terms: list[str], variables: dict[str, Any] | None = None, **kwargs: Any) -> list[str]:
        """Return the paths.

        Raises:
            AnsibleLookupError: the collection has no such file.
        """
        root = root_of(Path(__file__))
        for term in terms:
            if not (root / term).exists():
                raise AnsibleLookupError(f"There is no {term} in the collection at {root}")
        return [str(root / term) for term in terms]
