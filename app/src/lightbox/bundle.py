"""The bundle: a trained model ready to serve, and the contract that comes with it.

A bundle is a directory: ``best_model.keras`` as Keras saved it, a serving form compiled from it, ``smoke.png`` and
``model.json``, the contract. Servers read the contract and nothing else. This module needs NumPy and Pillow only, so
that it works in every environment.

``python -m lightbox.bundle verify DIR [--smoke]``, ``show DIR``, ``gate CANDIDATE LIVE`` and ``compare CANDIDATE LIVE``
are what releases use.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from lightbox.centring import centre, is_blank
from lightbox.images import ImageError

SCHEMA = 1
KERAS_FILE = "best_model.keras"
CENTRED = "centred"
RESIZE = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "nearest": Image.Resampling.NEAREST,
    "area": Image.Resampling.BOX,
    # Not stretched but moved and scaled, see lightbox.centring.
    CENTRED: None,
}
COLOR_MODES = {"grayscale": ("L", 1), "rgb": ("RGB", 3)}
OUTPUTS = ("sigmoid", "softmax")
# Figures of which less is better; of all others more is.
LOWER_IS_BETTER = ("loss", "brier", "ece")

Floats = NDArray[np.float32]


class BundleError(Exception):
    """A bundle is not what it says it is; the text names what is wrong and what to do."""


@dataclass(frozen=True)
class Input:
    """What the model takes: height and width in pixels, channels, and how people give it (`upload` or `canvas`)."""

    height: int
    width: int
    channels: int
    color: str
    form: str = "upload"


@dataclass(frozen=True)
class Verdict:
    """What a model says of one image; the confidence is that of the label, from 0 to 1.

    ``uncertain`` says that the scores lie in the band in which the bundle declares no verdict to be safe.
    """

    label: str
    confidence: float
    probabilities: dict[str, float]
    uncertain: bool = False


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as stream:
        digest = hashlib.sha256()
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk.

    Attributes:
        path: its directory.
        contract: the whole of ``model.json``.
        input: what the model takes.
        labels: names of the outputs, in their order; for a sigmoid the second is what the score speaks of.
        threshold: score from which a sigmoid's second label is the verdict.
        temperature: what the engine divides logits by to make scores honest probabilities; 1 when the weights have it.
        shift: what it takes off a sigmoid's logits before; 0 when the weights have it.
    """

    path: Path
    contract: dict[str, Any]
    input: Input
    labels: tuple[str, ...]
    threshold: float
    temperature: float
    shift: float = 0.0

    @classmethod
    def load(cls, path: Path | str) -> Bundle:
        """Read a bundle's contract.

        Raises:
            BundleError: there is no contract, or it lacks something a server needs.
        """
        directory = Path(path)
        file = directory / "model.json"
        try:
            contract = json.loads(file.read_text())
        except FileNotFoundError as error:
            raise BundleError(f"there is no bundle at {directory}: model.json is missing") from error
        except (OSError, ValueError) as error:
            raise BundleError(f"{file} cannot be read: {error}") from error
        try:
            bundle = cls(
                path=directory,
                contract=contract,
                input=Input(**{key: contract["input"][key] for key in ("height", "width", "channels", "color")},
                            form=contract["input"].get("form", "upload")),
                labels=tuple(contract["labels"]),
                threshold=float(contract["decision"]["threshold"]),
                temperature=float(contract.get("calibration", {}).get("temperature", 1.0)),
                shift=float(contract.get("calibration", {}).get("shift", 0.0)),
            )  # fmt: skip
            bundle._check()
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BundleError(f"{file} is not a contract of schema {SCHEMA}: {error!r} is missing or wrong") from error
        return bundle

    def _check(self) -> None:
        """Raise BundleError where the contract contradicts itself."""
        file = self.path / "model.json"
        if self.contract["schema"] != SCHEMA:
            raise BundleError(f"{file} has schema {self.contract['schema']}, this version reads {SCHEMA}")
        if self.output not in OUTPUTS:
            raise BundleError(f"{file}: output is {self.output!r}, not one of {', '.join(OUTPUTS)}")
        if COLOR_MODES.get(self.input.color, ("", 0))[1] != self.input.channels:
            raise BundleError(f"{file}: colour mode {self.input.color!r} does not have {self.input.channels} channels")
        if self.contract["preprocessing"]["resize"] not in RESIZE:
            raise BundleError(
                f"{file}: resize is {self.contract['preprocessing']['resize']!r}, not one of {', '.join(RESIZE)}"
            )
        if len(self.labels) < 2 or (self.output == "sigmoid" and len(self.labels) != 2):
            raise BundleError(f"{file}: {len(self.labels)} labels do not fit a {self.output} output")
        if not self.contract["files"] or self.serving_file not in self.contract["files"]:
            raise BundleError(f"{file}: the serving form {self.serving_file} has no digest under `files`")
        if any("/" in name or name.startswith(".") for name in self.contract["files"]):
            raise BundleError(f"{file}: `files` names something outside the bundle")
        keys = {"low", "high"} if self.output == "sigmoid" else {"below"}
        if self.uncertain is not None and not (
            keys <= set(self.uncertain) and all(0 <= float(self.uncertain[key]) <= 1 for key in keys)
        ):
            raise BundleError(f"{file}: the uncertain band {self.uncertain} lacks {' and '.join(sorted(keys))}, 0 to 1")
        if not 0 < self.temperature < 1000:
            raise BundleError(f"{file}: the temperature {self.temperature} is not a positive number")
        if not abs(self.shift) < 1000:
            raise BundleError(f"{file}: the shift {self.shift} is not a number of logits")

    @property
    def output(self) -> str:
        """`sigmoid`, one score for the second label, or `softmax`, one score per label."""
        return str(self.contract["output"])

    @property
    def version(self) -> str:
        """The bundle's version."""
        return str(self.contract["version"])

    @property
    def uncertain(self) -> dict[str, float] | None:
        """The band called uncertain: `low` and `high` of a sigmoid's score, `below` of a softmax's confidence."""
        return (self.contract.get("decision") or {}).get("uncertain")

    @property
    def serving_file(self) -> str:
        """Name of the file that the inference engine loads."""
        return str(self.contract["serving"]["file"])

    @property
    def outputs(self) -> dict[str, str]:
        """What the serving form gives, `score`, `heat` or `distance`, to the name of the output that is it."""
        return {"score": "score", **self.contract["serving"].get("outputs", {})}

    @property
    def centred(self) -> bool:
        """Whether what is on an image is moved to the middle and scaled, instead of the image."""
        return bool(self.contract["preprocessing"]["resize"] == CENTRED)

    @property
    def synthetic(self) -> bool:
        """Whether the model was trained on images that were drawn, not taken."""
        return bool(self.contract.get("data", {}).get("synthetic"))

    def verify(self) -> None:
        """Compare every file with its digest.

        Raises:
            BundleError: a file is missing or not the one that was trained.
        """
        for name, expected in self.contract["files"].items():
            file = self.path / name
            if not file.is_file():
                raise BundleError(f"{name} is missing from {self.path}: fetch the bundle again")
            found = file_digest(file)
            if found != expected["sha256"]:
                raise BundleError(
                    f"{name} in {self.path} is damaged: its digest is {found[:12]}…, not {expected['sha256'][:12]}…; "
                    "fetch the bundle again"
                )


def to_pixels(image: Image.Image, height: int, width: int, color: str, resize: str) -> NDArray[np.uint8]:
    """Turn an image into pixels of one size and colour mode: the half of preprocessing that training also goes through.

    Args:
        image: any Pillow image; its EXIF orientation is applied, transparency is laid on black, 16-bit grey is scaled.
        height: rows of the result.
        width: columns of the result.
        color: a key of `COLOR_MODES`.
        resize: a key of `RESIZE`.

    Returns:
        Array of shape (height, width, channels).
    """
    image = ImageOps.exif_transpose(image) or image
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, dtype=np.float32)
        top = 65535.0 if float(values.max(initial=0.0)) > 255 else 255.0
        image = Image.fromarray(np.clip(values * (255.0 / top), 0, 255).astype(np.uint8))
    elif image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    mode, channels = COLOR_MODES[color]
    image, method = image.convert(mode), RESIZE[resize]
    image = centre(image, height, width) if method is None else image.resize((width, height), method)
    return np.asarray(image, dtype=np.uint8).reshape(height, width, channels)


def preprocess(image: Image.Image, bundle: Bundle) -> Floats:
    """Turn an image into what the model takes, exactly as the contract says.

    Args:
        image: any Pillow image, see `to_pixels`.
        bundle: the bundle whose contract counts.

    Returns:
        Array of shape (1, height, width, channels).

    Raises:
        ImageError: there is nothing on it to be centred.
    """
    takes, settings = bundle.input, bundle.contract["preprocessing"]
    pixels = to_pixels(image, takes.height, takes.width, takes.color, settings["resize"])[np.newaxis]
    if bundle.centred and is_blank(pixels):
        raise ImageError("blank", "There is nothing on the picture. Draw in white on black, and send it again.")
    return (pixels.astype(np.float32) * np.float32(settings["scale"]) + np.float32(settings["offset"])).astype(
        np.float32
    )


def decide(scores: Sequence[float] | Floats, bundle: Bundle) -> Verdict:
    """Turn the scores of one image into a verdict.

    Args:
        scores: calibrated probabilities, as `lightbox.serving.Engine.predict` returns them: one for a sigmoid, one per
            label for a softmax. The contract's threshold and recorded scores are of the same kind.
        bundle: the bundle whose labels and threshold count.

    Raises:
        BundleError: the output does not have the form that the contract says, or is not a number.
    """
    flat = np.asarray(scores, dtype=np.float32).reshape(-1)
    expected = 1 if bundle.output == "sigmoid" else len(bundle.labels)
    if flat.size != expected or not np.isfinite(flat).all():
        raise BundleError(f"the model's output {flat.tolist()} is not {expected} finite numbers")
    band = bundle.uncertain
    if bundle.output == "sigmoid":
        positive = float(flat[0])
        probabilities = {bundle.labels[0]: 1.0 - positive, bundle.labels[1]: positive}
        label = bundle.labels[int(positive >= bundle.threshold)]
        uncertain = band is not None and float(band["low"]) <= positive < float(band["high"])
    else:
        probabilities = {name: float(value) for name, value in zip(bundle.labels, flat, strict=True)}
        label = bundle.labels[int(np.argmax(flat))]
        uncertain = band is not None and probabilities[label] < float(band["below"])
    return Verdict(label, probabilities[label], probabilities, uncertain)


def smoke(bundle: Bundle) -> None:
    """Predict the smoke image with the serving engine and compare with what was recorded at training.

    Raises:
        BundleError: the prediction is not the recorded one.
    """
    from lightbox.serving import Engine, ServingError

    try:
        Engine(bundle.path).self_test()
    except ServingError as error:
        raise BundleError(
            f"{bundle.version} does not predict here what it predicted when it was trained: {error}"
        ) from error


def test_figures(contract: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a contract's figures on test images, by name; empty when it states none."""
    found = (contract.get("metrics") or {}).get("test")
    return found if isinstance(found, Mapping) else {}


def same_test_images(one: Bundle, other: Bundle) -> bool:
    """Return whether two bundles state that their figures are of the same test images.

    A contract names its test images by ``data.test_digest``. Where one of the two has none, data of the same digest
    with the same number of test images of each class, dealt by the same seed, counts as the same.
    """

    def stated(section: str, name: str) -> list[Any]:
        return [(bundle.contract.get(section) or {}).get(name) for bundle in (one, other)]

    digests = stated("data", "test_digest")
    if all(digests):
        return bool(digests[0] == digests[1])
    data, seeds = stated("data", "digest"), stated("training", "seed")
    counts = [(found or {}).get("test") for found in stated("data", "counts")]
    return bool(data[0]) and all(pair[0] == pair[1] for pair in (data, counts, seeds))


def gate(candidate: Bundle, live: Bundle | None, metric: str, tolerance: float, minimum: float | None = None) -> str:
    """Say in one line why a candidate may replace the live model.

    Args:
        candidate: the bundle to release.
        live: the bundle that serves now, or None.
        metric: a figure of ``metrics.test``, such as ``auroc``; of `loss`, `brier` and `ece` less is better.
        tolerance: how much worse than the live one the candidate may be, in the metric's own unit.
        minimum: what the candidate must reach whatever is live, the most it may have where less is better; None asks
            for nothing.

    Raises:
        BundleError: the candidate is worse than that, or does not state the metric.
    """

    def figure(bundle: Bundle) -> float:
        value = test_figures(bundle.contract).get(metric)
        if not isinstance(value, (int, float)) or not np.isfinite(value):
            raise BundleError(f"{bundle.version} states no figure {metric!r} on test images")
        return float(value)

    new, less = figure(candidate), metric in LOWER_IS_BETTER
    if minimum is not None and (new > minimum if less else new < minimum):
        raise BundleError(
            f"{candidate.version} has {metric} {new:.4f}; "
            f"the gate lets {minimum:g} or {'less' if less else 'more'} pass"
        )
    if live is None:
        return f"{metric} {new:.4f}, no model is live"
    if live.labels != candidate.labels:
        raise BundleError(
            f"{candidate.version} knows {', '.join(candidate.labels)}, the live model {', '.join(live.labels)}: "
            "they answer different questions"
        )
    if candidate.synthetic and not live.synthetic:
        raise BundleError(
            f"{candidate.version} was trained on synthetic images, the live model on real ones: it is not released"
        )
    if live.synthetic and not candidate.synthetic:
        return f"{metric} {new:.4f} on real images, the live model was trained on synthetic ones"
    anew = candidate.contract.get("recalibrated") or {}
    before = (anew.get("before") or {}).get(metric) if anew.get("from") == live.version else None
    # A model whose threshold was chosen anew is held against itself with the threshold before, on the same images.
    old = figure(live) if before is None else float(before)
    loss = (new - old) if less else (old - new)
    where = "" if before is not None or same_test_images(candidate, live) else " on another test set"
    if loss > tolerance:
        raise BundleError(
            f"{candidate.version} has {metric} {new:.4f}, {loss:.4f} worse than the live {live.version} "
            f"with {old:.4f}{where}; the gate lets {tolerance:g} pass"
        )
    return f"{metric} {new:.4f}, live {old:.4f}{where}"


# What a comparison shows: name of the figure in `metrics.test`, and its words.
COMPARED = {
    "accuracy": "accuracy",
    "auroc": "AUROC",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "auroc_worst": "worst AUROC on changed images",
}


def compare(candidate: Bundle, live: Bundle | None) -> str:
    """Return a table of a candidate's figures on test images beside the live model's, with their intervals.

    Args:
        candidate: the bundle to release.
        live: the bundle that serves now, or None.
    """

    def told(bundle: Bundle, name: str) -> str:
        figures = test_figures(bundle.contract)
        value, interval = figures.get(name), (figures.get("intervals") or {}).get(name)
        if not isinstance(value, (int, float)):
            return "not stated"
        return f"{value:.4f}" + (" ({:.3f} to {:.3f})".format(*interval) if interval else "")

    def about(bundle: Bundle) -> str:
        kind = "synthetic" if bundle.synthetic else "real"
        return f"{test_figures(bundle.contract).get('images', 'unknown')} {kind}"

    shown = [("candidate", candidate), *([("live", live)] if live else [])]
    rows = [
        ["", *(heading for heading, _ in shown)],
        ["version", *(bundle.version for _, bundle in shown)],
        ["test images", *(about(bundle) for _, bundle in shown)],
        *([words, *(told(bundle, name) for _, bundle in shown)] for name, words in COMPARED.items()),
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    if live is None:
        lines.append("No model is live.")
    elif not same_test_images(candidate, live):
        lines.append("The two were tested on different images.")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; the exit status is 0 when all is well and 1 with one line on standard error otherwise."""
    parser = argparse.ArgumentParser(prog="lightbox.bundle", description="Examine a trained model's bundle.")
    commands = parser.add_subparsers(dest="command", required=True)
    verify = commands.add_parser("verify", help="compare every file with its digest")
    verify.add_argument("directory", type=Path)
    verify.add_argument("--smoke", action="store_true", help="also predict the smoke image and compare")
    show = commands.add_parser("show", help="print the contract")
    show.add_argument("directory", type=Path)
    for name, words in (
        ("gate", "say whether a candidate may replace the live model"),
        ("compare", "show a candidate's figures beside the live model's, and what the gate says"),
    ):
        pair = commands.add_parser(name, help=words)
        pair.add_argument("candidate", type=Path)
        pair.add_argument("live", help="directory of the live bundle, or - when no model is live")
        pair.add_argument("--metric", default="auroc", help="figure of metrics.test (auroc)")
        pair.add_argument("--tolerance", type=float, default=0.01, help="how much worse it may be (0.01)")
        pair.add_argument("--minimum", type=float, help="what it must reach, whatever is live")
    options = parser.parse_args(arguments)
    try:
        if options.command == "verify":
            bundle = Bundle.load(options.directory)
            bundle.verify()
            if options.smoke:
                smoke(bundle)
            sys.stdout.write(f"{bundle.version} is whole{' and predicts as recorded' if options.smoke else ''}\n")
        elif options.command == "show":
            sys.stdout.write(json.dumps(Bundle.load(options.directory).contract, indent=2) + "\n")
        else:
            candidate = Bundle.load(options.candidate)
            live = None if options.live == "-" else Bundle.load(options.live)
            if options.command == "compare":
                sys.stdout.write(compare(candidate, live) + "\n")
                try:
                    passed = gate(candidate, live, options.metric, options.tolerance, options.minimum)
                    sys.stdout.write(f"The gate lets it pass: {passed}.\n")
                except BundleError as error:
                    sys.stdout.write(f"The gate stops it: {error}.\n")
            else:
                sys.stdout.write(gate(candidate, live, options.metric, options.tolerance, options.minimum) + "\n")
    except (BundleError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
