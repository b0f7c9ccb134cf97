"""Drawn, chest-like images, for a rehearsal without any data.

Nobody was X-rayed for them and nothing medical can be learnt from them: each carries the word SYNTHETIC. They have
what the classifier must cope with: anatomy that differs from patient to patient, several images of one patient,
exposure, noise, ribs and vessels that look like findings, and findings from plain to barely visible.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
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


def generate(
    directory: Path, images: int, seed: int, report: Callable[[str, int, int], None] = lambda *_: None
) -> None:
    """Draw a data set, ``train/{NORMAL,PNEUMONIA}/*.png``; nothing is done when it is there already.

    Args:
        directory: where it is to be; it appears there whole or not at all.
        images: how many.
        seed: the same number draws the same images.
        report: told a message, how many images are drawn and how many there will be.
    """
    stamp = {"drawing": DRAWING, "images": images, "seed": seed}
    note = directory / "synthetic.json"
    if note.is_file() and json.loads(note.read_text()) == stamp:
        return
    unfinished = directory.with_name(directory.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    for name in CLASSES:
        (unfinished / "train" / name).mkdir(parents=True)
    text = PngInfo()
    text.add_text("Description", "Synthetic image drawn by Lightbox. Not an X-ray of anybody.")

    def one(item: tuple[str, str, int, int]) -> None:
        name, file, patient, number = item
        anatomy = _anatomy(np.random.default_rng([DRAWING, seed, patient]))
        picture = draw(anatomy, name == CLASSES[1], np.random.default_rng([DRAWING, seed, patient, number]))
        picture.save(unfinished / "train" / name / file, pnginfo=text, compress_level=3)

    plan = _plan(images, seed)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done, _ in enumerate(pool.map(one, plan), 1):
            if done % 50 == 0 or done == len(plan):
                report("drawing synthetic images", done, len(plan))
    (unfinished / "synthetic.json").write_text(json.dumps(stamp))
    shutil.rmtree(directory, ignore_errors=True)
    unfinished.replace(directory)
