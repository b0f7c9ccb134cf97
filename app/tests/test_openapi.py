"""The served OpenAPI document: complete, and true whatever is asked."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import positive_data_acceptance
from schemathesis.generation import GenerationMode
from serving_kit import PASSWORD, RedisServer, noise, png, write_bundle
from starlette.testclient import TestClient

from lightbox.api.app import create_app
from lightbox.api.service import Settings
from lightbox.store import CaseStore, Feedback

PROBLEM = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
FILES = [png(200), png(30, mode="RGB", form="JPEG"), noise(40), b"", b"no image", png(9)[:50]]
METHODS = ("get", "put", "post", "delete")


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory, shared_redis: RedisServer) -> Iterator[TestClient]:
    if shared_redis.process is None:
        shared_redis.start()
    bundle = write_bundle(tmp_path_factory.mktemp("openapi") / "b")
    store = CaseStore.connect("127.0.0.1", shared_redis.port, "api", PASSWORD)
    with TestClient(create_app(Settings(bundle=bundle, max_upload_bytes=100_000), store)) as client:
        yield client


@pytest.fixture(scope="module")
def document(api: TestClient) -> dict[str, Any]:
    found: dict[str, Any] = api.get("/openapi.json").json()
    return found


@pytest.fixture(scope="module")
def cases(api: TestClient) -> list[str]:
    """Ids of cases, more than are deleted; one has feedback."""
    posted = [api.post("/v1/predictions", files={"file": (f"{n}.png", noise(30, n))}).json()["id"] for n in range(40)]
    kept = api.app.state.service.store  # type: ignore[attr-defined]
    kept.set_feedback(posted[0], Feedback("Normal", datetime.now(timezone.utc)))
    return posted


@pytest.fixture(scope="module")
def served(api: TestClient) -> Any:
    """The document as a source of requests."""
    return schemathesis.openapi.from_asgi("/openapi.json", api.app)


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for method in METHODS:
            if method in item:
                yield path, method, item[method]


def routes() -> Iterator[tuple[str, str, GenerationMode]]:
    """Return every documented route, and once more those that can be asked wrongly. Nothing is started for it."""
    document = create_app(Settings(bundle=Path("absent")), CaseStore.connect()).openapi()
    for path, method, operation in operations(document):
        yield path, method, GenerationMode.POSITIVE
        if operation.get("parameters") or operation.get("requestBody"):
            yield path, method, GenerationMode.NEGATIVE


@pytest.mark.parametrize(("path", "method", "mode"), routes())
def test_no_answer_is_other_than_documented(
    served: Any, cases: list[str], path: str, method: str, mode: GenerationMode
) -> None:
    operation = served[path][method.upper()]
    # What fits the schema of a form's file need not be a picture; a page beyond the last is 400 in the first contract.
    lenient = "requestBody" in operation.definition.raw or path == "/predictions"

    @settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
    @given(case=operation.as_strategy(generation_mode=mode), pick=st.integers(0, 79))
    def run(case: schemathesis.Case, pick: int) -> None:
        if mode is GenerationMode.POSITIVE and pick < len(cases):
            # Now and then what there is: the id of a case, a picture.
            if "case_id" in case.path_parameters:
                case.path_parameters["case_id"] = cases[pick]
            if isinstance(case.body, dict) and "file" in case.body:
                case.body["file"] = FILES[pick % len(FILES)]
            if isinstance(case.body, dict) and "files" in case.body:
                case.body["files"] = [FILES[pick % len(FILES)], FILES[0]]
        case.call_and_validate(excluded_checks=[positive_data_acceptance] if lenient else [])

    run()


def test_every_route_is_described(document: dict[str, Any]) -> None:
    found = {(method, path) for path, method, _ in operations(document)}
    assert found >= {
        ("get", "/health"), ("get", "/ready"), ("post", "/predict"), ("get", "/predictions"), ("get", "/metrics"),
        ("post", "/predict/"),
        ("get", "/v1/health/live"), ("get", "/v1/health/ready"), ("get", "/v1/model"), ("post", "/v1/predictions"),
        ("post", "/v1/predictions/batch"), ("get", "/v1/cases"), ("get", "/v1/cases.csv"),
        ("get", "/v1/cases/{case_id}"), ("delete", "/v1/cases/{case_id}"), ("get", "/v1/cases/{case_id}/image"),
        ("get", "/v1/cases/{case_id}/heatmap"), ("put", "/v1/cases/{case_id}/feedback"),
        ("delete", "/v1/cases/{case_id}/feedback"), ("get", "/v1/feedback"),
    }  # fmt: skip
    for path, method, operation in operations(document):
        assert operation["summary"] and operation["description"] and operation["tags"], (method, path)
        for status, answer in operation["responses"].items():
            assert answer["description"], (method, path, status)
            if status >= "400" and path.startswith("/v1/") and not path.endswith("/ready"):
                assert answer["content"] == PROBLEM, (method, path, status)
    assert "HTTPValidationError" not in document["components"]["schemas"]


def test_a_drawing_is_answered_in_two_forms(document: dict[str, Any]) -> None:
    drawn = document["paths"]["/predict/"]["post"]
    content = drawn["responses"]["200"]["content"]
    assert content["text/plain"]["schema"]["type"] == "string"
    assert content["application/json"]["schema"] == {"$ref": "#/components/schemas/DrawnPrediction"}
    assert drawn["requestBody"]["required"] and "text/plain" in drawn["requestBody"]["content"]


@pytest.mark.parametrize("path", ["/predict", "/v1/predictions", "/v1/predictions/batch"])
def test_forms_say_which_field_holds_the_file(document: dict[str, Any], path: str) -> None:
    body = document["paths"][path]["post"]["requestBody"]
    form = body["content"]["multipart/form-data"]["schema"]
    assert body["required"] and form["required"] == list(form["properties"])
