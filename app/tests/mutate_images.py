"""Open thousands of broken files under a limit on memory; print how it went as JSON.

``python mutate_images.py COUNT`` opens COUNT files of each of PNG, JPEG and DICOM. A crash, an error of another kind
than ImageError, or more memory than the limit ends it with a traceback.
"""

from __future__ import annotations

import io
import json
import resource
import struct
import sys
import time
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from image_kit import dicom, encoded, ramp, rle_frame
from PIL import Image
from pydicom import Dataset, uid

from lightbox.images import ImageError, open_image

# On top of what the libraries take at their start: a picture of the most pixels allowed as RGB, four times.
MEMORY = 4 * 3 * 4_000_000
MAX_PIXELS = 4_000_000
WORDS = (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\xff\xff", b"\x80\0\0\0")
found: Counter[str] = Counter()
slowest = 0.0


def chunked(content: bytes) -> bytes:
    """Return a PNG whose chunks have right checksums again, so that what is in them is looked at."""
    out, position = bytearray(content[:8]), 8
    while position + 12 <= len(content):
        (length,) = struct.unpack(">I", content[position : position + 4])
        body = content[position + 4 : position + 8 + min(length, len(content))]
        out += content[position : position + 4] + body + struct.pack(">I", zlib.crc32(body))
        position += 12 + length
    return bytes(out + content[position:])


def seeds() -> dict[str, list[bytes]]:
    rng = np.random.default_rng(7)
    texture = rng.integers(0, 256, (20, 28), dtype=np.uint8)
    picture = Image.fromarray(texture)
    palette = picture.convert("P")
    deep = Image.fromarray(texture.astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6
    window = {"WindowCenter": 2048, "WindowWidth": 4096}
    frame = encoded(picture, "JPEG")
    table = Dataset()
    table.LUTDescriptor, table.LUTData = [256, 0, 8], np.arange(256, dtype="<u2").tobytes()
    return {
        "png": [
            encoded(picture), encoded(deep), encoded(picture.convert("RGBA")), encoded(palette, transparency=3),
            encoded(picture.convert("LA")), encoded(picture.convert("RGB"), exif=exif),
        ],
        "jpeg": [
            frame, encoded(picture.convert("RGB"), "JPEG", exif=exif), encoded(picture.convert("CMYK"), "JPEG"),
            encoded(picture, "JPEG", progressive=True),
        ],
        "dicom": [
            dicom(ramp(), **window), dicom(ramp(), uid.ImplicitVRLittleEndian, preamble=False), dicom(ramp(dtype="i2")),
            dicom(ramp(), uid.ExplicitVRBigEndian, **window), dicom(np.zeros((4, 4, 3), "u1")),
            dicom(ramp(), uid.RLELossless, frames=[rle_frame(ramp())]),
            dicom(texture, uid.JPEGBaseline8Bit, frames=[frame + b"\0" * (len(frame) % 2)]),
            dicom(np.stack([texture] * 4), VOILUTSequence=[table], RescaleSlope=1, RescaleIntercept=-3),
        ],
    }  # fmt: skip


@st.composite
def broken(draw: st.DrawFn, kind: str, wholes: list[bytes]) -> bytes:
    content = bytearray(draw(st.sampled_from(wholes)))
    # Headers are at the beginning, and most of what can go wrong with them.
    place = st.one_of(st.integers(0, min(400, len(content) - 1)), st.integers(0, len(content) - 1))
    for _ in range(draw(st.integers(1, 4))):
        change, at = draw(st.sampled_from(("flip", "word", "cut", "insert", "repeat", "tail"))), draw(place)
        if change == "flip":
            content[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
        elif change == "word":
            content[at : at + 4] = draw(st.sampled_from(WORDS))
        elif change == "cut":
            del content[at : at + draw(st.integers(1, 40))]
        elif change == "insert":
            content[at:at] = draw(st.binary(max_size=30))
        elif change == "repeat":
            content[at:at] = content[at : at + draw(st.integers(1, 40))]
        else:
            del content[max(1, at) :]
    return chunked(bytes(content)) if kind == "png" and draw(st.booleans()) else bytes(content)


def examine(content: bytes) -> None:
    global slowest  # noqa: PLW0603 - a script of one purpose
    begun = time.process_time()
    try:
        image = open_image(content, MAX_PIXELS, 512)
    except ImageError as error:
        assert str(error).endswith("."), error
        assert not isinstance(error.__cause__, MemoryError), "a small file needs much memory"
        found["errors"] += 1
    else:
        assert image.mode in ("L", "RGB") and min(image.size) > 0
        # What the decoder put off is done now.
        image.resize((16, 16)).save(io.BytesIO(), "JPEG")
        found["pictures"] += 1
    found["files"] += 1
    slowest = max(slowest, time.process_time() - begun)


def main() -> None:
    count = int(sys.argv[1])
    wholes = seeds()
    for content in (whole for group in wholes.values() for whole in group):
        examine(content)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    for kind, group in wholes.items():

        @seed(20260101)
        @settings(max_examples=count, deadline=None, database=None, phases=[Phase.generate],
                  suppress_health_check=list(HealthCheck))  # fmt: skip
        @given(broken(kind, group))
        def run(content: bytes) -> None:
            examine(content)

        run()
    print(json.dumps({**found, "slowest": slowest}))


if __name__ == "__main__":
    main()
