"""Numbers as people read them, with their unit."""

from __future__ import annotations

from datetime import datetime, timedelta

from lightbox.status.queries import Unit

STEPS = ((86400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))


def plain(value: float) -> str:
    """Return a number with three digits that count, or all digits before the point."""
    if value == 0:
        return "0"
    size = abs(value)
    if size < 0.001:
        return f"{value:.0e}".replace("e-0", "e-")
    if size < 1:
        return f"{value:.3f}".rstrip("0").rstrip(".")
    if size < 100:
        return f"{value:.{2 if size < 10 else 1}f}".rstrip("0").rstrip(".")
    return f"{value:,.0f}"


def percent(value: float) -> str:
    """Return a share (0 to 1) in percent; what is not all and not nothing is never shown as 100 or 0."""
    shown = 100 * value
    if 0 < shown < 0.1:
        return "under 0.1 %"
    if 99.95 <= shown < 100:
        return "over 99.9 %"
    return f"{shown:.1f} %" if 0 < shown < 10 or 99 < shown < 100 else f"{shown:.0f} %"


def seconds(value: float) -> str:
    """Return a time to wait: milliseconds below one second."""
    return f"{plain(round(value * 1000, 1 if value < 0.01 else 0))} ms" if value < 1 else f"{plain(value)} s"


def size(value: float) -> str:
    """Return bytes in units of 1000, as disks are sold."""
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{plain(value)} {unit}"
        value /= 1000
    return f"{plain(value)} TB"


def span(value: float) -> str:
    """Return a stretch of time in its largest unit: ``3 hours``."""
    for step, word in STEPS:
        if value >= step or step == 1:
            count = max(0, int(value // step))
            return f"{count} {word}{'' if count == 1 else 's'}"
    return ""


def shown(value: float, unit: Unit) -> str:
    """Return a value with its unit."""
    if unit == "share":
        return percent(value)
    if unit == "seconds":
        return seconds(value)
    if unit == "rate":
        return f"{plain(value)} per second"
    if unit == "per minute":
        return f"{plain(value)} per minute"
    return plain(value)


def ago(moment: datetime, now: datetime) -> str:
    """Return how long ago a moment was."""
    passed = now - moment
    return f"{span(passed.total_seconds())} ago" if passed >= timedelta(seconds=1) else "now"
