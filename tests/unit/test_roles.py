"""What a role says of itself, in argument specs, defaults and README, is one thing and is what its tasks use."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parents[2] / "docs"))
import role_tables

ROOT = Path(__file__).parents[2]

ROLES = sorted((ROOT / "roles").iterdir())
KINDS: dict[str, tuple[type, ...]] = {
    "bool": (bool,), "dict": (dict,), "float": (float, int), "int": (int,), "list": (list,), "path": (str,),
    "str": (str,),
}  # fmt: skip
SECRET = re.compile(r"(password|token|credentials|key_pem|(slack|webhook)_url|prometheus_users)$")
SECTIONS = {"Variables", "Example", "Ports", "What restarts when"}

every_role = pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text()) if path.exists() else None


def specs_of(role: Path) -> dict[str, dict[str, Any]]:
    specs: dict[str, dict[str, Any]] = load(role / "meta/argument_specs.yml")["argument_specs"]
    return specs


def sections_of(role: Path) -> dict[str, str]:
    """Return the sections of a role's README by heading; what stands before the first is under the role's name."""
    parts = re.split(r"^#{1,2} (.+)\n", (role / "README.md").read_text(), flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], (part.strip() for part in parts[1::2]), strict=True))


def code_of(role: Path) -> str:
    """Return all that a role does, as one text."""
    files = [path for part in ("tasks", "handlers", "templates", "vars") for path in (role / part).rglob("*.*")]
    return "\n".join(path.read_text() for path in files if path.is_file())


@every_role
def test_the_argument_specs_have_the_keys_and_values_of_the_defaults(role: Path) -> None:
    options = role_tables.options_of(role)
    assert {name: option["default"] for name, option in options.items() if "default" in option} == (
        load(role / "defaults/main.yml") or {}
    )
    assert {name for name, option in options.items() if "default" not in option} == {
        name for name, option in options.items() if option.get("required")
    }


@every_role
def test_entry_points_agree_on_what_an_option_is(role: Path) -> None:
    options = role_tables.options_of(role)
    for point, spec in specs_of(role).items():
        for name, option in spec["options"].items():
            assert option == options[name], f"{point}: {name}"


@every_role
def test_every_option_says_what_it_is(role: Path) -> None:
    for path, option in role_tables.flat(role_tables.options_of(role)):
        assert path.startswith(f"{role.name}_"), path
        assert option["description"].strip().endswith("."), path
        assert ("elements" in option) == (option["type"] == "list"), path
        if "default" in option:
            default = option["default"]
            assert isinstance(default, KINDS[option["type"]]), path
            assert isinstance(default, bool) == (option["type"] == "bool"), path
            assert default in option.get("choices", [default]), path
            for item in default if option["type"] == "list" else []:
                assert isinstance(item, KINDS[option["elements"]]), path


@every_role
def test_no_secret_is_shown_when_an_argument_is_refused(role: Path) -> None:
    for path, option in role_tables.flat(role_tables.options_of(role)):
        assert option.get("no_log", False) == bool(SECRET.search(path)), path


@every_role
def test_every_entry_point_has_its_tasks_and_words(role: Path) -> None:
    for point, spec in specs_of(role).items():
        assert (role / f"tasks/{point}.yml").exists()
        assert spec["short_description"] and spec["description"], point


def test_what_is_called_from_outside_is_an_entry_point() -> None:
    called: set[tuple[str, str]] = set()
    for path in (ROOT / "playbooks").rglob("*.yml"):
        for name, point in re.findall(r"name: (\w+)\n\s+tasks_from: (\w+)", path.read_text()):
            called.add((name, point))
    assert {("release", "rollback"), ("trainer", "run"), ("pki", "authority")} <= called
    assert {(name, point) for name, point in called if point not in specs_of(ROOT / "roles" / name)} == set()


@every_role
def test_the_tasks_use_the_declared_variables_and_no_others(role: Path) -> None:
    # Not as a part of a path or of another word.
    used = set(re.findall(rf"(?<![\w./-]){role.name}_(?!_)\w+(?![\w.]*\.(?:py|yml|json|j2))", code_of(role)))
    registered = set(re.findall(r"register: (\w+)", code_of(role)))
    assert used - registered == set(role_tables.options_of(role))


@every_role
def test_the_table_of_the_readme_is_that_of_the_argument_specs(role: Path) -> None:
    assert (role / "README.md").read_text() == role_tables.written(role), "run `make tables`"


def test_a_table_shows_what_an_option_is() -> None:
    row = role_tables.row("x[].y", {"type": "list", "elements": "str", "default": ["a|b"], "description": "See C(z)."})
    assert row == '| `x[].y` | list of str | `["a\\|b"]` | See `z`. |'
    secret = {"type": "str", "required": True, "no_log": True, "choices": ["a", "b"], "description": "It."}
    assert role_tables.row("x", secret) == "| `x` | str | *required* | It. One of `a`, `b`. Secret. |"
    long = {"type": "str", "default": "x" * 200, "description": "It."}
    assert role_tables.row("x", long) == "| `x` | str | see `defaults/main.yml` | It. |"


@every_role
def test_the_readme_says_what_one_wants_to_know(role: Path) -> None:
    sections = sections_of(role)
    assert set(sections) >= {role.name} | SECTIONS
    assert all(sections.values())
    assert "```yaml" in sections["Example"]
    points = set(specs_of(role)) - {"main"}
    text = (role / "README.md").read_text()
    assert {point for point in points if f"`{point}`" not in text} == set()


@every_role
def test_the_readme_names_the_ports_that_are_listened_on(role: Path) -> None:
    ports = {
        found.group(1)
        for name, default in (load(role / "defaults/main.yml") or {}).items()
        if re.search(r"_(port|listen|listen_address|http_port|https_port|listen_port|status_port|metrics_port)$", name)
        and (found := re.search(r"(?:^|:)(\d{2,5})$", str(default)))
    }
    assert {port for port in ports if port not in sections_of(role)["Ports"]} == set()


@every_role
def test_the_readme_names_the_permissions_on_aws(role: Path) -> None:
    asks_aws = "s3://" in (role / "meta/argument_specs.yml").read_text()
    assert ("Permissions" in sections_of(role)) == asks_aws
    if asks_aws:
        assert {"`s3:ListBucket`", "`s3:GetObject`"} <= set(re.findall(r"`s3:\w+`", sections_of(role)["Permissions"]))


@every_role
def test_the_readme_says_what_is_restarted_and_what_is_only_reloaded(role: Path) -> None:
    done = set(re.findall(r"state: \"?(?:\{\{ ')?(restarted|reloaded)|systemctl (?:try-)?(restart)", code_of(role)))
    words = {state.removesuffix("ed") for pair in done for state in pair if state}
    said = sections_of(role)["What restarts when"].lower()
    assert {word for word in words if word not in said} == set()
