"""How good a classifier is: figures, the threshold, and the calibration of its scores. NumPy only.

Of two classes, labels are 0 and 1 and scores are probabilities of 1, shape (n,). Of more, labels are indices and scores
are probabilities of each class, shape (n, classes); what speaks of one class then speaks of it against all others, and
what has no class is the mean over classes (the macro average).
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
# Figures of one class of several against the others, by their names among those of two classes.
OF_A_CLASS = {
    "sensitivity": "recall",
    "precision": "precision",
    "f1": "f1",
    "auroc": "auroc",
    "auprc": "auprc",
}

Doubles = NDArray[np.float64]


def _read(labels: ArrayLike, scores: ArrayLike) -> tuple[NDArray[Any], Doubles]:
    """Return labels and scores as arrays: booleans beside scores of shape (n,), indices beside (n, classes)."""
    p = np.asarray(scores, dtype=np.float64)
    return np.asarray(labels).astype(bool if p.ndim == 1 else np.int64), p


def verdicts(scores: ArrayLike, limit: float) -> NDArray[np.int64]:
    """Return the label given to each image, shape (n,).

    Args:
        scores: shape (n,) or (n, classes).
        limit: the threshold; of two classes the verdict is 1 from it on. Of more it is the most probable one.
    """
    p = np.asarray(scores, dtype=np.float64)
    return (p >= limit).astype(np.int64) if p.ndim == 1 else p.argmax(axis=1)


def confidences(scores: ArrayLike) -> Doubles:
    """Return the probability of each image's most probable class, shape (n,)."""
    p = np.asarray(scores, dtype=np.float64)
    return np.maximum(p, 1 - p) if p.ndim == 1 else p.max(axis=1)


def logits(scores: ArrayLike) -> Doubles:
    """Return the logits of probabilities, kept finite: log odds of shape (n,), or logarithms of shape (n, classes)."""
    p = np.clip(np.asarray(scores, dtype=np.float64), EPSILON, 1 - EPSILON)
    return np.log(p / (1 - p)) if p.ndim == 1 else np.log(p)


def probabilities(z: Doubles) -> Doubles:
    """Return the probabilities of logits, shape (n,) or (n, classes)."""
    if z.ndim == 1:
        return np.asarray(1 / (1 + np.exp(-z)))
    return np.asarray(np.exp(z - np.logaddexp.reduce(z, axis=1, keepdims=True)))


def _losses(y: NDArray[Any], z: Doubles) -> Doubles:
    """Return the negative log likelihood of each image by its logits, shape (n,) or (n, classes)."""
    if z.ndim == 1:
        return np.asarray(np.logaddexp(0, z) - y * z)
    return np.asarray(np.logaddexp.reduce(z, axis=1) - z[np.arange(y.size), y])


def log_loss(labels: ArrayLike, scores: ArrayLike) -> float:
    """Return the mean negative log likelihood."""
    y, p = _read(labels, scores)
    return float(np.mean(_losses(y, logits(p))))


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


def _calibration(y: NDArray[Any], p: Doubles, weights: Doubles, bins: int = 10) -> Doubles:
    """Return the expected calibration error for each row of weights, shape (draws, n)."""
    confidence, right, index = _bins(y, p, bins)
    gaps = [abs(weights[:, index == b] @ (right - confidence)[index == b]) for b in np.unique(index)]
    return np.sum(gaps, axis=0) / weights.sum(axis=1)


def _bins(y: NDArray[Any], p: Doubles, bins: int) -> tuple[Doubles, NDArray[np.bool_], NDArray[np.int64]]:
    """Return of each image the confidence of the predicted class, whether it is right, and the confidence's bin."""
    confidence, right = confidences(p), verdicts(p, 0.5) == y
    return confidence, right, np.minimum((confidence * bins).astype(np.int64), bins - 1)


def auroc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Return the area under the receiver operating characteristic; ties count half. NaN when a class is absent.

    It equals the Mann-Whitney U statistic divided by the number of pairs. Of several classes it is the mean of those of
    each class against the others.
    """
    y, p = _read(labels, scores)
    weights = np.ones((1, y.size))
    if p.ndim == 1:
        return float(_areas(y, p, weights)[0][0])
    return float(np.mean([_areas(y == label, p[:, label], weights)[0][0] for label in range(p.shape[1])]))


def calibration_error(labels: ArrayLike, scores: ArrayLike) -> float:
    """Return the expected calibration error over bins of equal width (Guo et al., 2017) of the predicted class."""
    y, p = _read(labels, scores)
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
    y, p = _read(labels, scores)
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
    y, p = _read(labels, scores)
    z = logits(p)

    def loss(log_t: float) -> float:
        return float(np.mean(_losses(y, z / np.exp(log_t))))

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


def _rates(y: NDArray[np.bool_], p: Doubles, called: NDArray[np.bool_], weights: Doubles) -> dict[str, Doubles]:
    """Return the figures of verdicts and of the order of scores for each row of weights, shape (draws, n).

    Args:
        y: whether an image is of the class, shape (n,).
        p: score of the class, shape (n,).
        called: whether the verdict is that class, shape (n,).
        weights: how often each image counts.
    """
    tn, fp, fn, tp = (weights @ part for part in (~called & ~y, called & ~y, ~called & y, called & y))
    area, average = _areas(y, p, weights)
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "accuracy": (tp + tn) / weights.sum(axis=1),
            "sensitivity": tp / (tp + fn),
            "specificity": tn / (tn + fp),
            "precision": tp / (tp + fp),
            "f1": 2 * tp / (2 * tp + fp + fn),
            "auroc": area,
            "auprc": average,
        }


def _measure(y: NDArray[Any], p: Doubles, limit: float, weights: Doubles) -> dict[str, Doubles]:
    """Return each figure for each row of weights, shape (draws, n); NaN where it is not defined.

    Of several classes the figures of one are named after its label and themselves, such as ``3 recall``.
    """
    total, called = weights.sum(axis=1), verdicts(p, limit)
    if p.ndim == 1:
        found, squares = _rates(y, p, called.astype(bool), weights), (p - y) ** 2
    else:
        classes = range(p.shape[1])
        rates = [_rates(y == label, p[:, label], called == label, weights) for label in classes]
        found = {"accuracy": weights @ (called == y) / total}
        for name, own in OF_A_CLASS.items():
            found[own] = np.mean([one[name] for one in rates], axis=0)
            found.update({f"{label} {own}": rates[label][name] for label in classes})
        # The score of Brier (1950): over all classes, from 0 to 2.
        squares = ((p - (y[:, None] == np.arange(p.shape[1]))) ** 2).sum(axis=1)
    return {
        **found,
        "loss": weights @ _losses(y, logits(p)) / total,
        "brier": weights @ squares / total,
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
    """Return every figure of ``metrics`` in a bundle's contract; of several classes, ``classes`` has those of each.

    Args:
        labels: shape (n,).
        scores: shape (n,) or (n, classes).
        limit: the threshold, see :func:`verdicts`.
        groups: what images belong together, such as a patient's, shape (n,); with it, ``intervals`` hold the bounds of
            95 % of the figures when groups are drawn anew with replacement.
        seed: of these draws.
    """
    y, p = _read(labels, scores)
    classes, called = 2 if p.ndim == 1 else p.shape[1], verdicts(p, limit)
    found: dict[str, Any] = {"images": int(y.size)}
    for name, values in _measure(y, p, limit, np.ones((1, y.size))).items():
        found[name] = float(values[0]) if np.isfinite(values[0]) else None
    if groups is not None:
        found["intervals"] = _intervals(lambda weights: _measure(y, p, limit, weights), groups, seed)
    if p.ndim == 1:
        found["roc"] = roc(y, p)
    else:
        found["classes"] = [_of_class(found, label, int((y == label).sum())) for label in range(classes)]
    counts = np.bincount(y.astype(np.int64) * classes + called, minlength=classes**2)
    return {
        **found,
        "reliability": reliability(y, p),
        "confusion_matrix": counts.reshape(classes, classes).tolist(),
    }


def _of_class(found: dict[str, Any], label: int, images: int) -> dict[str, Any]:
    """Take the figures of one class, and their intervals, out of those of all."""
    names = {f"{label} {own}": own for own in OF_A_CLASS.values()}
    one: dict[str, Any] = {"images": images, **{own: found.pop(name) for name, own in names.items()}}
    if "intervals" in found:
        bounds = found["intervals"]
        one["intervals"] = {own: bounds.pop(name) for name, own in names.items() if name in bounds}
    return one


def subgroups(
    kinds: Sequence[str], labels: ArrayLike, scores: ArrayLike, limit: float, groups: Sequence[str], seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Return by kind of image how many there are, the share of right verdicts and its interval.

    Args:
        kinds: kind of each image; an image of the empty kind counts nowhere; length n.
        labels: shape (n,).
        scores: shape (n,) or (n, classes).
        limit: the threshold, see :func:`verdicts`.
        groups: what images belong together, as in :func:`figures`; length n.
        seed: as in :func:`figures`.
    """
    right = verdicts(scores, limit) == np.asarray(labels)
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
