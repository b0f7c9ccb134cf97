"""The geometry of the model page's pictures, in the units of their SVG view boxes; colours are the style sheet's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightbox.ui.answers import number

# The square in which curves are drawn: left and top edge and side.
LEFT, TOP, SIDE = 46.0, 12.0, 240.0
# More points than this cannot be told apart in a picture of that side.
MOST_POINTS = 400
Point = tuple[float, float]


@dataclass(frozen=True)
class Tick:
    """A grid line: its place in units of the view box, and what it stands for."""

    x: float
    y: float
    text: str


@dataclass(frozen=True)
class Curve:
    """A curve over the unit square, or a part of it that begins at ``start`` on both axes."""

    line: str
    area: str
    dots: Sequence[tuple[float, float, float]]
    ticks: Sequence[Tick]
    words: str


@dataclass(frozen=True)
class Cell:
    """A cell of a confusion matrix; ``depth`` from 0 to 1 is its share of the images of its row."""

    x: float
    y: float
    count: int
    share: str
    depth: float
    right: bool


@dataclass(frozen=True)
class Matrix:
    """A confusion matrix: a row per true label, a column per label given."""

    labels: Sequence[tuple[str, float]]
    cells: Sequence[Cell]
    side: float
    words: str


def place(x: float, y: float, start: float = 0.0) -> Point:
    """Return where a point between ``start`` and 1 lies in the view box."""
    span = 1 - start
    return round(LEFT + (x - start) / span * SIDE, 2), round(TOP + (1 - (y - start) / span) * SIDE, 2)


def _ticks(start: float) -> list[Tick]:
    steps = 5 if start else 4
    values = [start + (1 - start) * step / steps for step in range(steps + 1)]
    return [Tick(*place(value, value, start), f"{value:.2f}".rstrip("0").rstrip(".")) for value in values]


def line(points: Sequence[Point]) -> str:
    """Return the path through points."""
    return "M" + "L".join(f"{x:g},{y:g}" for x, y in points)


def _unit(values: Any) -> list[float] | None:
    if not isinstance(values, list) or not values:
        return None
    found = [number(value) for value in values]
    if any(value is None or not 0 <= value <= 1 for value in found):
        return None
    return [value for value in found if value is not None]


def roc(curve: Any, area: Any) -> Curve | None:
    """Return the receiver operating characteristic of ``{"fpr": […], "tpr": […]}``, or None where there is none."""
    if not isinstance(curve, Mapping):
        return None
    fpr, tpr = _unit(curve.get("fpr")), _unit(curve.get("tpr"))
    if fpr is None or tpr is None or len(fpr) != len(tpr):
        return None
    points = sorted({(0.0, 0.0), (1.0, 1.0), *zip(fpr, tpr, strict=True)})
    if len(points) > MOST_POINTS:
        points = [points[round(n * (len(points) - 1) / (MOST_POINTS - 1))] for n in range(MOST_POINTS)]
    drawn = [place(x, y) for x, y in points]
    auroc = number(area)
    words = "Receiver operating characteristic: sensitivity over the share of false alarms."
    if auroc is not None:
        words += f" The area under the curve is {auroc:.3f}."
    for rate in (0.05, 0.1):
        best = max((y for x, y in points if x <= rate), default=0.0)
        words += f" At {rate:.0%} false alarms the sensitivity is {best:.0%}."
    return Curve(line(drawn), line([*drawn, place(1, 0), place(0, 0)]) + "Z", (), _ticks(0), words)


def reliability(bins: Any) -> Curve | None:
    """Return the reliability diagram of ``[{"confidence", "accuracy", "images"}, …]``, or None where there is none."""
    if not isinstance(bins, list):
        return None
    rows = []
    for one in bins:
        if not isinstance(one, Mapping):
            return None
        pair, images = _unit([one.get("confidence"), one.get("accuracy")]), number(one.get("images"))
        if pair is None or images is None or images < 0:
            return None
        if images:
            rows.append((pair[0], pair[1], images))
    if not rows:
        return None
    rows.sort()
    # The confidence of one label of two is never below one half; neither should the accuracy be.
    start = 0.5 if all(x >= 0.5 and y >= 0.5 for x, y, _ in rows) else 0.0
    most = max(images for _, _, images in rows)
    # The area of a dot is in proportion to its images.
    dots = [(*place(x, y, start), round(3.5 + 7.5 * (images / most) ** 0.5, 2)) for x, y, images in rows]
    words = "Reliability: how often verdicts were right, over how confident they were. " + " ".join(
        f"At {x:.0%} confidence {y:.0%} of {images:.0f} images." for x, y, images in rows
    )
    return Curve(line([place(x, y, start) for x, y, _ in rows]), "", dots, _ticks(start), words)


def confusion(matrix: Any, labels: Sequence[str]) -> Matrix | None:
    """Return the confusion matrix with these labels, or None where there is none of that size."""
    size = len(labels)
    if not size or not isinstance(matrix, list) or len(matrix) != size:
        return None
    rows: list[list[int]] = []
    for row in matrix:
        if not isinstance(row, list) or len(row) != size:
            return None
        if not all(isinstance(count, int) and not isinstance(count, bool) and count >= 0 for count in row):
            return None
        rows.append(row)
    side = SIDE / size
    cells = []
    for i, row in enumerate(rows):
        for j, count in enumerate(row):
            share = count / sum(row) if sum(row) else 0.0
            cells.append(Cell(LEFT + j * side, TOP + i * side, count, f"{share:.0%}", round(share, 3), i == j))
    words = "Confusion matrix. " + " ".join(
        f"Of {sum(row)} images of {labels[i]}, "
        + ", ".join(f"{count} were called {labels[j]}" for j, count in enumerate(row) if count or i == j)
        + "."
        for i, row in enumerate(rows)
    )
    middles = [(label, round((i + 0.5) * side, 2)) for i, label in enumerate(labels)]
    return Matrix(middles, cells, side, words)
