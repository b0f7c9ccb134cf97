"""Drawings come to the network as MNIST's digits lie: in one size, in the middle, and whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawing_kit import MANNERS, SIDE, TEMPLATES, drawings, render
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from serving_kit import png, write_bundle
from test_digits import MNIST

from lightbox import cnn, data
from lightbox.architectures import ARCHITECTURES
from lightbox.bundle import CENTRED, Bundle, preprocess, to_pixels
from lightbox.centring import centre, is_blank
from lightbox.images import ImageError, open_image
from lightbox.serving import Engine

Pixels = Any


def centred(image: Image.Image, side: int = 28) -> Pixels:
    return to_pixels(image, side, side, "grayscale", CENTRED)[..., 0]


def extent(pixels: Pixels) -> tuple[int, int]:
    """Return height and width of what is not black."""
    rows, columns = np.flatnonzero(pixels.any(axis=1)), np.flatnonzero(pixels.any(axis=0))
    return int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1


def middle(pixels: Pixels) -> tuple[float, float]:
    """Return row and column of the centre of mass."""
    every = pixels.astype(float)
    return tuple(float(every.sum(axis=1 - axis) @ np.arange(len(every)) / every.sum()) for axis in (0, 1))  # type: ignore[return-value]


def real() -> Any:
    if not MNIST.is_file():
        pytest.skip("MNIST is not here: name its .npz with LIGHTBOX_MNIST")
    return np.load(MNIST)


boxes = st.tuples(st.integers(0, 200), st.integers(0, 200), st.integers(8, 79), st.integers(8, 79))


@given(boxes, st.integers(60, 255))
def test_wherever_it_was_drawn_it_looks_the_same(box: tuple[int, int, int, int], level: int) -> None:
    left, top, width, height = box
    images = [Image.new("L", (SIDE, SIDE)) for _ in range(2)]
    images[0].paste(level, (left, top, left + width, top + height))
    images[1].paste(level, (0, 0, width, height))
    found = centred(images[0])
    assert (found == centred(images[1])).all()
    assert max(extent(found)) == 20
    assert min(extent(found)) == pytest.approx(20 * min(width, height) / max(width, height), abs=0.51)
    assert middle(found) == pytest.approx((14, 14), abs=0.51)
    assert found.max() >= level - 1


@given(st.integers(0, 2**32 - 1))
def test_what_is_centred_stays_as_it_is(seed: int) -> None:
    rng = np.random.default_rng(seed)
    spots = np.zeros((SIDE, SIDE), np.uint8)
    for y, x in rng.integers(0, SIDE - 30, (4, 2)):
        spots[y : y + 30, x : x + 30] = 255
    once = centred(Image.fromarray(spots))
    assert once.any(axis=1).sum() <= 20 and once.any(axis=0).sum() <= 20
    assert np.abs(centred(Image.fromarray(once)).astype(int) - once).max() == 0 or max(extent(once > 51)) < 20


def test_nothing_stays_nothing_and_is_no_verdict(tmp_path: Path) -> None:
    for level in (0, 1, 20):
        assert not centred(Image.new("L", (SIDE, SIDE), level)).any()
    assert is_blank(np.zeros((0, 28), np.uint8))

    def change(contract: dict[str, Any]) -> None:
        contract["preprocessing"]["resize"] = CENTRED

    engine = Engine(write_bundle(tmp_path / "b", change=change))
    for ask in (engine.predict, engine.assess, lambda image: preprocess(image, engine.bundle)):
        with pytest.raises(ImageError, match="nothing on the picture") as caught:
            ask(open_image(png(0, SIDE)))
        assert caught.value.kind == "blank"
    assert engine.assess(open_image(png(255, SIDE))).heat is None, "a map would lie beside the drawing"


def test_a_dot_at_the_far_end_is_not_cut_off() -> None:
    image = Image.new("L", (SIDE, SIDE))
    image.paste(255, (10, 10, 110, 50))
    image.paste(255, (10, 250, 20, 260))
    found = centred(image)
    assert max(extent(found)) == 20
    assert found[np.flatnonzero(found.any(axis=1))[-1]].max() > 64


def test_a_thin_line_does_not_fade_and_dust_is_nothing() -> None:
    image = Image.new("L", (3000, 3000))
    ImageDraw.Draw(image).line([(200, 200), (900, 2700)], fill=200, width=5)
    found = centred(image)
    assert found.max() == pytest.approx(200, abs=2) and max(extent(found > 40)) == 20
    dust = Image.new("L", (6000, 6000))
    for place in ((10, 10), (5900, 5900)):
        dust.putpixel(place, 255)
    assert not centred(dust).any()


def test_colour_and_other_sizes_keep_their_shape() -> None:
    image = Image.new("RGB", (60, 100), (0, 0, 0))
    image.paste((255, 80, 0), (3, 5, 13, 45))
    found = np.asarray(centre(image, 56, 70))
    assert found.shape == (56, 70, 3)
    assert extent(found.max(axis=2)) == (40, 10)
    assert (found[28, 35] == (255, 80, 0)).all()


def test_traces_of_jpeg_do_not_count_as_ink() -> None:
    image = Image.new("L", (SIDE, SIDE))
    image.paste(255, (100, 80, 130, 200))
    noisy = np.asarray(image).astype(int) + np.random.default_rng(1).integers(0, 30, (SIDE, SIDE))
    found = centred(Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)))
    assert extent(found > 128) == (20, 5)


def test_training_leaves_out_what_could_not_be_judged(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (40, 28, 28), dtype=np.uint8)
    images[7] = 0
    np.savez(tmp_path / "some.npz", x_train=images, y_train=np.arange(40) % 2)
    shape = data.Shape(28, 28, "grayscale", CENTRED)
    manifest, pixels = data.gather(str(tmp_path / "some.npz"), tmp_path / "cache", shape, ("a", "b"))
    assert [(one.name, one.reason) for one in manifest.left_out] == [("x_train/000007", "nothing is on it")]
    assert len(pixels) == 39


def test_the_network_for_digits_asks_for_it() -> None:
    assert ARCHITECTURES["mnist"].resize == CENTRED
    assert {one.resize for name, one in ARCHITECTURES.items() if name != "mnist"} == {"bilinear"}


def test_digits_of_mnist_lie_so_already() -> None:
    with real() as arrays:
        images = np.concatenate([arrays["x_train"][::20], arrays["x_test"]])
    same = [(centred(Image.fromarray(image)) == image).all() for image in images]
    assert np.mean(same) >= 0.995


def test_the_drawings_are_of_all_kinds() -> None:
    made = drawings()
    assert len(made) >= 100
    assert {(one.digit, one.manner) for one in made} == {(digit, manner) for digit in TEMPLATES for manner in MANNERS}
    assert made == drawings(), "the seed decides"
    for one in made:
        pixels = np.asarray(render(one))
        assert pixels.shape == (SIDE, SIDE, 4) and (pixels[..., 3] == 255).all()
        assert 10 <= one.pen <= 50
        edge = np.r_[pixels[0, :, 0], pixels[-1, :, 0], pixels[:, 0, 0], pixels[:, -1, 0]]
        assert edge.max() == 0, "the drawing is whole"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_drawings_are_recognised_by_the_network_trained_on_mnist(tmp_path: Path) -> None:
    real().close()
    arguments = ["--system", "mnist", "--data", str(MNIST), "--runs", str(tmp_path)]
    assert cnn.main([*arguments, "--out-link", str(tmp_path / "latest")]) == 0
    assert Bundle.load(tmp_path / "latest").contract["metrics"]["test"]["accuracy"] >= 0.992
    engine = Engine(tmp_path / "latest")
    made = drawings()
    wrong = [
        (one.digit, one.manner, said)
        for one in made
        if (said := engine.assess(render(one).convert("RGB")).verdict.label) != str(one.digit)
    ]
    assert len(wrong) <= 0.05 * len(made), wrong
