"""What the API answers, read into types; a malformed answer is an error, never a verdict."""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

UNCERTAIN = "Uncertain"
PERCENT = re.compile(r"(100\.00|\d{1,2}\.\d{2})%")
# Two decimals of a percentage, and what rounding them may leave.
ROUNDING = 0.0051


class MalformedError(ValueError):
    """An answer lacks something or says something impossible."""


@dataclass(frozen=True)
class Feedback:
    """What a physician said of a case: the right label, and whether it is the one that was shown."""

    label: str
    agrees: bool
    created: str


@dataclass(frozen=True)
class Case:
    """A case as the pages show it; ``confidence`` is the probability of ``label`` as text, for example ``97.31%``."""

    id: str
    filename: str
    verdict: str
    label: str
    share: float
    confidence: str
    probabilities: Mapping[str, float]
    uncertain: bool
    unfamiliar: str | None
    heatmap_label: str | None
    created: str
    model_version: str
    source: str
    thumbnail: str
    feedback: Feedback | None


@dataclass(frozen=True)
class Prediction:
    """The answer to an upload. ``heatmap`` is a PNG in base64; ``low`` and ``high`` bound the uncertain band."""

    case: Case
    threshold: float | None
    low: float | None
    high: float | None
    positive: str | None
    synthetic: bool
    stored: bool
    notice: str | None
    heatmap: str | None


@dataclass(frozen=True)
class CasesPage:
    """One page of cases, and the verdicts that one may ask for."""

    cases: tuple[Case, ...]
    number: int
    size: int
    total: int
    pages: int
    verdicts: tuple[str, ...]


@dataclass(frozen=True)
class Model:
    """The model that is served: what the pages need of its contract, and the contract.

    ``threshold``, ``low`` and ``high`` speak of the second label's score (sigmoid); ``below`` of the confidence of the
    label shown (softmax).
    """

    version: str
    synthetic: bool
    labels: tuple[str, ...] = ()
    output: str = ""
    positive: str | None = None
    threshold: float | None = None
    low: float | None = None
    high: float | None = None
    below: float | None = None
    form: str = "upload"
    contract: Mapping[str, Any] = field(default_factory=dict)


def text(answer: Mapping[str, Any], name: str) -> str:
    """Return a text that must be there and not be empty.

    Raises:
        MalformedError: it is not.
    """
    value = answer.get(name)
    if not isinstance(value, str) or not value:
        raise MalformedError(name)
    return value


def optional_text(answer: Mapping[str, Any], name: str) -> str | None:
    """Return a text, or None where there is none.

    Raises:
        MalformedError: it is something else.
    """
    return None if answer.get(name) in (None, "") else text(answer, name)


def entry(answer: Any) -> Mapping[str, Any]:
    """Return a JSON object.

    Raises:
        MalformedError: it is something else.
    """
    if not isinstance(answer, dict):
        raise MalformedError("object")
    return answer


def number(value: Any) -> float | None:
    """Return a finite number, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _share(value: Any, name: str) -> float:
    found = number(value)
    if found is None or not 0 <= found <= 1:
        raise MalformedError(name)
    return found


def _flag(answer: Mapping[str, Any], name: str) -> bool:
    value = answer.get(name)
    if not isinstance(value, bool):
        raise MalformedError(name)
    return value


def _count(answer: Mapping[str, Any], name: str, least: int = 0) -> int:
    value = answer.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise MalformedError(name)
    return value


def _base64(answer: Mapping[str, Any], name: str) -> str:
    value = answer.get(name) or ""
    try:
        base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError, TypeError):
        raise MalformedError(name) from None
    return str(value)


def _feedback(answer: Any, label: str) -> Feedback | None:
    if answer is None:
        return None
    answer = entry(answer)
    given = Feedback(text(answer, "label"), _flag(answer, "agrees"), text(answer, "created"))
    if given.agrees != (given.label == label):
        raise MalformedError("feedback")
    return given


def read_case(answer: Any) -> Case:
    """Return the case in an answer.

    Raises:
        MalformedError: it is not whole, or its confidence is not that of its label.
    """
    answer = entry(answer)
    label, confidence = text(answer, "label"), text(answer, "confidence_text")
    share = _share(answer.get("confidence"), "confidence")
    if not PERCENT.fullmatch(confidence) or abs(share * 100 - float(confidence[:-1])) > ROUNDING:
        raise MalformedError("confidence")
    probabilities = {
        str(name): _share(value, "probabilities") for name, value in entry(answer.get("probabilities") or {}).items()
    }
    # Old cases have none; where there are some, the label's must be the one shown.
    if probabilities and abs(probabilities.get(label, -1) - share) * 100 > ROUNDING:
        raise MalformedError("probabilities")
    uncertain, verdict = _flag(answer, "uncertain"), text(answer, "verdict")
    if verdict != (UNCERTAIN if uncertain else label):
        raise MalformedError("verdict")
    return Case(
        id=text(answer, "id"),
        filename=text(answer, "filename"),
        verdict=verdict,
        label=label,
        share=share,
        confidence=confidence,
        probabilities=probabilities,
        uncertain=uncertain,
        unfamiliar=optional_text(answer, "unfamiliar"),
        heatmap_label=text(answer, "heatmap_label") if _flag(answer, "has_heatmap") else None,
        created=text(answer, "created"),
        model_version=text(answer, "model_version"),
        source=text(answer, "source"),
        thumbnail=_base64(answer, "thumbnail"),
        feedback=_feedback(answer.get("feedback"), label),
    )


def _band(band: Any) -> tuple[float | None, float | None]:
    if band is None:
        return None, None
    band = entry(band)
    return _share(band.get("low"), "band"), _share(band.get("high"), "band")


def read_prediction(answer: Any) -> Prediction:
    """Return the verdict in an answer to an upload.

    Raises:
        MalformedError: the answer is not whole, or contradicts itself.
    """
    answer = entry(answer)
    case = read_case(answer)
    if not case.probabilities:
        raise MalformedError("probabilities")
    threshold = answer.get("threshold")
    low, high = _band(answer.get("band"))
    heatmap = _base64(answer, "heatmap") or None
    return Prediction(
        case=case,
        threshold=None if threshold is None else _share(threshold, "threshold"),
        low=low,
        high=high,
        positive=optional_text(answer, "positive"),
        # Silence about the data is not taken for real data.
        synthetic=answer.get("synthetic") is not False,
        stored=_flag(answer, "stored"),
        notice=optional_text(answer, "notice"),
        heatmap=heatmap if case.heatmap_label else None,
    )


def read_cases(answer: Any) -> CasesPage:
    """Return the page of cases in an answer.

    Raises:
        MalformedError: the answer is not whole.
    """
    answer = entry(answer)
    cases, verdicts = answer.get("cases"), answer.get("verdicts")
    if not isinstance(cases, list) or not isinstance(verdicts, list):
        raise MalformedError("cases")
    return CasesPage(
        cases=tuple(read_case(case) for case in cases),
        number=_count(answer, "page", 1),
        size=_count(answer, "size", 1),
        total=_count(answer, "total"),
        # No case is a page without one.
        pages=max(1, _count(answer, "pages")),
        verdicts=tuple(str(verdict) for verdict in verdicts),
    )


def moment(time: str) -> str:
    """Return an ISO time as people read it, in UTC."""
    try:
        return datetime.fromisoformat(time).astimezone(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
    except ValueError:
        return time


def read_model(answer: Any) -> Model:
    """Return what a ``/v1/model`` answer says; parts that an older bundle lacks are left out.

    Raises:
        MalformedError: the answer has no version.
    """
    answer = entry(answer)

    def part(name: str, of: Mapping[str, Any] = answer) -> Mapping[str, Any]:
        value = of.get(name)
        return value if isinstance(value, dict) else {}

    decision = part("decision")
    band = part("uncertain", decision)
    labels = answer.get("labels")
    positive = decision.get("positive")
    return Model(
        version=text(answer, "version"),
        synthetic=part("data").get("synthetic") is not False,
        labels=tuple(map(str, labels)) if isinstance(labels, list) else (),
        output=str(answer.get("output", "")),
        positive=positive if isinstance(positive, str) else None,
        threshold=number(decision.get("threshold")),
        low=number(band.get("low")),
        high=number(band.get("high")),
        below=number(band.get("below")),
        form="canvas" if part("input").get("form") == "canvas" else "upload",
        contract=answer,
    )


@dataclass(frozen=True)
class Zone:
    """A stretch of a scale, both ends from 0 to 1; ``kind`` names its colour."""

    start: float
    end: float
    kind: str


@dataclass(frozen=True)
class Scale:
    """Where a score lies: ``value`` among zones from 0 to 1, and in words."""

    left: str
    right: str
    value: float
    threshold: float | None
    zones: Sequence[Zone]
    words: str
    note: str


def tone(case: Case, positive: str | None) -> str:
    """Return the colour of a verdict: ``uncertain``, ``finding``, ``clear``, or ``neutral`` when nobody can say."""
    if case.uncertain:
        return "uncertain"
    if positive is None:
        return "neutral"
    return "finding" if case.label == positive else "clear"


def _percent(value: float) -> str:
    return f"{value * 100:.1f}".removesuffix(".0") + "%"


def scale(
    case: Case,
    positive: str | None,
    threshold: float | None,
    low: float | None,
    high: float | None,
    below: float | None,
) -> Scale | None:
    """Return where the score of a case lies, or None when the limits that were in force are not known.

    For two labels the scale is the probability of the second one, which threshold and band speak of; for more it is
    the confidence of the label shown.
    """
    if len(case.probabilities) == 2 and threshold is not None:
        left, right = case.probabilities
        value = case.probabilities[right]
        colour = {left: "neutral", right: "neutral"}
        if positive in colour:
            colour = {name: "finding" if name == positive else "clear" for name in colour}
        words = f"The probability of {right} is {_percent(value)}. The threshold is {_percent(threshold)}"
        note = f"Threshold {_percent(threshold)}"
        if low is not None and high is not None and low < high:
            zones = [Zone(0, low, colour[left]), Zone(low, high, "uncertain"), Zone(high, 1, colour[right])]
            words += f"; between {_percent(low)} and {_percent(high)} the verdict is uncertain"
            note += f", uncertain from {_percent(low)} to {_percent(high)}"
        else:
            zones = [Zone(0, threshold, colour[left]), Zone(threshold, 1, colour[right])]
        shown = [zone for zone in zones if zone.end > zone.start]
        return Scale(left, right, value, threshold, shown, f"{words}.", note)
    if len(case.probabilities) > 2 and below is not None:
        words = f"The confidence is {_percent(case.share)}. Below {_percent(below)} the verdict is uncertain."
        zones = [Zone(0, below, "uncertain"), Zone(below, 1, "neutral")]
        shown = [zone for zone in zones if zone.end > zone.start]
        return Scale("0%", "100%", case.share, None, shown, words, f"Uncertain below {_percent(below)}")
    return None
