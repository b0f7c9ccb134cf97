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
