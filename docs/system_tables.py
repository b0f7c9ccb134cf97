"""Write the tables in ``docs/aws.md`` and ``docs/security.md`` that follow from the inventories: costs and flows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from marked_table import put

ROOT = Path(__file__).parents[1]
SYSTEMS = ("pneumonia", "mnist")
HOURS_A_MONTH = 730
# What costs beside the hosts, USD: a NAT gateway and a public IPv4 address an hour (https://aws.amazon.com/vpc/pricing/),
# a gigabyte of a gp3 volume a month (https://aws.amazon.com/ebs/pricing/).
NAT = {"us-east-1": 0.045, "eu-west-1": 0.048, "eu-central-1": 0.052}
ADDRESS = {"us-east-1": 0.005, "eu-west-1": 0.005, "eu-central-1": 0.005}
GIGABYTE = {"us-east-1": 0.08, "eu-west-1": 0.088, "eu-central-1": 0.0952}


def load(path: str) -> Any:
    """Return the content of a file of the inventories."""
    return yaml.safe_load((ROOT / "inventories" / path).read_text())


def flow_table(system: str) -> str:
    """Return who may reach what, by who is reached."""
    flows = load(f"{system}/group_vars/all/network.yml")["flows"]
    lines = ["| to | port | from | why |", "|---|---|---|---|"]
    for flow in sorted(flows, key=lambda flow: (flow["to"], min(flow["ports"]))):
        ports = ", ".join(str(port) for port in flow["ports"])
        condition = re.sub(r"^\{\{ | \| bool \}\}$", "", flow["if"]) if "if" in flow else ""
        why = flow["why"] + (f"; only where `{condition}`" if condition else "")
        lines.append(f"| {flow['to']} | {ports} | {flow['from']} | {why} |")
    return "\n".join(lines)


def cost_table(system: str) -> str:
    """Return what a system costs on AWS in each region with known prices, in USD."""
    plan = load(f"{system}/group_vars/all/network.yml")
    prices = load("aws/group_vars/all/main.yml")["instance_prices"]
    hosts, regions = plan["instances"], list(prices)
    gateways = 1 if any(subnet["route"] == "nat" for subnet in plan["network"]["subnets"]) else 0
    addresses = sum(host["public"] for host in hosts) + gateways
    gigabytes = sum(host["disk_gb"] for host in hosts)
    stays = [host for host in hosts if host["role"] != "trainer"]

    def row(name: str, figures: list[float], form: str = ".4f") -> str:
        return f"| {name} | " + " | ".join(f"{figure:{form}}" for figure in figures) + " |"

    def hours(host: dict[str, Any]) -> list[float]:
        return [prices[region][host["type"]] for region in regions]

    rows = [(f"{host['name']}, `{host['type']}`", hours(host)) for host in stays]
    if gateways:
        rows.append(("NAT gateway", [NAT[region] for region in regions]))
    rows.append((f"public addresses: {addresses}", [addresses * ADDRESS[region] for region in regions]))
    rows.append((f"disks: {gigabytes} GB", [gigabytes * GIGABYTE[region] / HOURS_A_MONTH for region in regions]))
    always = [sum(figures) for figures in zip(*(figures for _name, figures in rows), strict=True)]
    return "\n".join([
        f"| USD an hour | {' | '.join(regions)} |",
        "|---|" + "---|" * len(regions),
        *(row(name, figures) for name, figures in rows),
        row("**all of that**", always),
        row(f"**all of that, a month of {HOURS_A_MONTH} hours**", [HOURS_A_MONTH * figure for figure in always], ".0f"),
        *(row(f"{host['name']}, `{host['type']}`, while it is up", hours(host)) for host in hosts if host not in stays),
    ])  # fmt: skip


TABLES = {
    "aws.md": {f"costs of inventories/{system}": (cost_table, system) for system in SYSTEMS},
    "security.md": {f"flows of inventories/{system}": (flow_table, system) for system in SYSTEMS},
}


def written(page: str) -> str:
    """Return a page as it should be: below each of its marks, the table that the mark names."""
    text = (ROOT / "docs" / page).read_text()
    for name, (make, system) in TABLES[page].items():
        text = put(text, f"<!-- {name}; `make tables` writes it -->", make(system), f"docs/{page}")
    return text


def main() -> None:
    """Write the pages."""
    for page in TABLES:
        (ROOT / "docs" / page).write_text(written(page))


if __name__ == "__main__":
    main()
