"""External validation: what a finished bundle says of labelled images from elsewhere, such as a hospital's own films.

The images go through the engine that serves. The figures are those of a training's report, and where asked for, the
threshold and the temperature are chosen anew on half of the patients and the figures taken on the other half
("Recalibration in the large", Steyerberg, "Clinical Prediction Models", 2009). The network stays what it was.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lightbox import data, evaluation, report
from lightbox.bundle import BundleError
from lightbox.cnn import System, band, figures_of, robustness_of, write_predictions
from lightbox.data import Manifest, Shape
from lightbox.images import enough_for, open_image
from lightbox.serving import Engine, record_smoke
from lightbox.training import Sides, plain

Doubles = NDArray[np.float64]
# Name in a contract of the images, and in its `metrics` of their figures.
EXTERNAL = "external"


@dataclass(frozen=True)
class Films:
    """Labelled images from elsewhere.

    Attributes:
        manifest: the images, on the sides `test` and, where something is chosen by them, `validation`.
        pixels: of all, by row, shape (n, height, width, channels).
        system: what is classified.
        seed: of what is drawn.
        progress: told what to write into the progress file.
    """

    manifest: Manifest
    pixels: data.Pixels
    system: System
    seed: int
    progress: Callable[..., None]

    def labels(self, split: str) -> NDArray[np.int64]:
        """Return the labels of a side, shape (n,)."""
        return np.asarray([sample.label for sample in self.manifest.of(split)], dtype=np.int64)

    def scores(self, engine: Engine, split: str) -> Doubles:
        """Return the scores of a side as the service gives them, shape (n,) of a sigmoid, (n, labels) of a softmax."""
        takes, samples, found = engine.bundle.input, self.manifest.of(split), []
        enough = enough_for(takes.height, takes.width)
        for number, (_, content) in enumerate(data.pictures(self.manifest, samples), 1):
            found.append(engine.predict(open_image(content, enough=enough)))
            self.progress(message=f"images judged, {number} of {len(samples)}")
        return plain(found)

    def figures(self, split: str, scores: Doubles) -> dict[str, Any]:
        """Return the figures of a side."""
        return figures_of(self.manifest, split, self.labels(split), scores, self.system, self.seed)

    def robustness(self, engine: Engine) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return `robustness` and `shortcuts` of a contract, of the side `test`."""

        def predict(images: data.Pixels) -> Doubles:
            pictures = (Image.fromarray(one[..., 0] if one.shape[-1] == 1 else one) for one in images)
            return plain([engine.predict(picture) for picture in pictures])

        rows = {"test": np.asarray([sample.row for sample in self.manifest.of("test")])}
        sides = Sides(self.pixels, rows, {"test": self.labels("test")})
        return robustness_of(predict, sides, self.manifest, self.system, self.seed, self.progress)

    def told(self) -> dict[str, Any]:
        """Return what a contract says of the images."""
        manifest = self.manifest
        return {
            "source": manifest.source,
            "digest": manifest.digest,
            "counts": manifest.counts(),
            "left_out": len(manifest.left_out),
        }


def evaluate(
    model: Path,
    source: str,
    directory: Path,
    cache: Path,
    system: System,
    rule: str,
    seed: int,
    progress: Callable[..., None],
    sha256: str = "",
    anonymous: bool = False,
) -> Path:
    """Measure a bundle on labelled images; return the directory with `evaluation.json`, `report.html` and the rest.

    Args:
        model: directory of the bundle.
        source: see `lightbox.data.locate`, also for ``sha256`` and ``anonymous``; laid out as for training.
        directory: where the results go, below a directory named by model and data.
        cache: for what is fetched and decoded.
        system: what the bundle classifies.
        rule: how threshold and temperature are chosen anew (see `lightbox.evaluation.threshold`), which makes a
            ``bundle`` beside the report; empty to leave them.
        seed: of what is drawn.
        progress: told what to write into the progress file.

    Raises:
        BundleError, DataError, ServingError: the bundle or the images cannot be used.
    """
    engine = Engine(model, os.cpu_count() or 1)
    if rule and engine.bundle.output != "sigmoid":
        raise BundleError(f"{engine.version} has {len(engine.labels)} labels: there is no threshold to choose anew")
    takes = engine.bundle.input
    shape = Shape(takes.height, takes.width, takes.color, engine.contract["preprocessing"]["resize"])

    def report_progress(message: str, done: int, total: int) -> None:
        progress(message=f"{message}: {done} of {total}")

    manifest, pixels = data.gather(
        source, cache, shape, tuple(system.classes), system.patient, sha256, anonymous, report_progress
    )
    films = Films(_halved(manifest, seed) if rule else manifest, pixels, system, seed, progress)
    result = directory / f"{engine.version}-{manifest.digest[:8]}{'-recalibrated' if rule else ''}"
    unfinished = result.with_name(result.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    if rule:
        _recalibrate(engine, films, rule, unfinished)
    else:
        _measure(engine, films, unfinished)
    films.manifest.save(unfinished / "manifest.json")
    shutil.rmtree(result, ignore_errors=True)
    unfinished.replace(result)
    return result


def _halved(manifest: Manifest, seed: int) -> Manifest:
    """Put half of the patients on the side `validation`, where threshold and temperature are chosen."""
    dealt = data.split_by_patient([replace(sample, split="") for sample in manifest.samples], seed, 0.5, 0.0)
    samples = [replace(sample, split="validation" if sample.split == "validation" else "test") for sample in dealt]
    return replace(manifest, samples=tuple(samples))


def _measure(engine: Engine, films: Films, directory: Path) -> None:
    """Write what a model says of images from elsewhere."""
    scores = films.scores(engine, "test")
    contract = copy.deepcopy(engine.contract)
    contract["metrics"][EXTERNAL] = films.figures("test", scores)
    contract[EXTERNAL] = films.told()
    _judge(contract, EXTERNAL, engine, films)
    page = report.render(contract, *report.mistakes(engine, films.manifest, "test", scores), EXTERNAL)
    (directory / report.REPORT_FILE).write_text(page)
    _write(directory, contract, engine, films, {"test": scores})


def _judge(contract: dict[str, Any], name: str, engine: Engine, films: Films) -> None:
    """Put robustness and shortcuts into a contract, and the worst AUROC among the figures of that name."""
    contract["robustness"], contract["shortcuts"] = films.robustness(engine)
    worst = contract["robustness"]["worst"]
    contract["metrics"][name]["auroc_worst"] = worst["auroc"] if worst else None


def _write(directory: Path, contract: dict[str, Any], engine: Engine, films: Films, scores: dict[str, Doubles]) -> None:
    """Write the contract and the scores of every image."""
    (directory / "evaluation.json").write_text(json.dumps(contract, indent=2) + "\n")
    write_predictions(directory / "predictions.csv", films.manifest, scores, engine.labels)


def _recalibrate(engine: Engine, films: Films, rule: str, directory: Path) -> None:
    """Write a bundle with threshold and temperature chosen on one half of the patients, its figures on the other."""
    before = films.figures("test", films.scores(engine, "test"))
    chosen = films.labels("validation")
    place = _recalibrated(engine, chosen, films.scores(engine, "validation"), rule, directory / "bundle")
    engine = Engine(place, os.cpu_count() or 1)
    scores = {split: films.scores(engine, split) for split in ("validation", "test")}
    contract = copy.deepcopy(engine.contract)
    contract["metrics"] = {split: films.figures(split, values) for split, values in scores.items()}
    contract[EXTERNAL] = films.told()
    contract["data"]["test_digest"] = films.manifest.split_digest("test")
    contract["recalibrated"]["before"] = {
        name: value for name, value in before.items() if name not in ("roc", "reliability")
    }
    contract["calibration"]["ece"] = {"before": before["ece"], "after": contract["metrics"]["test"]["ece"]}
    if uncertain := engine.bundle.uncertain:
        contract["decision"]["uncertain"] = band(chosen, scores["validation"], uncertain["high"])
    contract.setdefault("limits", []).append(
        f"Threshold and probabilities were chosen anew on {chosen.size} images from elsewhere; the figures are those "
        f"of {scores['test'].size} other images from there."
    )
    _judge(contract, "test", engine, films)
    # What ranks images is the same before and after.
    contract["recalibrated"]["before"]["auroc_worst"] = contract["metrics"]["test"]["auroc_worst"]
    (place / "model.json").write_text(json.dumps(contract, indent=2) + "\n")
    report.write(place, films.manifest, "test", scores["test"])
    shutil.copy(place / report.REPORT_FILE, directory)
    _write(directory, contract, engine, films, scores)


def _recalibrated(engine: Engine, labels: NDArray[np.int64], scores: Doubles, rule: str, directory: Path) -> Path:
    """Write a bundle of the same network with threshold and temperature chosen anew; return its directory.

    Args:
        engine: of the bundle.
        labels: of the images, 0 or 1, shape (n,).
        scores: as the engine gives them, shape (n,).
        rule: see `lightbox.evaluation.threshold`.
        directory: to write.
    """
    old = engine.bundle
    limit = evaluation.threshold(labels, scores, rule)
    # The threshold goes to 0.5, so that no verdict is shown with a confidence below one half.
    shift = float(evaluation.logits([limit])[0])
    temperature = evaluation.temperature(labels, 1 / (1 + np.exp(-(evaluation.logits(scores) - shift))))
    shutil.copytree(old.path, directory)
    contract = copy.deepcopy(old.contract)
    created = datetime.now(timezone.utc)
    run = old.version.rpartition("-")[2]
    contract.update(
        version=f"{created:%Y%m%dT%H%M%SZ}-{run}",
        created=f"{created:%Y-%m-%dT%H:%M:%SZ}",
        recalibrated={"from": old.version, "rule": rule, "threshold": limit},
    )
    contract["files"].pop(report.REPORT_FILE, None)
    (directory / report.REPORT_FILE).unlink(missing_ok=True)
    contract["calibration"].update(
        # Applied after what was there before.
        temperature=old.temperature * temperature,
        shift=old.shift + old.temperature * shift,
    )
    contract["decision"].update(
        threshold=0.5,
        chosen_by=f"{rule} on {labels.size} images from elsewhere, at {limit:.4f} of the score before; shifted to 0.5",
    )
    (directory / "model.json").write_text(json.dumps(contract, indent=2) + "\n")
    record_smoke(directory)
    return directory
