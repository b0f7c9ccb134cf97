"""What the documents say of permissions on AWS and of secrets is what playbooks, modules and inventories do."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import ansible_collections.amazon.aws
import botocore.session
import yaml
from documents import ROOT, of_kind, texts

sys.path.insert(0, str(ROOT / "docs"))
import role_tables

# What the modules can do in EC2, and the playbooks never ask of them.
NEVER_ASKED = {
    "AssociateDhcpOptions", "AssociateSubnetCidrBlock", "AssociateVpcCidrBlock", "AttachNetworkInterface",
    "CreateKeyPair", "DisassociateSubnetCidrBlock", "DisassociateVpcCidrBlock", "EnableVgwRoutePropagation",
    "ModifyAddressAttribute", "ResetAddressAttribute",
}  # fmt: skip
# Actions that are called otherwise than the operations they permit.
OWN_NAMES = {
    "DeleteObjectVersion",
    "ListBucket",
    "PassRole",
    "PutBucketPublicAccessBlock",
    "PutEncryptionConfiguration",
}
SERVICES = {
    "ec2": "ec2", "iam": "iam", "s3": "s3", "servicequotas": "service-quotas", "tag": "resourcegroupstaggingapi",
}  # fmt: skip
SECURITY = (ROOT / "docs/security.md").read_text()


def actions() -> list[str]:
    """Return the actions that the policy in docs/aws.md allows."""
    (policy,) = [json.loads(block.text) for block in of_kind("json") if block.where.startswith("docs/aws.md")]
    given = [statement["Action"] for statement in policy["Statement"]]
    return [action for one in given for action in ([one] if isinstance(one, str) else one)]


def operations(prefix: str) -> set[str]:
    """Return all that can be asked of a service."""
    names: list[str] = botocore.session.get_session().get_service_model(SERVICES[prefix]).operation_names
    return set(names)


def test_the_policy_allows_what_the_modules_ask_of_ec2_and_nothing_more() -> None:
    home = Path(next(iter(ansible_collections.amazon.aws.__path__))) / "plugins/modules"
    modules = [home / f"{name}.py" for name in set(re.findall(r"amazon\.aws\.(\w+):", texts("playbooks")))]
    sources = [path.read_text() for path in [*modules, *(ROOT / "plugins/modules").glob("*.py")] if path.exists()]
    words = {word for source in sources for word in re.findall(r"\b[a-z]+(?:_[a-z0-9]+)+\b", source)}
    asked = {"".join(part.capitalize() for part in word.split("_")) for word in words} & operations("ec2")
    assert {"RunInstances", "CreateVpc", "CancelSpotInstanceRequests"} | NEVER_ASKED <= asked
    # Tags are set inside the collection.
    changes = {name for name in asked - NEVER_ASKED if not name.startswith("Describe")} | {"CreateTags", "DeleteTags"}
    assert {action.removeprefix("ec2:") for action in actions() if action.startswith("ec2:")} == changes | {"Describe*"}


def test_no_action_of_the_policy_is_misspelt() -> None:
    known = {prefix: operations(prefix) | OWN_NAMES for prefix in SERVICES}
    for action in actions():
        prefix, _, name = action.partition(":")
        beginning = name.removesuffix("*")
        assert any(one == name or (beginning != name and one.startswith(beginning)) for one in known[prefix]), action


def test_the_page_says_what_hosts_may_do() -> None:
    tasks = yaml.safe_load((ROOT / "playbooks/tasks/provision/access.yml").read_text())
    (given,) = [task["vars"] for task in tasks if "statements" in task.get("vars", {})]
    listing = json.dumps(given["listing"])
    allowed = {kind: set(re.findall(r"s3:\w+", listing + text)) for kind, text in given["statements"].items()}
    rows = re.findall(r"^\| `bucket: (\w+)`(.*)$", SECURITY, re.MULTILINE)
    assert {kind: set(re.findall(r"s3:\w+", row)) for kind, row in rows} == allowed


def test_the_page_names_every_secret() -> None:
    made = set(re.findall(r"password', secrets_dir ~ '/(\w+)'", texts("inventories"))) | {"id_ed25519", "pki/ca.key"}
    table = SECURITY.partition("## Secrets")[2].partition("## Threats")[0]
    assert set(re.findall(r"^\| `([\w./]+)` \|", table, re.MULTILINE)) == made


def test_the_page_names_the_secrets_that_people_give() -> None:
    table = SECURITY.partition("## Secrets")[2].partition("## Threats")[0]
    given: dict[str, Any] = {}
    for role in ("alertmanager", "nginx"):
        given |= {name: one for name, one in role_tables.options_of(ROOT / "roles" / role).items() if one.get("no_log")}
    assert given and {name for name in given if f"`{name}`" not in table} == set()


def test_secrets_of_the_controller_are_in_the_table_or_are_none() -> None:
    none = {"vault.yml", "known_hosts", "proxy.crt", "smoke.b64", "{{ inventory_hostname }}.crt"}
    used = set(
        re.findall(
            r"secrets_dir (?:\}\}|~ ')/([\w.]+(?:\{\{ \w+ \}\})?|\{\{ \w+ \}\}\.crt)", texts("inventories", "playbooks")
        )
    )
    table = SECURITY.partition("## Secrets")[2].partition("## Threats")[0]
    assert {name for name in used - none if f"`{name}" not in table} == set()
