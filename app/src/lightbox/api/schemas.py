"""What the API's answers and requests look like."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Moment = Annotated[str, Field(json_schema_extra={"format": "date-time"}, examples=["2026-01-31T12:00:00.000+00:00"])]
Share = Annotated[float, Field(ge=0, le=1)]


class Problem(BaseModel):
    """An error, as RFC 9457 has it."""

    type: str = Field(examples=["urn:lightbox:not_found"])
    title: str = Field(description="The kind of problem in a few words.")
    status: int
    detail: str = Field(description="What is wrong with this request, for people.")
    instance: str = Field(description="The request, by its id, which the log also has.")
    kind: str = Field(description="The kind of problem, for programs.", examples=["not_found"])


class Error(BaseModel):
    """An error outside ``/v1``."""

    error: str


class FeedbackGiven(BaseModel):
    """What a person says a case shows."""

    label: str = Field(description="One of the model's labels.", max_length=200)


class FeedbackKept(BaseModel):
    """What a person said a case shows."""

    label: str
    agrees: bool = Field(description="Whether this is the label that the model gave.")
    created: Moment


class Case(BaseModel):
    """A classified image."""

    id: str
    filename: str
    verdict: str = Field(description="The label, or `Uncertain` when no verdict is safe.")
    label: str = Field(description="The label that the model gives.")
    confidence: Share = Field(description="Probability of the label.")
    confidence_text: str = Field(examples=["97.31%"])
    probabilities: dict[str, Share] = Field(description="Probability by label; empty for old cases.")
    uncertain: bool
    unfamiliar: str | None = Field(description="In words, why the image is unlike those of the training.")
    has_heatmap: bool
    heatmap_label: str | None = Field(description="The label for which the heat map speaks.")
    created: Moment
    model_version: str
    source: Literal["upload", "batch"]
    thumbnail: str = Field(description="A JPEG file in base64; may be empty.")
    feedback: FeedbackKept | None


class Band(BaseModel):
    """The scores of the positive label in which no verdict is safe: from `low` up to, not including, `high`."""

    low: Share
    high: Share


class Prediction(Case):
    """The answer to an upload: the case, and how its verdict came about."""

    threshold: float | None = Field(
        description="Score from which the second label is the verdict; null where the most probable label is."
    )
    positive: str | None = Field(description="The label that a finding is called by.")
    band: Band | None
    synthetic: bool = Field(description="Whether the model was trained on drawn images only.")
    stored: bool
    notice: str | None = Field(description="Why the case was not stored.")
    heatmap: str | None = Field(description="A PNG to lay over the whole image, in base64, when asked for.")


class BatchItem(BaseModel):
    """The answer to one file of several: a prediction or a problem."""

    filename: str
    prediction: Prediction | None
    problem: Problem | None


class BatchResult(BaseModel):
    """The answers to several files, in their order."""

    results: list[BatchItem]


class CasePage(BaseModel):
    """Some of the cases asked for."""

    cases: list[Case]
    page: int
    size: int
    total: int = Field(description="Cases on all pages.")
    pages: int


class CaseList(CasePage):
    """Some of the cases asked for, and what to filter by."""

    verdicts: list[str] = Field(description="Every verdict that the loaded model can give.")


class FeedbackCase(Case):
    """A case with feedback, and where its picture is."""

    image: str = Field(description="Path of the picture.", examples=["/v1/cases/0f…/image"])


class FeedbackList(BaseModel):
    """Cases with feedback, in the order in which it was given."""

    cases: list[FeedbackCase]
    page: int
    size: int
    total: int
    pages: int


class Live(BaseModel):
    """The process answers."""

    status: Literal["healthy"]
    timestamp: Moment


class Check(BaseModel):
    """One check."""

    ok: bool
    detail: str


class Ready(BaseModel):
    """Whether a prediction would be answered and stored, check by check."""

    ready: bool
    model_version: str | None
    checks: dict[str, Check]
    timestamp: Moment


class Model(BaseModel):
    """The loaded model's contract, ``model.json``, and the digests of the files as they were loaded."""

    model_config = ConfigDict(extra="allow")

    loaded_sha256: dict[str, str]


class LegacyCase(BaseModel):
    """A case outside ``/v1``; ``image`` is the thumbnail, a JPEG file in base64."""

    id: str
    filename: str
    prediction: str
    confidence: str = Field(examples=["97.31%"])
    model_version: str
    source: str
    created: Moment
    image: str


class LegacyPrediction(LegacyCase):
    """The answer to an upload outside ``/v1``."""

    timestamp: Moment
    probabilities: dict[str, float]
    uncertain: bool
    positive: str | None
    synthetic: bool
    stored: bool
    notice: str | None


class DrawnPrediction(BaseModel):
    """The answer to a drawing, where JSON is asked for."""

    digit: str = Field(description="The label; a digit where the model knows digits.")
    confidence: Share = Field(description="Probability of the label.")
    confidence_text: str = Field(examples=["97.31%"])
    probabilities: dict[str, Share] = Field(description="Probability by label.")
    uncertain: bool = Field(description="Whether the label is too weak for a verdict.")
    unfamiliar: str | None = Field(description="In words, why the drawing is unlike those of the training.")
    model_version: str
    synthetic: bool = Field(description="Whether the model was trained on drawn images only.")
    id: str = Field(description="The case, see `/v1/cases/{case_id}`.")
    stored: bool
    notice: str | None = Field(description="Why the case was not stored.")


class LegacyPage(BaseModel):
    """One page of cases outside ``/v1``; ``data`` holds them by file name, the newest where a name occurs twice."""

    data: dict[str, dict[str, Any]]
    cases: list[LegacyCase]
    positive: str | None
    page: int
    total_keys: int
    items_per_page: int
    total_pages: int
