"""The routes under ``/v1``."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from functools import partial
from typing import Annotated, Any, Literal, TypeVar

import anyio.to_thread
from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from lightbox import heat, store
from lightbox.api import schemas
from lightbox.api.classify import admit, classify, no_model, service_of
from lightbox.api.problems import RefusalError, documented, problem
from lightbox.api.service import LabelError, NoModelError, Outcome, percent
from lightbox.api.uploads import content, files, form_of, megabytes, plain_name, too_large
from lightbox.store import PageError, StoreError

# Files that one request may bring.
MOST_FILES = 32
# The largest batch, in files of the largest size that is accepted: what one request may put on the disk.
BATCH_FILES = 5

CaseId = Annotated[str, Path(pattern=r"^[A-Za-z0-9._:-]{1,128}$", description="The case's id.")]
PageNumber = Annotated[int, Query(ge=1, le=1_000_000_000, description="Number of the page.")]
PageSize = Annotated[int, Query(ge=1, le=100, description="Cases on a page.")]
WithHeat = Annotated[bool, Query(description="Whether to answer with the heat map too.")]
NO_CASE = "There is no such case."
NO_STORE = "The case store failed."
INVALID = "A parameter is not what is documented."

T = TypeVar("T")
router = APIRouter(prefix="/v1", responses=documented(_500="A failure inside; the log has it."))


async def stored(function: Callable[..., T], *arguments: Any) -> T:
    """Return what a function that uses the case store gives, run in a thread.

    Raises:
        RefusalError: Redis failed, or there is no such page.
    """
    try:
        return await anyio.to_thread.run_sync(partial(function, *arguments))
    except PageError as error:
        raise RefusalError(404, "page", f"{error}.") from None
    except StoreError as error:
        raise RefusalError(503, "store", f"The cases cannot be reached now: {error}.") from None


def existing(found: T | None) -> T:
    """Return what was found.

    Raises:
        RefusalError: nothing was.
    """
    if not found:
        raise RefusalError(404, "not_found", "There is no such case. It may have been deleted.")
    return found


def case_fields(case: store.Case) -> dict[str, Any]:
    """Return a case's fields as the API gives them."""
    said = case.feedback
    return {
        "id": case.id,
        "filename": case.filename,
        "verdict": case.verdict,
        "label": case.label,
        "confidence": case.confidence,
        "confidence_text": percent(case.confidence),
        "probabilities": case.probabilities,
        "uncertain": case.uncertain,
        "unfamiliar": case.unfamiliar,
        "has_heatmap": bool(case.heat),
        "heatmap_label": case.heat_label,
        "created": case.created.isoformat(timespec="milliseconds"),
        "model_version": case.model_version,
        "source": case.source,
        "thumbnail": base64.b64encode(case.thumbnail).decode("ascii"),
        "feedback": said and {
            "label": said.label,
            "agrees": said.label == case.label,
            "created": said.created.isoformat(timespec="milliseconds"),
        },
    }  # fmt: skip


def prediction_fields(outcome: Outcome, with_heat: bool) -> dict[str, Any]:
    """Return an outcome's fields as the API gives them."""
    bundle, case = outcome.engine.bundle, outcome.case
    band = bundle.uncertain
    drawn = base64.b64encode(heat.draw(case.heat)).decode("ascii") if with_heat and case.heat else None
    return {
        **case_fields(case),
        "threshold": bundle.threshold if bundle.output == "sigmoid" else None,
        "positive": outcome.engine.positive,
        "band": {"low": band["low"], "high": band["high"]} if band and "low" in band else None,
        "synthetic": outcome.engine.synthetic,
        "stored": outcome.notice is None,
        "notice": outcome.notice,
        "heatmap": drawn,
    }


# --- state ---


# How the two states are described, here and on the first version's routes.
LIVE: dict[str, Any] = {"summary": "Whether the process answers", "response_model": schemas.Live}
READY: dict[str, Any] = {
    "summary": "Whether images can be classified",
    "response_model": schemas.Ready,
    "responses": {503: {"model": schemas.Ready, "description": "A check failed."}},
}


def now() -> str:
    """Return the time, in UTC."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


@router.get("/health/live", tags=["state"], **LIVE)
async def live() -> dict[str, str]:
    """Say that the process answers; nothing else."""
    return {"status": "healthy", "timestamp": now()}


@router.get("/health/ready", tags=["state"], **READY)
async def ready(request: Request) -> Response:
    """Say whether a prediction would be answered and stored, check by check."""
    passed, report = await anyio.to_thread.run_sync(service_of(request).ready)
    return JSONResponse(report, status_code=200 if passed else 503)


@router.get(
    "/model",
    tags=["state"],
    summary="The loaded model's contract",
    response_model=schemas.Model,
    responses=documented(_503="No model is loaded."),
)
async def model(request: Request) -> Response:
    """Return the loaded model's contract, and the digests of the files as they were loaded."""
    try:
        return JSONResponse(service_of(request).model())
    except NoModelError:
        raise RefusalError(503, "no_model", "No model is loaded") from None


# --- predictions ---


@router.post(
    "/predictions",
    tags=["predictions"],
    summary="Classify an image",
    status_code=201,
    response_model=schemas.Prediction,
    responses=documented(
        _400="There is no file, or it is not a whole image.",
        _413="The file or the picture in it is too large.",
        _415="The file is of another type than PNG, JPEG or DICOM, or of a kind that is not supported.",
        _422=INVALID,
        _503="No model is loaded, or too many requests wait.",
    ),
    openapi_extra=form_of("file"),
)
async def predict(request: Request, heatmap: WithHeat = False) -> Response:
    """Classify the PNG, JPEG or DICOM file in the form field `file`, and keep the case.

    A request sent again with the same `X-Request-ID`, file and file name is the same case.
    """
    await admit(request)
    limit = service_of(request).settings.max_upload_bytes
    async with files(request, "file", 1, too_large(limit)) as sent:
        name = plain_name(sent[0].filename or "")
        if not name:
            raise RefusalError(400, "no_file", "No file selected")
        data = await content(sent[0], limit)
    outcome = await classify(request, name, data)
    where = {"Location": f"/v1/cases/{outcome.case.id}"} if outcome.notice is None else None
    # Straight to JSON: to hold it against the schema would cost a fifth of what a request costs beside the model.
    return JSONResponse(prediction_fields(outcome, heatmap), 201, where)


@router.post(
    "/predictions/batch",
    tags=["predictions"],
    summary="Classify several images",
    response_model=schemas.BatchResult,
    responses=documented(
        _400="There is no file, or there are too many.",
        _413="The files are too large together.",
        _422=INVALID,
        _503="No model is loaded, or too many requests wait.",
    ),
    openapi_extra=form_of("files", MOST_FILES),
)
async def predict_many(request: Request, heatmap: WithHeat = False) -> dict[str, Any]:
    """Classify up to 32 files in the form field `files`, one after the other.

    A file that cannot be classified has a problem in its place and the others are classified. The files of one request
    may have five times the size of the largest single file together.
    """
    await admit(request)
    limit = service_of(request).settings.max_upload_bytes
    largest = RefusalError(
        413, "too_large", f"The files are larger than {megabytes(BATCH_FILES * limit)} together. Send them in parts."
    )
    results = []
    async with files(request, "files", MOST_FILES, largest) as sent:
        for file in sent:
            name = plain_name(file.filename or "")
            item: dict[str, Any] = {"filename": name, "prediction": None, "problem": None}
            try:
                if not name:
                    raise RefusalError(400, "no_file", "No file selected")
                outcome = await classify(request, name, await content(file, limit), admitted=True)
                item["prediction"] = prediction_fields(outcome, heatmap)
            except RefusalError as refusal:
                item["problem"] = problem(refusal.status, refusal.kind, str(refusal), request.state.request_id)
            results.append(item)
    return {"results": results}


# --- cases ---


def query(
    verdict: Annotated[str | None, Query(max_length=200, description="A label, or `Uncertain`.")] = None,
    search: Annotated[str, Query(max_length=200, description="Part of the file name, whatever its case.")] = "",
    source: Annotated[Literal["upload", "batch"] | None, Query(description="Where cases come from.")] = None,
    feedback: Annotated[
        Literal["any", "none", "agree", "disagree"] | None,
        Query(description="Whether a person said what they see, and whether it is the label shown."),
    ] = None,
    sort: Annotated[store.Sort, Query(description="What to sort by.")] = "created",
    order: Annotated[Literal["desc", "asc"], Query(description="Largest, last or newest first, or the reverse.")] = (
        "desc"
    ),
) -> store.Query:
    """Return the filters and the order that a request asks for."""
    return store.Query(verdict or None, search, source, feedback, sort, order == "desc")


Filters = Annotated[store.Query, Depends(query)]


@router.get(
    "/cases",
    tags=["cases"],
    summary="Cases by filter and order",
    response_model=schemas.CaseList,
    responses=documented(_404="There is no such page.", _422=INVALID, _503=NO_STORE),
)
async def cases(request: Request, asked: Filters, page: PageNumber = 1, size: PageSize = 25) -> dict[str, Any]:
    """Return one page of the cases asked for. Page 1 always exists."""
    service = service_of(request)
    found = await stored(service.store.find, asked, page, size)
    return {
        "cases": [case_fields(case) for case in found.cases],
        "page": found.number,
        "size": found.size,
        "total": found.total,
        "pages": found.pages,
        "verdicts": service.verdicts(),
    }


@router.get(
    "/cases.csv",
    tags=["cases"],
    summary="Cases as a table",
    response_class=StreamingResponse,
    responses={
        200: {"content": {"text/csv": {"schema": {"type": "string"}}}, "description": "The cases asked for."},
        **documented(_422=INVALID, _503=NO_STORE),
    },
)
async def cases_csv(request: Request, asked: Filters) -> Response:
    """Return all cases asked for as CSV. A cell that a spreadsheet would run as a formula begins with an apostrophe."""
    lines: Iterator[str] = await stored(service_of(request).export, asked)
    return StreamingResponse(
        lines, media_type="text/csv", headers={"Content-Disposition": 'attachment; filename="cases.csv"'}
    )


@router.get(
    "/cases/{case_id}",
    tags=["cases"],
    summary="One case",
    response_model=schemas.Case,
    responses=documented(_404=NO_CASE, _422=INVALID, _503=NO_STORE),
)
async def case(request: Request, case_id: CaseId) -> dict[str, Any]:
    """Return one case."""
    return case_fields(existing(await stored(service_of(request).store.get, case_id)))


@router.delete(
    "/cases/{case_id}",
    tags=["cases"],
    summary="Delete a case",
    status_code=204,
    response_class=Response,
    responses=documented(_404=NO_CASE, _422=INVALID, _503=NO_STORE),
)
async def delete(request: Request, case_id: CaseId) -> Response:
    """Delete a case with its pictures and its feedback."""
    existing(await stored(service_of(request).store.delete, case_id))
    return Response(status_code=204)


@router.get(
    "/cases/{case_id}/image",
    tags=["cases"],
    summary="The picture of a case",
    response_class=Response,
    responses={
        200: {"content": {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}}, "description": "A JPEG."},
        **documented(_404="There is no such case, or it has no picture.", _422=INVALID, _503=NO_STORE),
    },
)
async def image(request: Request, case_id: CaseId) -> Response:
    """Return the picture of a case in the largest size that is kept."""
    kept = service_of(request).store
    picture = await stored(kept.picture, case_id)
    if not picture:
        picture = existing(await stored(kept.get, case_id)).thumbnail
    if not picture:
        raise RefusalError(404, "not_found", "This case has no picture.")
    return Response(picture, media_type="image/jpeg")


@router.get(
    "/cases/{case_id}/heatmap",
    tags=["cases"],
    summary="The heat map of a case",
    response_class=Response,
    responses={
        200: {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}, "description": "A PNG."},
        **documented(_404="There is no such case, or it has no heat map.", _422=INVALID, _503=NO_STORE),
    },
)
async def heatmap(request: Request, case_id: CaseId) -> Response:
    """Return where the image speaks for the case's `heatmap_label`: a PNG to lay over the whole image.

    It is transparent where nothing speaks for the label, and yellow to red where much does.
    """
    found = existing(await stored(service_of(request).store.get, case_id))
    try:
        return Response(heat.draw(found.heat), media_type="image/png")
    except ValueError:
        raise RefusalError(404, "not_found", "This case has no heat map.") from None


# --- feedback ---


@router.put(
    "/cases/{case_id}/feedback",
    tags=["feedback"],
    summary="Say what a case shows",
    response_model=schemas.Case,
    responses=documented(
        _400="The body is malformed.",
        _404=NO_CASE,
        _413="The body is too large.",
        _422="The label is not one of the model's, or a parameter is not what is documented.",
        _503="The case store failed, or no model is loaded.",
    ),
)
async def give_feedback(request: Request, case_id: CaseId, given: schemas.FeedbackGiven) -> dict[str, Any]:
    """Keep what a person says a case shows, for retraining; what was said before is replaced."""
    try:
        found = await stored(service_of(request).give_feedback, case_id, given.label)
    except NoModelError:
        raise no_model() from None
    except LabelError as error:
        raise RefusalError(422, "label", f"{error}.") from None
    return case_fields(existing(found))


@router.delete(
    "/cases/{case_id}/feedback",
    tags=["feedback"],
    summary="Take feedback back",
    response_model=schemas.Case,
    responses=documented(_404=NO_CASE, _422=INVALID, _503=NO_STORE),
)
async def take_feedback_back(request: Request, case_id: CaseId) -> dict[str, Any]:
    """Forget what a person said of a case."""
    return case_fields(existing(await stored(service_of(request).store.set_feedback, case_id, None)))


@router.get(
    "/feedback",
    tags=["feedback"],
    summary="Cases with feedback, for retraining",
    response_model=schemas.FeedbackList,
    responses=documented(_404="There is no such page.", _422=INVALID, _503=NO_STORE),
)
async def feedback_list(request: Request, page: PageNumber = 1, size: PageSize = 25) -> dict[str, Any]:
    """Return the cases with feedback in the order in which it was given."""
    found = await stored(service_of(request).store.with_feedback, page, size)
    return {
        "cases": [{**case_fields(case), "image": f"/v1/cases/{case.id}/image"} for case in found.cases],
        "page": found.number,
        "size": found.size,
        "total": found.total,
        "pages": found.pages,
    }
