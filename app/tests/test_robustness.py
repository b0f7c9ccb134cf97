"""Perturbations change images as they say, and the probes find the shortcuts they look for."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from lightbox import robustness
from lightbox.robustness import PERTURBATIONS, Perturbation


def films(count: int = 8, side: int = 32, channels: int = 1) -> np.ndarray:
    """Return pictures with some detail, shape (count, side, side, channels)."""
    rng = np.random.default_rng(1)
    small = rng.integers(40, 216, (count, side // 4, side // 4), dtype=np.uint8)
    large = [np.asarray(Image.fromarray(one).resize((side, side), Image.Resampling.BICUBIC)) for one in small]
    return np.repeat(np.stack(large)[..., None], channels, axis=-1)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("one", PERTURBATIONS, ids=lambda one: one.name)
def test_a_strong_perturbation_changes_images_more_than_a_mild_one(one: Perturbation, channels: int) -> None:
    pixels = films(side=128, channels=channels)
    mild, strong = (np.stack(list(robustness.changed(pixels, one, strength, 3))) for strength in one.strengths)
    assert mild.shape == strong.shape == pixels.shape
    assert mild.dtype == np.uint8
    change = [np.abs(found.astype(int) - pixels).mean() for found in (mild, strong)]
    assert 0 < change[0] < change[1] < 90
    again = np.stack(list(robustness.changed(pixels, one, one.strengths[1], 3)))
    assert (again == strong).all(), "the same seed draws the same"
    assert one.words.format(one.strengths[0]) != one.words.format(one.strengths[1])


def test_the_table_has_the_figures_of_every_perturbation() -> None:
    pixels = films(300, 16)
    means = pixels.mean(axis=(1, 2, 3))
    labels = (means > np.median(means)).astype(np.int64)
    limit, told = float(np.median(means)) / 255, []

    def bright(changed: np.ndarray) -> np.ndarray:
        assert len(changed) <= robustness.BLOCK
        return changed.mean(axis=(1, 2, 3)) / 255

    rows = robustness.table(bright, pixels, labels, limit, 1, lambda done, total: told.append((done, total)))
    assert len(rows) == 2 * len(PERTURBATIONS)
    assert told[-1] == (len(rows) * 300, len(rows) * 300)
    by_words = {row["words"]: row for row in rows}
    # Who looks at the brightness alone keeps the order of images that all get brighter, and calls most of them so.
    assert by_words["20% of white added"]["auroc"] > 0.99
    assert by_words["20% of white added"]["specificity"] < 0.3
    assert by_words["JPEG of quality 40"]["accuracy"] > 0.95


def test_only_what_is_asked_for_is_changed_and_several_classes_have_their_figures() -> None:
    pixels, labels = films(60, 16), np.arange(60) % 3

    def knows(changed: np.ndarray) -> np.ndarray:
        return np.eye(3)[(np.arange(len(changed))) % 3]

    asked = [one for one in PERTURBATIONS if one.name in ("shift", "noise")]
    rows = robustness.table(knows, pixels, labels, 0.5, 1, perturbations=asked)
    assert [row["name"] for row in rows] == ["noise", "noise", "shift", "shift"]
    assert all(row["accuracy"] == row["auroc"] == 1 and "sensitivity" not in row for row in rows)
    assert robustness.table(knows, pixels, labels, 0.5, 1, perturbations=[]) == []


def test_what_is_covered_tells_nothing_and_what_is_around_it_stays() -> None:
    pixels = films(4)
    covered = robustness.cover(pixels)
    assert (covered[:, 0] == pixels[:, 0]).all() and (covered[:, :, -1] == pixels[:, :, -1]).all()
    middle = covered[:, 8:24, 8:24]
    assert (middle.max(axis=(1, 2, 3)) == middle.min(axis=(1, 2, 3))).all()


def test_files_that_differ_by_class_are_found_out() -> None:
    def file(quality: int, seed: int) -> bytes:
        stream = io.BytesIO()
        noise = np.random.default_rng(seed).integers(0, 256, (40, 50), dtype=np.uint8)
        Image.fromarray(noise).save(stream, "JPEG", quality=quality)
        return stream.getvalue()

    labels = [0, 1] * 10
    traits = robustness.file_traits(file(50 + 40 * label, seed) for seed, label in enumerate(labels))
    assert traits.shape == (20, 4)
    assert np.exp(traits[0, :2]) == pytest.approx([50, 40])
    scores = robustness.linear_scores(traits, labels, traits)
    assert scores[1::2].min() > scores[::2].max()
    assert robustness.file_traits([]).shape == (0, 4)
