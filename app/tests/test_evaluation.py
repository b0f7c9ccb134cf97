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


def test_average_precision_is_the_mean_of_the_precision_at_each_image_found() -> None:
    # From the highest score on: found, not, found: precision 1 at the first, 2 of 3 at the second.
    assert evaluation.figures([1, 0, 1], [0.9, 0.8, 0.7], 0.5)["auprc"] == pytest.approx((1 + 2 / 3) / 2)
    assert evaluation.figures([0, 1], [0.1, 0.9], 0.5)["auprc"] == 1
    assert evaluation.figures([1, 1], [0.1, 0.9], 0.5)["auprc"] is None


@given(cases, st.lists(st.integers(0, 3), min_size=40, max_size=40))
def test_an_image_that_weighs_two_counts_like_two_images(pairs, weights):
    labels, scores = np.array([label for label, _ in pairs]), np.array([score for _, score in pairs]) / 20
    times = np.array(weights[: labels.size])
    if not times.sum():
        return
    drawn = evaluation._measure(labels.astype(bool), scores, 0.5, times[None].astype(float))
    plain = evaluation.figures(np.repeat(labels, times), np.repeat(scores, times), 0.5)
    for name, value in drawn.items():
        assert plain[name] == (pytest.approx(value[0]) if np.isfinite(value[0]) else None), name


def test_an_interval_holds_the_figure_and_narrows_with_more_images() -> None:
    def found(count, patients=None):
        rng = np.random.default_rng(1)
        labels = rng.integers(0, 2, count)
        scores = np.clip(rng.normal(0.4 + 0.2 * labels, 0.15), 0, 1)
        groups = np.arange(count) if patients is None else np.arange(count) % patients
        return evaluation.figures(labels, scores, 0.5, groups)

    few, many = found(100), found(10000)
    for name, (low, high) in many["intervals"].items():
        assert low <= many[name] <= high
        assert high - low < few["intervals"][name][1] - few["intervals"][name][0]
    low, high = many["intervals"]["accuracy"]
    # What the normal approximation says of a share.
    assert high - low == pytest.approx(2 * 1.96 * (many["accuracy"] * (1 - many["accuracy"]) / 10000) ** 0.5, rel=0.1)
    assert found(100) == few, "the same draws every time"


def test_images_of_one_patient_are_no_more_than_one_observation() -> None:
    rng = np.random.default_rng(1)
    labels, scores = rng.integers(0, 2, 50), rng.random(50)

    def width(groups, times):
        low, high = evaluation.figures(np.repeat(labels, times), np.repeat(scores, times), 0.5, groups)["intervals"][
            "accuracy"
        ]
        return high - low

    alone = width(np.arange(50), 1)
    assert width(np.repeat(np.arange(50), 8), 8) == pytest.approx(alone, rel=0.05)
    assert width(np.arange(400), 8) < 0.6 * alone


def test_subgroups_count_the_images_of_each_kind() -> None:
    found = evaluation.subgroups(
        ["virus", "", "virus", "bacteria"], [1, 0, 1, 1], [0.9, 0.1, 0.2, 0.8], 0.5, list("abcd")
    )
    assert {kind: (one["images"], one["accuracy"]) for kind, one in found.items()} == {
        "bacteria": (1, 1),
        "virus": (2, 0.5),
    }
    assert found["virus"]["intervals"]["accuracy"] == [0, 1]


# --- several classes


THREE = np.array([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.5, 0.3, 0.2], [0.2, 0.3, 0.5], [0.1, 0.2, 0.7]])
TRUE = np.array([0, 1, 1, 2, 2])


def test_figures_of_several_classes_are_counted_right() -> None:
    found = evaluation.figures(TRUE, THREE, 0.5)
    assert found["confusion_matrix"] == [[1, 0, 0], [1, 1, 0], [0, 0, 2]]
    assert found["accuracy"] == pytest.approx(4 / 5)
    assert [one["recall"] for one in found["classes"]] == pytest.approx([1, 1 / 2, 1])
    assert [one["precision"] for one in found["classes"]] == pytest.approx([1 / 2, 1, 1])
    assert [one["images"] for one in found["classes"]] == [1, 2, 2]
    assert found["recall"] == pytest.approx(5 / 6) and found["precision"] == pytest.approx(5 / 6)
    assert found["f1"] == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    assert found["loss"] == pytest.approx(-np.log([0.7, 0.6, 0.3, 0.5, 0.7]).mean())
    assert found["brier"] == pytest.approx(((THREE - np.eye(3)[TRUE]) ** 2).sum(axis=1).mean())
    assert found["auroc"] == pytest.approx(evaluation.auroc(TRUE, THREE))
    assert "roc" not in found and "sensitivity" not in found
    assert sum(one["images"] for one in found["reliability"]) == 5


def test_a_class_that_is_never_called_has_no_precision() -> None:
    found = evaluation.figures([0, 1, 2], np.eye(3)[[0, 1, 1]], 0.5)
    assert found["classes"][2]["precision"] is None and found["precision"] is None
    assert found["classes"][2]["recall"] == found["classes"][2]["f1"] == 0


def test_the_area_of_several_classes_is_the_mean_of_each_against_the_others() -> None:
    rng = np.random.default_rng(1)
    labels, scores = rng.integers(0, 4, 200), rng.dirichlet(np.ones(4), 200)
    areas = [evaluation.auroc(labels == label, scores[:, label]) for label in range(4)]
    assert evaluation.auroc(labels, scores) == pytest.approx(np.mean(areas))


@given(cases)
def test_two_classes_as_two_columns_have_the_figures_of_one_score(pairs) -> None:
    labels = np.array([label for label, _ in pairs])
    # No score of one half: of two columns that are alike the first wins, of one score the threshold belongs to 1.
    scores = (np.array([score for _, score in pairs]) + 0.25) / 21
    one, two = (evaluation.figures(labels, p, 0.5) for p in (scores, np.stack([1 - scores, scores], axis=1)))
    for name in ("accuracy", "loss", "ece"):
        assert two[name] == pytest.approx(one[name]), name
    assert two["confusion_matrix"] == one["confusion_matrix"]
    assert two["brier"] == pytest.approx(2 * one["brier"])
    for binary, own in evaluation.OF_A_CLASS.items():
        expected = one[binary]
        assert two["classes"][1][own] == (None if expected is None else pytest.approx(expected)), own
    assert [b["images"] for b in two["reliability"]] == [b["images"] for b in one["reliability"]]


def test_intervals_hold_the_figures_of_all_classes_and_of_each() -> None:
    rng = np.random.default_rng(1)
    labels, scores = rng.integers(0, 3, 600), rng.dirichlet(np.ones(3), 600)
    scores[np.arange(600), labels] += 1
    found = evaluation.figures(labels, scores / 2, 0.5, np.arange(600))
    for one in (found, *found["classes"]):
        assert set(one["intervals"]) >= {"recall", "precision", "f1", "auroc"}
        for name, (low, high) in one["intervals"].items():
            assert low <= one[name] <= high, name
    assert not any(name[0].isdigit() for name in (*found, *found["intervals"]))


@pytest.mark.parametrize("true", [0.5, 1.0, 3.0])
def test_temperature_of_several_classes_finds_by_how_much_scores_exaggerate(true: float) -> None:
    rng = np.random.default_rng(1)
    honest = rng.normal(0, 2, (20000, 4))
    p = evaluation.probabilities(honest)
    labels = (rng.random((20000, 1)) > p.cumsum(axis=1)).sum(axis=1).clip(0, 3)
    assert evaluation.temperature(labels, evaluation.probabilities(honest * true)) == pytest.approx(true, rel=0.05)
    assert evaluation.calibration_error(labels, p) < 0.02
