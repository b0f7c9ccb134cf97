"""Read the command lines that come on standard input, JSON, as Ansible itself does; write what is wrong with each."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import sys

from ansible.plugins.loader import init_plugin_loader, module_loader

CLASSES = {
    "ansible": "adhoc.AdHocCLI", "ansible-doc": "doc.DocCLI", "ansible-galaxy": "galaxy.GalaxyCLI",
    "ansible-inventory": "inventory.InventoryCLI", "ansible-playbook": "playbook.PlaybookCLI",
    "ansible-vault": "vault.VaultCLI",
}  # fmt: skip


def wrong(words: list[str]) -> str:
    """Return what Ansible says of a command line, or nothing."""
    module, name = CLASSES[words[0]].split(".")
    cli = getattr(importlib.import_module(f"ansible.cli.{module}"), name)(words)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            cli.init_parser()
            options = cli.post_process_args(cli.parser.parse_args(words[1:]))
    except (SystemExit, Exception) as error:
        return said.getvalue() or str(error)
    asked = getattr(options, "module_name", None)
    if words[0] == "ansible" and not module_loader.find_plugin(asked):
        return f"there is no module {asked}"
    return ""


if __name__ == "__main__":
    init_plugin_loader()
    json.dump([wrong(words) for words in json.load(sys.stdin)], sys.stdout)
