"""How good a binary classifier is: figures, the threshold, and the calibration of its scores. NumPy only.

Labels are 0 and 1, scores are probabilities of 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

EPSILON = 1e-7

Doubles = NDArray[np.float64]


def logits(scores: ArrayLike) -> Doubles:
    """Return the log odds of probabilities, kept finite."""
    p = np.clip(np.asarray(scores, dtype=np.float64), EPSILON, 1 - EPSILON)
    return np.log(p / (1 - p))


def log_loss(labels: ArrayLike, scores: ArrayLike) -> float:
    """Return the mean negative log likelihood."""
    y, z = np.asarray(labels, dtype=np.float64), logits(scores)
    return float(np.mean(np.logaddexp(0, z) - y * z))


def auroc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Return the area under the receiver operating characteristic; ties count half. NaN when a class is absent.

    It equals the Mann-Whitney U statistic divided by the number of pairs.
    """
    y = np.asarray(labels).astype(bool)
    positives, negatives = int(y.sum()), int((~y).sum())
    if not positives or not negatives:
        return float("nan")
    _, inverse, counts = np.unique(np.asarray(scores, dtype=np.float64), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks = (last - (counts - 1) / 2)[inverse]
    return float((ranks[y].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def calibration_error(labels: ArrayLike, scores: ArrayLike, bins: int = 10) -> float:
    """Return the expected calibration error over bins of equal width (Guo et al., 2017) of the predicted class."""
    found = reliability(labels, scores, bins)
    gaps = [abs(one["accuracy"] - one["confidence"]) * one["images"] for one in found]
    return float(sum(gaps) / max(1, sum(one["images"] for one in found)))


def roc(labels: ArrayLike, scores: ArrayLike, points: int = 100) -> dict[str, list[float]]:
    """Return the receiver operating characteristic as `fpr` and `tpr`, from (0, 0) to (1, 1), of at most ``points``.

    Empty lists when a class is absent.
    """
    y, p = np.asarray(labels).astype(bool), np.asarray(scores, dtype=np.float64)
    if y.all() or not y.any():
        return {"fpr": [], "tpr": []}
    edges = np.unique(p)[::-1]
    positives, negatives = np.sort(p[y]), np.sort(p[~y])
    tpr = np.concatenate([[0.0], 1 - np.searchsorted(positives, edges) / positives.size])
    fpr = np.concatenate([[0.0], 1 - np.searchsorted(negatives, edges) / negatives.size])
    # Corners alone carry the curve; of those, evenly spread ones where there are too many.
    corner = np.ones(tpr.size, dtype=bool)
    upright, level = np.diff(fpr) == 0, np.diff(tpr) == 0
    corner[1:-1] = ~((upright[:-1] & upright[1:]) | (level[:-1] & level[1:]))
    kept = np.flatnonzero(corner)
    if kept.size > points:
        kept = kept[np.linspace(0, kept.size - 1, points).round().astype(int)]
    return {"fpr": [round(float(v), 5) for v in fpr[kept]], "tpr": [round(float(v), 5) for v in tpr[kept]]}


def reliability(labels: ArrayLike, scores: ArrayLike, bins: int = 10) -> list[dict[str, float]]:
    """Return, per bin of the confidence of the predicted class, its mean, the accuracy and the number of images."""
    y, p = np.asarray(labels).astype(bool), np.asarray(scores, dtype=np.float64)
    confidence, right = np.where(p >= 0.5, p, 1 - p), (p >= 0.5) == y
    index = np.minimum((confidence * bins).astype(int), bins - 1)
    return [
        {
            "confidence": float(confidence[index == b].mean()),
            "accuracy": float(right[index == b].mean()),
            "images": int((index == b).sum()),
        }
        for b in np.unique(index)
    ]


def temperature(labels: ArrayLike, scores: ArrayLike) -> float:
    """Return what the logits must be divided by for the smallest log loss (Guo et al., 2017), between 0.25 and 8."""
    y, z = np.asarray(labels, dtype=np.float64), logits(scores)

    def loss(log_t: float) -> float:
        scaled = z / np.exp(log_t)
        return float(np.mean(np.logaddexp(0, scaled) - y * scaled))

    # Golden section: the loss is convex in 1 / T, so it has one valley in log T.
    low, high, ratio = np.log(0.25), np.log(8.0), (np.sqrt(5) - 1) / 2
    for _ in range(60):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if loss(left) < loss(right):
            high = right
        else:
            low = left
    return float(np.exp((low + high) / 2))


def threshold(labels: ArrayLike, scores: ArrayLike, rule: str) -> float:
    """Choose the score from which the verdict is 1.

    Args:
        labels: shape (n,).
        scores: shape (n,).
        rule: ``balanced`` (largest mean of sensitivity and specificity), ``accuracy``, or ``sensitivity:0.95``: the
            highest threshold that keeps at least that sensitivity.

    Returns:
        The middle of the widest gap between two scores among the equally good thresholds.

    Raises:
        ValueError: no such rule, or a class is absent.
    """
    y, p = np.asarray(labels).astype(bool), np.asarray(scores, dtype=np.float64)
    if y.all() or not y.any():
        raise ValueError("a threshold needs images of both classes")
    values = np.unique(p)
    edges = np.concatenate([[0.0], (values[1:] + values[:-1]) / 2, [1.0]])
    gaps = np.diff(np.concatenate([[0.0], values, [1.0]]))
    positives, negatives = np.sort(p[y]), np.sort(p[~y])
    sensitivity = 1 - np.searchsorted(positives, edges) / positives.size
    specificity = np.searchsorted(negatives, edges) / negatives.size
    name, _, argument = rule.partition(":")
    if name == "balanced":
        gain = sensitivity + specificity
    elif name == "accuracy":
        gain = (sensitivity * positives.size + specificity * negatives.size) / y.size
    elif name == "sensitivity" and argument:
        gain = np.where(sensitivity >= float(argument), 1 + specificity, sensitivity)
    else:
        raise ValueError(f"'{rule}' is no rule for a threshold: balanced, accuracy or sensitivity:0.95")
    best = np.isclose(gain, gain.max(), rtol=0, atol=1e-12)
    return float(edges[int(np.argmax(np.where(best, gaps, -1)))])


def figures(labels: ArrayLike, scores: ArrayLike, limit: float) -> dict[str, Any]:
    """Return every figure of ``metrics`` in a bundle's contract.

    Args:
        labels: shape (n,).
        scores: shape (n,).
        limit: the threshold; the verdict is 1 from it on.
    """
    y, p = np.asarray(labels).astype(bool), np.asarray(scores, dtype=np.float64)
    called = p >= limit
    tn, fp = int((~called & ~y).sum()), int((called & ~y).sum())
    fn, tp = int((~called & y).sum()), int((called & y).sum())

    def share(part: int, whole: int) -> float | None:
        return part / whole if whole else None

    area = auroc(y, p)
    return {
        "images": int(y.size),
        "accuracy": share(tp + tn, y.size),
        "sensitivity": share(tp, tp + fn),
        "specificity": share(tn, tn + fp),
        "precision": share(tp, tp + fp),
        "f1": share(2 * tp, 2 * tp + fp + fn),
        "auroc": area if np.isfinite(area) else None,
        "loss": log_loss(y, p),
        "brier": float(np.mean((p - y) ** 2)),
        "ece": calibration_error(y, p),
        "roc": roc(y, p),
        "reliability": reliability(y, p),
        "confusion_matrix": [[tn, fp], [fn, tp]],
    }
