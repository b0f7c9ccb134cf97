"""The serving engine: a bundle's compiled model behind ONNX Runtime.

Scores are probabilities: the model's outputs after the bundle's calibration, as ``model.json`` records them for the
smoke image and as :func:`lightbox.bundle.decide` takes them. A temperature divides the logits before the output
function (Guo et al., "On Calibration of Modern Neural Networks", 2017, arXiv:1706.04599).

A serving form may give more than scores. ``heat`` is the class activation map (Zhou et al., "Learning Deep Features for
Discriminative Localization", 2016, arXiv:1512.04150; for a head of several layers Grad-CAM, Selvaraju et al., 2017,
arXiv:1610.02391), computed in closed form beside the score; ``distance`` is the Mahalanobis distance of the image's
features from those of the training images (Lee et al., 2018, arXiv:1807.03888). ``model.json`` says which are there.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image, ImageStat

from lightbox.bundle import (
    KERAS_FILE,
    Bundle,
    BundleError,
    Floats,
    Verdict,
    decide,
    file_digest,
    preprocess,
)
from lightbox.heat import pack
from lightbox.images import ImageError, open_image

SMOKE_FILE = "smoke.png"
SMOKE_TOLERANCE = 1e-3
# Keeps the logit of a score of exactly 0 or 1 finite.
EPSILON = 1e-7


class ServingError(Exception):
    """The model cannot answer."""


@dataclass(frozen=True)
class Heat:
    """Where the image speaks for a label: shape (height, width) of a coarse grid over the whole image, 0 to 1."""

    label: str
    values: Floats


@dataclass(frozen=True)
class Assessment:
    """What an engine says of one image.

    Attributes:
        verdict: label, confidence, probabilities, and whether they lie in the band called uncertain.
        scores: the calibrated scores it follows from.
        heat: where the image speaks for a label; None when the bundle's serving form does not tell.
        unfamiliar: in words, why the image is unlike those the model was trained on; None when it is like them, or
            when the bundle has no test of that.
    """

    verdict: Verdict
    scores: tuple[float, ...]
    heat: Heat | None = None
    unfamiliar: str | None = None

    def kept(self) -> dict[str, Any]:
        """Return what a case keeps of it, by the names of `lightbox.store.Case`."""
        return {
            "label": self.verdict.label,
            "confidence": self.verdict.confidence,
            "scores": self.scores,
            "probabilities": self.verdict.probabilities,
            "uncertain": self.verdict.uncertain,
            "unfamiliar": self.unfamiliar,
            "heat": pack(self.heat.values) if self.heat else b"",
            "heat_label": self.heat.label if self.heat else None,
        }


@dataclass(frozen=True)
class Prepared:
    """What an engine takes of one picture.

    Attributes:
        pixels: the model's input, shape (1, height, width, channels).
        chroma: how colourful the picture is, see `chroma`.
    """

    pixels: Floats
    chroma: float


def chroma(image: Image.Image) -> float:
    """Return how colourful a picture is: the mean saturation, 0 to 1. A grey one has 0, whatever its mode."""
    if image.mode == "L":
        return 0.0
    small = image.convert("RGB").resize((64, 64), Image.Resampling.BOX)
    return float(ImageStat.Stat(small.convert("HSV")).mean[1] / 255)


def calibrate(outputs: Floats, bundle: Bundle) -> tuple[float, ...]:
    """Return the scores of one image: its outputs, probabilities, with their logits shifted and divided.

    Args:
        outputs: shape (1,) for ``sigmoid``, (labels,) for ``softmax``, between 0 and 1.
        bundle: the bundle whose shift (of a sigmoid) and temperature count.
    """
    if bundle.temperature == 1.0 and bundle.shift == 0.0:
        return tuple(float(output) for output in outputs)
    values = np.clip(np.asarray(outputs, dtype=np.float64), EPSILON, 1 - EPSILON)
    if bundle.output == "sigmoid":
        logits = (np.log(values) - np.log1p(-values) - bundle.shift) / bundle.temperature
        return tuple(float(value) for value in 1 / (1 + np.exp(-logits)))
    logits = np.log(values) / bundle.temperature
    powers = np.exp(logits - logits.max())
    return tuple(float(value) for value in powers / powers.sum())


def open_session(file: Path, threads: int = 1) -> Any:
    """Return an ONNX Runtime session on a serving form.

    Raises:
        ServingError: ONNX Runtime refuses it.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = max(1, threads)
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    # A plan of the memory for each number of images that is seen holds memory for each.
    options.enable_mem_pattern = False
    # Threads that spin between requests would take the cores from the other workers.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    # ONNX Runtime raises its own classes, straight from Exception.
    except Exception as error:
        raise ServingError(f"ONNX Runtime refuses the model ({type(error).__name__})") from error
    return session


class Engine:
    """A loaded bundle. ``predict`` may be called from several threads.

    Attributes:
        bundle: what was loaded.
        contract: its ``model.json``.
        loaded_sha256: file name -> SHA-256, computed from what was read at load.
    """

    def __init__(self, bundle: Bundle | str | Path, threads: int = 1) -> None:
        """Load a bundle, or the one in a directory; an image is predicted by ``threads`` threads.

        Raises:
            BundleError: the bundle is absent, incomplete, or its digests are not those of ``model.json``.
            ServingError: ONNX Runtime refuses the model.
        """
        # A link is followed once: all files come from one bundle, even when it is switched meanwhile.
        directory = (bundle.path if isinstance(bundle, Bundle) else Path(bundle)).resolve()
        self.bundle = Bundle.load(directory)
        self.bundle.verify()
        try:
            self.loaded_sha256 = {
                name: file_digest(directory / name) for name in (self.bundle.serving_file, KERAS_FILE)
            }
        except OSError as error:
            raise BundleError(f"bundle {directory} cannot be read: {error.strerror}") from error
        self.contract = self.bundle.contract
        self.version = self.bundle.version
        self.labels = self.bundle.labels
        self._session = open_session(directory / self.bundle.serving_file, threads)
        self._input = self._session.get_inputs()[0].name
        given = [output.name for output in self._session.get_outputs()]
        names = self.bundle.outputs
        if missing := sorted(set(names.values()) - set(given)):
            raise BundleError(f"{self.bundle.serving_file} lacks the outputs {', '.join(missing)}")
        self._names, self._outputs = list(names), list(names.values())
        self._heat_scale = float(self.contract["serving"].get("heat_scale") or 1.0)

    @property
    def synthetic(self) -> bool:
        """Whether the model was trained on synthetic images; True when its contract does not say."""
        return bool((self.contract.get("data") or {}).get("synthetic", True))

    @property
    def positive(self) -> str | None:
        """The label that a finding is called by, or None when no label stands out."""
        return (self.contract.get("decision") or {}).get("positive")

    def prepare(self, image: Image.Image) -> Prepared:
        """Return what the model takes of one picture.

        Raises:
            ImageError: nothing is on the picture.
            ServingError: it cannot be made of it.
        """
        try:
            return Prepared(preprocess(image, self.bundle), chroma(image))
        except ImageError:
            raise
        except Exception as error:
            raise ServingError(f"the image cannot be prepared for the model ({type(error).__name__})") from error

    def _run(self, images: Sequence[Prepared]) -> list[dict[str, Floats]]:
        """Return for each image every output of the serving form, shape (1, …), by the name the contract gives it."""
        try:
            batch = np.concatenate([image.pixels for image in images])
            answers = [np.asarray(one, np.float32) for one in self._session.run(self._outputs, {self._input: batch})]
        except Exception as error:
            raise ServingError(f"the model failed on the image ({type(error).__name__})") from error
        if any(len(one) != len(images) for one in answers):
            raise ServingError("the model's answers are not one for each image")
        return [
            {name: one[number : number + 1] for name, one in zip(self._names, answers, strict=True)}
            for number in range(len(images))
        ]

    def _scores(self, answers: dict[str, Floats]) -> tuple[float, ...]:
        raw = answers["score"].reshape(-1)
        expected = 1 if self.bundle.output == "sigmoid" else len(self.labels)
        if raw.size != expected or not np.isfinite(raw).all() or raw.min() < -1e-6 or raw.max() > 1 + 1e-6:
            raise ServingError("the model's answer is not a set of probabilities")
        return calibrate(np.clip(raw, 0.0, 1.0), self.bundle)

    def predict(self, image: Image.Image) -> tuple[float, ...]:
        """Return the calibrated scores of one picture: one for ``sigmoid``, one per label for ``softmax``.

        Raises:
            ImageError: nothing is on the picture.
            ServingError: the model failed, or what it gave are not probabilities.
        """
        return self._scores(self._run([self.prepare(image)])[0])

    def assess(self, image: Image.Image) -> Assessment:
        """Return the verdict on one picture, where it comes from, and whether the model knows such pictures.

        Raises:
            ImageError: nothing is on the picture.
            ServingError: the model failed, or no verdict follows from its answer.
        """
        prepared = self.prepare(image)
        return self._judge(prepared, self._run([prepared])[0])

    def assess_many(self, images: Sequence[Prepared]) -> list[Assessment | ServingError]:
        """Return for each image what :meth:`assess` returns of its picture, or raises.

        All are scored in one run, which takes less than a run for each. Where it fails, each is scored alone, so that
        no image costs another its verdict.
        """
        try:
            found = self._run(images)
        except ServingError as error:
            if len(images) < 2:
                return [error] * len(images)
            return [one for image in images for one in self.assess_many([image])]
        judged: list[Assessment | ServingError] = []
        for image, answers in zip(images, found, strict=True):
            try:
                judged.append(self._judge(image, answers))
            except ServingError as error:
                judged.append(error)
        return judged

    def _judge(self, image: Prepared, answers: dict[str, Floats]) -> Assessment:
        scores = self._scores(answers)
        try:
            verdict = decide(scores, self.bundle)
        except BundleError as error:
            raise ServingError("no verdict follows from the scores") from error
        if not (np.isfinite(verdict.confidence) and 0 <= verdict.confidence <= 1):
            raise ServingError("the verdict has no probability")
        return Assessment(verdict, scores, self._heat(answers, verdict.label), self._unfamiliar(answers, image))

    def _heat(self, answers: dict[str, Floats], label: str) -> Heat | None:
        """Return the map of the finding for ``sigmoid``, of the label shown for ``softmax``."""
        # A map of what was moved and scaled does not lie over the picture.
        if "heat" not in answers or self.bundle.centred:
            return None
        grid = answers["heat"][0]
        if self.bundle.output == "sigmoid":
            label = self.positive or self.labels[1]
            # The map speaks for the second label; what speaks against it speaks for the first.
            grid = grid if label == self.labels[1] else -grid
        else:
            grid = grid[..., self.labels.index(label)]
        if grid.ndim != 2 or not np.isfinite(grid).all():
            raise ServingError("the model's heat map is not a grid of numbers")
        return Heat(label, np.clip(grid / self._heat_scale, 0.0, 1.0).astype(np.float32))

    def _unfamiliar(self, answers: dict[str, Floats], image: Prepared) -> str | None:
        limits = self.contract.get("out_of_distribution") or {}
        if "max_chroma" in limits and image.chroma > float(limits["max_chroma"]):
            return "The image is in colour; the model was trained on grey images."
        if "distance" in answers and "threshold" in limits:
            distance = float(answers["distance"].reshape(-1)[0])
            if not distance <= float(limits["threshold"]):
                return "The image is unlike those the model was trained on."
        return None

    def self_test(self) -> float:
        """Predict the smoke image; return the largest difference from the scores recorded at training.

        Raises:
            ServingError: it differs by more than 0.001, or cannot be predicted.
        """
        try:
            smoke = self.contract["smoke"]
            recorded = np.asarray(smoke["scores"], dtype=np.float32).reshape(-1)
            image = open_image((self.bundle.path / str(smoke["file"])).read_bytes())
            scores = np.asarray(self.predict(image), dtype=np.float32)
        except (OSError, KeyError, TypeError, ValueError, ImageError) as error:
            raise ServingError(f"the smoke image cannot be read ({type(error).__name__})") from error
        if scores.shape != recorded.shape:
            raise ServingError("the smoke image has another number of scores than recorded")
        difference = float(np.abs(scores - recorded).max())
        if not difference <= SMOKE_TOLERANCE:
            raise ServingError(f"the smoke image's scores differ by {difference:.4f} from those recorded")
        return difference


def record_smoke(directory: Path) -> None:
    """Predict a bundle's smoke image and write scores and label into its contract, for `Engine.self_test`.

    Args:
        directory: of the bundle, complete but for this; the image's name is that of the contract, or ``smoke.png``.

    Raises:
        BundleError, ServingError, ImageError: the image cannot be predicted.
    """
    engine = Engine(directory)
    contract = engine.contract
    name = str((contract.get("smoke") or {}).get("file", SMOKE_FILE))
    scores = engine.predict(open_image((directory / name).read_bytes()))
    contract["smoke"] = {"file": name, "scores": list(scores), "label": decide(scores, engine.bundle).label}
    (directory / "model.json").write_text(json.dumps(contract, indent=2) + "\n")
