"""Drawings of digits as people make them on the canvas: strokes of a round white pen on 280 by 280 black pixels.

The same templates serve as pictures (`render`) and as movements of a mouse or a finger (`Drawing.strokes`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

SIDE = 280
# Widths of the pen that the slider offers.
THINNEST, THICKEST = 10, 50
# Times the size of the canvas, a stroke is drawn, so that its edges are as smooth as a browser's.
FINE = 4

Point = tuple[float, float]
Strokes = tuple[tuple[Point, ...], ...]


@dataclass(frozen=True)
class Drawing:
    """One drawing: which digit, how it was made, strokes of points in pixels of the canvas, width of the pen."""

    digit: int
    manner: str
    strokes: Strokes
    pen: int


def oval(x: float, y: float, rx: float, ry: float, begin: float, end: float) -> list[Point]:
    """Return points on an ellipse from one angle to another, in degrees, clockwise on the screen, 0 to the right."""
    steps = max(4, round(abs(end - begin) / 15))
    angles = [math.radians(begin + (end - begin) * step / steps) for step in range(steps + 1)]
    return [(x + rx * math.cos(angle), y + ry * math.sin(angle)) for angle in angles]


# How digits are written, in a box from 0 to 1 both ways, downwards; some in two ways.
TEMPLATES: dict[int, tuple[list[list[Point]], ...]] = {
    0: ([oval(0.5, 0.5, 0.32, 0.5, -90, 270)], [oval(0.5, 0.5, 0.4, 0.48, -70, 285)]),
    1: ([[(0.5, 0.0), (0.5, 1.0)]], [[(0.55, 0.0), (0.45, 1.0)]]),
    2: (
        [[*oval(0.5, 0.28, 0.34, 0.28, 190, 390), (0.6, 0.65), (0.14, 1.0), (0.88, 1.0)]],
        [[*oval(0.48, 0.25, 0.32, 0.25, 200, 400), (0.5, 0.68), (0.1, 0.97), (0.9, 0.95)]],
    ),
    3: (
        [[*oval(0.45, 0.25, 0.32, 0.25, 200, 450), *oval(0.45, 0.74, 0.37, 0.26, -90, 160)]],
        [[*oval(0.42, 0.26, 0.36, 0.26, 215, 440), *oval(0.42, 0.75, 0.42, 0.25, -85, 150)]],
    ),
    4: (
        [[(0.25, 0.0), (0.15, 0.55), (0.88, 0.55)], [(0.7, 0.05), (0.68, 1.0)]],
        [[(0.2, 0.05), (0.2, 0.5), (0.8, 0.5)], [(0.78, 0.0), (0.75, 1.0)]],
    ),
    5: (
        [[(0.82, 0.0), (0.25, 0.0), (0.22, 0.43), *oval(0.45, 0.69, 0.37, 0.31, -115, 150)]],
        [[(0.25, 0.02), (0.22, 0.44), *oval(0.43, 0.7, 0.38, 0.3, -115, 145)], [(0.25, 0.02), (0.85, 0.0)]],
    ),
    6: (
        [[(0.68, 0.0), (0.42, 0.2), (0.24, 0.48), *oval(0.5, 0.72, 0.3, 0.28, 180, -175)]],
        [[(0.55, 0.0), (0.32, 0.28), (0.2, 0.6), *oval(0.47, 0.75, 0.28, 0.25, 190, -170)]],
    ),
    7: (
        [[(0.12, 0.04), (0.86, 0.02), (0.62, 0.45), (0.42, 1.0)]],
        [[(0.1, 0.0), (0.9, 0.0), (0.55, 0.5), (0.45, 1.0)]],
    ),
    8: (
        [[*oval(0.5, 0.25, 0.27, 0.25, -60, -270), *oval(0.5, 0.75, 0.32, 0.25, -90, 270),
          *oval(0.5, 0.25, 0.27, 0.25, 90, -60)]],
        [oval(0.5, 0.24, 0.26, 0.24, 90, -270), oval(0.5, 0.74, 0.33, 0.26, -90, 270)],
    ),
    9: (
        [[*oval(0.48, 0.28, 0.3, 0.28, 0, -360), (0.77, 0.5), (0.72, 1.0)]],
        [[*oval(0.47, 0.27, 0.31, 0.27, -10, -355), (0.79, 0.45), (0.76, 0.75), (0.6, 1.0)]],
    ),
}  # fmt: skip

# How a drawing differs: smallest and largest size (height of the box, in pixels), pen, slant (sideways per height).
MANNERS: dict[str, tuple[tuple[int, int], tuple[int, int], tuple[float, float]]] = {
    "plain": ((170, 210), (16, 26), (-0.05, 0.1)),
    "off-centre": ((110, 150), (12, 20), (-0.05, 0.1)),
    "small": ((55, 80), (10, 10), (-0.05, 0.1)),
    "thin": ((180, 230), (10, 12), (-0.05, 0.1)),
    "thick": ((190, 220), (34, 50), (-0.05, 0.1)),
    "slanted": ((150, 200), (14, 24), (0.15, 0.4)),
}


def draw(digit: int, manner: str, rng: np.random.Generator) -> Drawing:
    """Make a drawing of a digit; the generator gives everything in which two of them differ."""
    (least, most), (thin, thick), (straight, slanted) = MANNERS[manner]
    ways = TEMPLATES[digit]
    template = ways[int(rng.integers(len(ways)))]
    height, pen = float(rng.uniform(least, most)), int(rng.integers(thin, thick + 1))
    width = height * float(rng.uniform(0.62, 0.85))
    slant, turn = float(rng.uniform(straight, slanted)), float(rng.normal(0, 0.04))
    # A hand is not a ruler: slow waves, the same for points that lie close together.
    wave, phase = rng.normal(0, 0.018, (2, 2)), rng.uniform(0, 2 * np.pi, (2, 2))
    moved = []
    for stroke in template:
        line = np.asarray(stroke, dtype=np.float64)
        for axis in (0, 1):
            line[:, axis] += (wave[axis] * np.sin(2 * np.pi * line[:, ::-1] + phase[axis])).sum(axis=1)
        x, y = (line[:, 0] - 0.5) * width, (line[:, 1] - 0.5) * height
        x = x - slant * y
        moved.append(np.c_[x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)])
    every = np.concatenate(moved)
    low, high = every.min(axis=0), every.max(axis=0)
    margin = pen / 2 + 2
    room = np.maximum(SIDE - 2 * margin - (high - low), 0)
    # In the middle, more or less; or anywhere, the nearer to an edge the better.
    share = rng.choice([0.0, 1.0], 2) if manner == "off-centre" else np.clip(rng.normal(0.5, 0.2, 2), 0, 1)
    if manner == "off-centre":
        share = np.abs(share - rng.uniform(0, 0.15, 2))
    place = margin + share * room - low
    scale = np.minimum(1.0, (SIDE - 2 * margin) / np.maximum(high - low, 1))
    strokes = tuple(tuple((float(px), float(py)) for px, py in ((line - low) * scale + low + place)) for line in moved)
    return Drawing(digit, manner, strokes, pen)


def render(drawing: Drawing) -> Image.Image:
    """Return a drawing as the canvas gives it: 280 by 280 pixels, opaque, of mode ``RGBA``."""
    canvas = Image.new("L", (SIDE * FINE, SIDE * FINE))
    pencil, radius = ImageDraw.Draw(canvas), drawing.pen * FINE / 2
    for stroke in drawing.strokes:
        points = [(x * FINE, y * FINE) for x, y in stroke]
        pencil.line(points, fill=255, width=round(2 * radius))
        for x, y in points:
            pencil.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    small = canvas.resize((SIDE, SIDE), Image.Resampling.BOX)
    opaque = Image.new("L", (SIDE, SIDE), 255)
    return Image.merge("RGBA", (small, small, small, opaque))


def drawings(seed: int = 20, each: int = 3) -> list[Drawing]:
    """Return drawings of every digit in every manner, ``each`` times: 180 of them by default."""
    return [
        draw(digit, manner, np.random.default_rng([seed, digit, number, again]))
        for digit in TEMPLATES
        for number, manner in enumerate(MANNERS)
        for again in range(each)
    ]
