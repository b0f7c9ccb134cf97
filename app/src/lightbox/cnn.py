"""Train a classifier: ``python -m lightbox.cnn --data SOURCE --runs DIR``.

A run is named by the digest of its data, its hyper-parameters and the code that trains. A finished run is not repeated,
a broken one goes on after its last epoch. What comes out is a bundle, in ``RUNS/<run>/bundle``, that appears whole or
not at all; ``--out-link`` points at it, ``--progress`` tells how far things are, ``--metrics-port`` tells Prometheus.
``KERAS_BACKEND`` in the environment chooses what Keras trains with, see `lightbox.backends`; ``TF_CONFIG`` names hosts
that train one model together, see `lightbox.workers`.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import fcntl
import hashlib
import importlib.metadata
import inspect
import json
import math
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from lightbox import (
    architectures,
    backends,
    bundle,
    centring,
    data,
    evaluation,
    export,
    report,
    robustness,
    serving,
    telemetry,
    training,
    workers,
)
from lightbox.architectures import ARCHITECTURES, Architecture, ArchitectureError
from lightbox.backends import BackendError
from lightbox.bundle import KERAS_FILE, SCHEMA, Bundle, BundleError, file_digest
from lightbox.data import SPLITS, DataError, Manifest, Shape
from lightbox.export import ExportError
from lightbox.images import open_image
from lightbox.serving import SMOKE_FILE, ServingError
from lightbox.training import Sides, State, TrainingError
from lightbox.workers import LostError, Team, WorkersError

SERVING_FILE = "model.onnx"
# The threshold lies here once it is folded into the weights.
THRESHOLD = 0.5
LIBRARIES = ("keras", "onnxruntime", "numpy", "pillow")
# Longest side of the smoke image, in pixels.
SMOKE_SIDE = 512
# Training images whose features say what is familiar: enough for a covariance, few enough for a CPU.
FAMILIAR_IMAGES = 1500


class SettingsError(Exception):
    """A setting is wrong; the text names it."""


@dataclass(frozen=True)
class System:
    """What a classifier is for.

    Attributes:
        classes: name of the class in the data and what people are shown, in the order of the labels from 0 on.
        limits: what the model's figures do not say, in sentences for its card; ``{images}`` stands for their number.
        synthetic: what is to be said, beside these, of a model that was trained on drawn images.
        drawn: name of the synthetic images, a key of `lightbox.synthetic.DRAWINGS`.
        positive: label that is the finding; none where no label stands out.
        patient: see `lightbox.data.patient_of`; without it every image stands for itself.
        kind: see `lightbox.data.kind_of`.
        form: how people give an image.
        grey: whether an image in colour cannot be one of these.
        perturbations: names of what robustness is measured with, in `lightbox.robustness.PERTURBATIONS`.
        alike: correlation from which two images show the same, see `lightbox.data.without_copies`; None where different
            images look the same.
        shortcuts: whether something beside the middle of an image, or its file, may tell its class.
        defaults: settings in which it differs from the general defaults and those of the architecture.
    """

    classes: Mapping[str, str]
    limits: tuple[str, ...]
    synthetic: str
    drawn: str
    positive: str | None = None
    patient: str = ""
    kind: str = ""
    form: str = "upload"
    grey: bool = True
    perturbations: tuple[str, ...] = tuple(one.name for one in robustness.PERTURBATIONS)
    alike: float | None = None
    shortcuts: bool = True
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)


SYSTEMS = {
    "pneumonia": System(
        classes={"NORMAL": "Normal", "PNEUMONIA": "Pneumonia"},
        limits=(
            "The verdict supports a physician's decision. It is no diagnosis.",
            "The figures hold for {images} test images from the source of the training images. Images of another "
            "hospital, machine or age group can be judged much worse; nobody has measured how much.",
            "Only the classes named here are known. Other findings are not looked for.",
            "An image that is no chest X-ray is often, not always, recognised as such.",
            "The heat map shows what the verdict rests on, on a coarse grid. It does not outline a lesion.",
        ),
        synthetic="The model was trained on synthetic images: it knows nothing about patients.",
        drawn="chests",
        positive="Pneumonia",
        patient=data.CHEST_PATIENT,
        kind=data.CHEST_KIND,
        alike=0.995,
    ),
    "mnist": System(
        classes={digit: digit for digit in "0123456789"},
        limits=(
            "The figures hold for {images} test images from the source of the training images: digits of one hand "
            "each, with a pen, white on black. A drawing is moved and scaled to be like them; one with a line much "
            "thinner or thicker for its size, or with marks beside the digit, can be judged worse.",
            "Only the ten digits are known: a letter is called the digit it looks most like.",
        ),
        synthetic="The model was trained on synthetic digits: nobody wrote them.",
        drawn="digits",
        form="canvas",
        perturbations=("contrast", "noise", "shift", "rotation", "crop", "border"),
        shortcuts=False,
        # Digits differ by hand, not by exposure; mirrored, they would be others or none.
        defaults={
            "architecture": "mnist",
            "rotation": 12.0,
            "shift": 0.08,
            "zoom": 0.12,
            "stretch": 0.1,
            "gamma": 0.0,
            "contrast": 0.0,
            "brightness": 0.0,
            "blur": 0.0,
            "noise": 0.0,
            "frame": 0.0,
            "validation_share": 0.08,
        },
    ),
}


def _setting(default: Any, meaning: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": meaning})


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters: everything, beside data and code, that decides what comes out of a run."""

    architecture: str = _setting("compact", f"network: {', '.join(ARCHITECTURES)}")
    image_size: int = _setting(128, "height and width of the network's input, in pixels")
    epochs: int = _setting(20, "most epochs")
    patience: int = _setting(8, "epochs with no better AUROC (many classes: accuracy) on validation before it stops")
    batch_size: int = _setting(32, "images per step, over all GPUs together")
    learning_rate: float = _setting(2e-3, "highest learning rate")
    weight_decay: float = _setting(1e-3, "weight decay of AdamW")
    label_smoothing: float = _setting(0.05, "how far labels are drawn from 0 and 1")
    class_weighting: str = _setting("balanced", "balanced: classes count alike; none: images do")
    dropout: float = _setting(0.3, "share of features dropped before the last layer")
    width: int = _setting(24, "channels of the compact network's first block")
    dense: int = _setting(256, "units of each dense layer of a pre-trained network's head")
    l2: float = _setting(1e-3, "L2 penalty of these layers")
    weights: str = _setting("none", "weights of a pre-trained network: imagenet, none, or a .h5, .keras or .npz file")
    weights_sha256: str = _setting("", "digest of that file")
    head_epochs: int = _setting(
        0, "epochs in which a pre-trained network trains its head alone, on features computed once"
    )
    fine_tune_layers: int = _setting(0, "upper layers of a pre-trained network that are trained after that")
    fine_tune_learning_rate: float = _setting(1e-4, "highest learning rate after that")
    augment: bool = _setting(True, "vary the training images")
    rotation: float = _setting(10.0, "largest rotation, in degrees")
    shift: float = _setting(0.06, "largest shift, as a share of the side")
    zoom: float = _setting(0.16, "largest change of size, as a natural logarithm")
    stretch: float = _setting(0.12, "largest change of the ratio of the sides, as a natural logarithm")
    flip: bool = _setting(False, "mirror images: off, for the heart is on one side")
    gamma: float = _setting(0.4, "largest change of gamma, as a natural logarithm")
    contrast: float = _setting(0.25, "largest change of contrast, as a share")
    brightness: float = _setting(0.1, "largest change of brightness, as a share of white")
    blur: float = _setting(0.8, "largest blur, as a share of a Gaussian of 1.2 pixels, and largest sharpening")
    frame: float = _setting(0.1, "thickest black frame around every third image, as a share of the side")
    noise: float = _setting(0.08, "largest standard deviation of noise in every other image, as a share of white")
    threshold: str = _setting(
        "balanced", "how the threshold of two classes is chosen: balanced, accuracy or sensitivity:0.95"
    )
    uncertain_below: float = _setting(0.75, "confidence below which a verdict is called uncertain")
    precision: str = _setting("fp32", "of the serving form: fp32, or int8 where it is as good on labelled images")
    validation_share: float = _setting(0.15, "share of the images for validation")
    test_share: float = _setting(0.10, "share of the images for the test, where the data gives none")
    feedback_weight: float = _setting(1.0, "how much an image that people judged counts, against 1 for any other")
    seed: int = _setting(1, "seed of the split, the weights and everything drawn")


@dataclass(frozen=True)
class Job:
    """Where things come from and go to; none of it changes what comes out of a run on the same data."""

    data: str = _setting(
        "synthetic", "directory, .npz, archive, s3://bucket/prefix, https://….zip|.tar.gz, mnist, synthetic"
    )
    data_sha256: str = _setting("", "digest of the archive; required for https://")
    data_anonymous: bool = _setting(False, "ask S3 without credentials")
    expected: str = _setting("", "images that must be there, such as NORMAL=1341,PNEUMONIA=3875")
    synthetic_images: int = _setting(1200, "how many images synthetic draws")
    feedback: str = _setting("", "directory of images that people judged, as lightbox.feedback writes it")
    system: str = _setting("pneumonia", f"what is classified: {', '.join(SYSTEMS)}")
    runs: str = _setting("runs", "directory of the runs")
    cache: str = _setting("", "directory for data that is fetched and decoded (RUNS/cache)")
    out_link: str = _setting("", "symbolic link to set to the bundle")
    progress: str = _setting("", "file that tells how far things are (RUNS/progress.json)")
    metrics_address: str = _setting("127.0.0.1", "address on which Prometheus is told the same")
    metrics_port: int = _setting(0, "port on which it is; 0 for none")
    git_revision: str = _setting("", "revision to record in the bundle")
    evaluate: str = _setting("", "do not train: measure --bundle on these labelled images, from where --data could be")
    bundle: str = _setting("", "bundle to measure (--out-link)")
    recalibrate: str = _setting(
        "", "choose the threshold anew on half of these patients, by a rule of --threshold, and make a bundle of it"
    )


# --- settings ---------------------------------------------------------------------------------------------------------

FIELDS: dict[str, dataclasses.Field[Any]] = {
    field.name: field for kind in (Job, Settings) for field in dataclasses.fields(kind)
}
JOB = {field.name for field in dataclasses.fields(Job)}
RANGES: dict[str, tuple[float, float]] = {
    "image_size": (28, 1024),
    "epochs": (1, 1000),
    "patience": (1, 1000),
    "batch_size": (1, 4096),
    "learning_rate": (1e-8, 1),
    "fine_tune_learning_rate": (1e-8, 1),
    "weight_decay": (0, 1),
    "label_smoothing": (0, 0.4),
    "dropout": (0, 0.9),
    "width": (8, 256),
    "dense": (8, 4096),
    "l2": (0, 1),
    "head_epochs": (0, 1000),
    "fine_tune_layers": (0, 1000),
    "rotation": (0, 180),
    "shift": (0, 0.5),
    "zoom": (0, 1),
    "stretch": (0, 1),
    "gamma": (0, 2),
    "contrast": (0, 0.9),
    "brightness": (0, 0.9),
    "blur": (0, 1),
    "noise": (0, 0.5),
    "frame": (0, 0.4),
    "validation_share": (0.02, 0.45),
    "test_share": (0.02, 0.45),
    "uncertain_below": (0.5, 0.999),
    "feedback_weight": (0.01, 100),
    "seed": (0, 2_000_000),
    "synthetic_images": (60, 200_000),
    "metrics_port": (0, 65535),
}
CHOICES: dict[str, tuple[str, ...]] = {
    "architecture": tuple(ARCHITECTURES),
    "class_weighting": ("balanced", "none"),
    "precision": ("fp32", "int8"),
    "system": tuple(SYSTEMS),
}


def _convert(name: str, value: Any) -> Any:
    """Return a setting in its type.

    Raises:
        SettingsError: it is not of that type, or outside its range.
    """
    wanted: Any = type(FIELDS[name].default)
    try:
        if wanted is bool:
            known = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
            value = value if isinstance(value, bool) else known[str(value).lower()]
        elif wanted is int and isinstance(value, float) and not value.is_integer():
            raise ValueError
        elif name == "expected" and isinstance(value, dict):
            value = ",".join(f"{key}={count}" for key, count in value.items())
        else:
            value = wanted(value)
    except (KeyError, TypeError, ValueError) as error:
        raise SettingsError(f"{name} is {value!r}, expected {wanted.__name__}") from error
    if name in RANGES and not RANGES[name][0] <= value <= RANGES[name][1]:
        raise SettingsError(f"{name} is {value}, expected {RANGES[name][0]:g} to {RANGES[name][1]:g}")
    if name in CHOICES and value not in CHOICES[name]:
        raise SettingsError(f"{name} is {value!r}, expected one of {', '.join(CHOICES[name])}")
    return value


def resolve(given: Mapping[str, Any]) -> tuple[Job, Settings]:
    """Return job and hyper-parameters; what is not given is the system's, the architecture's or the general default.

    Raises:
        SettingsError: a name is unknown or a value is wrong.
    """
    for name in given:
        if name not in FIELDS:
            close = difflib.get_close_matches(name, FIELDS, 1)
            raise SettingsError(f"there is no setting {name!r}" + (f"; did you mean {close[0]!r}?" if close else ""))
    values = {name: _convert(name, value) for name, value in given.items()}
    general = {name: value for name, value in values.items() if name in JOB}
    job = Job(**general)
    chosen = {**SYSTEMS[job.system].defaults, **{name: value for name, value in values.items() if name not in general}}
    architecture = ARCHITECTURES[chosen.get("architecture", Settings.architecture)]
    settings = Settings(**{**architecture.defaults, **chosen})
    for rule in (settings.threshold, job.recalibrate or settings.threshold):
        try:
            evaluation.threshold([0, 1], [0.2, 0.8], rule)
        except ValueError as error:
            raise SettingsError(str(error)) from error
    if job.evaluate and not (job.bundle or job.out_link):
        raise SettingsError("--evaluate measures a bundle: name its directory with --bundle")
    if job.recalibrate and not job.evaluate:
        raise SettingsError("--recalibrate needs images: name them with --evaluate")
    if settings.validation_share + settings.test_share > 0.6:
        raise SettingsError("validation_share and test_share leave less than 0.4 of the images for training")
    return job, settings


def parse(arguments: list[str] | None) -> tuple[Job, Settings]:
    """Read the command line, and the file of settings that it may name; the command line wins."""
    parser = argparse.ArgumentParser(
        prog="lightbox.cnn",
        description="Train a classifier and make a bundle of it.",
        epilog="Keras trains with TensorFlow, or with what KERAS_BACKEND in the environment names: tensorflow, jax or "
        "torch; another backend is another run. With TensorFlow all GPUs are used, with the others one. Several hosts, "
        "with TensorFlow alone, train one model together where TF_CONFIG names them on each, "
        'such as {"cluster": {"worker": ["10.0.3.4:2222", "10.0.3.5:2222"]}, '
        '"task": {"type": "worker", "index": 0}}; the first makes the bundle. The status is 3 when one of them is '
        "lost: started again, they go on.",
    )
    parser.add_argument("--config", metavar="FILE.json", help="settings as JSON, with the same names")
    for name, field in FIELDS.items():
        others = {key: one.defaults for key, one in ARCHITECTURES.items()}
        others.update({f"system {key}": one.defaults for key, one in SYSTEMS.items()})
        defaults = {key: values[name] for key, values in others.items() if name in values}
        usual = ", ".join([str(field.default), *(f"{key}: {value}" for key, value in defaults.items())])
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            dest=name,
            default=None,
            metavar=type(field.default).__name__.upper(),
            help=f"{field.metadata['help']} ({usual})".replace("%", "%%"),
        )
    options = vars(parser.parse_args(arguments))
    given: dict[str, Any] = {}
    if file := options.pop("config"):
        try:
            given = json.loads(Path(file).read_text())
        except (OSError, ValueError) as error:
            raise SettingsError(f"the settings {file} cannot be read: {error}") from error
        if not isinstance(given, dict):
            raise SettingsError(f"the settings {file} are not a JSON object")
    return resolve({**given, **{name: value for name, value in options.items() if value is not None}})


def _expected(text: str) -> dict[str, int]:
    try:
        return {name: int(count) for name, count in (item.split("=") for item in text.split(",") if item)}
    except ValueError as error:
        raise SettingsError(f"expected is {text!r}, expected a list like NORMAL=1341,PNEUMONIA=3875") from error


# --- progress ---------------------------------------------------------------------------------------------------------


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z")


class Progress:
    """How far things are: `fields`, and a file of them, JSON, replaced as a whole, at most every `every` seconds."""

    def __init__(self, file: Path, epochs: int, every: float = 2.0) -> None:
        self.file, self.every, self._last = file, every, 0.0
        self.stopped: int | None = None
        self.fields: dict[str, Any] = {
            "state": "preparing",
            "epoch": 0,
            "epochs": epochs,
            "step": 0,
            "steps": 0,
            "images_per_second": None,
            "eta_seconds": None,
            "loss": None,
            "accuracy": None,
            "val_loss": None,
            "val_accuracy": None,
            "val_auroc": None,
            "message": "",
            "run": None,
            "bundle": None,
            "report": None,
            "updated": _now(),
        }
        file.parent.mkdir(parents=True, exist_ok=True)
        self(now=True)

    def __call__(self, now: bool = False, **changes: Any) -> None:
        """Change fields and write the file, unless that was done a moment ago and it is not asked for `now`.

        Raises:
            SystemExit: somebody has called `stop`, and what it raised was lost on the way.
        """
        if self.stopped is not None and changes.get("state") != "failed":
            raise SystemExit(self.stopped)
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in changes.items()}
        now = now or finite.get("state", self.fields["state"]) != self.fields["state"]
        self.fields.update(finite, updated=_now())
        if not now and time.monotonic() - self._last < self.every:
            return
        self._last = time.monotonic()
        part = self.file.with_name(self.file.name + ".part")
        part.write_text(json.dumps(self.fields) + "\n")
        part.replace(self.file)

    def stop(self, number: int, _frame: Any) -> None:
        """End the program for a signal, now or with the next progress.

        Python drops what a signal's handler raises while an object is being deleted, and TensorFlow deletes iterators
        at the end of every epoch: https://docs.python.org/3/reference/datamodel.html#object.__del__.
        """
        self.stopped = 128 + number
        raise SystemExit(self.stopped)

    def report(self, message: str, done: int, total: int) -> None:
        """Show progress of something that is counted."""
        self(message=f"{message}: {done} of {total}" if total else f"{message}: {done}")


def say(line: str) -> None:
    """Print a line for people, at once: it goes to the journal."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


# --- a run ------------------------------------------------------------------------------------------------------------


def code_digest() -> str:
    """Return the digest of the code that decides what a network learns and what its bundle says of it."""
    digest = hashlib.sha256()
    modules = (architectures, centring, training, workers, evaluation, robustness, export)
    parts = (*modules, bundle.to_pixels, data.split_by_patient, data.patient_of)
    for part in parts:
        digest.update(inspect.getsource(part).encode())
    return digest.hexdigest()


def run_id(digest: str, job: Job, settings: Settings, backend: str = backends.TENSORFLOW) -> str:
    """Return the name of a run: the same for the same data, system, hyper-parameters, training code and backend."""
    values = dataclasses.asdict(settings)
    if settings.weights not in (architectures.IMAGENET, architectures.NOTHING):
        # A file counts by what is in it, not by where it lies.
        file = Path(settings.weights)
        values["weights"] = file_digest(file) if file.is_file() else settings.weights
    identity = {"data": digest, "system": job.system, "settings": values, "code": code_digest(), "backend": backend}
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Hold the run: two processes must not write into it."""
    with (directory / "lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise TrainingError(f"another process is training in {directory}: wait for it or stop it") from error
        yield


def _point(link: str, target: Path) -> None:
    """Set a symbolic link at once."""
    if not link:
        return
    path = Path(link)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_symlink():
        raise SettingsError(f"--out-link {link} is there and not a symbolic link: remove it or name another")
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.symlink_to(target.resolve())
    part.replace(path)


def _finished(directory: Path) -> Bundle | None:
    """Return the bundle of a finished run when it is whole; a damaged one is removed and made again."""
    if not directory.is_dir():
        return None
    try:
        found = Bundle.load(directory)
        found.verify()
    except BundleError as error:
        say(f"the finished bundle is made again: {error}")
        shutil.rmtree(directory)
        return None
    return found


def sides_of(manifest: Manifest, pixels: Any, feedback_weight: float) -> Sides:
    """Return what is trained and measured on; an image that people judged has the weight given, any other 1."""
    rows, labels = {}, {}
    for split in SPLITS:
        samples = manifest.of(split)
        rows[split] = np.asarray([sample.row for sample in samples], dtype=np.int64)
        labels[split] = np.asarray([sample.label for sample in samples], dtype=np.int64)
    judged = np.asarray([sample.judged for sample in manifest.of("train")])
    weights = np.where(judged, np.float32(feedback_weight), np.float32(1)) if judged.any() else None
    return Sides(pixels, rows, labels, len(manifest.classes), weights)


def _smoke(manifest: Manifest, scores: Any, labels: Any, certain: float) -> bytes:
    """Return a PNG of the test image that is right and just not uncertain: its score shows a small fault best."""
    right = evaluation.verdicts(scores, THRESHOLD) == labels
    confidence = evaluation.confidences(scores)
    order = np.argsort(np.where(right, np.where(confidence >= certain, 0, 1), 2) + np.abs(confidence - certain - 0.05))
    _, content = next(data.pictures(manifest, [manifest.of("test")[int(order[0])]]))
    image = open_image(content).copy()
    image.thumbnail((SMOKE_SIDE, SMOKE_SIDE))
    stream = BytesIO()
    image.save(stream, "PNG", optimize=True)
    return stream.getvalue()


def _libraries(backend: str) -> dict[str, str]:
    found = {}
    # TensorFlow varies the images and compiles the network whatever trained it.
    for name in dict.fromkeys((*backends.PACKAGES[backends.TENSORFLOW], *backends.PACKAGES[backend], *LIBRARIES)):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def make_bundle(
    directory: Path,
    best: Path,
    state: State,
    run: str,
    job: Job,
    settings: Settings,
    manifest: Manifest,
    sides: Sides,
    team: Team,
    progress: Callable[..., None],
) -> Bundle:
    """Evaluate the best epoch, compile it, and write the bundle.

    Args:
        directory: of the run.
        best: file with the weights.
        state: of the training, at its end.
        run: name of the run.
        job: where things come from.
        settings: hyper-parameters.
        manifest: the data.
        sides: its pixels.
        team: what trained it.
        progress: told what to write into the progress file.

    Raises:
        ExportError: the compiled form does not say what the trained one says.
    """
    import keras

    architecture, system = ARCHITECTURES[settings.architecture], SYSTEMS[job.system]
    progress(state="evaluating", message="validation and test images", eta_seconds=None)
    model = keras.models.load_model(best, compile=False)
    scores = {"validation": training.predict(model, sides, "validation", architecture)}
    found = training.calibrate(model, sides.labels["validation"], scores["validation"], settings.threshold)
    scores = {split: training.predict(model, sides, split, architecture) for split in ("validation", "test")}
    metrics = {
        split: figures_of(manifest, split, sides.labels[split], values, system, settings.seed)
        for split, values in scores.items()
    }

    def predict(pixels: Any) -> Any:
        if architecture.resize == bundle.CENTRED:
            # Images are served changed first and centred then.
            pixels = np.stack([centring.centre_pixels(image) for image in pixels])
        return training.predict(model, Sides(pixels, {"changed": np.arange(len(pixels))}, {}), "changed", architecture)

    robust, shortcuts = robustness_of(predict, sides, manifest, system, settings.seed, progress)
    metrics["test"]["auroc_worst"] = robust["worst"]["auroc"] if robust["worst"] else None
    test = evaluation.logits(scores["test"]) * found["temperature"] + found.get("shift", 0.0)
    before = evaluation.calibration_error(sides.labels["test"], evaluation.probabilities(test))

    progress(state="exporting", message="compiling the serving form")
    unfinished = directory / "bundle.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    model.save(unfinished / KERAS_FILE)
    served, familiar = _serving_form(model, unfinished / SERVING_FILE, sides, scores, architecture, settings)
    if system.grey:
        familiar["max_chroma"] = export.MAX_CHROMA

    (unfinished / SMOKE_FILE).write_bytes(
        _smoke(manifest, scores["test"], sides.labels["test"], settings.uncertain_below)
    )
    history = [{key: value for key, value in entry.items() if key != "file"} for entry in state.history]
    (unfinished / "history.json").write_text(json.dumps(history, indent=1) + "\n")
    created = datetime.now(timezone.utc)
    contract: dict[str, Any] = {
        "schema": SCHEMA,
        "name": job.system,
        "version": f"{created:%Y%m%dT%H%M%SZ}-{run[:8]}",
        "created": f"{created:%Y-%m-%dT%H:%M:%SZ}",
        "files": {
            path.name: {"sha256": file_digest(path), "bytes": path.stat().st_size}
            for path in sorted(unfinished.iterdir())
        },
        "serving": served,
        "input": {
            "height": settings.image_size,
            "width": settings.image_size,
            "channels": 3 if architecture.color == "rgb" else 1,
            "color": architecture.color,
            "form": system.form,
        },
        "preprocessing": {
            "resize": architecture.resize,
            "scale": architecture.scale,
            "offset": architecture.offset,
        },
        "labels": list(system.classes.values()),
        "output": "sigmoid" if sides.classes == 2 else "softmax",
        "decision": {
            "positive": system.positive,
            "threshold": THRESHOLD,
            "chosen_by": f"{settings.threshold} on {metrics['validation']['images']} validation images, at "
            f"{found['threshold']:.4f} of the uncalibrated score; shifted to {THRESHOLD}"
            if sides.classes == 2
            else "the most probable label is the verdict; there is no threshold",
            "uncertain": band(sides.labels["validation"], scores["validation"], settings.uncertain_below),
        },
        "out_of_distribution": familiar,
        "calibration": {
            "method": "temperature",
            # What is left for a server to apply: nothing, for it is folded into the weights.
            "temperature": 1.0,
            "folded": {name: found[name] for name in ("temperature", "shift") if name in found},
            "ece": {"before": before, "after": metrics["test"]["ece"]},
        },
        "metrics": metrics,
        "robustness": robust,
        "shortcuts": shortcuts,
        "limits": _limits(manifest, metrics["test"], system),
        "data": {
            "source": manifest.source,
            "synthetic": manifest.synthetic,
            "digest": manifest.digest,
            "test_digest": manifest.split_digest("test"),
            "counts": manifest.counts(),
            "left_out": len(manifest.left_out),
            "feedback": {**manifest.judged(), "weight": settings.feedback_weight} if job.feedback else None,
        },
        "training": {
            "architecture": settings.architecture,
            "backend": backends.chosen(os.environ),
            "run": run,
            "epochs": state.epoch,
            "best_epoch": state.best["epoch"],
            "seed": settings.seed,
            "seconds": round(state.seconds, 1),
            "hosts": team.hosts,
            "replicas": team.replicas,
            "parameters": dataclasses.asdict(settings),
        },
        "libraries": _libraries(backends.chosen(os.environ)),
        "git_revision": job.git_revision or None,
    }
    (unfinished / "model.json").write_text(json.dumps(contract, indent=2) + "\n")
    serving.record_smoke(unfinished)
    bundle.smoke(Bundle.load(unfinished))
    progress(message="writing the report")
    report.write(unfinished, manifest, "test", scores["test"])
    write_predictions(directory / "predictions.csv", manifest, scores, contract["labels"])
    final = directory / "bundle"
    unfinished.replace(final)
    return Bundle.load(final)


def write_predictions(file: Path, manifest: Manifest, scores: Mapping[str, Any], names: Sequence[str]) -> None:
    """Write name, side, label and scores of images as CSV.

    Args:
        file: to write.
        manifest: the data.
        scores: of each side that is written, shape (n,) or (n, classes).
        names: of the labels.
    """
    rows = [
        ",".join([sample.name, split, names[sample.label], *(f"{score:.6f}" for score in np.atleast_1d(said))])
        for split, values in scores.items()
        for sample, said in zip(manifest.of(split), values, strict=True)
    ]
    columns = ["score"] if len(names) == 2 else [f"score {name}" for name in names]
    file.write_text("\n".join([",".join(["image,split,label", *columns]), *rows]) + "\n")


def _serving_form(
    model: Any,
    file: Path,
    sides: Sides,
    scores: Mapping[str, Any],
    architecture: Architecture,
    settings: Settings,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Compile a network into ``file``; return `serving` and `out_of_distribution` of its contract.

    Args:
        model: the network, calibrated.
        file: to write.
        sides: images of all splits.
        scores: what the network says of those of `validation` and `test`.
        architecture: which network.
        settings: hyper-parameters.

    Raises:
        ExportError: what was compiled does not say what the network says.
    """

    def images(split: str, most: int | None = None) -> Iterator[Any]:
        rows = sides.rows[split]
        if most is not None and rows.size > most:
            rows = np.sort(np.random.default_rng(settings.seed).choice(rows, most, replace=False))
        return training.batches(sides, rows, architecture)

    known = export.Familiar.fit(export.features(model, images("train", FAMILIAR_IMAGES)))
    export.compile_serving(model, known, file)
    said = {split: export.run(file, images(split)) for split in ("validation", "test")}

    def compiled(split: str) -> Any:
        return _flat(said[split]["score"])

    parity = export.compare(scores["test"], compiled("test"), THRESHOLD)
    export.check_parity(parity)
    serving: dict[str, Any] = {
        "file": file.name,
        "engine": "onnxruntime",
        "precision": "fp32",
        "outputs": {name: output for name, output in export.OUTPUTS.items() if output in said["test"]},
        "parity": parity,
    }
    if "heat" in serving["outputs"]:
        serving["heat_scale"] = _heat_scale(said["validation"]["heat"], compiled("validation"))
    distances = said["validation"]["distance"]
    familiar = {
        "method": "mahalanobis",
        "threshold": float(np.quantile(distances, export.FAMILIAR)),
        "chosen_by": f"{export.FAMILIAR:.1%} of {distances.size} validation images are nearer to the training images",
    }
    if settings.precision != "fp32":
        serving.update(_lower_precision(file, sides, images, compiled))
    return serving, familiar


def _flat(scores: Any) -> Any:
    """Return a network's scores, shape (n, outputs), as `training.predict` does: a single output has no axis."""
    return (scores[:, 0] if scores.shape[1] == 1 else scores).astype(np.float64)


def _heat_scale(heat: Any, scores: Any) -> float:
    """Return what a place must add to the logit to be shown in full: more than all but one in a hundred places do.

    Args:
        heat: of validation images, shape (n, height, width), or (n, height, width, classes).
        scores: of these images, shape (n,) or (n, classes). Of two classes the finding's images count, of more all.
    """
    verdicts = evaluation.verdicts(scores, THRESHOLD)
    warm = heat[verdicts == 1] if heat.ndim == 3 else np.take_along_axis(heat, verdicts[:, None, None, None], axis=3)
    warm = warm[warm > 0]
    return float(np.quantile(warm, 0.99)) if warm.size else 1.0


def _lower_precision(
    file: Path, sides: Sides, images: Callable[..., Iterator[Any]], full: Callable[[str], Any]
) -> dict[str, Any]:
    """Put an int8 form in the place of ``file`` where it is as good on labelled images; return what changes."""
    low = file.with_name("model.int8.onnx")
    figures: dict[str, Any] = {}
    try:
        export.quantize(file, low, images("train", export.CALIBRATION_IMAGES))
        splits = ("validation", "test")
        labels = np.concatenate([sides.labels[split] for split in splits])
        lower = np.concatenate([_flat(export.run(low, images(split))["score"]) for split in splits])
        whole = np.concatenate([full(split) for split in splits])
        figures, why = export.precision_gate(labels, whole, lower, THRESHOLD)
    except export.ExportError as error:
        why = str(error)
    if why:
        low.unlink(missing_ok=True)
        say(f"the int8 serving form is not used: {why}; fp32 serves")
        return {"rejected": {"precision": "int8", "why": why, **figures}}
    low.replace(file)
    say("the int8 serving form is as good as fp32 on the labelled images and serves")
    return {"precision": "int8", "against_fp32": figures}


def band(labels: Any, scores: Any, below: float) -> dict[str, Any]:
    """Return the band of scores, or of confidence, whose verdict is called uncertain, and what validation has in it.

    Args:
        labels: of the validation images, shape (n,).
        scores: of these images, shape (n,) or (n, classes).
        below: least confidence of a verdict that is certain.
    """
    low, high = 1 - below, below
    binary = scores.ndim == 1
    inside = (scores >= low) & (scores < high) if binary else evaluation.confidences(scores) < below
    right = evaluation.verdicts(scores[inside], THRESHOLD) == labels[inside]
    told = f"{right.mean():.0%} of their verdicts are right" if right.size else "there is none"
    return {
        **({"low": low, "high": high} if binary else {"below": below}),
        "chosen_by": f"confidence below {below:g}: {inside.mean():.1%} of the validation images; {told}",
    }


def figures_of(manifest: Manifest, split: str, labels: Any, scores: Any, system: System, seed: int) -> dict[str, Any]:
    """Return `metrics` of a split; images of a patient count as one draw of their intervals."""
    samples = manifest.of(split)
    patients = [sample.patient for sample in samples]
    found = evaluation.figures(labels, scores, THRESHOLD, patients, seed)
    if "classes" in found:
        found["classes"] = dict(zip(system.classes.values(), found["classes"], strict=True))
    kinds = [data.kind_of(sample.name, system.kind) for sample in samples]
    if named := evaluation.subgroups(kinds, labels, scores, THRESHOLD, patients, seed):
        found["subgroups"] = named
    return found


def robustness_of(
    predict: Callable[[Any], Any],
    sides: Sides,
    manifest: Manifest,
    system: System,
    seed: int,
    progress: Callable[..., None],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return `robustness` and `shortcuts` of the contract, both of test images; none where the system asks for none.

    Args:
        predict: gives the scores, shape (n,), of pixels, shape (n, height, width, channels).
        sides: images of all splits.
        manifest: the data.
        system: what is classified.
        seed: of what is drawn.
        progress: told what to write into the progress file.
    """
    rng = np.random.default_rng(seed)

    def some(count: int, most: int) -> Any:
        return np.sort(rng.choice(count, min(count, most), replace=False))

    def tell(done: int, total: int) -> None:
        progress(message=f"changed images, {done} of {total}")

    chosen = some(sides.rows["test"].size, robustness.MOST_IMAGES)
    pixels, labels = sides.pixels[sides.rows["test"][chosen]], sides.labels["test"][chosen]
    asked = [one for one in robustness.PERTURBATIONS if one.name in system.perturbations]
    rows = robustness.table(predict, pixels, labels, THRESHOLD, seed, tell, asked)
    known = [row for row in rows if row["auroc"] is not None]
    worst = min(known, key=lambda row: row["auroc"], default=None)
    robust = {"images": len(chosen), "perturbations": rows, "worst": worst}
    if not system.shortcuts:
        return robust, {}
    covered = evaluation.auroc(labels, predict(robustness.cover(pixels)))
    train, test = manifest.of("train"), [manifest.of("test")[row] for row in chosen]
    train = [train[row] for row in some(len(train), robustness.MOST_FILES)]
    traits = [robustness.file_traits(content for _, content in data.pictures(manifest, side)) for side in (train, test)]
    learned = [sample.label for sample in train]
    # Without images to learn from there is no second probe.
    files = evaluation.auroc(labels, robustness.linear_scores(traits[0], learned, traits[1])) if learned else math.nan
    return robust, {
        "covered_auroc": covered if math.isfinite(covered) else None,
        "files_auroc": files if math.isfinite(files) else None,
    }


def _limits(manifest: Manifest, test: Mapping[str, Any], system: System) -> list[str]:
    """Return what the model's figures do not say, in sentences for its card."""
    sentences = [system.synthetic] if manifest.synthetic else []
    return [*sentences, *(sentence.format(images=test["images"]) for sentence in system.limits)]


def _describe(manifest: Manifest) -> None:
    counts = manifest.counts()
    for split, classes in counts.items():
        say(f"{split}: " + ", ".join(f"{count} {name}" for name, count in classes.items()))
    for problem in manifest.left_out[:20]:
        say(f"left out {problem.name}: {problem.reason}")
    if len(manifest.left_out) > 20:
        say(f"… and {len(manifest.left_out) - 20} more; all of them are in manifest.json")


def summary(version: str, figures: Mapping[str, Any], split: str = "test") -> str:
    """Return the figures of a split in one line."""

    def figure(name: str) -> str:
        if figures[name] is None:
            return "unknown"
        low, high = figures["intervals"][name]
        return f"{figures[name]:.4f} ({low:.3f} to {high:.3f})"

    shown = ["accuracy", "sensitivity", "specificity"] if "sensitivity" in figures else ["accuracy", "f1"]
    words = {"f1": "macro F1"}
    told = ", ".join(f"{words.get(name, name)} {figure(name)}" for name in shown)
    return f"{version}: {split} {told}, AUROC {figure('auroc')} on {figures['images']} images"


def _summary(found: Bundle) -> str:
    metrics = found.contract["metrics"]
    told = summary(found.version, metrics["test"])
    return f"{told}; validation accuracy {metrics['validation']['accuracy']:.4f}"


def _places(found: Bundle) -> dict[str, Any]:
    """Return where a bundle and its report are, for the progress file."""
    place = found.path.resolve()
    return {"bundle": str(place), "report": str(place / report.REPORT_FILE)}


def _prepared(job: Job, settings: Settings, progress: Progress) -> tuple[Manifest, Any]:
    """Bring the data and decode it."""
    architecture, system = ARCHITECTURES[settings.architecture], SYSTEMS[job.system]
    size = settings.image_size
    return data.prepare(
        job.data,
        Path(job.cache) if job.cache else Path(job.runs) / "cache",
        Shape(size, size, architecture.color, architecture.resize),
        tuple(system.classes),
        pattern=system.patient,
        seed=settings.seed,
        validation=settings.validation_share,
        test=settings.test_share,
        sha256=job.data_sha256,
        anonymous=job.data_anonymous,
        synthetic_images=job.synthetic_images,
        drawn=system.drawn,
        expected=_expected(job.expected),
        report=progress.report,
        feedback=Path(job.feedback) if job.feedback else None,
        alike=system.alike,
    )


def _meet(run: str, problem: str, settings: Settings, progress: Progress) -> tuple[Team, str]:
    """Wait for the other hosts and see that all are to train the same; return them, and a line about the machine.

    Raises:
        TrainingError: they are not, or one of them cannot.
        WorkersError, LostError: see `training.prepare_machine`.
    """
    progress(now=True, message="waiting for the other training hosts")
    team, machine = training.prepare_machine(settings.seed)
    with team.watch():
        said = team.every([run, problem])
    if refusal := refusal_of([(host, *words) for host, words in zip(team.addresses, said, strict=True)]):
        raise TrainingError(refusal)
    return team, machine


def refusal_of(said: Sequence[tuple[str, str, str]]) -> str:
    """Return why hosts cannot train together, from address, run and problem of each; empty when they can."""
    if problems := [f"{host}: {words}" for host, _, words in said if words]:
        return "; ".join(problems)
    if len({run for _, run, _ in said}) > 1:
        told = ", ".join(f"{host}: run {run}" for host, run, _ in said)
        return f"the hosts are not to train the same ({told}): bring all of them the same data, settings and program"
    return ""


def train(job: Job, settings: Settings, progress: Progress) -> Bundle | None:
    """Bring the data, train unless that was done, and return the bundle; None where another host makes it.

    Raises:
        DataError, ArchitectureError, TrainingError, ExportError, BundleError, SettingsError, BackendError,
            WorkersError: the text says what to do.
        LostError: another host is gone.
    """
    hosts = workers.cluster(os.environ)[0]
    backend, several = backends.chosen(os.environ, len(hosts)), bool(hosts)
    try:
        manifest, pixels = _prepared(job, settings, progress)
    except (DataError, OSError) as error:
        # The others wait: they are told that it is in vain.
        if several:
            _meet("", str(error), settings, progress)
        raise
    run = run_id(manifest.digest, job, settings, backend)
    directory = Path(job.runs) / run
    directory.mkdir(parents=True, exist_ok=True)
    progress(run=run, message="")
    team, machine = _meet(run, "", settings, progress) if several else (Team(None), "")
    with _alone(directory):
        manifest.save(directory / "manifest.json")
        found = _finished(directory / "bundle") if team.chief else None
        with team.watch():
            done = team.agreed(found is not None)
        if done:
            return _unchanged(found, team, job, run, progress)
        say(
            f"run {run}: {settings.architecture} on {job.data} ({'synthetic' if manifest.synthetic else 'real'} images)"
        )
        _describe(manifest)
        if not several:
            team, machine = training.prepare_machine(settings.seed)
        say(f"training on {machine}")
        if ARCHITECTURES[settings.architecture].pretrained and "no GPU" in machine:
            say(f"{settings.architecture} takes long without a GPU: --architecture compact is made for CPUs")
        progress(state="training", message=f"training on {machine}")
        return _run(directory, run, job, settings, manifest, pixels, team, progress)


def _unchanged(found: Bundle | None, team: Team, job: Job, run: str, progress: Progress) -> Bundle | None:
    """Say that a run is finished; its bundle is on the chief."""
    if found is None:
        say(f"nothing changed, nothing trained: run {run} is finished, and its bundle on {team.addresses[0]}")
        progress(state="unchanged", message=f"{team.addresses[0]} has the bundle", eta_seconds=0)
    else:
        _point(job.out_link, found.path)
        say(f"nothing changed, nothing trained: run {run} is finished. {_summary(found)}")
        progress(
            state="unchanged",
            message=f"nothing changed, nothing trained: {_summary(found)}",
            epoch=found.contract["training"]["epochs"],
            eta_seconds=0,
            **_places(found),
        )
    team.end()
    return found


def _run(
    directory: Path,
    run: str,
    job: Job,
    settings: Settings,
    manifest: Manifest,
    pixels: Any,
    team: Team,
    progress: Progress,
) -> Bundle | None:
    """Train and, on the chief, make the bundle."""
    sides = sides_of(manifest, pixels, settings.feedback_weight)
    with team.watch():
        best, state = training.fit(
            directory, sides, ARCHITECTURES[settings.architecture], settings, team, progress, say
        )
    found = None
    if team.chief:
        try:
            found = make_bundle(directory, best, state, run, job, settings, manifest, sides, team, progress)
            _point(job.out_link, directory / "bundle")
        except Exception as error:
            team.end(str(error) or type(error).__name__)
            raise
        team.end()
    else:
        progress(state="evaluating", message=f"{team.addresses[0]} makes the bundle", eta_seconds=None)
        if problem := team.end():
            raise TrainingError(f"{team.addresses[0]}: {problem}")
    for rest in [*directory.glob("checkpoint-*"), *directory.glob("best-*.keras"), *directory.glob("features-*")]:
        shutil.rmtree(rest) if rest.is_dir() else rest.unlink()
    if found is None:
        say(f"trained together with {team.hosts - 1} more; the bundle is on {team.addresses[0]}")
        progress(state="done", message=f"{team.addresses[0]} has the bundle", eta_seconds=0)
        return None
    say(_summary(found))
    progress(
        state="done",
        message=_summary(found),
        eta_seconds=0,
        val_accuracy=round(found.contract["metrics"]["validation"]["accuracy"], 5),
        **_places(found),
    )
    return found


def evaluate(job: Job, settings: Settings, progress: Progress) -> Path:
    """Measure a bundle on labelled images from elsewhere; return the directory with the report.

    Raises:
        DataError, BundleError, ServingError: the text says what to do.
    """
    from lightbox import external

    progress(state="evaluating", message="labelled images from elsewhere")
    runs = Path(job.runs)
    found = external.evaluate(
        Path(job.bundle or job.out_link),
        job.evaluate,
        runs / "evaluations",
        Path(job.cache) if job.cache else runs / "cache",
        SYSTEMS[job.system],
        job.recalibrate,
        settings.seed,
        progress,
        job.data_sha256,
        job.data_anonymous,
    )
    contract = json.loads((found / "evaluation.json").read_text())
    figures = contract["metrics"]["test" if job.recalibrate else external.EXTERNAL]
    message = summary(contract["version"], figures)
    say(f"{message}; the report is {found / report.REPORT_FILE}")
    recalibrated = str((found / "bundle").resolve()) if job.recalibrate else None
    page = str((found / report.REPORT_FILE).resolve())
    progress(state="done", message=message, bundle=recalibrated, report=page, eta_seconds=0)
    return found


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; the exit status is 0 when there is a bundle, else 1 with one line on standard error, or 3
    when another training host was lost.
    """
    try:
        job, settings = parse(arguments)
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    progress = Progress(Path(job.progress) if job.progress else Path(job.runs) / "progress.json", settings.epochs)
    signal.signal(signal.SIGTERM, progress.stop)
    end_metrics = telemetry.serve(job.metrics_address, job.metrics_port, progress.fields, settings.architecture, say)
    try:
        work = evaluate if job.evaluate else train
        work(job, settings, progress)
    except (
        DataError,
        ArchitectureError,
        TrainingError,
        ExportError,
        BundleError,
        ServingError,
        SettingsError,
        BackendError,
        WorkersError,
        OSError,
    ) as error:
        progress(state="failed", message=str(error))
        sys.stderr.write(f"{error}\n")
        return 1
    except LostError as error:
        message = f"another training host is gone ({error}); started again, all go on after the last finished epoch"
        progress(state="failed", message=message)
        sys.stderr.write(f"{message}\n")
        return workers.LOST
    except (SystemExit, KeyboardInterrupt):
        progress(state="failed", message="stopped; started again, it goes on after the last finished epoch")
        raise
    except Exception as error:
        progress(state="failed", message=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
        traceback.print_exc()
        return 1
    finally:
        end_metrics()
    return 0


if __name__ == "__main__":
    workers.leave(main)
