"""Passwords are made once, in files or in a vault, and made anew by one command."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
BIN = ROOT / ".venv/bin"
VARIABLES = ROOT / "inventories/common/secrets.yml"
NAMES = set(yaml.safe_load(VARIABLES.read_text())["password_names"])
OLD = "o" * 40


class Controller:
    """A directory of secrets, with one password in a file as a run leaves it, and a vault's password elsewhere."""

    def __init__(self, directory: Path) -> None:
        self.secrets, self.key = directory / "secrets", directory / "vault-password"
        self.secrets.mkdir(mode=0o700)
        (self.secrets / "redis_api").write_text(f"{OLD}\n")
        self.key.write_text("a password of the vault\n")
        self.environment = {**os.environ, "ANSIBLE_FORCE_COLOR": "0", "ANSIBLE_VAULT_PASSWORD_FILE": str(self.key)}

    def play(self, playbook: str, *arguments: str, vault: bool = True) -> subprocess.CompletedProcess[str]:
        environment = dict(self.environment)
        if not vault:
            del environment["ANSIBLE_VAULT_PASSWORD_FILE"]
        return subprocess.run(
            [BIN / "ansible-playbook", playbook, "-i", "inventories/pneumonia", "--tags", "secrets",
             "-e", f"secrets_dir={self.secrets}", "-vvv", "--diff", *arguments],
            cwd=ROOT, env=environment, text=True, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    @property
    def vault(self) -> dict[str, str]:
        """What the vault holds."""
        shown = subprocess.run(
            [BIN / "ansible-vault", "view", self.secrets / "vault.yml"],
            env=self.environment, text=True, check=True, capture_output=True,
        )  # fmt: skip
        return dict(yaml.safe_load(shown.stdout))

    @property
    def files(self) -> set[str]:
        return {path.name for path in self.secrets.iterdir()}


def changed(done: subprocess.CompletedProcess[str]) -> int:
    assert done.returncode == 0, done.stdout
    found = re.search(r"localhost\s+: ok=\d+\s+changed=(\d+)", done.stdout)
    assert found
    return int(found[1])


@pytest.fixture
def controller(tmp_path: Path) -> Controller:
    return Controller(tmp_path)


def test_the_vault_takes_over_what_there_is_and_makes_what_is_lacking(controller: Controller) -> None:
    done = controller.play("playbooks/secrets.yml")
    assert changed(done)
    text = (controller.secrets / "vault.yml").read_text()
    assert text.startswith("$ANSIBLE_VAULT;")
    assert (controller.secrets / "vault.yml").stat().st_mode & 0o777 == 0o600
    assert controller.files == {"vault.yml"}
    held = controller.vault
    assert set(held) == NAMES and held["redis_api"] == OLD
    assert all(re.fullmatch("[A-Za-z0-9]{40}", value) for value in held.values())
    assert len(set(held.values())) == len(NAMES)
    assert [name for name, value in held.items() if value in done.stdout] == [], "a password was printed"

    again = controller.play("playbooks/secrets.yml")
    assert changed(again) == 0
    assert (controller.secrets / "vault.yml").read_text() == text

    # The variables that the playbooks give to roles are those of the vault, and no file is made for them.
    out = controller.secrets.parent / "given.yml"
    names = [name for name in yaml.safe_load(VARIABLES.read_text()) if name.endswith(("_password", "_secret"))]
    assert len(names) == len(NAMES)
    given = "{" + ", ".join(f"'{name}': {name}" for name in names) + "}"
    playbook = controller.secrets.parent / "given-to.yml"
    copy = {"dest": str(out), "content": "{{" + given + " | to_yaml }}", "mode": "0600"}
    task = {"ansible.builtin.copy": copy, "tags": ["secrets"]}
    playbook.write_text(
        yaml.safe_dump([{"hosts": "localhost", "connection": "local", "gather_facts": False, "tasks": [task]}])
    )
    assert controller.play(str(playbook)).returncode == 0
    assert sorted(yaml.safe_load(out.read_text()).values()) == sorted(held.values())
    assert controller.files == {"vault.yml"}


def test_without_a_password_of_the_vault_nothing_is_touched(controller: Controller) -> None:
    done = controller.play("playbooks/secrets.yml", vault=False)
    assert done.returncode != 0 and "ANSIBLE_VAULT_PASSWORD_FILE" in done.stdout
    assert controller.files == {"redis_api"}


def test_some_or_all_are_made_anew_in_the_vault(controller: Controller) -> None:
    controller.play("playbooks/secrets.yml")
    before = controller.vault
    assert changed(controller.play("playbooks/rotate.yml", "-e", "only=redis_api,status")) == 1
    after = controller.vault
    assert {name for name in NAMES if before[name] != after[name]} == {"redis_api", "status"}
    done = controller.play("playbooks/rotate.yml")
    assert changed(done) == 1
    assert {name for name in NAMES if controller.vault[name] == after[name]} == set()
    assert [value for value in controller.vault.values() if value in done.stdout] == []
    assert controller.files == {"vault.yml"}


def test_some_or_all_are_made_anew_in_files(controller: Controller) -> None:
    (controller.secrets / "status").write_text(f"{OLD}\n")
    (controller.secrets / "id_ed25519").write_text("no password, and not touched")
    assert changed(controller.play("playbooks/rotate.yml", "-e", "only=status", vault=False)) == 1
    assert controller.files == {"redis_api", "id_ed25519"}
    assert changed(controller.play("playbooks/rotate.yml", vault=False)) == 1
    assert controller.files == {"id_ed25519"}


@pytest.mark.parametrize("only", ["redis", "id_ed25519", "status,nobody", ""])
def test_what_is_no_password_is_not_made_anew(controller: Controller, only: str) -> None:
    done = controller.play("playbooks/rotate.yml", "-e", f"only={only}")
    assert done.returncode != 0 and "no such password. There are csrf, grafana_admin" in done.stdout
    assert controller.files == {"redis_api"}
