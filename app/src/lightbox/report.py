"""The report of a model: its card and its worst mistakes, as one HTML file that needs nothing else.

The card is the one of the pages (`lightbox.ui.card`); style and pictures are part of the file, so that it can be sent,
archived and printed.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from lightbox import data, heat
from lightbox.bundle import Bundle, file_digest
from lightbox.data import Manifest
from lightbox.images import enough_for, open_image
from lightbox.serving import Engine
from lightbox.ui import answers, card
from lightbox.ui.words import words_of

REPORT_FILE = "report.html"
# Mistakes that are shown, and the longer side of their pictures in pixels.
MOST, SIDE = 12, 320
PAGES = Path(__file__).parent / "ui"


@dataclass(frozen=True)
class Mistake:
    """An image that was judged wrongly.

    Attributes:
        name: path in the data set.
        truth: its label.
        called: the label it was given.
        confidence: in that label, as people read it.
        picture: as a data address.
        heat: the heat map to lay over it, as a data address; None where the model draws none.
        heat_label: what the heat map speaks for.
    """

    name: str
    truth: str
    called: str
    confidence: str
    picture: str
    heat: str | None
    heat_label: str | None


def worst(labels: ArrayLike, scores: ArrayLike, limit: float = 0.5) -> tuple[NDArray[np.int64], int]:
    """Return the places of the wrong verdicts, the most confident first and at most twelve, and how many there are.

    Args:
        labels: shape (n,).
        scores: shape (n,) for a sigmoid, (n, classes) for a softmax.
        limit: the threshold of a sigmoid.
    """
    truth, values = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    if values.ndim == 1:
        called, confidence = (values >= limit).astype(np.int64), np.abs(values - limit)
    else:
        called, confidence = values.argmax(axis=1), values.max(axis=1)
    wrong = np.flatnonzero(called != truth)
    return wrong[np.argsort(-confidence[wrong], kind="stable")][:MOST], int(wrong.size)


def _address(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _picture(image: Image.Image) -> str:
    small = image.copy()
    small.thumbnail((SIDE, SIDE))
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=80)
    return _address(stream.getvalue(), "jpeg")


def mistakes(engine: Engine, manifest: Manifest, split: str, scores: ArrayLike) -> tuple[list[Mistake], int]:
    """Return the worst mistakes of a model, as `worst` finds them, and how many there are.

    Args:
        engine: the model.
        manifest: the data.
        split: the side that is looked at.
        scores: of its images, in their order.

    Raises:
        ImageError, ServingError: an image cannot be judged.
    """
    samples = manifest.of(split)
    rows, wrong = worst([sample.label for sample in samples], scores, engine.bundle.threshold)
    chosen = [samples[row] for row in rows]
    takes, found = engine.bundle.input, []
    for sample, (name, content) in zip(chosen, data.pictures(manifest, chosen), strict=True):
        image = open_image(content, enough=enough_for(takes.height, takes.width))
        said = engine.assess(image)
        found.append(
            Mistake(
                name,
                engine.labels[sample.label],
                said.verdict.label,
                f"{said.verdict.confidence:.1%}",
                _picture(image),
                _address(heat.draw(heat.pack(said.heat.values)), "png") if said.heat else None,
                said.heat.label if said.heat else None,
            )
        )
    return found, wrong


def render(contract: Mapping[str, Any], shown: Sequence[Mistake], wrong: int, images: str) -> str:
    """Return the report as HTML.

    Args:
        contract: `model.json`.
        shown: the worst mistakes.
        wrong: how many mistakes there are.
        images: which images they were made on, such as ``test``.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PAGES / "templates"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["moment"] = answers.moment
    model = answers.read_model(contract)
    return environment.get_template("report.html").render(
        model=model,
        card=card.read_card(model),
        mistakes=shown,
        wrong=wrong,
        images=images,
        words=words_of(model),
        style=(PAGES / "static" / "style.css").read_text(),
    )


def write(directory: Path, manifest: Manifest, split: str, scores: ArrayLike) -> None:
    """Write the report of a bundle into it, and its digest into the contract.

    Args:
        directory: of the bundle, complete but for the report.
        manifest: the data.
        split: the side whose mistakes are shown.
        scores: of its images, in their order, see `worst`.

    Raises:
        BundleError, ImageError, ServingError: the bundle cannot be served.
    """
    engine = Engine(directory)
    file = directory / REPORT_FILE
    file.write_text(render(engine.contract, *mistakes(engine, manifest, split, scores), split))
    contract = Bundle.load(directory).contract
    contract["files"][REPORT_FILE] = {"sha256": file_digest(file), "bytes": file.stat().st_size}
    (directory / "model.json").write_text(json.dumps(contract, indent=2) + "\n")
