"""The serving engine: a bundle's compiled model behind ONNX Runtime, and the images that are let in.

Scores are probabilities: the model's outputs after the bundle's calibration, as ``model.json`` records them for the
smoke image and as :func:`lightbox.bundle.decide` takes them. A temperature divides the logits before the output
function (Guo et al., "On Calibration of Modern Neural Networks", 2017, arXiv:1706.04599).
"""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

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

SMOKE_TOLERANCE = 1e-3
# Keeps the logit of a score of exactly 0 or 1 finite.
EPSILON = 1e-7
# Largest picture that is decoded, in pixels: more than the largest detectors give, 150 MB as RGB.
MAX_PIXELS = 50_000_000


class ImageError(Exception):
    """The file is not an image that can be classified; the text says so to the person who sent it.

    ``kind`` is one of ``empty``, ``unreadable``, ``pixels``.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class ServingError(Exception):
    """The model cannot answer."""


def open_image(content: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode a PNG or JPEG, whatever its name, into a picture of mode ``L`` or ``RGB``, turned as its EXIF says.

    16-bit grey is scaled to 8 bits over its full range; transparent parts become black, as the air around a body is in
    an X-ray.

    Raises:
        ImageError: the file is empty, not a whole PNG or JPEG, or has more than ``max_pixels`` pixels.
    """
    if not content:
        raise ImageError("empty", "The file is empty.")
    unreadable = ImageError("unreadable", "The file is not a readable PNG or JPEG image.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as probe:
                if probe.width * probe.height > max_pixels:
                    raise ImageError(
                        "pixels",
                        f"The image has {probe.width} by {probe.height} pixels; "
                        f"{max_pixels / 1e6:.0f} million are the most that are accepted.",
                    )
                probe.verify()
            # verify() reads the file to its end and leaves it unusable, so it is opened again.
            with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as opened:
                opened.load()
                return _plain(opened)
    except ImageError:
        raise
    except Image.DecompressionBombError:
        raise ImageError("pixels", "The image has too many pixels.") from None
    # Decoders fail in many ways on hostile input; whatever it was, the person's file is unreadable.
    except Exception as error:
        raise unreadable from error


def _plain(image: Image.Image) -> Image.Image:
    try:
        image = ImageOps.exif_transpose(image)
    except Exception:
        # A broken EXIF block says nothing about which way is up; the picture itself is whole.
        image.info.pop("exif", None)
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.float32)
        top = 65535.0 if float(grey.max(initial=0.0)) > 255 else 255.0
        return Image.fromarray(np.clip(grey * (255.0 / top), 0, 255).astype(np.uint8))
    if image.mode in ("1", "L"):
        return image.convert("L") if "transparency" not in image.info else _flat(image)
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        return _flat(image)
    return image.convert("RGB")


def _flat(image: Image.Image) -> Image.Image:
    grey = image.mode in ("1", "L", "LA", "La")
    rgba = image.convert("RGBA")
    flat = Image.new("RGBA", rgba.size, (0, 0, 0, 255))
    flat.alpha_composite(rgba)
    return flat.convert("L" if grey else "RGB")


def thumbnail(image: Image.Image, side: int = 224) -> bytes:
    """Return a JPEG of the picture, at most ``side`` pixels wide and high."""
    small = image.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=82, optimize=True)
    return stream.getvalue()


def calibrate(outputs: Floats, bundle: Bundle) -> tuple[float, ...]:
    """Return the scores of one image: its outputs, probabilities, with their logits divided by the temperature.

    Args:
        outputs: shape (1,) for ``sigmoid``, (labels,) for ``softmax``, between 0 and 1.
        bundle: the bundle whose temperature counts.
    """
    if bundle.temperature == 1.0:
        return tuple(float(output) for output in outputs)
    values = np.clip(np.asarray(outputs, dtype=np.float64), EPSILON, 1 - EPSILON)
    if bundle.output == "sigmoid":
        logits = (np.log(values) - np.log1p(-values)) / bundle.temperature
        return tuple(float(value) for value in 1 / (1 + np.exp(-logits)))
    logits = np.log(values) / bundle.temperature
    powers = np.exp(logits - logits.max())
    return tuple(float(value) for value in powers / powers.sum())


class Engine:
    """A loaded bundle. ``predict`` may be called from several threads.

    Attributes:
        bundle: what was loaded.
        contract: its ``model.json``.
        loaded_sha256: file name -> SHA-256, computed from what was read at load.
    """

    def __init__(self, bundle: Bundle | str | Path, threads: int | None = None) -> None:
        """Load a bundle, or the one in a directory, with ``threads`` threads per image (``LIGHTBOX_THREADS``, or 1).

        Raises:
            BundleError: the bundle is absent, incomplete, or its digests are not those of ``model.json``.
            ServingError: ONNX Runtime refuses the model.
        """
        # A link is followed once: all files come from one bundle, even when it is switched meanwhile.
        directory = (bundle.path if isinstance(bundle, Bundle) else Path(bundle)).resolve()
        self.bundle = Bundle.load(directory)
        self.bundle.verify()
        try:
            content = (directory / self.bundle.serving_file).read_bytes()
            self.loaded_sha256 = {
                self.bundle.serving_file: hashlib.sha256(content).hexdigest(),
                KERAS_FILE: file_digest(directory / KERAS_FILE),
            }
        except OSError as error:
            raise BundleError(f"bundle {directory} cannot be read: {error.strerror}") from error
        self.contract = self.bundle.contract
        self.version = self.bundle.version
        self.labels = self.bundle.labels
        self._session = self._open(content, threads or int(os.environ.get("LIGHTBOX_THREADS", "1") or "1"))
        self._input = self._session.get_inputs()[0].name

    @staticmethod
    def _open(content: bytes, threads: int) -> Any:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = max(1, threads)
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        # Threads that spin between requests would take the cores from the other workers.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        # ONNX Runtime raises its own classes, straight from Exception.
        except Exception as error:
            raise ServingError(f"ONNX Runtime refuses the model ({type(error).__name__})") from error

    @property
    def synthetic(self) -> bool:
        """Whether the model was trained on synthetic images; True when its contract does not say."""
        return bool((self.contract.get("data") or {}).get("synthetic", True))

    @property
    def positive(self) -> str | None:
        """The label that a finding is called by, or None when no label stands out."""
        return (self.contract.get("decision") or {}).get("positive")

    def predict(self, image: Image.Image) -> tuple[float, ...]:
        """Return the calibrated scores of one picture: one for ``sigmoid``, one per label for ``softmax``.

        Raises:
            ServingError: the model failed, or what it gave are not probabilities.
        """
        try:
            batch = preprocess(image, self.bundle)
            raw = np.asarray(self._session.run(None, {self._input: batch})[0], dtype=np.float32).reshape(-1)
        except Exception as error:
            raise ServingError(f"the model failed on the image ({type(error).__name__})") from error
        expected = 1 if self.bundle.output == "sigmoid" else len(self.labels)
        if raw.size != expected or not np.isfinite(raw).all() or raw.min() < -1e-6 or raw.max() > 1 + 1e-6:
            raise ServingError("the model's answer is not a set of probabilities")
        return calibrate(np.clip(raw, 0.0, 1.0), self.bundle)

    def judge(self, image: Image.Image) -> tuple[Verdict, tuple[float, ...]]:
        """Return the verdict on one picture, and the scores it follows from.

        Raises:
            ServingError: the model failed, or no verdict follows from its answer.
        """
        scores = self.predict(image)
        try:
            verdict = decide(scores, self.bundle)
        except BundleError as error:
            raise ServingError("no verdict follows from the scores") from error
        if not (np.isfinite(verdict.confidence) and 0 <= verdict.confidence <= 1):
            raise ServingError("the verdict has no probability")
        return verdict, scores

    def self_test(self) -> float:
        """Predict the smoke image; return the largest difference from the scores recorded at training.

        Raises:
            ServingError: it differs by more than 0.001, or cannot be predicted.
        """
        try:
            smoke = self.contract["smoke"]
            recorded = np.asarray(smoke["scores"], dtype=np.float32).reshape(-1)
            image = open_image((self.bundle.path / str(smoke["file"])).read_bytes())
        except (OSError, KeyError, TypeError, ValueError, ImageError) as error:
            raise ServingError(f"the smoke image cannot be read ({type(error).__name__})") from error
        scores = np.asarray(self.predict(image), dtype=np.float32)
        if scores.shape != recorded.shape:
            raise ServingError("the smoke image has another number of scores than recorded")
        difference = float(np.abs(scores - recorded).max())
        if not difference <= SMOKE_TOLERANCE:
            raise ServingError(f"the smoke image's scores differ by {difference:.4f} from those recorded")
        return difference
