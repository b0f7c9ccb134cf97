"""Write the tables of variables in the roles' READMEs from their argument specs: ``docs/role_tables.py``.

A README says where its table goes: below the line `MARK`. Whatever table stands there is replaced.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml
from marked_table import put

ROOT = Path(__file__).parents[1]
MARK = "<!-- from meta/argument_specs.yml; `make tables` writes it -->"
# What is longer has a page of its own: the file of the defaults.
LONGEST_DEFAULT = 130


def options_of(role: Path) -> dict[str, dict[str, Any]]:
    """Return the options of all entry points of a role by name, in the order in which they are declared."""
    specs = yaml.safe_load((role / "meta/argument_specs.yml").read_text())["argument_specs"]
    found: dict[str, dict[str, Any]] = {}
    for point in sorted(specs, key=lambda name: name != "main"):
        found.update({name: option for name, option in specs[point].get("options", {}).items() if name not in found})
    return found


def flat(options: dict[str, dict[str, Any]], prefix: str = "") -> list[tuple[str, dict[str, Any]]]:
    """Return options with those inside them, each with the path that leads to it: ``users[].name``."""
    found = []
    for name, option in options.items():
        path = prefix + name
        found.append((path, option))
        found += flat(option.get("options", {}), path + ("[]." if option["type"] == "list" else "."))
    return found


def default_of(option: dict[str, Any]) -> str:
    """Return how the default of an option is shown."""
    if option.get("required"):
        return "*required*"
    if "default" not in option:
        return ""
    value = option["default"]
    shown = value if isinstance(value, str) and value else json.dumps(value)
    return f"`{shown}`" if len(shown) <= LONGEST_DEFAULT else "see `defaults/main.yml`"


def row(path: str, option: dict[str, Any]) -> str:
    """Return the line of an option."""
    kind = option["type"] + (f" of {option['elements']}" if "elements" in option else "")
    meaning = re.sub(r"C\(([^)]*)\)", r"`\1`", str(option["description"]).strip())
    if "choices" in option:
        meaning += f" One of {', '.join(f'`{choice}`' for choice in option['choices'])}."
    if option.get("no_log"):
        meaning += " Secret."
    cells = (f"`{path}`", kind, default_of(option), meaning)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def table(role: Path) -> str:
    """Return the table of a role's variables."""
    head = ["| variable | type | default | meaning |", "|---|---|---|---|"]
    return "\n".join([*head, *(row(path, option) for path, option in flat(options_of(role)))])


def written(role: Path) -> str:
    """Return the README of a role as it should be."""
    return put((role / "README.md").read_text(), MARK, table(role), f"{role.name}/README.md")


def main() -> None:
    """Write the READMEs of all roles."""
    for role in sorted((ROOT / "roles").iterdir()):
        (role / "README.md").write_text(written(role))


if __name__ == "__main__":
    main()
