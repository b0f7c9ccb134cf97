"""How good a binary classifier is: figures, the threshold, and the calibration of its scores. NumPy only.

Labels are 0 and 1, scores are probabilities of 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

EPSILON = 1e-7
# Draws of the bootstrap, and the share of them that lies in an interval.
DRAWS, LEVEL = 1000, 0.95
# Weights held at once.
CELLS = 4_000_000

Doubles = NDArray[np.float64]


def logits(scores: ArrayLike) -> Doubles:
    """Return the log odds of probabilities, kept finite."""
    p = np.clip(np.asarray(scores, dtype=np.float64), EPSILON, 1 - EPSILON)
    return np.log(p / (1 - p))


def log_loss(labels: ArrayLike, scores: ArrayLike) -> float:
    """Return the mean negative log likelihood."""
    y, z = np.asarray(labels, dtype=np.float64), logits(scores)
    return float(np.mean(np.logaddexp(0, z) - y * z))


def _areas(y: NDArray[np.bool_], p: Doubles, weights: Doubles) -> tuple[Doubles, Doubles]:
    """Return AUROC and average precision for each row of weights, shape (draws, n); NaN when a class is absent."""
    order = np.argsort(p, kind="stable")
    _, starts = np.unique(p[order], return_index=True)
    sorted_weights = weights[:, order]
    # Images of the same score are one step.
    ill = np.add.reduceat(sorted_weights * y[order], starts, axis=1)
    well = np.add.reduceat(sorted_weights * ~y[order], starts, axis=1)
    positives, negatives = ill.sum(axis=1), well.sum(axis=1)
    below = np.cumsum(well, axis=1) - well
    found, called = np.cumsum(ill[:, ::-1], axis=1), np.cumsum((ill + well)[:, ::-1], axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        area = (ill * (below + well / 2)).sum(axis=1) / (positives * negatives)
        precision = np.where(called > 0, found / called, 0.0)
        average = np.where(negatives > 0, (ill[:, ::-1] * precision).sum(axis=1) / positives, np.nan)
    return area, average


def _calibration(y: NDArray[np.bool_], p: Doubles, weights: Doubles, bins: int = 10) -> Doubles:
    """Return the expected calibration error for each row of weights, shape (draws, n)."""
    confidence, right, index = _bins(y, p, bins)
    gaps = [abs(weights[:, index == b] @ (right - confidence)[index == b]) for b in np.unique(index)]
    return np.sum(gaps, axis=0) / weights.sum(axis=1)


def _bins(y: NDArray[np.bool_], p: Doubles, bins: int) -> tuple[Doubles, NDArray[np.bool_], NDArray[np.int64]]:
    """Return of each image the confidence of the predicted class, whether it is right, and the confidence's bin."""
    confidence, right = np.where(p >= 0.5, p, 1 - p), (p >= 0.5) == y
    return confidence, right, np.minimum((confidence * bins).astype(np.int64), bins - 1)


def auroc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Return the area under the receiver operating characteristic; ties count half. NaN when a class is absent.

    It equals the Mann-Whitney U statistic divided by the number of pairs.
    """
    y, p = np.asarray(labels).astype(bool), np.asarray(scores, dtype=np.float64)
    return float(_areas(y, p, np.ones((1, y.size)))[0][0])


def calibration_error(labels: ArrayLike, scores: ArrayLike) -> float:
    """Return the expected calibration error over bins of equal width (Guo et al., 2017) of the predicted class."""
    y, p = np.asarray(labels).astype(bool), np.asarray(scores, dtype=np.float64)
    return float(_calibration(y, p, np.ones((1, y.size)))[0])


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
    confidence, right, index = _bins(y, p, bins)
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


def _measure(y: NDArray[np.bool_], p: Doubles, limit: float, weights: Doubles) -> dict[str, Doubles]:
    """Return each figure for each row of weights, shape (draws, n); NaN where it is not defined."""
    called = p >= limit
    tn, fp, fn, tp = (weights @ part for part in (~called & ~y, called & ~y, ~called & y, called & y))
    area, average = _areas(y, p, weights)
    total, z = weights.sum(axis=1), logits(p)
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "accuracy": (tp + tn) / total,
            "sensitivity": tp / (tp + fn),
            "specificity": tn / (tn + fp),
            "precision": tp / (tp + fp),
            "f1": 2 * tp / (2 * tp + fp + fn),
            "auroc": area,
            "auprc": average,
            "loss": weights @ (np.logaddexp(0, z) - y * z) / total,
            "brier": weights @ (p - y) ** 2 / total,
            "ece": _calibration(y, p, weights),
        }


def _intervals(
    measure: Callable[[Doubles], dict[str, Doubles]], groups: ArrayLike, seed: int
) -> dict[str, list[float]]:
    """Return the interval of each figure: the percentile bootstrap (Efron and Tibshirani, 1993) over groups.

    Args:
        measure: gives figures for each row of weights of the images, shape (draws, n).
        groups: images of the same group, such as a patient's, are drawn together; shape (n,).
        seed: of what is drawn.
    """
    _, member = np.unique(np.asarray(groups), return_inverse=True)
    count, rng = int(member.max()) + 1, np.random.default_rng(seed)
    drawn: dict[str, list[Doubles]] = {}
    rows = max(1, CELLS // member.size)
    for begin in range(0, DRAWS, rows):
        times = rng.multinomial(count, np.full(count, 1 / count), size=min(rows, DRAWS - begin))
        for name, values in measure(times[:, member].astype(np.float64)).items():
            drawn.setdefault(name, []).append(values)
    found = {name: np.concatenate(parts) for name, parts in drawn.items()}
    ends = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
    # A draw may lack a class.
    return {
        name: [float(end) for end in np.nanquantile(values, ends)]
        for name, values in found.items()
        if np.isfinite(values).any()
    }


def figures(
    labels: ArrayLike, scores: ArrayLike, limit: float, groups: ArrayLike | None = None, seed: int = 0
) -> dict[str, Any]:
    """Return every figure of ``metrics`` in a bundle's contract.

    Args:
        labels: shape (n,).
        scores: shape (n,).
        limit: the threshold; the verdict is 1 from it on.
        groups: what images belong together, such as a patient's, shape (n,); with it, ``intervals`` hold the bounds of
            95 % of the figures when groups are drawn anew with replacement.
        seed: of these draws.
    """
    y, p = np.asarray(labels).astype(bool), np.asarray(scores, dtype=np.float64)
    called = p >= limit
    found: dict[str, Any] = {"images": int(y.size)}
    for name, values in _measure(y, p, limit, np.ones((1, y.size))).items():
        found[name] = float(values[0]) if np.isfinite(values[0]) else None
    if groups is not None:
        found["intervals"] = _intervals(lambda weights: _measure(y, p, limit, weights), groups, seed)
    return {
        **found,
        "roc": roc(y, p),
        "reliability": reliability(y, p),
        "confusion_matrix": [
            [int((~called & ~y).sum()), int((called & ~y).sum())],
            [int((~called & y).sum()), int((called & y).sum())],
        ],
    }


def subgroups(
    kinds: Sequence[str], labels: ArrayLike, scores: ArrayLike, limit: float, groups: Sequence[str], seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Return by kind of image how many there are, the share of right verdicts and its interval.

    Args:
        kinds: kind of each image; an image of the empty kind counts nowhere; length n.
        labels: shape (n,).
        scores: shape (n,).
        limit: the threshold; the verdict is 1 from it on.
        groups: what images belong together, as in :func:`figures`; length n.
        seed: as in :func:`figures`.
    """
    right = (np.asarray(scores, dtype=np.float64) >= limit) == np.asarray(labels).astype(bool)
    found = {}
    for kind in sorted(set(kinds) - {""}):
        rows = np.flatnonzero(np.asarray(kinds) == kind)

        def accuracy(weights: Doubles, rows: NDArray[np.int64] = rows) -> dict[str, Doubles]:
            return {"accuracy": weights @ right[rows] / weights.sum(axis=1)}

        found[kind] = {
            "images": int(rows.size),
            "accuracy": float(right[rows].mean()),
            "intervals": _intervals(accuracy, np.asarray(groups)[rows], seed),
        }
    return found
