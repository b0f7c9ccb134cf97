"""Make the bundles of this scenario: bundles.py DIRECTORY. Needs the app's test environment."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[3] / "app/tests"))
from serving_kit import write_bundle


def worse(contract: dict[str, Any]) -> None:
    """Take from the figures what no gate lets pass."""
    contract["metrics"]["test"]["auroc"] -= 0.1


def main() -> None:
    """Write three good bundles, one with a changed byte, a worse one, and one that remembers another prediction."""
    root = Path(sys.argv[1])
    shutil.rmtree(root, ignore_errors=True)
    write_bundle(root / "20260101T000000Z-first000", "20260101T000000Z-first000")
    write_bundle(root / "20260102T000000Z-second00", "20260102T000000Z-second00", gain=10.0)
    write_bundle(root / "20260107T000000Z-third000", "20260107T000000Z-third000", gain=11.0)
    broken = write_bundle(root / "20260103T000000Z-broken00", "20260103T000000Z-broken00")
    model = broken / "model.onnx"
    model.write_bytes(model.read_bytes()[:-1] + b"?")
    write_bundle(root / "20260104T000000Z-worse000", "20260104T000000Z-worse000", change=worse)
    write_bundle(root / "20260105T000000Z-forgets0", "20260105T000000Z-forgets0", smoke_score=0.9)


if __name__ == "__main__":
    main()
