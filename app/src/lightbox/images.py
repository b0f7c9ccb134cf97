"""The images that are let in: checked by their content, decoded to a plain picture, made small for pages."""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image, ImageOps

# Largest picture that is decoded, in pixels: more than the largest detectors give, 150 MB as RGB.
MAX_PIXELS = 50_000_000


class ImageError(Exception):
    """The file is not an image that can be classified; the text says so to the person who sent it.

    ``kind`` is one of ``empty``, ``unreadable``, ``pixels``.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def open_image(content: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode a PNG or JPEG, whatever its name, into a picture of mode ``L`` or ``RGB``, turned as its EXIF says.

    16-bit grey is scaled to 8 bits over its full range; transparent parts become black, as the air around a body is in
    an X-ray.

    Raises:
        ImageError: the file is empty, not a whole PNG or JPEG, or has more than ``max_pixels`` pixels.
    """
    if not content:
        raise ImageError("empty", "The file is empty.")
    unreadable = ImageError("unreadable", "The file is not a readable PNG or JPEG image.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as probe:
                if probe.width * probe.height > max_pixels:
                    raise ImageError(
                        "pixels",
                        f"The image has {probe.width} by {probe.height} pixels; "
                        f"{max_pixels / 1e6:.0f} million are the most that are accepted.",
                    )
                probe.verify()
            # verify() reads the file to its end and leaves it unusable, so it is opened again.
            with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as opened:
                opened.load()
                return _plain(opened)
    except ImageError:
        raise
    except Image.DecompressionBombError:
        raise ImageError("pixels", "The image has too many pixels.") from None
    # Decoders fail in many ways on hostile input; whatever it was, the person's file is unreadable.
    except Exception as error:
        raise unreadable from error


def _plain(image: Image.Image) -> Image.Image:
    try:
        image = ImageOps.exif_transpose(image)
    except Exception:
        # A broken EXIF block says nothing about which way is up; the picture itself is whole.
        image.info.pop("exif", None)
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.float32)
        top = 65535.0 if float(grey.max(initial=0.0)) > 255 else 255.0
        return Image.fromarray(np.clip(grey * (255.0 / top), 0, 255).astype(np.uint8))
    if image.mode in ("1", "L"):
        return image.convert("L") if "transparency" not in image.info else _flat(image)
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        return _flat(image)
    return image.convert("RGB")


def _flat(image: Image.Image) -> Image.Image:
    grey = image.mode in ("1", "L", "LA", "La")
    rgba = image.convert("RGBA")
    flat = Image.new("RGBA", rgba.size, (0, 0, 0, 255))
    flat.alpha_composite(rgba)
    return flat.convert("L" if grey else "RGB")


def shrink(image: Image.Image, side: int) -> Image.Image:
    """Return the picture at most ``side`` pixels wide and high; it is not copied where it is small enough."""
    if max(image.size) <= side:
        return image
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)


def thumbnail(image: Image.Image, side: int = 224, quality: int = 82) -> bytes:
    """Return a JPEG of the picture, at most ``side`` pixels wide and high."""
    stream = io.BytesIO()
    shrink(image, side).save(stream, "JPEG", quality=quality)
    return stream.getvalue()
