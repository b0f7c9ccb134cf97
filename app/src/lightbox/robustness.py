"""How a model fares with images of another machine, and whether it looks where it should.

Each perturbation changes the test images as another machine, another export or another hand might, at two strengths.
Two probes then look for shortcuts (Zech et al., "Variable generalization performance of a deep learning model to detect
pneumonia in chest radiographs", 2018): what the model still knows when the middle of the image, where the finding is,
is covered; and what the files alone tell, without anyone looking at the image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter, UnidentifiedImageError

from lightbox import evaluation
from lightbox.images import open_image

Pixels = NDArray[np.uint8]
Doubles = NDArray[np.float64]
# Images that are changed, most.
MOST_IMAGES = 600
# Files that the second probe learns from, most.
MOST_FILES = 2000
# What is covered of the image for the probe, as shares of its height and width: top, bottom, left, right.
MIDDLE = (0.12, 0.88, 0.08, 0.92)
# Images scored at once.
BLOCK = 512


@dataclass(frozen=True)
class Perturbation:
    """One way in which images differ.

    Attributes:
        name: what it is called in a contract.
        words: for people, with the strength in braces.
        strengths: a mild one and a strong one.
        apply: changes a picture by a strength; what it draws comes from the generator.
    """

    name: str
    words: str
    strengths: tuple[float, float]
    apply: Callable[[Image.Image, float, np.random.Generator], Image.Image]


def _table(image: Image.Image, curve: Callable[[Doubles], Doubles]) -> Image.Image:
    """Return the picture with each grey value from 0 to 1 sent through a curve."""
    values = np.clip(curve(np.arange(256) / 255.0), 0, 1) * 255
    return image.point([round(float(value)) for value in values] * len(image.getbands()))


def _resolution(image: Image.Image, share: float, _: np.random.Generator) -> Image.Image:
    small = (max(1, round(image.width * share)), max(1, round(image.height * share)))
    return image.resize(small, Image.Resampling.BOX).resize(image.size, Image.Resampling.BICUBIC)


def _jpeg(image: Image.Image, quality: float, _: np.random.Generator) -> Image.Image:
    stream = BytesIO()
    image.save(stream, "JPEG", quality=int(quality))
    return Image.open(stream).convert(image.mode)


def _gamma(image: Image.Image, gamma: float, _: np.random.Generator) -> Image.Image:
    return _table(image, lambda values: values**gamma)


def _contrast(image: Image.Image, factor: float, _: np.random.Generator) -> Image.Image:
    return ImageEnhance.Contrast(image).enhance(factor)


def _brightness(image: Image.Image, more: float, _: np.random.Generator) -> Image.Image:
    return _table(image, lambda values: values + more)


def _noise(image: Image.Image, deviation: float, rng: np.random.Generator) -> Image.Image:
    values = np.asarray(image, dtype=np.float64)
    grain = rng.normal(0, deviation * 255, values.shape[:2])
    values = values + (grain if values.ndim == 2 else grain[..., None])
    return Image.fromarray(np.clip(values.round(), 0, 255).astype(np.uint8))


def _blur(image: Image.Image, share: float, _: np.random.Generator) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(share * image.width))


def _moved(image: Image.Image, right: int, down: int) -> Image.Image:
    """Return the picture moved by whole pixels; its edges are continued."""
    values = np.asarray(image)
    rows = np.clip(np.arange(values.shape[0]) - down, 0, values.shape[0] - 1)
    columns = np.clip(np.arange(values.shape[1]) - right, 0, values.shape[1] - 1)
    return Image.fromarray(values[rows][:, columns])


def _shift(image: Image.Image, share: float, rng: np.random.Generator) -> Image.Image:
    angle = rng.uniform(0, 2 * np.pi)
    return _moved(image, round(np.cos(angle) * share * image.width), round(np.sin(angle) * share * image.height))


def _rotation(image: Image.Image, degrees: float, rng: np.random.Generator) -> Image.Image:
    wide = max(image.size) // 4
    padded = np.pad(np.asarray(image), [(wide, wide)] * 2 + [(0, 0)] * (len(image.getbands()) > 1), mode="edge")
    turned = Image.fromarray(padded).rotate(degrees * rng.choice((-1, 1)), Image.Resampling.BILINEAR)
    return turned.crop((wide, wide, wide + image.width, wide + image.height))


def _crop(image: Image.Image, share: float, _: np.random.Generator) -> Image.Image:
    across, down = image.width * (1 - share) / 2, image.height * (1 - share) / 2
    box = (across, down, image.width - across, image.height - down)
    return image.resize(image.size, Image.Resampling.BILINEAR, box=box)


def _border(image: Image.Image, share: float, _: np.random.Generator) -> Image.Image:
    framed = Image.new(image.mode, image.size)
    inner = (round(image.width * (1 - 2 * share)), round(image.height * (1 - 2 * share)))
    framed.paste(image.resize(inner, Image.Resampling.BILINEAR), ((image.width - inner[0]) // 2,) * 2)
    return framed


PERTURBATIONS = (
    Perturbation("resolution", "brought to {:.0%} of their size and back", (0.5, 0.3), _resolution),
    Perturbation("jpeg", "JPEG of quality {:.0f}", (40, 15), _jpeg),
    Perturbation("darker", "gamma {:g}", (1.3, 1.7), _gamma),
    Perturbation("lighter", "gamma {:g}", (0.77, 0.6), _gamma),
    Perturbation("contrast", "contrast times {:g}", (0.75, 0.5), _contrast),
    Perturbation("brightness", "{:.0%} of white added", (0.1, 0.2), _brightness),
    Perturbation("noise", "noise of {:.0%} of white", (0.03, 0.08), _noise),
    Perturbation("blur", "blurred by {:.1%} of their width", (0.006, 0.012), _blur),
    Perturbation("shift", "moved by {:.0%} of their size", (0.05, 0.1), _shift),
    Perturbation("rotation", "turned by {:g} degrees", (5, 12), _rotation),
    Perturbation("crop", "their middle {:.0%}", (0.92, 0.85), _crop),
    Perturbation("border", "in a black frame of {:.0%}", (0.03, 0.08), _border),
)


def cover(pixels: Pixels) -> Pixels:
    """Return images, shape (n, height, width, channels), with their middle covered in the mean of what is around it."""
    height, width = pixels.shape[1:3]
    top, bottom = (round(share * height) for share in MIDDLE[:2])
    left, right = (round(share * width) for share in MIDDLE[2:])
    around = np.ones((height, width), dtype=bool)
    around[top:bottom, left:right] = False
    covered = pixels.copy()
    covered[:, top:bottom, left:right] = pixels[:, around].mean(axis=1).round().astype(np.uint8)[:, None, None]
    return covered


def changed(pixels: Pixels, perturbation: Perturbation, strength: float, seed: int) -> Iterator[Pixels]:
    """Yield each image, shape (height, width, channels), changed; the same seed draws the same."""
    rng = np.random.default_rng(seed)
    for image in pixels:
        picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
        yield np.asarray(perturbation.apply(picture, strength, rng)).reshape(image.shape)


def table(
    predict: Callable[[Pixels], Doubles],
    pixels: Pixels,
    labels: NDArray[np.int64],
    limit: float,
    seed: int,
    report: Callable[[int, int], None] = lambda *_: None,
    perturbations: Sequence[Perturbation] = PERTURBATIONS,
) -> list[dict[str, Any]]:
    """Return the figures of a model under every perturbation; none for no perturbation.

    Args:
        predict: gives the scores, shape (n,) or (n, classes), of images as they are stored, shape (n, height, width,
            channels), 0 to 255.
        pixels: images, in that shape.
        labels: indices of the classes, shape (n,).
        limit: the threshold, see `lightbox.evaluation.verdicts`.
        seed: of what is drawn.
        report: told how many images of how many are scored.
        perturbations: what is done to the images.
    """
    cases = [(one, strength) for one in perturbations for strength in one.strengths]
    if not cases:
        return []
    images = (image for one, strength in cases for image in changed(pixels, one, strength, seed))
    total, scores = len(cases) * len(pixels), []
    # Blocks regardless of where a perturbation ends: a network takes as long for a few images as for a batch.
    for done in range(0, total, BLOCK):
        scores.append(predict(np.stack([next(images) for _ in range(min(BLOCK, total - done))])))
        report(min(done + BLOCK, total), total)
    rows = []
    for (one, strength), found in zip(cases, np.split(np.concatenate(scores), len(cases)), strict=True):
        figures = evaluation.figures(labels, found, limit)
        kept: dict[str, Any] = {
            n: figures[n] for n in ("auroc", "accuracy", "sensitivity", "specificity") if n in figures
        }
        rows.append({"name": one.name, "strength": strength, "words": one.words.format(strength), **kept})
    return rows


def file_traits(contents: Iterable[bytes]) -> Doubles:
    """Return what can be known of image files without looking at the image: shape (n, 4), all logarithms.

    Width, height, bytes, and bytes per pixel.
    """
    rows = []
    for content in contents:
        try:
            with Image.open(BytesIO(content)) as image:
                width, height = image.size
        except UnidentifiedImageError:
            width, height = open_image(content).size
        rows.append([width, height, len(content), len(content) / (width * height)])
    return np.log(np.asarray(rows, dtype=np.float64).reshape(-1, 4))


def linear_scores(traits: Doubles, labels: Sequence[int], others: Doubles, steps: int = 500) -> Doubles:
    """Return how logistic regression on the traits of some files, shape (n, t), scores others, shape (m, t)."""
    mean, spread = traits.mean(axis=0), traits.std(axis=0)
    spread = np.where(spread > 1e-9, spread, 1.0)
    x = np.c_[(traits - mean) / spread, np.ones(len(traits))]
    y, weights = np.asarray(labels, dtype=np.float64), np.zeros(x.shape[1])
    for _ in range(steps):
        gradient = x.T @ (1 / (1 + np.exp(-x @ weights)) - y) / len(y) + 1e-3 * weights
        weights -= gradient
    return 1 / (1 + np.exp(-np.c_[(others - mean) / spread, np.ones(len(others))] @ weights))
