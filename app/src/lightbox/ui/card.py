"""The model card: what ``model.json`` says of a model, in the page's words and order; what it lacks is left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightbox.ui import charts
from lightbox.ui.answers import Model, number

Rows = Sequence[tuple[str, str]]

# Figures in the order shown: name, heading, what it means.
FIGURES = (
    ("images", "Images", "labelled images the figures were taken on"),
    ("accuracy", "Accuracy", "share of right verdicts"),
    ("sensitivity", "Sensitivity", "share of the images with the finding that were called so"),
    ("specificity", "Specificity", "share of the images without the finding that were called so"),
    ("recall", "Recall", "share of a label's images that were called so"),
    ("precision", "Precision", "share of the images called a finding that have it"),
    ("f1", "F1", "harmonic mean of precision and sensitivity"),
    ("auroc", "AUROC", "chance that an image with the finding scores above one without"),
    ("auprc", "AUPRC", "average precision, over all thresholds"),
    ("loss", "Log loss", "less is better"),
    ("brier", "Brier score", "mean squared error of the probability; less is better"),
    ("ece", "Calibration error", "expected gap between confidence and accuracy; less is better"),
)
# What they mean of more than two labels, where that differs.
OF_MANY = {
    "precision": "share of the images called by a label that have it",
    "f1": "harmonic mean of precision and recall",
    "auroc": "chance that an image of a label scores above one of another",
    "brier": "squared error of the probabilities, summed over the labels; less is better",
}
# Figures of each label, and those of all labels that are their mean.
OF_A_LABEL = ("images", "recall", "precision", "f1", "auroc", "auprc")
SPLITS = (("validation", "Validation"), ("test", "Test"), ("external", "External"))
NONE = "\u2013"
SHARES = frozenset({"accuracy", "sensitivity", "specificity", "recall", "precision"})


@dataclass(frozen=True)
class Counts:
    """Images per split and class: the classes, and rows of a split's name, its counts and their sum."""

    classes: Sequence[str]
    rows: Sequence[tuple[str, Sequence[str], str]]


@dataclass(frozen=True)
class Figures:
    """Figures per split: the splits' headings, and rows of name, meaning and values, each with its interval or none."""

    splits: Sequence[str]
    rows: Sequence[tuple[str, str, Sequence[tuple[str, str]]]]

    @property
    def intervals(self) -> bool:
        """Whether any interval is known."""
        return any(interval for _, _, values in self.rows for _, interval in values)


@dataclass(frozen=True)
class Labels:
    """Figures of each label against the others: headings, and rows of label and values, each with its interval."""

    headings: Sequence[str]
    rows: Sequence[tuple[str, Sequence[tuple[str, str]]]]


@dataclass(frozen=True)
class Robustness:
    """Figures on changed images: headings, rows of how they were changed and values, and how many there were."""

    headings: Sequence[str]
    rows: Sequence[tuple[str, Sequence[str]]]
    images: str


@dataclass(frozen=True)
class Card:
    """The sections of the model page; an empty one is not shown."""

    facts: Rows
    counts: Counts | None
    data: Rows
    figures: Figures | None
    charted: str
    labels: Labels | None
    confusion: charts.Matrix | None
    roc: charts.Curve | None
    reliability: charts.Curve | None
    robustness: Robustness | None
    shortcuts: Rows
    decision: Rows
    calibration: Rows
    familiarity: Rows
    serving: Rows
    rejected: Sequence[str]
    training: Rows
    parameters: Rows
    libraries: Rows
    limits: Sequence[str]


def _part(of: Any, name: str) -> Mapping[str, Any]:
    value = of.get(name) if isinstance(of, Mapping) else None
    return value if isinstance(value, Mapping) else {}


def plain(value: Any) -> str:
    """Return a value of the contract as people read it; an empty text for none."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return f"{value:.4g}" if isinstance(value, float) else f"{value:,}".replace(",", "\u202f")
    if isinstance(value, list | tuple):
        return ", ".join(plain(item) for item in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{_words(name)} {plain(item)}" for name, item in value.items())
    return str(value)


def _words(name: Any) -> str:
    return str(name).replace("_", " ")


def _sentence(words: str) -> str:
    return words[:1].upper() + words[1:]


def _rows(*pairs: tuple[str, Any]) -> Rows:
    return [(name, shown) for name, value in pairs if (shown := plain(value))]


def _percent(value: Any) -> str:
    found = number(value)
    return "" if found is None else f"{found * 100:.2f}".rstrip("0").rstrip(".") + "%"


def _duration(seconds: Any) -> str:
    found = number(seconds)
    if found is None:
        return ""
    if found < 90:
        return f"{found:.0f} s"
    return f"{found / 60:.0f} min" if found < 5400 else f"{found / 3600:.1f} h"


def _counts(contract: Mapping[str, Any]) -> Counts | None:
    counts = dict(_part(_part(contract, "data"), "counts"))
    elsewhere = [row for row in _part(_part(contract, "external"), "counts").values() if isinstance(row, Mapping)]
    if elsewhere:
        labels = dict.fromkeys(label for row in elsewhere for label in row)
        counts["elsewhere"] = {label: sum(int(number(row.get(label)) or 0) for row in elsewhere) for label in labels}
    splits = [(str(split), row) for split, row in counts.items() if isinstance(row, Mapping)]
    classes = list(dict.fromkeys(str(name) for _, row in splits for name in row))
    if not classes:
        return None
    rows = [
        (split.capitalize(), [plain(row.get(name, 0)) for name in classes],
         plain(sum(int(number(value) or 0) for value in row.values())))
        for split, row in splits
    ]  # fmt: skip
    return Counts(classes, rows)


def _figure(name: str, figures: Mapping[str, Any]) -> tuple[str, str]:
    """Return a figure as it is shown, and the bounds of its interval where they are known."""
    value = number(figures.get(name))
    if value is None:
        return NONE, ""
    if name == "images":
        return plain(int(value)), ""

    def shown(one: float) -> str:
        return f"{one * 100:.1f}%" if name in SHARES else f"{one:.3f}"

    bounds = _part(figures, "intervals").get(name)
    ends = [number(end) for end in bounds] if isinstance(bounds, list) else []
    known = [shown(end) for end in ends if end is not None]
    return shown(value), f"{known[0].rstrip('%')}\u2013{known[1]}" if len(known) == 2 else ""


def _meaning(name: str, meaning: str, many: bool) -> str:
    if not many:
        return meaning
    mean = "; the mean over labels" if name in OF_A_LABEL[1:] else ""
    return OF_MANY.get(name, meaning) + mean


def _figures(metrics: Mapping[str, Any]) -> Figures | None:
    splits = [(heading, _part(metrics, split)) for split, heading in SPLITS if _part(metrics, split)]
    many = any(_part(figures, "classes") for _, figures in splits)
    rows = [
        (heading, _meaning(name, meaning, many), [_figure(name, figures) for _, figures in splits])
        for name, heading, meaning in FIGURES
    ]
    for kind in dict.fromkeys(str(kind) for _, figures in splits for kind in _part(figures, "subgroups")):
        parts = [_part(_part(figures, "subgroups"), kind) for _, figures in splits]
        counts = ", ".join(_figure("images", part)[0] for part in parts)
        meaning = f"share of right verdicts on images named so ({counts} images)"
        rows.append((f"Accuracy, {kind}", meaning, [_figure("accuracy", part) for part in parts]))
    rows = [row for row in rows if {value for value, _ in row[2]} - {NONE}]
    return Figures([heading for heading, _ in splits], rows) if rows else None


def _labels(figures: Mapping[str, Any]) -> Labels | None:
    classes = _part(figures, "classes")
    headings = [heading for name, heading, _ in FIGURES if name in OF_A_LABEL]
    names = [name for name, _, _ in FIGURES if name in OF_A_LABEL]
    rows = [(str(label), [_figure(name, _part(classes, label)) for name in names]) for label in classes]
    return Labels(headings, rows) if rows else None


def _robustness(contract: Mapping[str, Any]) -> Robustness | None:
    found = _part(contract, "robustness")
    listed = found.get("perturbations")
    shown = [
        (name, heading) for name, heading, _ in FIGURES if name in ("auroc", "accuracy", "sensitivity", "specificity")
    ]
    known = [
        row for row in (listed if isinstance(listed, list) else []) if isinstance(row, Mapping) and row.get("words")
    ]
    shown = [(name, heading) for name, heading in shown if any(name in row for row in known)]
    rows = [(_sentence(plain(row.get("words"))), [_figure(name, row)[0] for name, _ in shown]) for row in known]
    return Robustness([heading for _, heading in shown], rows, plain(found.get("images"))) if rows else None


def _band(decision: Mapping[str, Any]) -> Rows:
    band = _part(decision, "uncertain")
    low, high, below = (_percent(band.get(name)) for name in ("low", "high", "below"))
    bounds = f"score from {low} to {high}" if low and high else f"confidence below {below}" if below else ""
    return _rows(("Uncertain band", bounds), ("Band chosen by", band.get("chosen_by") if bounds else None))


def _rejected(value: Any) -> list[str]:
    sentences = []
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, Mapping):
            name, why = plain(one.get("precision")), plain(one.get("why"))
            rest = plain({key: item for key, item in one.items() if key not in ("precision", "why")})
            sentence = f"{name or 'another form'} was tried and rejected" + (f": {why}" if why else "")
            sentences.append(sentence + (f" ({rest})" if rest else ""))
        elif one:
            sentences.append(plain(one))
    return sentences


def _takes(takes: Mapping[str, Any]) -> str:
    if not takes.get("height") or not takes.get("width"):
        return ""
    colour = {"grayscale": "grey", "rgb": "colour (RGB)"}.get(str(takes.get("color")), plain(takes.get("color")))
    return f"{plain(takes['width'])} \u00d7 {plain(takes['height'])} pixels, {colour}"


def read_card(model: Model) -> Card:
    """Return the card of a model; whatever its contract lacks or says in another form is left out."""
    contract = model.contract
    data, metrics, decision = (_part(contract, name) for name in ("data", "metrics", "decision"))
    serving, training, familiar = (_part(contract, name) for name in ("serving", "training", "out_of_distribution"))
    calibration, parity = _part(contract, "calibration"), _part(serving, "parity")
    charted, shown = next(
        ((heading, _part(metrics, split)) for split, heading in reversed(SPLITS) if _part(metrics, split)), ("", {})
    )
    limits = contract.get("limits")
    best = training.get("best_epoch")
    epochs = plain(training.get("epochs"))
    threshold = _percent(decision.get("threshold")) if model.output != "softmax" else ""
    agreement = ""
    if number(parity.get("images")) is not None:
        flips, images = number(parity.get("label_flips")), plain(parity["images"])
        same = (
            f"the same verdict on all {images} images" if flips == 0 else f"{plain(flips)} of {images} verdicts differ"
        )
        agreement = f"{same}, largest difference of a score {plain(number(parity.get('max_abs_difference')))}"
    return Card(
        facts=_rows(
            ("Name", contract.get("name")),
            ("Version", model.version),
            ("Created", contract.get("created")),
            ("Architecture", training.get("architecture")),
            ("Labels", list(model.labels)),
            ("Finding", model.positive),
            ("Input", _takes(_part(contract, "input"))),
            ("Source code", plain(contract.get("git_revision"))[:12]),
        ),
        counts=_counts(contract),
        data=_rows(
            ("Source", data.get("source")),
            ("Left out", data.get("left_out")),
            ("Judged on these pages", data.get("feedback")),
            ("Digest", plain(data.get("digest"))[:12]),
        ),
        figures=_figures(metrics),
        charted=charted,
        labels=_labels(shown),
        confusion=charts.confusion(shown.get("confusion_matrix"), model.labels),
        roc=charts.roc(shown.get("roc"), shown.get("auroc")),
        reliability=charts.reliability(shown.get("reliability")),
        robustness=_robustness(contract),
        shortcuts=_rows(
            ("AUROC with the middle of each image covered", number(_part(contract, "shortcuts").get("covered_auroc"))),
            ("AUROC of the files alone, unseen", number(_part(contract, "shortcuts").get("files_auroc"))),
        ),
        decision=[
            *_rows(("Threshold", threshold), ("Chosen by", decision.get("chosen_by"))),
            *_band(decision),
        ],
        calibration=_rows(
            ("Method", calibration.get("method")),
            ("Temperature", calibration.get("temperature")),
            ("Shift", calibration.get("shift")),
            ("Folded into the weights", calibration.get("folded")),
            ("Chosen anew for", _part(contract, "recalibrated").get("from")),
            ("Accuracy before that", _percent(_part(_part(contract, "recalibrated"), "before").get("accuracy"))),
            ("Calibration error on test images", calibration.get("ece")),
        ),
        familiarity=_rows(
            ("Method", familiar.get("method")),
            ("Largest distance", familiar.get("threshold")),
            ("Largest saturation", familiar.get("max_chroma")),
            ("Chosen by", familiar.get("chosen_by")),
        ),
        serving=_rows(
            ("Engine", serving.get("engine")),
            ("Precision", serving.get("precision")),
            ("File", serving.get("file")),
            ("Digest loaded", plain(_part(contract, "loaded_sha256").get(str(serving.get("file"))))[:12]),
            ("Agreement with Keras", agreement),
            ("Compared with fp32", serving.get("against_fp32")),
        ),
        rejected=_rejected(serving.get("rejected")),
        training=_rows(
            ("Epochs", f"{epochs}, the best was number {plain(best)}" if epochs and plain(best) else epochs),
            ("Time", _duration(training.get("seconds"))),
            ("Seed", training.get("seed")),
        ),
        parameters=_rows(*((_words(name), value) for name, value in _part(training, "parameters").items())),
        libraries=_rows(*((str(name), value) for name, value in _part(contract, "libraries").items())),
        limits=[str(sentence) for sentence in limits if sentence] if isinstance(limits, list) else [],
    )
