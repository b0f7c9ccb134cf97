#!/usr/bin/python
# License: Apache-2.0 OR GPL-3.0-or-later (the GNU General Public License, version 3 or later)
"""Ansible module: have many files as they should be, in one execution."""

from __future__ import annotations

DOCUMENTATION = r"""
module: files
short_description: Have many files as they should be, in one execution
version_added: 0.2.0
description:
  - Writes the files that a service is configured with, makes their directories and removes what is no longer wanted.
    All of it is one execution on the host, where M(ansible.builtin.template) takes two for every file.
  - Nothing is written unless every file is valid, and a file is replaced as a whole, with its owner and mode from the
    first moment on.
  - Templates are rendered on the controller, by the action plugin of this name.
options:
  files:
    description: What should be there, and what should not.
    type: list
    elements: dict
    required: true
    suboptions:
      dest:
        description: >-
          Path on the host. With O(files[].each) its last part has one C(*), which stands for the names.
        type: path
        required: true
      src:
        description: Template, looked for where M(ansible.builtin.template) does.
        type: str
      content:
        description: What is in the file; instead of O(files[].src).
        type: str
      each:
        description: >-
          Names and values of a whole set of files. The template sees the value as C(item); without a template the value
          is the content.
        type: dict
      state:
        description: Whether it is a file, a directory, or should not be there.
        type: str
        choices: [file, directory, absent]
        default: file
      owner:
        description: User who owns it.
        type: str
        default: root
      group:
        description: Group that owns it.
        type: str
        default: root
      mode:
        description: Its mode, in octal. Without, C(0644), and C(0755) for a directory.
        type: str
      validate:
        description: Command that fails for bad content. C(%s) is the path of the file to look at.
        type: str
      exclusive:
        description: Whether other files that match O(files[].dest), and are not among O(files[].each), are removed.
        type: bool
        default: false
      keep:
        description: With O(files[].state=absent), paths that stay although O(files[].dest) matches them.
        type: list
        elements: path
        default: []
attributes:
  check_mode:
    support: full
    description: Says what would change. Nothing is validated, for what a file names may not be there yet.
  diff_mode:
    support: full
    description: Shows what is in each file before and after.
author: The Lightbox authors (@lightbox-mlops)
"""

EXAMPLES = r"""
- name: Prometheus is configured
  lightbox.mlops.files:
    files:
      - dest: /etc/prometheus/rules
        state: directory
      - dest: /etc/prometheus/rules/*.yml
        each: {hosts: {groups: []}}
        exclusive: true
        src: etc/prometheus/rules/rules.yml.j2
        validate: promtool check rules %s
      - dest: /etc/prometheus/prometheus.yml
        src: etc/prometheus/prometheus.yml.j2
        group: prometheus
        mode: "0640"
        validate: promtool check config %s
  notify: Reload Prometheus
"""

RETURN = r"""
changed_paths:
  description: What was written, made or removed, or got another owner or mode.
  type: list
  elements: str
  returned: always
"""

import os
import shlex
import tempfile
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

MODES = {"file": "0644", "directory": "0755"}


class Files:
    """What is done on one host: staged first, put in place when all of it is valid."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.changed: list[str] = []
        self.diffs: list[dict[str, str]] = []
        self.staged: list[tuple[Path, Path]] = []

    def tell(self, path: Path, before: str, after: str) -> None:
        """Remember a change, with what there was and will be."""
        self.changed.append(str(path))
        self.diffs.append({"before_header": str(path), "after_header": str(path), "before": before, "after": after})

    def attributes(self, one: dict[str, Any], path: Path) -> None:
        """Give a path its owner and mode."""
        wanted = {name: one[name] for name in ("owner", "group")} | {"mode": one["mode"] or MODES[one["state"]]}
        diff: dict[str, Any] = {}
        arguments = self.module.load_file_common_arguments(self.module.params | wanted, path=str(path))
        changed = self.module.set_fs_attributes_if_different(arguments, False, diff=diff)
        if changed and str(path) == one["dest"] and one["dest"] not in self.changed:
            before, after = (
                "".join(f"{name}: {value}\n" for name, value in diff.get(side, {}).items() if name != "path")
                for side in ("before", "after")
            )
            self.tell(path, before, after)

    def directory(self, one: dict[str, Any]) -> None:
        """Have a directory, and those above it."""
        path = Path(one["dest"])
        if path.is_dir():
            self.attributes(one, path)
            return
        if os.path.lexists(path):
            self.module.fail_json(msg=f"{path} should be a directory, and is a file: move it away")
        self.tell(path, "absent\n", "directory\n")
        if not self.module.check_mode:
            for missing in reversed([folder for folder in (path, *path.parents) if not os.path.lexists(folder)]):
                missing.mkdir()
                missing.chmod(int(MODES["directory"], 8))  # whatever the umask
            self.attributes(one, path)

    def file(self, one: dict[str, Any]) -> None:
        """Stage a file whose content is another; only owner and mode of one that has it."""
        path, after = Path(one["dest"]), one["content"].encode()
        if path.is_dir():
            self.module.fail_json(msg=f"{path} should be a file, and is a directory: move it away")
        before = path.read_bytes() if path.is_file() and not path.is_symlink() else None
        if before == after:
            self.attributes(one, path)
            return
        self.tell(path, (before or b"").decode("utf-8", "replace"), one["content"])
        if self.module.check_mode:
            return
        handle, name = tempfile.mkstemp(prefix=".ansible-", dir=path.parent)
        staged = Path(name)
        self.staged.append((staged, path))
        with os.fdopen(handle, "wb") as stream:
            stream.write(after)
        self.attributes(one, staged)
        self.valid(one, staged)

    def valid(self, one: dict[str, Any], staged: Path) -> None:
        """End with the validator's words when it does not take what is staged."""
        if not one["validate"]:
            return
        if "%s" not in one["validate"]:
            self.module.fail_json(msg=f"validate of {one['dest']} must contain %s: {one['validate']}")
        command = [word.replace("%s", str(staged)) for word in shlex.split(one["validate"])]
        code, out, err = self.module.run_command(command)
        if code:
            said = "\n".join(part.strip() for part in (out, err) if part.strip()).replace(str(staged), one["dest"])
            self.module.fail_json(msg=f"{one['dest']} would not be valid, nothing is written: {said}", rc=code)

    def absent(self, one: dict[str, Any]) -> None:
        """Remove the files that match, but for those to keep."""
        dest = Path(one["dest"])
        for path in sorted(dest.parent.glob(dest.name)) if "*" in dest.name else [dest]:
            if str(path) in one["keep"] or not os.path.lexists(path) or (path.is_dir() and not path.is_symlink()):
                continue
            self.tell(path, "file\n", "absent\n")
            if not self.module.check_mode:
                path.unlink()

    def put(self) -> None:
        """Put what is staged in place."""
        for staged, path in self.staged:
            staged.replace(path)

    def clean(self) -> None:
        """Leave nothing that is staged behind."""
        for staged, _path in self.staged:
            staged.unlink(missing_ok=True)


def main() -> None:
    """Do what the task says."""
    options = {
        "dest": {"type": "path", "required": True},
        "src": {"type": "str"},
        "content": {"type": "str"},
        "each": {"type": "dict"},
        "state": {"type": "str", "choices": ["file", "directory", "absent"], "default": "file"},
        "owner": {"type": "str", "default": "root"},
        "group": {"type": "str", "default": "root"},
        "mode": {"type": "str"},
        "validate": {"type": "str"},
        "exclusive": {"type": "bool", "default": False},
        "keep": {"type": "list", "elements": "path", "default": []},
    }
    module = AnsibleModule(
        argument_spec={"files": {"type": "list", "elements": "dict", "required": True, "options": options}},
        supports_check_mode=True,
    )
    files = Files(module)
    wanted = module.params["files"]
    try:
        for state, have in (("directory", files.directory), ("file", files.file)):
            for one in wanted:
                if one["state"] == state:
                    have(one)
        files.put()
        for one in wanted:
            if one["state"] == "absent":
                files.absent(one)
    except OSError as error:
        module.fail_json(msg=f"{error.filename or ''}: {error.strerror or error}", changed_paths=files.changed)
    finally:
        files.clean()
    module.exit_json(changed=bool(files.changed), changed_paths=files.changed, diff=files.diffs)


if __name__ == "__main__":
    main()
