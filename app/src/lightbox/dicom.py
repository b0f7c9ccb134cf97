"""DICOM files: one grey or colour picture as a reader would see it, and nothing else of what is in the file.

Only the elements that say how pixels are stored and shown are read (``KEYWORDS``); names, dates and numbers of people
are skipped over, and what pydicom says of a file goes nowhere. References are to the DICOM standard, parts 3 (PS3.3)
and 5 (PS3.5). Pixels become grey through a table of all stored values, so that no picture of floats is ever made.
"""

from __future__ import annotations

import hashlib
import io
import logging
import sys
import warnings
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from PIL import Image
from pydicom import config, encaps, filereader, uid
from pydicom.datadict import tag_for_keyword
from pydicom.pixels import apply_color_lut, apply_modality_lut
from pydicom.pixels.processing import apply_voi

from lightbox.images import ImageError, check_size, decode

config.settings.reading_validation_mode = config.IGNORE
# No text is read here, and working out how a hostile file says that its text is written takes minutes.
vars(filereader)["convert_encodings"] = lambda _: ["iso8859"]
logging.getLogger("pydicom").addHandler(logging.NullHandler())
logging.getLogger("pydicom").propagate = False
warnings.filterwarnings("ignore", module="pydicom")

KEYWORDS = (
    "SOPClassUID", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "Rows",
    "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue", "WindowCenter",
    "WindowWidth", "VOILUTFunction", "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "VOILUTSequence",
    "RedPaletteColorLookupTableDescriptor", "GreenPaletteColorLookupTableDescriptor",
    "BluePaletteColorLookupTableDescriptor", "RedPaletteColorLookupTableData", "GreenPaletteColorLookupTableData",
    "BluePaletteColorLookupTableData", "PixelData",
)  # fmt: skip
UNCOMPRESSED = (uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian)
JPEG = (uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit)
TAGS: list[int] = [tag for tag in map(tag_for_keyword, KEYWORDS) if tag is not None]
PIXELS = 0x7FE00010
CHARACTER_SET = 0x00080005
UNDEFINED = 0xFFFFFFFF
# Reads that the header may take: several times what the largest real headers need, so that one made of millions of
# empty elements does not keep a processor busy.
MOST_READS = 50_000
# Bytes of the header that may be read, without elements that are passed over: tables, and what lies in sequences, whose
# elements pydicom reads, one and all, and takes apart.
MOST_BYTES = 2_000_000
# Bytes of tables, which have 128 KiB each at most, and of any other element that is read.
LARGEST_TABLE, LARGEST_VALUE = 1_000_000, 4096
TABLES = {
    tag: LARGEST_TABLE for tag, name in zip(TAGS, KEYWORDS, strict=True) if name.endswith(("TableData", "Sequence"))
}
BOUNDS = dict.fromkeys((*TAGS, CHARACTER_SET), LARGEST_VALUE) | TABLES | {PIXELS: sys.maxsize}
# Without a window the picture spans these percentiles of its values, so that a few odd pixels do not darken the rest.
PERCENTILES = (0.5, 99.5)
# Values that the percentiles are taken from.
SAMPLES = 1_000_000

Bytes = NDArray[np.uint8]


class _Header(io.BytesIO):
    """A file for pydicom, which trusts lengths and counts: of the header so many reads are made, of so many bytes.

    Until the first element after the file's meta information is seen, no single read may be large either. Bytes of the
    pixels do not count.
    """

    left = MOST_READS
    room = MOST_BYTES
    largest = LARGEST_VALUE
    pixels = False

    def read(self, size: int | None = -1, /) -> bytes:
        """Return the next bytes."""
        asked = self.getbuffer().nbytes if size is None or size < 0 else size
        self.left -= 1
        if not self.pixels:
            self.room -= asked
        if self.left < 0 or self.room < 0 or asked > self.largest:
            raise ImageError("unreadable", "The DICOM file's header is too large. Export the image again, alone.")
        return super().read(size)

    def examine(self, tag: int, _: str | None, length: int) -> bool:
        """Refuse an element whose value is too large for what it is; never stop reading."""
        self.largest = sys.maxsize
        self.pixels = tag == PIXELS
        if length > BOUNDS.get(tag, sys.maxsize) and not (tag in TABLES and length == UNDEFINED):
            raise ImageError("unreadable", "The DICOM file's header is too large. Export the image again, alone.")
        return False


def is_dicom(content: bytes) -> bool:
    """Return whether bytes look like a DICOM file: with its mark, or without the preamble that the mark ends."""
    if content[128:132] == b"DICM":
        return True
    # Group 0002 or 0008 comes first; then an explicit VR or a length below 256 bytes.
    start = content[:8]
    if len(start) < 8 or start[:2] not in (b"\x02\x00", b"\x08\x00") or start[3] != 0:
        return False
    return (start[4:6].isalpha() and start[4:6].isupper()) or start[5:8] == b"\0\0\0"


def patient(content: bytes) -> bytes:
    """Return a digest of the patient's number in a DICOM file, to tell whether two are of the same; empty without one.

    It is for comparing within one set of files and is not to be kept: whoever knows the numbers could find it again.
    """
    try:
        found = pydicom.dcmread(io.BytesIO(content), stop_before_pixels=True, force=True, specific_tags=["PatientID"])
        number = str(found.get("PatientID") or "").strip()
    # Readers fail in many ways on damaged files, which are left out when they are decoded.
    except Exception:
        return b""
    return hashlib.sha256(number.encode()).digest() if number else b""


def unsupported(what: str) -> ImageError:
    """Return the refusal of a DICOM file of a kind that is not read."""
    return ImageError(
        "unsupported",
        f"The DICOM file {what}, which is not supported. Export the image uncompressed, as PNG or as JPEG.",
    )


def open_dicom(content: bytes, max_pixels: int, enough: int | None = None) -> Image.Image:
    """Return the picture in a DICOM file, of mode ``L`` or ``RGB``; of several frames the middle one.

    Grey values go through the modality transformation, then the first VOI table or window, or else the percentiles 0.5
    to 99.5; MONOCHROME1 is inverted, so that air is dark.

    Args:
        content: the file.
        max_pixels: most pixels of a frame; more are refused before any is decoded.
        enough: as for :func:`lightbox.images.open_image`.

    Raises:
        ImageError: the file is damaged, has no image, or one of a kind that is not supported.
    """
    # Inflating has no bound in pydicom.
    if uid.DeflatedExplicitVRLittleEndian.encode() in content:
        raise unsupported("is compressed as a whole (Deflated)")
    header = _Header(content)
    data = filereader.read_partial(header, header.examine, force=True, specific_tags=list(TAGS))
    if "PixelData" not in data or not data.get("Rows") or not data.get("Columns"):
        raise ImageError("unsupported", "The DICOM file holds no image. Choose the file of an image of the study.")
    rows, columns, samples = int(data.Rows), int(data.Columns), int(data.get("SamplesPerPixel") or 1)
    check_size(columns, rows, max_pixels)
    colours = str(data.get("PhotometricInterpretation") or "MONOCHROME2").strip()
    syntax = data.file_meta.get("TransferSyntaxUID") if hasattr(data, "file_meta") else None
    if syntax in JPEG:
        picture = decode(_frame(data), "JPEG", max_pixels, enough)
        if picture.mode != "L" or samples != 1:
            return picture.convert("RGB")
        return Image.fromarray(_grey_table(data, np.asarray(picture), 8)[np.asarray(picture)])
    if syntax is None or syntax in UNCOMPRESSED:
        pixels = _stored(data, rows, columns, samples)
    elif syntax == uid.RLELossless:
        pixels = _run_length(data, rows, columns, samples)
    else:
        known = uid.UID_dictionary.get(str(syntax))
        raise unsupported(f"is compressed as {known[0]}" if known else "is compressed in a way of its maker's own")
    if samples == 1:
        bits, values = _values(data, pixels)
        if colours == "PALETTE COLOR":
            return Image.fromarray(_colour_table(data, bits)[values])
        return Image.fromarray(_grey_table(data, values, bits)[values])
    if pixels.dtype.itemsize != 1 or colours not in ("RGB", "YBR_FULL"):
        raise unsupported(f"stores colours as {pixels.dtype.itemsize * 8}-bit {colours}")
    picture = Image.fromarray(pixels, "RGB" if colours == "RGB" else "YCbCr")
    return picture.convert("RGB") if colours != "RGB" else picture


def _frames(data: Any) -> tuple[int, int]:
    """Return how many frames there are, and which is the middle one."""
    count = max(1, int(data.get("NumberOfFrames") or 1))
    return count, count // 2


def _frame(data: Any) -> bytes:
    """Return the compressed middle frame."""
    count, middle = _frames(data)
    frames = _Header(data.PixelData)
    frames.examine(PIXELS, None, UNDEFINED)
    return encaps.get_frame(frames, middle, number_of_frames=count)


def _depth(data: Any) -> np.dtype[Any]:
    """Return the type of one stored sample, little-endian."""
    allocated = int(data.BitsAllocated)
    if allocated not in (8, 16):
        raise unsupported(f"has {allocated} bits per pixel")
    return np.dtype("u1" if allocated == 8 else "<u2")


def _stored(data: Any, rows: int, columns: int, samples: int) -> NDArray[Any]:
    """Return the middle frame of uncompressed pixels, shape (rows, columns) or (rows, columns, samples)."""
    if samples not in (1, 3):
        raise unsupported(f"has {samples} samples per pixel")
    depth = _depth(data)
    if not data.original_encoding[1]:
        depth = depth.newbyteorder(">")
    _, middle = _frames(data)
    count = rows * columns * samples
    try:
        flat = np.frombuffer(data.PixelData, depth, count, middle * count * depth.itemsize)
    except ValueError:
        raise ImageError("unreadable", "The DICOM file is cut off. Export or copy it again.") from None
    if samples == 1:
        return flat.reshape(rows, columns)
    if int(data.get("PlanarConfiguration") or 0):
        return np.ascontiguousarray(flat.reshape(samples, rows, columns).transpose(1, 2, 0))
    return flat.reshape(rows, columns, samples)


def _run_length(data: Any, rows: int, columns: int, samples: int) -> NDArray[Any]:
    """Return the middle frame of RLE pixels (PS3.5, annex G), as :func:`_stored`.

    Each byte of each sample is a plane of its own, the most significant first.
    """
    depth, frame = _depth(data), _frame(data)
    planes = samples * depth.itemsize
    header = np.frombuffer(frame, "<u4", 16)
    if samples not in (1, 3) or int(header[0]) != planes:
        raise ImageError("unreadable", "The DICOM file's compressed image is damaged. Export it again.")
    bounds = [int(offset) for offset in header[1 : 1 + planes]] + [len(frame)]
    pixels = np.empty((samples, rows * columns, depth.itemsize), np.uint8)
    for number in range(planes):
        sample, byte = divmod(number, depth.itemsize)
        plane = _unpacked(frame[bounds[number] : bounds[number + 1]], rows * columns)
        pixels[sample, :, depth.itemsize - 1 - byte] = plane
    values = pixels.view(depth).reshape(samples, rows, columns)
    return values[0] if samples == 1 else np.ascontiguousarray(values.transpose(1, 2, 0))


def _unpacked(packed: bytes, length: int) -> Bytes:
    """Return ``length`` bytes out of packed ones; what would come after them is not unpacked."""
    plane = bytearray()
    position, end = 0, len(packed)
    while len(plane) < length and position < end:
        control = packed[position]
        if control < 128:
            plane += packed[position + 1 : position + 2 + control]
            position += 2 + control
        else:
            if control > 128:
                plane += packed[position + 1 : position + 2] * (257 - control)
            position += 2 if control > 128 else 1
    if len(plane) < length:
        raise ImageError("unreadable", "The DICOM file's compressed image is cut off. Export or copy it again.")
    return np.frombuffer(bytes(plane[:length]), np.uint8)


def _values(data: Any, pixels: NDArray[Any]) -> tuple[int, NDArray[Any]]:
    """Return how many bits count, and the stored values without the others (old files keep overlays there)."""
    allocated = pixels.dtype.itemsize * 8
    bits = int(data.get("BitsStored") or allocated)
    high = int(data["HighBit"].value) if data.get("HighBit") is not None else bits - 1
    if not 1 <= bits <= allocated or not bits - 1 <= high < allocated:
        raise ImageError("unreadable", "The DICOM file contradicts itself about its pixels. Export it again.")
    if bits == allocated:
        return bits, pixels
    return bits, (pixels >> (high + 1 - bits)) & ((1 << bits) - 1)


def _first(value: Any) -> float | None:
    """Return the first of possibly several numbers, or None when there is none."""
    try:
        number = float(value[0] if isinstance(value, list | tuple | pydicom.multival.MultiValue) else value)
    except (TypeError, ValueError, IndexError):
        return None
    return number if np.isfinite(number) else None


def _grey_table(data: Any, values: NDArray[Any], bits: int) -> Bytes:
    """Return the grey shown for each stored value, shape (2 ** bits,)."""
    domain = np.arange(1 << bits, dtype=np.int64)
    if int(data.get("PixelRepresentation") or 0):
        domain[1 << (bits - 1) :] -= 1 << bits
    shown = np.asarray(apply_modality_lut(domain, data))
    centre, width = _first(data.get("WindowCenter")), _first(data.get("WindowWidth"))
    if data.get("VOILUTSequence"):
        table = apply_voi(np.round(shown).astype(np.int64), data)
        share = table / ((1 << int(data.VOILUTSequence[0].LUTDescriptor[2])) - 1)
    elif centre is not None and width is not None and width > 0:
        share = _window(shown, centre, width, str(data.get("VOILUTFunction") or "LINEAR").strip())
    else:
        share = _stretched(shown, values, _padding(data, bits))
    inverse = str(data.get("PhotometricInterpretation") or "").strip() == "MONOCHROME1"
    share = np.clip(np.nan_to_num(share), 0, 1)
    return np.round((1 - share if inverse else share) * 255).astype(np.uint8)


def _window(values: NDArray[Any], centre: float, width: float, function: str) -> NDArray[Any]:
    """Return the share of the full brightness of values in a window (PS3.3, C.11.2.1.2 and C.11.2.1.3)."""
    if function == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -500, 500)))
    if function == "LINEAR_EXACT":
        return (values - centre) / width + 0.5
    if width <= 1:
        return (values > centre - 0.5).astype(np.float64)
    return (values - (centre - 0.5)) / (width - 1) + 0.5


def _padding(data: Any, bits: int) -> int | None:
    """Return the stored value that fills what lies outside of the image, or None."""
    value = _first(data.get("PixelPaddingValue"))
    return int(value) & ((1 << bits) - 1) if value is not None else None


def _stretched(shown: NDArray[Any], values: NDArray[Any], padding: int | None) -> NDArray[Any]:
    """Return values as shares of the span between the percentiles of those in the picture."""
    flat = values.reshape(-1)
    counts = np.bincount(flat[:: max(1, flat.size // SAMPLES)], minlength=shown.size)
    if padding is not None and counts[padding] < counts.sum():
        counts[padding] = 0
    order = np.argsort(shown, kind="stable")
    reached = np.cumsum(counts[order])
    low, high = (float(shown[order[int(np.searchsorted(reached, reached[-1] * share / 100))]]) for share in PERCENTILES)
    return (shown - low) / (high - low) if high > low else np.zeros(shown.shape)


def _colour_table(data: Any, bits: int) -> Bytes:
    """Return the colour of each stored value, shape (2 ** bits, 3)."""
    table = apply_color_lut(np.arange(1 << bits, dtype=np.uint16), data)
    depth = int(data.RedPaletteColorLookupTableDescriptor[2])
    return np.ascontiguousarray(table >> (depth - 8) if depth > 8 else table).astype(np.uint8)
