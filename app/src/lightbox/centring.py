"""Digits brought to where MNIST has them, so that a drawing reaches the network as its training images did.

The makers of MNIST scaled each digit to fit a box of 20 by 20 pixels, its shape kept, and laid its centre of mass in
the middle of 28 by 28 (LeCun, Cortes, Burges, "The MNIST database of handwritten digits").
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# The longer side of the ink, as a share of the frame.
BOX = 20 / 28
# What counts as ink, as a share of the brightest pixel: more than noise and the traces of JPEG, less than a thin line
# has left after it was made small.
INK = 0.2
# A picture whose brightest pixel, of 255, is darker than this shows nothing.
FAINT = 32


def is_blank(pixels: NDArray[np.uint8]) -> bool:
    """Return whether pixels, of any shape, show nothing."""
    return int(pixels.max(initial=0)) < FAINT


def centre(image: Image.Image, height: int, width: int) -> Image.Image:
    """Return a picture with its ink scaled to the box and its centre of mass in the middle; a blank one is all black.

    Args:
        image: mode ``L`` or ``RGB``, light on black.
        height: rows of the result.
        width: columns of the result.
    """
    frame = Image.new(image.mode, (width, height))
    levels = np.asarray(image.convert("L"))
    if is_blank(levels):
        return frame
    ink = levels > INK * int(levels.max())
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    side = max(box[2] - box[0], box[3] - box[1])
    scale = round(BOX * min(height, width)) / side
    if scale == 1:
        # What has the size already stays as it is, down to its faintest pixel.
        scaled = image
    else:
        size = (max(1, round((box[2] - box[0]) * scale)), max(1, round((box[3] - box[1]) * scale)))
        # Pillow averages where it makes smaller, as the makers' anti-aliasing did.
        scaled = image.crop(box).resize(size, Image.Resampling.BILINEAR)
        peak, levels = int(levels.max()), np.asarray(scaled.convert("L"))
        if not levels.any():
            return frame
        # A thin line fades when it is made small; it was as bright as a thick one.
        ratio = peak / int(levels.max())
        scaled = scaled.point([min(255, round(level * ratio)) for level in range(256)] * len(scaled.getbands()))
        levels = np.asarray(scaled.convert("L"))
        ink = levels > 0
    frame.paste(scaled, (_offset(levels, ink, 1, width), _offset(levels, ink, 0, height)))
    return frame


def _offset(levels: NDArray[np.uint8], ink: NDArray[np.bool_], axis: int, length: int) -> int:
    """Return by how much to move along an axis so that the mass is in the middle and no ink is cut off."""
    mass = levels.sum(axis=1 - axis, dtype=np.float64)
    middle = float(mass @ np.arange(mass.size) / mass.sum())
    inked = np.flatnonzero(ink.any(axis=1 - axis))
    # MNIST's centres of mass lie between 13.5 and 14.5 of the columns and rows 0 to 27.
    wanted = length // 2 - int(np.floor(middle + 0.5))
    return min(max(wanted, -int(inked[0])), length - 1 - int(inked[-1]))


def centre_pixels(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return pixels, shape (height, width, channels), with what they show centred."""
    height, width, channels = pixels.shape
    image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    return np.asarray(centre(image, height, width)).reshape(pixels.shape)
