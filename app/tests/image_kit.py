"""Files of pictures that the tests make: DICOM of many kinds, and the small ones that are mutated."""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
import pydicom
from PIL import Image
from pydicom import uid
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate

# What a header says of a person and must go nowhere.
PERSON = "Doe^Jane"


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def packed(plane: bytes) -> bytes:
    """Return bytes run-length encoded: runs where they are, single bytes elsewhere."""
    out, position = bytearray(), 0
    while position < len(plane):
        run = 1
        while run < 128 and plane[position : position + 1] == plane[position + run : position + run + 1]:
            run += 1
        out += bytes([257 - run, plane[position]]) if run > 1 else bytes([0, plane[position]])
        position += run
    return bytes(out + b"\0" * (len(out) % 2))


def rle_frame(values: np.ndarray) -> bytes:
    """Return a frame of grey values as RLE with one segment per byte, the most significant first."""
    raw = values.astype(values.dtype.newbyteorder(">")).tobytes()
    size = values.dtype.itemsize
    segments = [packed(raw[byte::size]) for byte in range(size)]
    offsets, position = [], 64
    for segment in segments:
        offsets.append(position)
        position += len(segment)
    header = np.zeros(16, "<u4")
    header[0], header[1 : 1 + size] = size, offsets
    return header.tobytes() + b"".join(segments)


def dicom(
    values: np.ndarray,
    syntax: str = uid.ExplicitVRLittleEndian,
    frames: list[bytes] | None = None,
    drop: tuple[str, ...] = (),
    preamble: bool = True,
    **elements: Any,
) -> bytes:
    """Return a DICOM file with these stored values: (rows, columns), (frames, rows, columns) or (rows, columns, 3).

    ``frames`` holds them compressed; ``elements`` are added, ``drop`` names some that are left out.
    """
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = uid.SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    meta.TransferSyntaxUID = uid.UID(syntax)
    data = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128 if preamble else None)
    data.SOPClassUID = uid.SecondaryCaptureImageStorage
    data.PatientName, data.PatientID = PERSON, "4711"
    colour = values.ndim == 3 and values.shape[-1] == 3
    many = values.ndim == 3 and not colour
    data.SamplesPerPixel = 3 if colour else 1
    data.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        data.PlanarConfiguration = 0
    if many:
        data.NumberOfFrames = values.shape[0]
    data.Rows, data.Columns = values.shape[1:] if many else values.shape[:2]
    data.BitsAllocated = data.BitsStored = values.dtype.itemsize * 8
    data.HighBit = data.BitsStored - 1
    data.PixelRepresentation = int(values.dtype.kind == "i")
    for name, value in elements.items():
        setattr(data, name, value)
    big = syntax == uid.ExplicitVRBigEndian
    raw = values.astype(values.dtype.newbyteorder(">" if big else "<")).tobytes()
    data.PixelData = encapsulate(frames) if frames else raw + b"\0" * (len(raw) % 2)
    data["PixelData"].VR = "OB" if frames or values.dtype.itemsize == 1 else "OW"
    if frames:
        data["PixelData"].is_undefined_length = True
    for name in drop:
        delattr(data, name)
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pydicom.dcmwrite(
            stream, data, enforce_file_format=preamble,
            implicit_vr=syntax == uid.ImplicitVRLittleEndian, little_endian=not big,
        )  # fmt: skip
    return stream.getvalue()


def ramp(rows: int = 16, columns: int = 24, dtype: str = "u2", top: int = 4095) -> np.ndarray:
    """Return values that rise from 0 to ``top`` along the rows."""
    return np.linspace(0, top, rows * columns).round().astype(dtype).reshape(rows, columns)
