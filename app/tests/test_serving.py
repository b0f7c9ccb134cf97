"""The engine and the images it is given."""

from __future__ import annotations

import io
import shutil
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from serving_kit import logistic, noise, png, write_bundle

from lightbox.bundle import Bundle, BundleError
from lightbox.images import ImageError, open_image, thumbnail
from lightbox.serving import Engine, ServingError


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


# --- the engine ---


@pytest.mark.parametrize("value", [0, 64, 127, 128, 200, 255])
def test_scores_are_the_models(bundle: Path, value: int) -> None:
    engine = Engine(bundle)
    (score,) = engine.predict(open_image(png(value)))
    assert score == pytest.approx(logistic(12 * (value / 255 - 0.5)), abs=1e-5)
    found = engine.assess(open_image(png(value)))
    verdict, scores = found.verdict, found.scores
    assert scores == (score,)
    assert verdict.label == ("Pneumonia" if score >= 0.5 else "Normal")
    assert verdict.confidence == pytest.approx(max(score, 1 - score), abs=1e-6)


def test_the_temperature_divides_the_logit(tmp_path: Path) -> None:
    engine = Engine(write_bundle(tmp_path / "b", temperature=2.5))
    for value in (0, 100, 255):
        (score,) = engine.predict(open_image(png(value)))
        assert score == pytest.approx(logistic(12 * (value / 255 - 0.5) / 2.5), abs=1e-5)
    assert engine.self_test() < 1e-6


def test_digests_are_of_the_files_that_were_loaded(bundle: Path, tmp_path: Path) -> None:
    link = tmp_path / "current"
    link.symlink_to(bundle)
    engine = Engine(link)
    link.unlink()
    link.symlink_to(write_bundle(tmp_path / "other", version="other"))
    files = Bundle.load(bundle).contract["files"]
    assert engine.loaded_sha256 == {name: files[name]["sha256"] for name in ("model.onnx", "best_model.keras")}
    assert engine.self_test() < 1e-6, "the smoke image is that of the bundle that was loaded"


def test_a_changed_file_is_not_loaded(bundle: Path) -> None:
    content = (bundle / "model.onnx").read_bytes()
    (bundle / "model.onnx").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(BundleError, match=r"model\.onnx"):
        Engine(bundle)


def test_an_absent_bundle_is_an_error_of_bundles(tmp_path: Path) -> None:
    with pytest.raises(BundleError):
        Engine(tmp_path / "current")


def test_a_model_that_predicts_otherwise_than_recorded_fails_its_test(tmp_path: Path) -> None:
    with pytest.raises(ServingError, match="differ by"):
        Engine(write_bundle(tmp_path / "b", smoke_score=0.9)).self_test()


def test_numbers_that_are_no_probabilities_are_no_scores(tmp_path: Path) -> None:
    engine = Engine(write_bundle(tmp_path / "b", gain=float("nan"), smoke_score=0.5))
    with pytest.raises(ServingError, match="not a set of probabilities"):
        engine.predict(open_image(png(1)))


def test_silence_about_the_data_counts_as_synthetic(tmp_path: Path) -> None:
    assert Engine(write_bundle(tmp_path / "a")).synthetic is False
    assert Engine(write_bundle(tmp_path / "b", synthetic=True)).synthetic is True
    assert Engine(write_bundle(tmp_path / "c", change=lambda contract: contract.pop("data"))).synthetic is True


def test_many_threads_get_their_own_scores(bundle: Path) -> None:
    engine = Engine(bundle, threads=2)
    values = [number * 7 % 256 for number in range(200)]
    with ThreadPoolExecutor(8) as pool:
        scores = list(pool.map(lambda value: engine.predict(open_image(png(value)))[0], values))
    assert scores == pytest.approx([logistic(12 * (value / 255 - 0.5)) for value in values], abs=1e-5)


def test_a_bundle_may_be_moved_away_while_it_serves(bundle: Path) -> None:
    engine = Engine(bundle)
    shutil.rmtree(bundle)
    assert engine.predict(open_image(png(0)))[0] < 0.01


# --- images ---


def test_grey_of_sixteen_bits_keeps_its_brightness() -> None:
    values = np.array([[0, 65535], [32768, 128]], dtype=np.uint16)
    image = open_image(encoded(Image.fromarray(values)))
    assert image.mode == "L"
    assert np.abs(np.asarray(image).astype(int) - [[0, 255], [127, 0]]).max() <= 1


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_transparency_lies_on_black(mode: str) -> None:
    clear = Image.new("RGBA", (4, 4), (255, 255, 255, 0)).convert(mode)
    image = open_image(encoded(clear))
    assert image.mode in ("L", "RGB")
    assert np.asarray(image).max() == 0


def test_a_palette_with_a_transparent_entry_lies_on_black() -> None:
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([255, 255, 255, 10, 20, 30])
    palette.putpixel((0, 0), 1)
    image = open_image(encoded(palette, transparency=0))
    assert image.getpixel((0, 0)) == (10, 20, 30)
    assert image.getpixel((1, 1)) == (0, 0, 0)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_other_modes_of_png(mode: str) -> None:
    image = open_image(encoded(Image.new("L", (5, 3), 255).convert(mode)))
    assert (image.size, image.convert("L").getpixel((1, 1))) == ((5, 3), 255)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_modes_of_jpeg(mode: str) -> None:
    image = open_image(encoded(Image.new("L", (8, 8), 200).convert("RGB").convert(mode), "JPEG", quality=95))
    assert abs(image.convert("L").getpixel((4, 4)) - 200) < 6


def test_an_image_is_turned_as_its_exif_says() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = open_image(encoded(Image.new("L", (20, 10), 9), "JPEG", exif=exif))
    assert image.size == (10, 20)


def test_broken_exif_costs_nothing() -> None:
    plain = encoded(Image.new("L", (20, 10), 9), "JPEG")
    broken = plain[:2] + b"\xff\xe1\x00\x12Exif\x00\x00II*\x00\xff\xff\xff\x7f\x00\x00" + plain[2:]
    assert open_image(broken).size == (20, 10)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "empty"),
        (b"no image", "type"),
        (png(9, 64)[:-20], "unreadable"),
        (encoded(Image.open(io.BytesIO(noise(64))), "JPEG")[:900], "unreadable"),
        (encoded(Image.new("L", (8, 8)), "GIF"), "type"),
        (encoded(Image.new("L", (8, 8)), "TIFF"), "type"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "type"),
    ],
)
def test_what_is_no_whole_png_or_jpeg_is_refused(content: bytes, kind: str) -> None:
    with pytest.raises(ImageError) as found:
        open_image(content)
    assert found.value.kind == kind


def test_a_bomb_is_refused_before_it_is_decoded() -> None:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100_000)) + chunk(b"IEND", b"")
    with pytest.raises(ImageError) as found:
        open_image(bomb)
    assert found.value.kind == "pixels"
    with pytest.raises(ImageError, match="32 by 32"):
        open_image(png(1, 32), max_pixels=1000)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_whatever_comes_is_an_image_or_a_clear_error(data: st.DataObject) -> None:
    start = data.draw(
        st.sampled_from([png(77, 24), encoded(Image.open(io.BytesIO(noise(24))), "JPEG"), b"", b"\x89PNG"])
    )
    content = bytearray(start)
    for position, value in data.draw(st.lists(st.tuples(st.integers(0, max(0, len(start) - 1)), st.integers(0, 255)))):
        if content:
            content[position] = value
    content = content[: data.draw(st.integers(0, len(content)))] + data.draw(st.binary(max_size=40))
    try:
        image = open_image(bytes(content))
    except ImageError as error:
        assert str(error).endswith(".")
    else:
        assert image.mode in ("L", "RGB")
        assert min(image.size) > 0


def test_thumbnails_are_small_jpegs_of_the_whole_picture() -> None:
    small = Image.open(io.BytesIO(thumbnail(Image.new("RGB", (2000, 500), (9, 9, 9)))))
    assert (small.format, small.size) == ("JPEG", (224, 56))
    assert Image.open(io.BytesIO(thumbnail(Image.new("L", (1, 3000))))).size[1] == 224


def textured(seed: int = 1) -> bytes:
    """Return a grey picture whose cells differ strongly."""
    return noise(4, seed)


def test_images_scored_together_get_what_each_gets_alone(bundle: Path) -> None:
    engine = Engine(bundle)
    pictures = [open_image(content) for content in (png(0), textured(), png(200, mode="RGB"), png(140))]
    together = engine.assess_many([engine.prepare(picture) for picture in pictures])
    for found, alone in zip(together, map(engine.assess, pictures), strict=True):
        assert not isinstance(found, ServingError)
        assert found.scores == pytest.approx(alone.scores, abs=1e-6)
        assert (found.verdict.label, found.unfamiliar) == (alone.verdict.label, alone.unfamiliar)
        assert found.heat is not None and alone.heat is not None
        np.testing.assert_allclose(found.heat.values, alone.heat.values, atol=1e-6)
    assert engine.assess_many([]) == []


def test_an_image_the_model_fails_on_costs_no_other_its_verdict(bundle: Path) -> None:
    engine = Engine(bundle)
    good = engine.prepare(open_image(png(255)))
    for pixels in (np.full_like(good.pixels, np.nan), np.zeros((1, 3, 3, 7), np.float32)):
        first, failed, last = engine.assess_many([good, replace(good, pixels=pixels), good])
        assert isinstance(failed, ServingError)
        for one in (first, last):
            assert not isinstance(one, ServingError)
            assert one.verdict.label == "Pneumonia"


def test_the_heat_map_speaks_for_the_finding(bundle: Path) -> None:
    engine = Engine(bundle)
    bright, dark = (engine.assess(open_image(png(value))).heat for value in (255, 0))
    assert bright is not None and dark is not None
    assert bright.label == dark.label == "Pneumonia"
    assert bright.values.shape == (4, 4)
    assert float(bright.values.min()) == 1.0 and float(dark.values.max()) == 0.0


def test_pictures_unlike_those_of_the_training_are_named(bundle: Path) -> None:
    engine = Engine(bundle)
    assert engine.assess(open_image(png(200))).unfamiliar is None
    assert "unlike" in str(engine.assess(open_image(textured())).unfamiliar)
    red = io.BytesIO()
    Image.new("RGB", (32, 32), (255, 0, 0)).save(red, "PNG")
    assert "colour" in str(engine.assess(open_image(red.getvalue())).unfamiliar)
    assert engine.assess(open_image(png(200, mode="RGB"))).unfamiliar is None


def test_scores_in_the_declared_band_are_uncertain(bundle: Path) -> None:
    engine = Engine(bundle)
    assert engine.assess(open_image(png(128))).verdict.uncertain
    assert not engine.assess(open_image(png(255))).verdict.uncertain


def test_a_bundle_without_heat_distance_and_band_still_serves(tmp_path: Path) -> None:
    def plain(contract: dict[str, Any]) -> None:
        for key in ("outputs", "heat_scale"):
            del contract["serving"][key]
        del contract["out_of_distribution"], contract["decision"]["uncertain"]

    found = Engine(write_bundle(tmp_path / "b", change=plain)).assess(open_image(png(128)))
    assert found.heat is None and found.unfamiliar is None and not found.verdict.uncertain


def test_outputs_that_the_model_lacks_are_named(tmp_path: Path) -> None:
    def wrong(contract: dict[str, Any]) -> None:
        contract["serving"]["outputs"]["heat"] = "warmth"

    with pytest.raises(BundleError, match="warmth"):
        Engine(write_bundle(tmp_path / "b", change=wrong))
