"""Drawn images: the same for the same seed, marked as drawn, and of patients with several images."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lightbox import synthetic
from lightbox.data import CHEST_PATIENT, patient_of


def contents(directory: Path) -> dict[str, str]:
    return {
        path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in directory.rglob("*.png")
    }


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("drawn") / "set"
    synthetic.generate(directory, 40, 7)
    return directory


def test_the_same_seed_draws_the_same_images_and_another_does_not(drawn, tmp_path):
    synthetic.generate(tmp_path / "again", 40, 7)
    synthetic.generate(tmp_path / "other", 40, 8)
    assert contents(tmp_path / "again") == contents(drawn)
    assert not set(contents(tmp_path / "other").values()) & set(contents(drawn).values())


def test_images_are_as_many_as_asked_for_of_both_classes(drawn):
    names = contents(drawn)
    assert len(names) == len(set(names.values())) == 40
    assert sum("NORMAL" in name for name in names) == 16


def test_every_image_says_that_it_is_synthetic(drawn):
    for file in drawn.rglob("*.png"):
        with Image.open(file) as image:
            assert "Synthetic" in image.info["Description"]
            assert image.mode == "L"
            # The word at the bottom edge, in white.
            assert (np.asarray(image)[-14:, 85:140] > 220).sum() > 60


def test_patients_have_several_images(drawn):
    patients = [patient_of(path.name, CHEST_PATIENT) for path in drawn.rglob("*.png")]
    assert len(set(patients)) < len(patients)
    assert not any(name.startswith("=") for name in patients)


def test_what_is_drawn_is_not_drawn_again_and_what_is_half_drawn_is(drawn, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in drawn.rglob("*.png")}
    synthetic.generate(drawn, 40, 7)
    assert before == {path: path.stat().st_mtime_ns for path in drawn.rglob("*.png")}

    directory = tmp_path / "set"
    (tmp_path / "set.unfinished" / "train").mkdir(parents=True)
    directory.mkdir()
    (directory / "synthetic.json").write_text(json.dumps({"drawing": 0}))
    synthetic.generate(directory, 12, 7)
    assert len(contents(directory)) == 12
    assert not (tmp_path / "set.unfinished").exists()


# --- digits


def test_the_same_seed_draws_the_same_digits_and_each_as_often(tmp_path):
    for name, seed in (("one", 7), ("again", 7), ("other", 8)):
        synthetic.generate(tmp_path / name, 60, seed, drawn="digits")
    names = contents(tmp_path / "one")
    assert names == contents(tmp_path / "again")
    assert not set(names.values()) & set(contents(tmp_path / "other").values())
    assert len(set(names.values())) == 60
    assert [sum(f"/{digit}/" in name for name in names) for digit in range(10)] == [6] * 10
    with Image.open(next((tmp_path / "one").rglob("*.png"))) as image:
        assert "Synthetic" in image.info["Description"]
        assert (image.mode, image.size) == ("L", (28, 28))


@pytest.mark.parametrize("digit", range(10))
def test_a_digit_lies_in_the_middle_white_on_black(digit):
    for seed in range(20):
        values = np.asarray(synthetic.draw_digit(digit, np.random.default_rng(seed)), dtype=float)
        assert values.max() > 100 and np.median(values) == 0
        edge = values[[0, -1]].sum() + values[:, [0, -1]].sum()
        assert edge < 0.04 * values.sum(), "it is whole, or nearly so"
        rows, columns = (values.sum(axis=axis) @ np.arange(28) / values.sum() for axis in (1, 0))
        assert abs(rows - 13.5) < 2.5 and abs(columns - 13.5) < 2.5
