"""The images that are let in: checked by their content, decoded to a plain picture, made small for pages."""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image, ImageOps

# Largest picture that is decoded, in pixels: more than the largest detectors give, 150 MB as RGB.
MAX_PIXELS = 50_000_000
# Longest side of the pictures in lists, in pixels.
THUMBNAIL_SIDE = 224
# Scans of a JPEG. Progressive ones have about ten; each takes time for the whole picture, however few bytes it has.
MOST_SCANS = 32
PNG_START, JPEG_START = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"

# Pillow warns of odd metadata and of pictures over a limit of its own; ours is checked here.
warnings.filterwarnings("ignore", module="PIL")


class ImageError(Exception):
    """The file is not an image that can be classified; the text says so to the person who sent it.

    ``kind`` is one of ``empty``, ``type`` (none of the formats), ``unsupported`` (a kind of DICOM), ``unreadable``,
    ``pixels`` and ``blank`` (nothing is on it).
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def enough_for(height: int, width: int) -> int:
    """Return from how many pixels of its shorter side on a picture may be decoded smaller for a model of some input."""
    return max(2 * height, 2 * width, 512)


def open_image(content: bytes, max_pixels: int = MAX_PIXELS, enough: int | None = None) -> Image.Image:
    """Decode a PNG, JPEG or DICOM file, whatever its name, into a picture of mode ``L`` or ``RGB``, turned upright.

    16-bit grey is scaled to 8 bits over its full range; transparent parts become black, as the air around a body is in
    an X-ray. What DICOM files become is told in :func:`lightbox.dicom.open_dicom`.

    Args:
        content: the file.
        max_pixels: most pixels; more are refused before any is decoded.
        enough: pixels of the shorter side that suffice, see :func:`enough_for`: a larger JPEG is decoded at a half, a
            quarter or an eighth of its size, never below this. None decodes everything in full.

    Raises:
        ImageError: the file is empty, of another type, damaged, or has too many pixels.
    """
    if not content:
        raise ImageError("empty", "The file is empty. Choose the image again.")
    try:
        if content.startswith(PNG_START):
            return _plain(decode(content, "PNG", max_pixels))
        if content.startswith(JPEG_START):
            return _plain(decode(content, "JPEG", max_pixels, enough))
        from lightbox.dicom import is_dicom, open_dicom

        if is_dicom(content):
            return open_dicom(content, max_pixels, enough)
    except ImageError:
        raise
    # Decoders fail in many ways on hostile input; whatever it was, the person's file is unreadable.
    except Exception as error:
        raise ImageError(
            "unreadable",
            "The file is not a readable PNG or JPEG image, nor a readable DICOM file: it is damaged or cut off. "
            "Export or copy it again.",
        ) from error
    raise ImageError(
        "type", "The file is not a readable PNG or JPEG image, and it is no DICOM file. Choose a file of these types."
    )


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Raise ImageError when a picture has more than ``max_pixels`` pixels."""
    if width * height > max_pixels:
        raise ImageError(
            "pixels",
            f"The image has {width} by {height} pixels; {max_pixels / 1e6:.0f} million are the most that are accepted. "
            "Export it smaller.",
        )


def decode(content: bytes, form: str, max_pixels: int, enough: int | None = None) -> Image.Image:
    """Decode a file of one format, ``PNG`` or ``JPEG``, as it is.

    Raises:
        ImageError: it has more than ``max_pixels`` pixels.
        Exception: whatever the decoder raises on a damaged file.
    """
    try:
        if form == "PNG":
            # Decoding looks at no checksums; this does, and leaves the picture unusable.
            with Image.open(io.BytesIO(content), formats=(form,)) as opened:
                check_size(*opened.size, max_pixels)
                opened.verify()
        elif content.count(b"\xff\xda") > MOST_SCANS:
            raise ImageError("unreadable", "The JPEG image is stored in too many steps. Export it again.")
        with Image.open(io.BytesIO(content), formats=(form,)) as opened:
            check_size(*opened.size, max_pixels)
            if enough:
                opened.draft(None, (enough, enough))
            opened.load()
            return opened
    except Image.DecompressionBombError:
        raise ImageError("pixels", "The image has too many pixels. Export it smaller.") from None


def _plain(image: Image.Image) -> Image.Image:
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except Exception:
        # A broken EXIF block says nothing about which way is up; the picture itself is whole.
        image.info.pop("exif", None)
    if image.mode.startswith("I"):
        grey = np.asarray(image)
        # In whole numbers: 257 is 65535 / 255, and a copy in floats would take four times the memory.
        grey = grey // 257 if int(grey.max(initial=0)) > 255 else grey
        return Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8))
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        return _flat(image)
    if image.mode in ("L", "RGB"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def _flat(image: Image.Image) -> Image.Image:
    """Return a picture laid on black."""
    if image.mode == "LA":
        flat = Image.new("L", image.size)
        flat.paste(image.getchannel("L"), mask=image.getchannel("A"))
        return flat
    rgba = image if image.mode == "RGBA" else image.convert("RGBA")
    flat = Image.new("RGB", rgba.size)
    flat.paste(rgba, mask=rgba)
    return flat.convert("L") if image.mode in ("1", "L", "La") else flat


def shrink(image: Image.Image, side: int) -> Image.Image:
    """Return the picture at most ``side`` pixels wide and high; it is not copied where it is small enough."""
    if max(image.size) <= side:
        return image
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    # Averaging whole pixels first, and this filter, take a fifth of the time of Lanczos' in one step.
    return image.resize(size, Image.Resampling.HAMMING, reducing_gap=1.0)


def thumbnail(image: Image.Image, side: int = THUMBNAIL_SIDE, quality: int = 82) -> bytes:
    """Return a JPEG of the picture, at most ``side`` pixels wide and high."""
    stream = io.BytesIO()
    shrink(image, side).save(stream, "JPEG", quality=quality)
    return stream.getvalue()
