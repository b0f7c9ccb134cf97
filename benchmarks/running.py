"""What benchmarks of a running system have in common: the way to the lab, and how they end."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

ROOT = Path(__file__).resolve().parents[1]
INVENTORY = ROOT / "inventories/lab"


class BenchmarkError(Exception):
    """The run cannot begin or go on; the text says what to do."""


def lab_keys() -> dict[str, str]:
    """Return the arguments with which boto3 reaches the lab's API.

    Raises:
        BenchmarkError: the inventory leads to another machine.
    """
    keys = yaml.safe_load((INVENTORY / "aws_ec2.yml").read_text())
    if urlsplit(keys["endpoint_url"]).hostname != "127.0.0.1":
        raise BenchmarkError(f"the lab's endpoint is {keys['endpoint_url']}, which is not on this machine")
    return {"region_name": "us-east-1", "endpoint_url": keys["endpoint_url"],
            "aws_access_key_id": keys["access_key"], "aws_secret_access_key": keys["secret_key"]}  # fmt: skip


def report(
    name: str, measure: Callable[[], dict[str, Any]], table: Callable[[dict[str, Any]], str], out: Path | None
) -> int:
    """Measure, show the figures and keep them; return the exit status.

    Args:
        name: what the benchmark calls itself when it cannot be run.
        measure: returns the figures; ``ok`` among them says whether they are as they are meant to be.
        table: makes of the figures what people read.
        out: file for the figures as JSON.

    Returns:
        0, or 1 when the figures are not ``ok``, or 2 when there are none.
    """
    try:
        found = measure()
    except BenchmarkError as error:
        sys.stderr.write(f"{name}: {error}\n")
        return 2
    print(table(found))
    if out:
        out.write_text(json.dumps(found, indent=2) + "\n")
    return 0 if found.get("ok", True) else 1
