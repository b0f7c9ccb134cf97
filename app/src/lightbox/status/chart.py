"""The geometry of values over time, in the units of an SVG view box; colours are the style sheet's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone

from lightbox.status.figures import plain, shown
from lightbox.status.prometheus import Series
from lightbox.status.queries import Panel, Range, Unit
from lightbox.ui.charts import Tick, line

# The view box, and the field of the values in it.
WIDTH, HEIGHT = 360.0, 172.0
LEFT, RIGHT, TOP, BOTTOM = 44.0, 10.0, 10.0, 24.0
# Lines that can be told apart, and rows of the table behind a chart.
MOST_LINES, MOST_ROWS = 8, 13
# What the axis is called, and what its numbers are multiplied by.
AXES: dict[Unit, tuple[str, float]] = {
    "rate": ("per second", 1), "per minute": ("per minute", 1), "share": ("%", 100), "seconds": ("s", 1),
    "number": ("", 1),
}  # fmt: skip


@dataclass(frozen=True)
class Drawn:
    """A line: its name, its parts between gaps, points that stand alone, and its last value."""

    name: str
    paths: Sequence[str]
    dots: Sequence[tuple[float, float]]
    last: str


@dataclass(frozen=True)
class Chart:
    """A chart and the table behind it; ``words`` say what there is to see, ``more`` what is left out."""

    unit: str
    lines: Sequence[Drawn]
    across: Sequence[Tick]
    up: Sequence[Tick]
    words: str
    more: str
    rows: Sequence[tuple[str, Sequence[str]]]


def ceiling(most: float) -> tuple[float, float]:
    """Return the top of an axis that holds ``most``, and the distance of its grid lines: one, two or five of a power
    of ten, two to five of them.
    """
    if not 1e-9 < most < 1e300:
        return 1.0, 0.25
    raw = most / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next((factor * power for factor in (1, 2, 5) if factor * power >= raw), 10 * power)
    return step * math.ceil(most / step - 1e-9), step


def clock(time: float, day: bool = False) -> str:
    """Return a time in UTC."""
    return datetime.fromtimestamp(time, timezone.utc).strftime("%d %b %H:%M" if day else "%H:%M")


def _parts(points: Sequence[tuple[float, float]], step: float) -> list[list[tuple[float, float]]]:
    """Return what lies between the gaps."""
    parts: list[list[tuple[float, float]]] = []
    for point in points:
        if not parts or point[0] - parts[-1][-1][0] > 1.5 * step:
            parts.append([])
        parts[-1].append(point)
    return parts


def draw(panel: Panel, found: Sequence[tuple[str, Series]], drawn: Range, end: float) -> Chart | None:
    """Return the chart of named series over a range that ends at ``end``; None where there is nothing to see."""
    found = [(name, series) for name, series in found if series.points]
    if not found:
        return None
    count = len(found)
    if count > MOST_LINES:
        found = sorted(found, key=lambda one: one[1].points[-1][1], reverse=panel.worst == "highest")[:MOST_LINES]
    start = end - drawn.seconds
    name, factor = AXES[panel.unit]
    most = max(value for _, series in found for _, value in series.points)
    if panel.unit == "seconds" and most < 1:
        name, factor = "ms", 1000
    top, step = (panel.top * factor, panel.top * factor / 4) if panel.top else ceiling(most * factor)
    wide, high = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def place(time: float, value: float) -> tuple[float, float]:
        share = min(max(value * factor / top, 0.0), 1.0)
        return round(LEFT + (time - start) / drawn.seconds * wide, 1), round(TOP + (1 - share) * high, 1)

    lines = []
    for title, series in found:
        parts = [[place(*point) for point in part] for part in _parts(series.points, drawn.step)]
        last_time, last = series.points[-1]
        old = end - last_time > 1.5 * drawn.step
        lines.append(
            Drawn(
                title,
                [line(part) for part in parts if len(part) > 1],
                [part[0] for part in parts if len(part) == 1],
                shown(last, panel.unit) + (f" at {clock(last_time)}" if old else ""),
            )
        )
    first = math.ceil(start / drawn.tick) * drawn.tick
    across = [Tick(place(time, 0)[0], HEIGHT - BOTTOM, clock(time)) for time in range(first, int(end) + 1, drawn.tick)]
    ups = [Tick(LEFT, place(start, n * step / factor)[1], plain(n * step)) for n in range(round(top / step) + 1)]
    words = " ".join(
        f"{title}: {one.last}; between {shown(min(v for _, v in series.points), panel.unit)}"
        f" and {shown(max(v for _, v in series.points), panel.unit)}."
        for (title, series), one in zip(found, lines, strict=True)
    )
    more = "" if count <= MOST_LINES else f"The {MOST_LINES} {panel.worst} of {count}."
    return Chart(name, lines, across, ups, words, more, _rows(panel, found, drawn))


def _rows(panel: Panel, found: Sequence[tuple[str, Series]], drawn: Range) -> list[tuple[str, list[str]]]:
    """Return the table: some times, the last one first, and what each series had then."""
    times = sorted({time for _, series in found for time, _ in series.points}, reverse=True)
    if len(times) > MOST_ROWS:
        times = [times[round(n * (len(times) - 1) / (MOST_ROWS - 1))] for n in range(MOST_ROWS)]
    values = [dict(series.points) for _, series in found]
    return [
        (clock(time, drawn.seconds > 43200), [shown(one[time], panel.unit) if time in one else "-" for one in values])
        for time in times
    ]
