"""Make the bundles of this scenario: bundles.py DIRECTORY. Needs the app's test environment."""

from __future__ import annotations

import hashlib
import math
import shutil
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[3] / "app/tests"))
from serving_kit import model_bytes, png, write_bundle


def worse(contract: dict[str, Any]) -> None:
    """Take from the figures what no gate lets pass."""
    contract["metrics"]["test"]["auroc"] -= 0.1
    contract["metrics"]["test"]["brier"] += 0.1


def weak(contract: dict[str, Any]) -> None:
    """Take from the figures what no model may lack."""
    contract["metrics"]["test"]["auroc"] = 0.4


def fails_on_black(directory: Path) -> None:
    """Write a bundle that predicts its smoke image and gives no number for a black picture."""

    def change(contract: dict[str, Any]) -> None:
        content = model_bytes(math.inf, 0.0)
        (directory / "model.onnx").write_bytes(content)
        contract["files"]["model.onnx"] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        contract["smoke"] = {"file": "smoke.png", "scores": [1.0], "label": "Pneumonia"}

    write_bundle(directory, directory.name, change=change)


def main() -> None:
    """Write three good bundles, one with a changed byte, a worse one and a hopeless one, one that remembers another
    prediction, one that fails in use, and the picture it fails on.
    """
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
    fails_on_black(root / "20260108T000000Z-onblack0")
    write_bundle(root / "20260109T000000Z-hopeless", "20260109T000000Z-hopeless", change=weak)
    (root / "black.png").write_bytes(png(0))


if __name__ == "__main__":
    main()
