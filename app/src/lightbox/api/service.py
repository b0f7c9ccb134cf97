"""What the API does, without HTTP: load a model, classify a file, keep the case, tell its own state."""

from __future__ import annotations

import csv
import io
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from PIL import Image
from prometheus_client import Counter, Gauge, Histogram

from lightbox import web
from lightbox.bundle import BundleError
from lightbox.images import MAX_PIXELS, THUMBNAIL_SIDE, ImageError, enough_for, open_image, shrink, thumbnail
from lightbox.serving import Assessment, Engine, Prepared, ServingError
from lightbox.store import UNCERTAIN, Case, CaseStore, Feedback, Query, StoreError, identity

SELF_TEST_SECONDS = 10.0
# Longest side, in pixels, and quality of the picture that is kept of an upload.
IMAGE_SIDE, IMAGE_QUALITY = 512, 90
# Cases read at once for an export.
EXPORT_CHUNK = 500
EXPORT_FIELDS = ("id", "created", "filename", "verdict", "label", "confidence", "model_version", "source",
                 "feedback_label", "feedback_created")  # fmt: skip
# A cell that begins like this is run as a formula by spreadsheets.
FORMULA = ("=", "+", "-", "@", "\t", "\r")

PREDICTIONS = Counter("lightbox_predictions_total", "Verdicts given.", ["label", "model_version"])
VERDICTS = Counter(
    "lightbox_verdicts_total", "Verdicts given, uncertain ones by that name.", ["verdict", "model_version"]
)
UNFAMILIAR = Counter("lightbox_unfamiliar_total", "Images unlike those the model was trained on.", ["model_version"])
# 20 steps of the probability: a model whose scores drift shows here before anybody complains.
SCORES = Histogram(
    "lightbox_score",
    "Probability of the finding, or of the label shown where no label is the finding.",
    ["model_version"],
    buckets=[step / 20 for step in range(1, 21)],
)
INFERENCE = Histogram(
    "lightbox_inference_seconds", "Time to decode and score one image.", ["model_version"], buckets=web.BUCKETS
)
FEEDBACK = Counter(
    "lightbox_feedback_total",
    "What people said of cases, by whether it is the label shown.",
    ["agrees", "model_version"],
)
MODEL = Gauge(
    "lightbox_model_info",
    "The model that is loaded; always 1.",
    ["name", "version", "synthetic"],
    multiprocess_mode="livemax",
)
# Not named by version: of two workers with two models, while one is released, the newer counts.
MODEL_CREATED = Gauge(
    "lightbox_model_created_timestamp_seconds", "When the loaded model was made, in seconds since 1970.",
    multiprocess_mode="livemax",
)  # fmt: skip
EXPECTED_SHARE = Gauge(
    "lightbox_expected_share",
    "Share of the verdicts that the model gave each label on its test images, from 0 to 1.",
    ["label", "model_version"],
    multiprocess_mode="livemax",
)
STORE_UP = Gauge("lightbox_store_up", "Whether Redis answered last time: 1 or 0.", multiprocess_mode="livemostrecent")


@dataclass(frozen=True)
class Settings:
    """The API's environment, see :mod:`lightbox.api.app`."""

    bundle: Path
    max_upload_bytes: int = web.MAX_UPLOAD_BYTES
    max_pixels: int = MAX_PIXELS
    concurrency: int = 1
    together: int = 2
    queue: int = 16
    threads: int = 1
    image_side: int = IMAGE_SIDE

    @classmethod
    def read(cls, environ: Mapping[str, str] = os.environ) -> Settings:
        """Return the settings in an environment.

        Raises:
            ValueError: a number is not one.
        """
        return cls(
            bundle=Path(environ.get("LIGHTBOX_BUNDLE", "/var/lib/lightbox/model/current")),
            max_upload_bytes=web.positive_int(environ, "LIGHTBOX_MAX_UPLOAD_BYTES", web.MAX_UPLOAD_BYTES),
            max_pixels=web.positive_int(environ, "LIGHTBOX_MAX_PIXELS", MAX_PIXELS),
            concurrency=web.positive_int(environ, "LIGHTBOX_CONCURRENCY", 1),
            together=web.positive_int(environ, "LIGHTBOX_TOGETHER", 2),
            queue=web.positive_int(environ, "LIGHTBOX_QUEUE", 16),
            threads=web.positive_int(environ, "LIGHTBOX_THREADS", 1),
            image_side=web.positive_int(environ, "LIGHTBOX_IMAGE_SIDE", IMAGE_SIDE),
        )


class NoModelError(Exception):
    """No model is loaded."""


class LabelError(ValueError):
    """The label is not one of the model's; the text names those."""


@dataclass(frozen=True)
class Upload:
    """A file as it came, its bare name, and the id of the request that brought it."""

    content: bytes
    filename: str
    request_id: str


@dataclass(frozen=True)
class Examined:
    """A case of one image, by which engine, and the picture to look at, a JPEG; empty where the thumbnail is it."""

    case: Case
    engine: Engine
    picture: bytes


@dataclass(frozen=True)
class Outcome:
    """A verdict on one image, by which engine, and whether its case was stored (``notice`` says why not)."""

    case: Case
    engine: Engine
    notice: str | None


def percent(share: float) -> str:
    """Return a share of 0 to 1 as it is shown everywhere, ``99.12%``."""
    return f"{share * 100:.2f}%"


def moment(text: Any) -> float | None:
    """Return a contract's time in seconds since 1970, or None where it is none."""
    try:
        return datetime.fromisoformat(str(text).replace("Z", "+00:00")).timestamp()
    except ValueError:
        return None


def expected_shares(contract: Mapping[str, Any], labels: Sequence[str]) -> dict[str, float]:
    """Return the share of its test images that a model gave each label; nothing where its contract does not tell.

    Rows of the confusion matrix are what the images show, columns what they were called.
    """
    try:
        rows = contract["metrics"]["test"]["confusion_matrix"]
        called = [sum(float(row[column]) for row in rows) for column in range(len(labels))]
    except (KeyError, TypeError, IndexError, ValueError):
        return {}
    total = sum(called)
    return {label: count / total for label, count in zip(labels, called, strict=True)} if total else {}


class Service:
    """One worker's model and store."""

    def __init__(self, settings: Settings, store: CaseStore) -> None:
        self.settings, self.store = settings, store
        self.engine: Engine | None = None
        self.problem = "no bundle was loaded yet"
        self.logger = web.get_logger("api")
        self._tested = (float("-inf"), False, "")

    def prepare(self) -> None:
        """Load the bundle in gunicorn's master, whose workers then share its memory.

        An engine with threads of its own does not survive a fork: then each worker loads the bundle itself.
        """
        self.engine = None
        if self.settings.threads == 1:
            self._attempt(self._load)

    def begin(self) -> None:
        """Load the bundle unless the master did, predict its smoke image, and tell which it is."""
        if self.engine is None:
            self._attempt(self._load)
        # Not in the master: the memory of a prediction there is one that no worker can share.
        if self.engine is not None:
            self._attempt(self.engine.self_test)
        if self.engine is not None:
            self._announce(self.engine)

    def _load(self) -> None:
        self.engine = engine = Engine(self.settings.bundle, self.settings.threads)
        self.logger.info("model loaded", extra={"fields": {"version": engine.version, "sha256": engine.loaded_sha256}})

    def _attempt(self, step: Callable[[], object]) -> None:
        """Take a step to a model; what stands in the way is logged and told by ``ready``, and the API runs without."""
        try:
            step()
            return
        except (BundleError, ServingError) as error:
            self.problem = str(error)
        # A bundle is data from elsewhere: whatever is wrong with it must not end the service.
        except Exception as error:
            self.logger.exception("the bundle cannot be loaded")
            self.problem = f"the bundle cannot be loaded ({type(error).__name__})"
        self.engine = None
        web.ERRORS.labels("api", "load").inc()
        self.logger.error("no model", extra={"fields": {"reason": self.problem}})

    def _announce(self, engine: Engine) -> None:
        """Show the model in this worker's metrics, with every verdict it can give."""
        name = str(engine.contract.get("name", ""))
        MODEL.labels(name, engine.version, str(engine.synthetic).lower()).set(1)
        for label in engine.labels:
            PREDICTIONS.labels(label, engine.version).inc(0)
        for verdict in self.verdicts():
            VERDICTS.labels(verdict, engine.version).inc(0)
        UNFAMILIAR.labels(engine.version).inc(0)
        for agrees in ("true", "false"):
            FEEDBACK.labels(agrees, engine.version).inc(0)
        INFERENCE.labels(engine.version)
        SCORES.labels(engine.version)
        created = moment(engine.contract.get("created"))
        if created is not None:
            MODEL_CREATED.set(created)
        for label, share in expected_shares(engine.contract, engine.labels).items():
            EXPECTED_SHARE.labels(label, engine.version).set(share)

    def examine(self, uploads: Sequence[Upload]) -> list[Examined | Exception]:
        """Score images together and make their cases, which are not stored yet.

        A case's id comes from the request's id and the file, so that a request sent twice is one case.

        Returns:
            For each upload its case, or why there is none: `lightbox.images.ImageError` when the file is not an image
            that is accepted, ServingError when the model failed.

        Raises:
            NoModelError: no model is loaded.
        """
        engine = self.engine
        if engine is None:
            raise NoModelError
        begin = time.perf_counter()
        opened = [self._open(upload.content, engine) for upload in uploads]
        verdicts = iter(engine.assess_many([one[0] for one in opened if isinstance(one, tuple)]))
        seconds = (time.perf_counter() - begin) / len(uploads)
        found: list[Examined | Exception] = []
        for upload, one in zip(uploads, opened, strict=True):
            INFERENCE.labels(engine.version).observe(seconds)
            said = next(verdicts) if isinstance(one, tuple) else one
            if isinstance(one, tuple) and isinstance(said, Assessment):
                found.append(self._case(upload, one[1], said, engine))
            elif isinstance(said, Exception):
                found.append(said)
        return found

    def _open(self, content: bytes, engine: Engine) -> tuple[Prepared, Image.Image] | ImageError | ServingError:
        """Return what the model takes of a file and the picture that is kept of it, or why there is none.

        The picture at its full size is forgotten here: that of a large film takes more memory than all else.
        """
        wanted = max(enough_for(engine.bundle.input.height, engine.bundle.input.width), self.settings.image_side)
        try:
            image = open_image(content, self.settings.max_pixels, wanted)
            return engine.prepare(image), shrink(image, self.settings.image_side)
        except (ImageError, ServingError) as error:
            return error

    @staticmethod
    def _case(upload: Upload, picture: Image.Image, said: Assessment, engine: Engine) -> Examined:
        # A picture no larger than a thumbnail is its own.
        large = max(picture.size) > THUMBNAIL_SIDE
        case = Case(
            id=identity(upload.request_id, upload.filename, upload.content),
            filename=upload.filename,
            model_version=engine.version,
            source="upload",
            created=datetime.now(timezone.utc),
            thumbnail=thumbnail(picture) if large else thumbnail(picture, quality=IMAGE_QUALITY),
            **said.kept(),
        )
        kept = thumbnail(picture, max(picture.size), IMAGE_QUALITY) if large else b""
        return Examined(case, engine, kept)

    def keep(self, found: Examined, request_id: str) -> Outcome:
        """Store a case. A failed store costs a notice, not the verdict."""
        notice = None
        try:
            self.store.add(found.case, found.picture)
            STORE_UP.set(1)
        except StoreError as error:
            STORE_UP.set(0)
            web.ERRORS.labels("api", "store").inc()
            self.logger.error("case not stored", extra={"fields": {"request_id": request_id, "reason": str(error)}})
            notice = f"This case was not stored and will not appear in the results: {error}."
        self._count(found.case, found.engine)
        return Outcome(found.case, found.engine, notice)

    @staticmethod
    def _count(case: Case, engine: Engine) -> None:
        PREDICTIONS.labels(case.label, engine.version).inc()
        VERDICTS.labels(case.verdict, engine.version).inc()
        SCORES.labels(engine.version).observe(case.probabilities.get(engine.positive or "", case.confidence))
        if case.unfamiliar:
            UNFAMILIAR.labels(engine.version).inc()

    def verdicts(self) -> list[str]:
        """Return what cases may be called: the loaded model's labels, and ``Uncertain``."""
        return [*(self.engine.labels if self.engine else ()), UNCERTAIN]

    def give_feedback(self, case_id: str, label: str) -> Case | None:
        """Keep what a person says of a case; return the case, or None when there is none of that id.

        Raises:
            NoModelError: no model is loaded.
            LabelError: the model does not know the label.
            StoreError: Redis failed.
        """
        if self.engine is None:
            raise NoModelError
        if label not in self.engine.labels:
            raise LabelError(f"The label must be one of {', '.join(self.engine.labels)}")
        case = self.store.set_feedback(case_id, Feedback(label, datetime.now(timezone.utc)))
        if case is not None:
            # Of the model that was judged, which need not be the one that is loaded.
            FEEDBACK.labels(str(label == case.label).lower(), case.model_version).inc()
        return case

    def export(self, query: Query) -> Iterator[str]:
        """Return cases as CSV, some lines at a time; what may fail at once fails before this returns.

        Raises:
            StoreError: Redis failed, here or while the lines are read.
        """
        ids = self.store.ids(query)
        chunks = (self.store.read_many(ids[first : first + EXPORT_CHUNK]) for first in range(0, len(ids), EXPORT_CHUNK))
        return _csv(chunks)

    def model(self) -> dict[str, Any]:
        """Return ``model.json`` and the digests of the files that were loaded.

        Raises:
            NoModelError: no model is loaded.
        """
        if self.engine is None:
            raise NoModelError
        return {**self.engine.contract, "loaded_sha256": self.engine.loaded_sha256}

    def ready(self) -> tuple[bool, dict[str, Any]]:
        """Return whether every check passed, and the checks."""
        checks: dict[str, dict[str, Any]] = {}
        if self.engine is None:
            checks["bundle"] = {"ok": False, "detail": self.problem}
            checks["self_test"] = {"ok": False, "detail": "no model is loaded"}
        else:
            checks["bundle"] = {"ok": True, "detail": self.engine.version}
            passed, detail = self._self_test(self.engine)
            checks["self_test"] = {"ok": passed, "detail": detail}
        try:
            self.store.ping()
            checks["redis"] = {"ok": True, "detail": "answers"}
        except StoreError as error:
            checks["redis"] = {"ok": False, "detail": str(error)}
        STORE_UP.set(1 if checks["redis"]["ok"] else 0)
        passed = all(check["ok"] for check in checks.values())
        return passed, {
            "ready": passed,
            "model_version": self.engine.version if self.engine else None,
            "checks": checks,
            "timestamp": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }

    def _self_test(self, engine: Engine) -> tuple[bool, str]:
        """Predict the smoke image, at most every few seconds: anyone may ask for /ready."""
        moment, passed, detail = self._tested
        if time.monotonic() - moment > SELF_TEST_SECONDS:
            try:
                passed, detail = (
                    True,
                    f"the smoke image's scores differ by {engine.self_test():.1e} from those recorded",
                )
            except ServingError as error:
                passed, detail = False, str(error)
            self._tested = (time.monotonic(), passed, detail)
        return passed, detail


def _csv(chunks: Iterable[list[Case]]) -> Iterator[str]:
    stream = io.StringIO()
    writer = csv.writer(stream)
    writer.writerow(EXPORT_FIELDS)
    yield stream.getvalue()
    for cases in chunks:
        stream.seek(0)
        stream.truncate()
        for case in cases:
            feedback = case.feedback
            writer.writerow(map(_cell, (
                case.id,
                case.created.isoformat(timespec="milliseconds"),
                case.filename,
                case.verdict,
                case.label,
                f"{case.confidence:.6f}",
                case.model_version,
                case.source,
                feedback.label if feedback else "",
                feedback.created.isoformat(timespec="milliseconds") if feedback else "",
            )))  # fmt: skip
        yield stream.getvalue()


def _cell(text: str) -> str:
    """Return a cell that no spreadsheet runs: an apostrophe before it makes it text."""
    return f"'{text}" if text.startswith(FORMULA) else text
