"""Action plugin: render templates here, and have the module of this name put all of them in place in one execution."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase
from ansible.template import trust_as_template


def members(one: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Return each file of a set, `item` being its value, and what removes others; anything else as it is.

    Raises:
        AnsibleActionFail: the path has no place for the names.
    """
    if "each" not in one or one.get("state", "file") != "file":
        yield one
        return
    folder, _slash, last = str(one["dest"]).rpartition("/")
    if last.count("*") != 1 or "*" in folder:
        raise AnsibleActionFail(f"{one['dest']}: with each, the last part of dest has one *, for the names")
    shared = {name: value for name, value in one.items() if name not in ("dest", "each", "exclusive")}
    paths = []
    for name, value in one["each"].items():
        paths.append(f"{folder}/{last.replace('*', str(name))}")
        yield {**shared, "dest": paths[-1], "item": value}
    if boolean(one.get("exclusive", False)):
        yield {"dest": one["dest"], "state": "absent", "keep": paths}


class ActionModule(ActionBase):
    """See the module of this name."""

    _VALID_ARGS = frozenset(("files",))
    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return what the module returns."""
        super().run(tmp, task_vars)
        given = self._task.args.get("files")
        if not isinstance(given, list) or not all(isinstance(one, dict) and one.get("dest") for one in given):
            raise AnsibleActionFail("files must be a list of dictionaries, each with dest")
        files = [self._rendered(one, task_vars or {}) for entry in given for one in members(entry)]
        return self._execute_module(
            module_name="lightbox.mlops.files", module_args={"files": files}, task_vars=task_vars
        )

    def _rendered(self, one: dict[str, Any], variables: dict[str, Any]) -> dict[str, Any]:
        """Return a file with its content in place of its template."""
        rest = {name: value for name, value in one.items() if name not in ("src", "item")}
        if one.get("state", "file") != "file":
            return rest
        if one.get("src"):
            return {**rest, "content": self._text(str(one["src"]), one, variables)}
        content = one.get("content", one.get("item"))
        if content is None:
            raise AnsibleActionFail(f"{one['dest']}: give src or content")
        return {**rest, "content": str(content)}

    def _text(self, src: str, one: dict[str, Any], variables: dict[str, Any]) -> str:
        """Return what a template comes to."""
        path = self._find_needle("templates", src)
        search = [*variables.get("ansible_search_path", []), str(Path(path).parent)]
        available = {"ansible_managed": "Ansible managed", **variables}
        if "item" in one:
            available["item"] = one["item"]
        templar = self._templar.copy_with_new_env(
            searchpath=[folder for found in search for folder in (f"{found}/templates", found)],
            available_variables=available,
        )
        template = trust_as_template(self._loader.get_text_file_contents(path))
        return str(templar.template(template, escape_backslashes=False, overrides={"trim_blocks": True}))
