"""Figures, thresholds and calibration against what can be counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightbox import evaluation

cases = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 20)), min_size=2, max_size=40).filter(
    lambda pairs: len({label for label, _ in pairs}) == 2
)


@given(cases)
def test_auroc_is_the_share_of_pairs_in_the_right_order(pairs):
    positives = [score for label, score in pairs if label]
    negatives = [score for label, score in pairs if not label]
    wins = sum((p > n) + 0.5 * (p == n) for p in positives for n in negatives)
    labels, scores = [label for label, _ in pairs], [score / 20 for _, score in pairs]
    assert evaluation.auroc(labels, scores) == pytest.approx(wins / (len(positives) * len(negatives)))


def test_auroc_of_one_class_is_no_number_and_is_not_stated():
    assert np.isnan(evaluation.auroc([1, 1], [0.1, 0.2]))
    assert evaluation.figures([1, 1], [0.1, 0.9], 0.5)["auroc"] is None


def test_figures_are_counted_right():
    found = evaluation.figures([0, 0, 0, 1, 1], [0.1, 0.6, 0.2, 0.5, 0.4], 0.5)
    assert found["confusion_matrix"] == [[2, 1], [1, 1]]
    assert found["accuracy"] == pytest.approx(0.6)
    assert found["sensitivity"] == pytest.approx(0.5)
    assert found["specificity"] == pytest.approx(2 / 3)
    assert found["precision"] == pytest.approx(0.5)
    assert found["images"] == 5


@given(cases, st.sampled_from(["balanced", "accuracy"]))
def test_no_other_threshold_is_better(pairs, rule):
    labels = np.array([label for label, _ in pairs])
    scores = np.array([score for _, score in pairs]) / 20

    def gain(limit):
        found = evaluation.figures(labels, scores, limit)
        return found["accuracy"] if rule == "accuracy" else found["sensitivity"] + found["specificity"]

    chosen = evaluation.threshold(labels, scores, rule)
    assert gain(chosen) == pytest.approx(max(gain(limit) for limit in [*np.unique(scores), 1.0]))


@given(cases, st.sampled_from([0.5, 0.9, 0.95, 1.0]))
def test_a_demanded_sensitivity_is_kept(pairs, demanded):
    labels = np.array([label for label, _ in pairs])
    scores = np.array([score for _, score in pairs]) / 20
    chosen = evaluation.threshold(labels, scores, f"sensitivity:{demanded}")
    assert evaluation.figures(labels, scores, chosen)["sensitivity"] >= demanded


@pytest.mark.parametrize("rule", ["", "best", "sensitivity", "sensitivity:"])
def test_an_unknown_rule_is_refused(rule):
    with pytest.raises(ValueError, match="rule"):
        evaluation.threshold([0, 1], [0.1, 0.9], rule)


def test_a_threshold_needs_both_classes():
    with pytest.raises(ValueError, match="both classes"):
        evaluation.threshold([1, 1], [0.1, 0.9], "balanced")


@pytest.mark.parametrize("true", [0.5, 1.0, 3.0])
def test_temperature_finds_by_how_much_scores_exaggerate(true):
    rng = np.random.default_rng(1)
    honest = rng.normal(0, 2, 20000)
    labels = rng.random(20000) < 1 / (1 + np.exp(-honest))
    stated = 1 / (1 + np.exp(-honest * true))
    assert evaluation.temperature(labels, stated) == pytest.approx(true, rel=0.05)


def test_calibration_error_of_honest_and_of_boastful_scores():
    rng = np.random.default_rng(1)
    scores = rng.random(20000)
    labels = rng.random(20000) < scores
    assert evaluation.calibration_error(labels, scores) < 0.02
    assert evaluation.calibration_error(labels, np.where(scores > 0.5, 0.99, 0.01)) > 0.2


def test_ten_thousand_scores_take_no_time_and_certain_ones_no_infinity():
    rng = np.random.default_rng(1)
    labels = rng.random(50000) < 0.5
    assert 0 < evaluation.threshold(labels, rng.random(50000), "balanced") < 1
    assert np.isfinite(evaluation.log_loss([0, 1], [1.0, 0.0]))


def test_the_roc_has_its_corners_and_the_area_of_auroc() -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, 400)
    scores = np.clip(rng.normal(0.4 + 0.2 * labels, 0.2), 0, 1)
    curve = evaluation.roc(labels, scores, points=1000)
    assert np.trapezoid(curve["tpr"], curve["fpr"]) == pytest.approx(evaluation.auroc(labels, scores), abs=1e-4)
    short = evaluation.roc(labels, scores, points=20)
    assert len(short["fpr"]) == 20 and (short["fpr"][-1], short["tpr"][-1]) == (1, 1)
    assert evaluation.roc([1, 1], [0.2, 0.3]) == {"fpr": [], "tpr": []}


def test_reliability_counts_every_image_once() -> None:
    found = evaluation.reliability([0, 1, 1, 0], [0.05, 0.95, 0.55, 0.45])
    assert sum(one["images"] for one in found) == 4
    assert found[-1] == {"confidence": pytest.approx(0.95), "accuracy": 1.0, "images": 2}
