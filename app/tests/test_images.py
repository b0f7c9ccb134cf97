"""Pictures from files: DICOM of many kinds, sizes that suffice, and files that are broken in thousands of ways."""

from __future__ import annotations

import cProfile
import io
import json
import logging
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from image_kit import PERSON, dicom, encoded, ramp, rle_frame
from PIL import Image
from pydicom import uid
from serving_kit import SOURCE, noise

from lightbox.images import ImageError, enough_for, open_image, shrink, thumbnail

LINEAR = {"WindowCenter": 2048, "WindowWidth": 4096}


def grey(content: bytes) -> np.ndarray:
    image = open_image(content)
    assert image.mode == "L"
    return np.asarray(image).astype(int)


def refused(content: bytes, kind: str, words: str = "", **options: Any) -> None:
    with pytest.raises(ImageError, match=words) as found:
        open_image(content, **options)
    assert found.value.kind == kind, str(found.value)
    assert str(found.value).endswith(".")
    assert PERSON not in str(found.value)


# --- DICOM: how values become grey ---


@pytest.mark.parametrize(
    ("syntax", "preamble"),
    [
        (uid.ExplicitVRLittleEndian, True),
        (uid.ExplicitVRLittleEndian, False),
        (uid.ImplicitVRLittleEndian, True),
        (uid.ImplicitVRLittleEndian, False),
        (uid.ExplicitVRBigEndian, True),
    ],
)
def test_a_window_spans_the_brightness(syntax: str, preamble: bool) -> None:
    values = ramp()
    found = grey(dicom(values, syntax, preamble=preamble, **LINEAR))
    assert np.abs(found - values / 4095 * 255).max() <= 1


def test_a_file_without_its_whole_header_is_read() -> None:
    whole = dicom(ramp(), uid.ImplicitVRLittleEndian, **LINEAR)
    bare = whole[whole.index(b"\x08\x00\x16\x00") :]
    assert np.array_equal(grey(bare), grey(whole))


def test_the_first_of_several_windows_counts() -> None:
    found = grey(dicom(ramp(), WindowCenter=[1000, 3000], WindowWidth=[200, 50]))
    assert np.array_equal(found, grey(dicom(ramp(), WindowCenter=1000, WindowWidth=200)))
    assert set(np.unique(found)) > {0, 255}


@pytest.mark.parametrize(
    ("function", "value"), [("LINEAR", 0.5 + 0.5 / 99), ("LINEAR_EXACT", 0.5), ("SIGMOID", 0.5), ("", 0.5 + 0.5 / 99)]
)
def test_window_functions_of_the_standard(function: str, value: float) -> None:
    values = np.full((4, 4), 500, "u2")
    found = grey(dicom(values, WindowCenter=500, WindowWidth=100, VOILUTFunction=function))
    assert found[0, 0] == round(value * 255)


def test_without_a_window_odd_pixels_do_not_darken_the_rest() -> None:
    values = ramp(100, 100, top=1000)
    values[0, :3], values[-1, -3:] = 0, 65535
    found = grey(dicom(values))
    assert np.median(found) == pytest.approx(127, abs=3)
    assert (found == 255).sum() < 150
    assert not grey(dicom(np.full((4, 4), 77, "u2"))).any()


def test_padding_does_not_count() -> None:
    values = ramp(100, 100, "i2", 1000)
    values[:40] = -2000
    values[40:] = ramp(60, 100, "i2", 1000)
    found = grey(dicom(values, PixelPaddingValue=-2000))
    assert np.median(found[40:]) == pytest.approx(127, abs=3)
    assert not found[:40].any()


def test_monochrome1_is_inverted() -> None:
    normal = grey(dicom(ramp(), **LINEAR))
    assert np.array_equal(grey(dicom(ramp(), PhotometricInterpretation="MONOCHROME1", **LINEAR)), 255 - normal)


def test_the_slope_and_the_intercept_come_before_the_window() -> None:
    found = grey(dicom(ramp(), RescaleSlope=2, RescaleIntercept=-1000, WindowCenter=4096 - 1000, WindowWidth=8192))
    assert np.abs(found - ramp() / 4095 * 255).max() <= 1


def test_signed_values() -> None:
    found = grey(dicom(ramp(dtype="i2") - 2048, WindowCenter=0, WindowWidth=4096))
    assert np.abs(found - ramp() / 4095 * 255).max() <= 1


def test_bits_that_do_not_count_are_dropped() -> None:
    overlaid = ramp() | 0xF000
    found = grey(dicom(overlaid, BitsStored=12, HighBit=11, **LINEAR))
    assert np.array_equal(found, grey(dicom(ramp(), BitsStored=12, HighBit=11, **LINEAR)))


def test_tables_of_the_file() -> None:
    table = pydicom.Dataset()
    table.LUTDescriptor, table.LUTData = [4096, 0, 16], np.arange(65535, -1, -16).astype("<u2").tobytes()
    found = grey(dicom(ramp(), VOILUTSequence=[table]))
    assert np.abs(found - (255 - ramp() / 4095 * 255)).max() <= 1


def test_the_middle_frame_is_shown() -> None:
    frames = np.stack([np.full((8, 8), value, "u1") for value in (10, 20, 30, 40)])
    window = {"WindowCenter": 128, "WindowWidth": 256}
    assert abs(grey(dicom(frames, **window))[0, 0] - 30) <= 1
    many = [rle_frame(frame) for frame in frames]
    assert abs(grey(dicom(frames, uid.RLELossless, frames=many, **window))[0, 0] - 30) <= 1


@pytest.mark.parametrize("planar", [0, 1])
def test_colours(planar: int) -> None:
    values = np.random.default_rng(1).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    stored = np.ascontiguousarray(values.transpose(2, 0, 1)).reshape(6, 8, 3) if planar else values
    assert np.array_equal(np.asarray(open_image(dicom(stored, PlanarConfiguration=planar))), values)


def test_a_palette() -> None:
    colours = {f"{name}PaletteColorLookupTableDescriptor": [4, 0, 16] for name in ("Red", "Green", "Blue")}
    data = {
        f"{name}PaletteColorLookupTableData": np.array([0, level << 8, 0, 65535], "<u2").tobytes()
        for name, level in (("Red", 200), ("Green", 100), ("Blue", 50))
    }
    image = open_image(
        dicom(np.array([[0, 1], [2, 3]], "u1"), PhotometricInterpretation="PALETTE COLOR", **colours, **data)
    )
    assert [image.getpixel(at) for at in ((0, 0), (1, 0), (1, 1))] == [(0, 0, 0), (200, 100, 50), (255, 255, 255)]


@pytest.mark.parametrize("dtype", ["u1", "u2"])
def test_run_length_encoding(dtype: str) -> None:
    values = ramp(dtype=dtype, top=255 if dtype == "u1" else 4095)
    values[3:9] = 7
    compressed = dicom(values, uid.RLELossless, frames=[rle_frame(values)])
    assert np.array_equal(grey(compressed), grey(dicom(values)))


def test_baseline_jpeg_inside() -> None:
    values = ramp(dtype="u1", top=255)
    frame = encoded(Image.fromarray(values), "JPEG", quality=98)
    window = {"WindowCenter": 128, "WindowWidth": 256}
    found = grey(dicom(values, uid.JPEGBaseline8Bit, frames=[frame + b"\0" * (len(frame) % 2)], **window))
    assert np.abs(found - values).max() <= 4


# --- DICOM: what is refused ---


@pytest.mark.parametrize(
    ("content", "kind", "words"),
    [
        (dicom(ramp(), uid.JPEG2000Lossless, frames=[b"\0\0"]), "unsupported", "JPEG 2000.*Export"),
        (dicom(ramp(), uid.JPEGLosslessSV1, frames=[b"\0\0"]), "unsupported", "JPEG Lossless"),
        (dicom(ramp(), drop=("PixelData",)), "unsupported", "no image"),
        (dicom(ramp(), BitsAllocated=32), "unsupported", "32 bits"),
        (dicom(ramp()[:4], Rows=400), "unreadable", "cut off"),
        (dicom(ramp(), BitsStored=20), "unreadable", "contradicts itself"),
        (dicom(ramp(), Rows=60000, Columns=60000), "pixels", "60000 by 60000"),
        (dicom(np.zeros((4, 4, 3), "u1"), PhotometricInterpretation="YBR_FULL_422"), "unsupported", "YBR_FULL_422"),
        (b"\0" * 128 + b"DICM", "unsupported", "no image"),
        (dicom(ramp())[:200], "unsupported", "no image"),
    ],
)
def test_dicom_files_that_are_refused_say_why(content: bytes, kind: str, words: str) -> None:
    refused(content, kind, words)


def test_a_deflated_file_is_not_inflated() -> None:
    whole = dicom(ramp(), uid.ExplicitVRLittleEndian)
    start = whole.index(b"\x08\x00\x16\x00")
    head = whole[:start].replace(b"\x14\x001.2.840.10008.1.2.1\0", b"\x16\x001.2.840.10008.1.2.1.99")
    refused(head + zlib.compress(whole[start:])[2:-4], "unsupported", "Deflated")


def test_run_lengths_that_expand_without_end_are_cut() -> None:
    header = np.zeros(16, "<u4")
    header[:2] = 1, 64
    bomb = header.tobytes() + bytes([129, 5]) * 5_000_000
    content = dicom(np.zeros((4, 4), "u1"), uid.RLELossless, frames=[bomb], WindowCenter=128, WindowWidth=256)
    assert abs(grey(content)[0, 0] - 5) <= 1


def implicit(*elements: bytes) -> bytes:
    """Return the beginning of a DICOM file of implicit VR, and after it what is given."""
    whole = dicom(ramp(), uid.ImplicitVRLittleEndian)
    return whole[: whole.index(b"\x08\x00\x16\x00")] + b"".join(elements)


def element(tag: bytes, value: bytes) -> bytes:
    return tag + struct.pack("<I", len(value)) + value


# As many reads as are allowed take fewer; each of a million pieces, or of four million words, takes several.
MOST_CALLS = 5_000_000


def calls_until_refused(content: bytes) -> int:
    """Return how many functions are called until a file is refused, which is the same on every machine."""
    profile = cProfile.Profile()
    with profile:
        refused(content, "unreadable")
    return sum(one.callcount for one in profile.getstats())


@pytest.mark.parametrize(
    "content",
    [
        implicit(element(b"\x09\x00\x10\x10", b"") * 1_000_000),
        implicit(b"\x08\x00\x40\x11\xff\xff\xff\xff", b"\xfe\xff\x00\xe0\0\0\0\0" * 1_000_000),
        implicit(b"\x08\x00\x40\x11\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff" * 500_000),
        implicit(b"\x28\x00\x10\x30\xff\xff\xff\xff", b"\xfe\xff\x00\xe0\0\0\0\0" * 1_000_000),
        implicit(element(b"\x08\x00\x05\x00", b"a\\" * 4_000_000)),
        implicit(
            b"\x08\x00\x40\x11\xff\xff\xff\xff",
            element(b"\xfe\xff\x00\xe0", element(b"\x08\x00\x05\x00", b"a\\" * 4_000_000)),
        ),
        implicit(element(b"\x28\x00\x50\x10", b"1\\" * 4_000_000)),
        b"\0" * 128 + b"DICM\x02\x00\x10\x00UN\0\0" + struct.pack("<I", 8_000_000) + b"1\\" * 4_000_000,
        b"\0" * 128 + b"DICM" + b"\x02\x00\x99\x00UI\x00\x00" * 1_000_000,
    ],
)
def test_a_header_made_to_keep_a_processor_busy_is_refused(content: bytes) -> None:
    assert calls_until_refused(content) < MOST_CALLS


def test_frames_of_millions_of_pieces_are_refused() -> None:
    whole = dicom(ramp(dtype="u1", top=255), uid.JPEGBaseline8Bit, frames=[b"ab"])
    start = whole[: whole.index(b"\xe0\x7f\x10\x00") + 12]
    assert calls_until_refused(start + b"\xfe\xff\x00\xe0\0\0\0\0" * 2_000_000) < MOST_CALLS


def test_a_jpeg_of_very_many_scans_is_refused() -> None:
    whole = encoded(Image.new("L", (3000, 3000)), "JPEG", progressive=True)
    assert open_image(whole).size == (3000, 3000)
    last = whole[whole.rindex(b"\xff\xc4") : -2]
    refused(whole[:-2] + last * 200 + b"\xff\xd9", "unreadable", "too many steps")


def test_nothing_of_the_header_is_told(caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder) -> None:
    logging.getLogger("pydicom").setLevel(logging.DEBUG)
    whole = dicom(ramp(), PatientBirthDate="19700101", **LINEAR)
    image = open_image(whole.replace(b"19700101", b"no-date!"))
    assert PERSON not in str(image.info)
    assert PERSON.encode() not in thumbnail(image)
    assert not recwarn.list
    assert "no-date" not in caplog.text


# --- types, sizes ---


def test_types_are_told_by_content_alone() -> None:
    for content in (b"GIF89a", b"%PDF-1.7", b"\0" * 200, b"\x08\x00\x16\x01junk", b"II*\0" + b"\0" * 200):
        refused(content, "type", "Choose a file of these types")


def test_a_large_jpeg_is_decoded_no_larger_than_needed() -> None:
    content = encoded(Image.open(io.BytesIO(noise(2400))).resize((2400, 1800)), "JPEG")
    assert open_image(content).size == (2400, 1800)
    assert open_image(content, enough=512).size == (1200, 900)
    assert open_image(content, enough=226).size == (600, 450)
    assert open_image(content, enough=2000).size == (2400, 1800)
    assert (enough_for(224, 224), enough_for(320, 400)) == (512, 800)


def test_the_limit_counts_the_pixels_of_the_file() -> None:
    refused(encoded(Image.new("L", (400, 300)), "JPEG"), "pixels", "400 by 300", max_pixels=100_000, enough=10)
    frame = encoded(Image.new("L", (400, 300)), "JPEG")
    lying = dicom(np.zeros((4, 4), "u1"), uid.JPEGBaseline8Bit, frames=[frame + b"\0" * (len(frame) % 2)])
    refused(lying, "pixels", "400 by 300", max_pixels=100_000)


def test_shrinking_keeps_the_shape_and_never_enlarges() -> None:
    small = Image.new("L", (30, 10))
    assert shrink(small, 30) is small
    assert shrink(Image.new("L", (2000, 1000)), 512).size == (512, 256)
    assert shrink(Image.new("L", (1, 4000)), 512).size == (1, 512)


# --- files broken in thousands of ways ---


def test_whatever_is_in_a_file_it_is_a_picture_or_a_clear_error(tmp_path: Path) -> None:
    """In a process of its own with a limit on its memory, so that a file that eats memory is found out."""
    kinds = 3
    report = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("mutate_images.py")), "700"],
        env={"PYTHONPATH": f"{SOURCE}:{Path(__file__).parent}", "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        cwd=tmp_path, capture_output=True, text=True, timeout=150, check=False,
    )  # fmt: skip
    assert report.returncode == 0, report.stderr[-3000:]
    counts = json.loads(report.stdout)
    assert counts["files"] >= kinds * 700 >= 2000
    assert counts["pictures"] > 100 and counts["errors"] > 500
    assert counts["slowest"] < 2, "seconds of processor time"
    assert PERSON not in report.stderr
