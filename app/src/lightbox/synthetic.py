"""Drawn images, for a rehearsal without any data: chests and digits.

Nobody was X-rayed for the chests and nothing medical can be learnt from them: each carries the word SYNTHETIC. They
have what the classifier must cope with: anatomy that differs from patient to patient, several images of one patient,
exposure, noise, ribs and vessels that look like findings, and findings from plain to barely visible.

Nobody wrote the digits: strokes of a few points are bent, slanted, stretched and drawn with pens of different width.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter
from PIL.PngImagePlugin import PngInfo

# Changes whenever the same seed draws something else.
DRAWING = 1
SIDE = 224
CLASSES = ("NORMAL", "PNEUMONIA")
# Images of one patient.
SERIES = (1, 2, 3)
MARK = "SYNTHETIC"

Floats = NDArray[np.floating[Any]]


class Anatomy(NamedTuple):
    """What stays the same between the images of one patient; lengths are shares of the image's side."""

    center: float
    chest: float
    lung_width: float
    lung_height: float
    heart: float
    ribs: int
    slope: float
    tissue: float
    air: float


def _anatomy(rng: np.random.Generator) -> Anatomy:
    return Anatomy(
        center=rng.normal(0.5, 0.012),
        chest=rng.uniform(0.40, 0.47),
        lung_width=rng.uniform(0.135, 0.17),
        lung_height=rng.uniform(0.27, 0.34),
        heart=rng.uniform(0.10, 0.145),
        ribs=int(rng.integers(7, 10)),
        slope=rng.uniform(0.15, 0.4),
        tissue=rng.uniform(0.52, 0.68),
        air=rng.uniform(0.16, 0.28),
    )


def _blob(x: Floats, y: Floats, cx: float, cy: float, rx: float, ry: float, edge: float) -> Floats:
    """Return an ellipse, 1 inside and 0 outside, whose edge is `edge` of its radius wide."""
    radius = np.sqrt(((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2)
    return np.clip((1 + edge / 2 - radius) / edge, 0, 1).astype(np.float32)


def _cloud(rng: np.random.Generator, side: int, grain: int) -> Floats:
    """Return smooth noise between 0 and 1 with structures about `side / grain` pixels wide."""
    small = Image.fromarray((rng.random((grain, grain)) * 255).astype(np.uint8))
    return np.asarray(small.resize((side, side), Image.Resampling.BICUBIC), dtype=np.float32) / 255


def draw(anatomy: Anatomy, ill: bool, rng: np.random.Generator, side: int = SIDE) -> Image.Image:
    """Draw one image of a patient.

    Args:
        anatomy: the patient.
        ill: whether there is an opacity in the lungs.
        rng: source of everything that differs between two images of one patient.
        side: height and width in pixels.

    Returns:
        A grey image of mode ``L``.
    """
    axis = (np.arange(side, dtype=np.float32) + 0.5) / side
    x, y = np.meshgrid(axis, axis)
    tilt = rng.normal(0, 0.04)
    x, y = x + tilt * (y - 0.5) + rng.normal(0, 0.015), y - tilt * (x - 0.5) + rng.normal(0, 0.015)
    breath = rng.uniform(0.92, 1.06)
    a = anatomy

    image = a.tissue * _blob(x, y, a.center, 0.62, a.chest, 0.62, 0.12)
    lungs = np.zeros_like(image)
    for sign in (-1, 1):
        height = a.lung_height * breath * (1.0 if sign < 0 else 0.97)
        lung = _blob(x, y, a.center + sign * a.lung_width * 1.42, 0.47, a.lung_width, height, 0.16)
        # The diaphragm cuts the lung from below.
        dome = 0.47 + height * 0.78 - 0.06 * np.cos((x - a.center - sign * a.lung_width * 1.4) * 9)
        lungs = np.maximum(lungs, lung * np.clip((dome - y) * 40, 0, 1))
    image = image * (1 - lungs) + a.air * lungs
    # Vessels from the hila outwards, in everybody: what a finding is confused with.
    spread = np.exp(-(((np.abs(x - a.center) - 0.1) / 0.09) ** 2) - ((y - 0.47) / 0.14) ** 2)
    image += lungs * spread * (0.10 + 0.16 * _cloud(rng, side, 22)) * rng.uniform(0.6, 1.3)
    image = np.maximum(image, (a.tissue + 0.12) * _blob(x, y, a.center, 0.5, 0.065, 0.55, 0.5))
    image = np.maximum(image, (a.tissue + 0.08) * _blob(x, y, a.center + 0.045, 0.62, a.heart, a.heart * 1.15, 0.22))

    # A patch of texture with a soft edge; the faintest are at the limit of what can be seen.
    for _ in range(int(rng.integers(1, 4)) if ill else 0):
        sign = rng.choice((-1, 1))
        cx = a.center + sign * a.lung_width * rng.uniform(1.05, 1.8)
        cy = rng.uniform(0.34, 0.64)
        patch = _blob(x, y, cx, cy, rng.uniform(0.04, 0.13), rng.uniform(0.04, 0.13), 1.6)
        image += lungs * patch * (0.35 + 0.65 * _cloud(rng, side, 9)) * rng.uniform(0.12, 0.42)

    for rib in range(a.ribs):
        top = 0.22 + 0.52 * rib / a.ribs
        line = top + a.slope * (np.abs(x - a.center) - 0.12) ** 2 * 6
        image += 0.07 * np.exp(-(((y - line) / 0.011) ** 2)) * (np.abs(x - a.center) < a.chest - 0.04)
    collar = 0.2 - 0.35 * (np.abs(x - a.center) - 0.12)
    image += 0.12 * np.exp(-(((y - collar) / 0.013) ** 2)) * (np.abs(np.abs(x - a.center) - 0.17) < 0.13)

    image = np.clip(image * rng.uniform(0.85, 1.15) + rng.normal(0, 0.02), 0, 1) ** rng.uniform(0.8, 1.25)
    soft = Image.fromarray((image * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(rng.uniform(0.6, 1.4)))
    noisy = np.asarray(soft, dtype=np.float32) + rng.normal(0, rng.uniform(2, 7), (side, side))
    picture = Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))
    ImageDraw.Draw(picture).text((side // 2, side - 3), MARK, fill=235, anchor="mb")
    return picture


def _plan(images: int, seed: int) -> list[tuple[str, str, int, int]]:
    """Return class, file name, patient and number of every image; two in five show nothing."""
    rng = np.random.default_rng([DRAWING, seed])
    plan: list[tuple[str, str, int, int]] = []
    patient = 0
    healthy = images * 2 // 5
    for name, share in ((CLASSES[0], healthy), (CLASSES[1], images - healthy)):
        made = 0
        while made < share:
            patient += 1
            for number in range(1, min(int(rng.choice(SERIES)), share - made) + 1):
                plan.append((name, f"synthetic-p{patient:04d}-{number}.png", patient, number))
                made += 1
    return plan


def _chest(name: str, patient: int, number: int, seed: int) -> Image.Image:
    anatomy = _anatomy(np.random.default_rng([DRAWING, seed, patient]))
    return draw(anatomy, name == CLASSES[1], np.random.default_rng([DRAWING, seed, patient, number]))


# --- digits -----------------------------------------------------------------------------------------------------------

DIGIT_SIDE = 28
# Times that size, a digit is drawn, so that its edges are smooth.
FINE = 4


def _arc(x: float, y: float, rx: float, ry: float, begin: float, end: float) -> list[tuple[float, float]]:
    """Return points on an ellipse, from one angle to another; degrees, clockwise from the right."""
    steps = max(3, round(abs(end - begin) / 30))
    angles = np.radians(np.linspace(begin, end, steps + 1))
    return [(x + rx * float(np.cos(angle)), y + ry * float(np.sin(angle))) for angle in angles]


# Ways to write each digit: strokes of points in a box from 0 to 1, downwards.
Strokes = list[list[tuple[float, float]]]
DIGITS: tuple[tuple[Strokes, ...], ...] = (
    ([_arc(0.5, 0.5, 0.36, 0.5, -90, 270)], [_arc(0.5, 0.5, 0.36, 0.5, -60, 290)]),
    ([[(0.5, 0), (0.5, 0.5), (0.5, 1)]], [[(0.3, 0.22), (0.52, 0), (0.5, 0.5), (0.5, 1)]]),
    (
        [[*_arc(0.48, 0.28, 0.34, 0.28, -170, 30), (0.5, 0.72), (0.12, 1), (0.5, 0.98), (0.9, 1)]],
        [
            [
                *_arc(0.48, 0.28, 0.34, 0.28, -170, 40),
                (0.4, 0.8),
                *_arc(0.26, 0.88, 0.14, 0.1, 90, 270),
                (0.55, 0.92),
                (0.95, 0.98),
            ]
        ],
    ),
    (
        [[*_arc(0.46, 0.25, 0.33, 0.25, -160, 80), (0.42, 0.48), *_arc(0.46, 0.74, 0.36, 0.26, -80, 160)]],
        [[(0.15, 0.02), (0.8, 0), (0.45, 0.4), *_arc(0.44, 0.7, 0.38, 0.3, -80, 150)]],
    ),
    (
        [[(0.2, 0), (0.12, 0.55), (0.85, 0.52)], [(0.72, 0.1), (0.7, 0.5), (0.68, 1)]],
        [[(0.68, 1), (0.7, 0.5), (0.72, 0), (0.4, 0.32), (0.08, 0.66), (0.5, 0.66), (0.95, 0.64)]],
    ),
    (
        [[(0.85, 0), (0.25, 0.02), (0.2, 0.42), *_arc(0.44, 0.7, 0.4, 0.3, -80, 150)]],
        [[(0.25, 0), (0.2, 0.42), *_arc(0.44, 0.7, 0.4, 0.3, -80, 150)], [(0.25, 0.02), (0.55, 0.03), (0.9, 0)]],
    ),
    (
        [[(0.7, 0), (0.35, 0.25), (0.16, 0.6), *_arc(0.5, 0.74, 0.34, 0.26, 180, -180)]],
        [[(0.5, 0), (0.22, 0.35), (0.16, 0.74), *_arc(0.5, 0.76, 0.34, 0.24, 170, -190)]],
    ),
    (
        [[(0.1, 0.04), (0.5, 0.03), (0.88, 0), (0.6, 0.45), (0.4, 1)]],
        [[(0.1, 0.04), (0.5, 0.03), (0.88, 0), (0.6, 0.45), (0.4, 1)], [(0.3, 0.5), (0.55, 0.5), (0.85, 0.48)]],
    ),
    (
        [[*_arc(0.5, 0.25, 0.3, 0.25, -30, -250), *_arc(0.5, 0.75, 0.34, 0.25, -80, 240), (0.55, 0.45), (0.78, 0.15)]],
        [_arc(0.5, 0.24, 0.3, 0.24, 90, -270), _arc(0.5, 0.74, 0.36, 0.26, -90, 270)],
    ),
    (
        [[*_arc(0.48, 0.28, 0.32, 0.28, 0, -360), (0.8, 0.5), (0.76, 1)]],
        [[*_arc(0.48, 0.28, 0.32, 0.28, -20, -360), (0.78, 0.6), *_arc(0.46, 0.76, 0.3, 0.24, 20, 140)]],
    ),
)


def _smooth(points: Floats, steps: int = 8) -> Floats:
    """Return a curve through points, shape (n, 2): a Catmull-Rom spline."""
    padded = np.concatenate([2 * points[:1] - points[1:2], points, 2 * points[-1:] - points[-2:-1]])
    t = np.linspace(0, 1, steps, endpoint=False)[:, None]
    parts = []
    for a, b, c, d in zip(padded, padded[1:], padded[2:], padded[3:], strict=False):
        parts.append(b + t * (c - a) / 2 + t**2 * (a - 2.5 * b + 2 * c - d / 2) + t**3 * (1.5 * (b - c) + (d - a) / 2))
    return np.concatenate([*parts, points[-1:]])


def draw_digit(digit: int, rng: np.random.Generator) -> Image.Image:
    """Draw a digit, white on black, 28 by 28 pixels, as large and as central as MNIST has them.

    Args:
        digit: from 0 to 9.
        rng: source of everything in which two of them differ.

    Returns:
        A grey image of mode ``L``.
    """
    ways = DIGITS[digit]
    strokes = [np.asarray(stroke) - 0.5 for stroke in ways[int(rng.integers(len(ways)))]]
    slant, angle = rng.normal(0.12, 0.18), rng.normal(0, 0.08)
    wide = rng.uniform(0.55, 0.95)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    bend = np.array([[wide, 0], [-slant, 1]]) @ turn
    # Points that lie close together are moved alike, or small loops would tear.
    waves = rng.normal(0, 0.05, (2, 2, 2))
    curves = [
        _smooth((stroke + np.sin(2 * np.pi * stroke @ waves[0] * 8) * waves[1, 0] + rng.normal(0, 0.02, stroke.shape))
                @ bend)
        for stroke in strokes
    ]  # fmt: skip
    every = np.concatenate(curves)
    pen = rng.uniform(1.4, 3.4)
    # MNIST's digits fill 20 by 20 pixels, their centre of mass in the middle of 28 by 28.
    low, high = every.min(axis=0), every.max(axis=0)
    size = (rng.uniform(18, 20) - pen) / max(*(high - low), 0.3)
    side = DIGIT_SIDE * FINE
    canvas = Image.new("L", (side, side))
    pencil = ImageDraw.Draw(canvas)
    radius = pen * FINE / 2
    for curve in curves:
        points = [(float(x), float(y)) for x, y in (curve - (low + high) / 2) * size * FINE + side / 2]
        for x, y in points:
            pencil.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
        pencil.line(points, fill=255, width=round(2 * radius), joint="curve")
    values = np.asarray(canvas, dtype=np.float64)
    middle = [values.sum(axis=axis) @ np.arange(side) / values.sum() for axis in (0, 1)] + rng.normal(0, 0.5, 2) * FINE
    left, top = (round(float(place) - side / 2) for place in middle)
    moved = canvas.crop((left, top, left + side, top + side))
    soft = moved.filter(ImageFilter.GaussianBlur(rng.uniform(0.15, 0.5) * FINE))
    return soft.resize((DIGIT_SIDE, DIGIT_SIDE), Image.Resampling.BOX)


def _digit_plan(images: int, _seed: int) -> list[tuple[str, str, int, int]]:
    """Return class, file name, number and again number of every image; every digit comes as often as the others."""
    return [(str(n % 10), f"synthetic-d{n:06d}.png", n, n) for n in range(images)]


def _digit(name: str, _writer: int, number: int, seed: int) -> Image.Image:
    return draw_digit(int(name), np.random.default_rng([DRAWING, seed, number]))


# --- sets of images ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Drawing:
    """Images that can be drawn.

    Attributes:
        classes: names of the classes.
        words: what each file says of itself.
        plan: gives class, file name, patient and number of every image, from how many there are and the seed.
        draw: draws an image, from class, patient, number and seed.
    """

    classes: tuple[str, ...]
    words: str
    plan: Callable[[int, int], list[tuple[str, str, int, int]]]
    draw: Callable[[str, int, int, int], Image.Image]


DRAWINGS = {
    "chests": Drawing(CLASSES, "Synthetic image drawn by Lightbox. Not an X-ray of anybody.", _plan, _chest),
    "digits": Drawing(tuple("0123456789"), "Synthetic digit drawn by Lightbox. Nobody wrote it.", _digit_plan, _digit),
}


def generate(
    directory: Path,
    images: int,
    seed: int,
    report: Callable[[str, int, int], None] = lambda *_: None,
    drawn: str = "chests",
) -> None:
    """Draw a data set, ``train/<class>/*.png``; nothing is done when it is there already.

    Args:
        directory: where it is to be; it appears there whole or not at all.
        images: how many.
        seed: the same number draws the same images.
        report: told a message, how many images are drawn and how many there will be.
        drawn: what they show, a key of `DRAWINGS`.
    """
    drawing = DRAWINGS[drawn]
    stamp = {"drawing": DRAWING, "images": images, "seed": seed}
    note = directory / "synthetic.json"
    if note.is_file() and json.loads(note.read_text()) == stamp:
        return
    unfinished = directory.with_name(directory.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    for name in drawing.classes:
        (unfinished / "train" / name).mkdir(parents=True)
    text = PngInfo()
    text.add_text("Description", drawing.words)

    def one(item: tuple[str, str, int, int]) -> None:
        name, file, patient, number = item
        picture = drawing.draw(name, patient, number, seed)
        picture.save(unfinished / "train" / name / file, pnginfo=text, compress_level=3)

    plan = drawing.plan(images, seed)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done, _ in enumerate(pool.map(one, plan), 1):
            if done % 50 == 0 or done == len(plan):
                report("drawing synthetic images", done, len(plan))
    (unfinished / "synthetic.json").write_text(json.dumps(stamp))
    shutil.rmtree(directory, ignore_errors=True)
    unfinished.replace(directory)
