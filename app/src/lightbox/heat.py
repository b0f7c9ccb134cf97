"""Heat maps: how a coarse grid of where an image speaks for a label is kept in a case and drawn over the image."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from lightbox.bundle import Floats

# Longer side of the drawn map, in pixels.
SIDE = 224
# Largest grid that one byte each for rows and columns can name.
MOST = 255
# From yellow to red, more and more opaque; below a tenth nothing is drawn, so that the image stays as it is.
FAINT, STRONGEST = 0.1, 200


def _colours() -> np.ndarray:
    """Return the colour of each of 256 levels, shape (256, 4), RGBA."""
    level = np.arange(256) / 255
    shown = np.clip((level - FAINT) / (1 - FAINT), 0, 1)
    colours = np.empty((256, 4), np.uint8)
    colours[:, 0] = 255
    colours[:, 1] = np.round(220 * (1 - shown))
    colours[:, 2] = 0
    colours[:, 3] = np.round(STRONGEST * shown)
    return colours


COLOURS = _colours()


def pack(values: Floats) -> bytes:
    """Return a grid, shape (rows, columns), 0 to 1, as one byte of rows, one of columns, and one byte per cell.

    Raises:
        ValueError: the grid has no or more than 255 rows or columns.
    """
    rows, columns = values.shape
    if not (1 <= rows <= MOST and 1 <= columns <= MOST):
        raise ValueError(f"a heat map of {rows} by {columns} cells cannot be kept")
    cells = np.round(np.clip(values, 0, 1) * 255).astype(np.uint8)
    return bytes((rows, columns)) + cells.tobytes()


def draw(packed: bytes) -> bytes:
    """Return a PNG to lay over the image: clear where nothing speaks for the label, yellow to red where much does.

    Raises:
        ValueError: ``packed`` is not what :func:`pack` returns.
    """
    if len(packed) < 3 or len(packed) != 2 + packed[0] * packed[1]:
        raise ValueError("not a heat map")
    rows, columns = packed[0], packed[1]
    grid = Image.frombytes("L", (columns, rows), packed[2:])
    scale = SIDE / max(rows, columns)
    size = (max(1, round(columns * scale)), max(1, round(rows * scale)))
    levels = np.asarray(grid.resize(size, Image.Resampling.BICUBIC))
    stream = io.BytesIO()
    Image.fromarray(COLOURS[levels], "RGBA").save(stream, "PNG", compress_level=1)
    return stream.getvalue()
