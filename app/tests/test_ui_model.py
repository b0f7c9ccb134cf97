"""The model card and its pictures, and the client's way around dead hosts."""

from __future__ import annotations

import asyncio
import json
import re
import time
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving_kit import free_port, write_bundle
from starlette.testclient import TestClient
from test_ui import Answers, an_api, good, pages, png, shows_error, upload

from lightbox.ui import charts
from lightbox.ui.answers import read_case, read_model, scale, tone
from lightbox.ui.app import Settings, create_app
from lightbox.ui.card import plain, read_card
from lightbox.ui.client import ApiClient
from lightbox.ui.words import DRAWINGS, IMAGES, words_of


@pytest.fixture(scope="module")
def contract(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A contract as the API gives it, with everything that a new bundle says."""
    written: dict[str, Any] = json.loads(
        (write_bundle(tmp_path_factory.mktemp("model") / "b", synthetic=True) / "model.json").read_text()
    )
    written["limits"] = ["Adults were not among the patients."]
    written["serving"]["rejected"] = {"precision": "int8", "why": "2 of 20 verdicts changed", "auroc_drop": 0.01}
    written["training"].update(architecture="resnet50", epochs=12, best_epoch=9, seconds=5400.5)
    written["training"]["parameters"] = {"learning_rate": 1e-5, "class_weights": True}
    written["libraries"] = {"keras": "3.6.0"}
    written["loaded_sha256"] = {"model.onnx": "ab" * 32}
    return written


def page_of(contract: Any) -> str:
    with an_api(lambda _: (200, json.dumps(contract).encode())) as url, pages(url) as client:
        answer = client.get("/model")
        assert answer.status_code == 200
        return answer.text


def test_the_card_says_what_the_contract_says(contract: dict[str, Any]) -> None:
    text = page_of(contract)
    for words in (
        "20260101T000000Z-aaaaaaaa", "2026-01-01 00:00:00 UTC", "resnet50", "16 \u00d7 16 pixels, grey",
        "Synthetic images.",
        "PNEUMONIA", "Sensitivity", "90.0%", "0.950", "score from 40% to 60%", "mahalanobis", "onnxruntime", "fp32",
        "the same verdict on all 20 images", "int8 was tried and rejected: 2 of 20 verdicts changed (auroc drop 0.01)",
        "12, the best was number 9", "1.5 h", "learning rate", "1e-05", "keras", "3.6.0", "abababababab",
        "Adults were not among the patients.", "is served now",
    ):  # fmt: skip
        assert words in text, words
    assert re.findall(r"<title>([^<]+)</title>", text)[1:] == ["Confusion matrix", "ROC curve", "Reliability diagram"]
    assert "Of 10 images of Normal, 9 were called Normal, 1 were called Pneumonia." in text
    assert "The area under the curve is 0.950." in text
    assert "At 95% confidence 94% of 16 images." in text


def test_words_are_of_what_the_model_takes(contract: dict[str, Any]) -> None:
    digits = {**contract, "labels": [str(n) for n in range(10)], "input": {**contract["input"], "form": "canvas"}}
    digits["limits"] = []
    centred = {**digits, "preprocessing": {"resize": "centred", "scale": 1, "offset": 0}}
    assert words_of(None) == words_of(read_model(contract)) == IMAGES
    assert words_of(read_model({**digits, "labels": ["cat", "dog"]})) == DRAWINGS
    assert words_of(read_model(digits)).heading == "Draw a Digit inside This Box"
    assert "should fill" in words_of(read_model(digits)).hint
    assert "any size" in words_of(read_model(centred)).hint
    text = page_of(centred)
    assert "A guess, not a certainty." in text and "a program made them" in text
    assert not re.search("(?i)physician|diagnosis|clinical", text)


def test_figures_come_with_their_intervals_and_those_of_kinds_of_images(contract: dict[str, Any]) -> None:
    test = contract["metrics"]["test"]
    told = {**contract, "metrics": {"test": {
        **test, "auprc": 0.987,
        "intervals": {"accuracy": [0.871, 0.9349], "auroc": [0.91, 0.99], "f1": "odd", "ece": [1]},
        "subgroups": {"virus": {"images": 7, "accuracy": 6 / 7, "intervals": {"accuracy": [0.5, 1.0]}}, "odd": 3},
    }}}  # fmt: skip
    text = page_of(told)
    for words in ("87.1\u201393.5%", "0.910\u20130.990", "0.987", "Accuracy, virus", "85.7%",
                  "50.0\u2013100.0%", "(7 images)", "when patients like these are drawn anew"):  # fmt: skip
        assert words in text, words
    assert "Accuracy, odd" not in text
    assert "drawn anew" not in page_of(contract)


def test_the_card_shows_changed_images_and_shortcuts(contract: dict[str, Any]) -> None:
    told = {
        **contract,
        "robustness": {"images": 519, "perturbations": [
            {"words": "gamma 1.3", "auroc": 0.9512, "accuracy": 0.876, "sensitivity": None, "specificity": 1.0},
            "odd", {},
        ]},
        "shortcuts": {"covered_auroc": 0.7939, "files_auroc": None},
    }  # fmt: skip
    text = page_of(told)
    for words in (
        "With images from elsewhere",
        "on 519 images that were changed",
        "Gamma 1.3",
        "0.951",
        "87.6%",
        "100.0%",
        "Shortcuts",
        "0.7939",
    ):
        assert words in text, words
    assert "files alone" not in text
    assert "With images from elsewhere" not in page_of(contract)


def test_what_an_older_bundle_lacks_is_left_out(contract: dict[str, Any]) -> None:
    whole, older = page_of(contract), contract
    with an_api(lambda _: (200, json.dumps(older).encode())) as url, pages(url) as client:
        for lacking in ("metrics", "data", "limits", "calibration", "out_of_distribution", "serving", "training",
                        "libraries", "decision", "input", "labels", "created", "loaded_sha256"):  # fmt: skip
            strange: tuple[Any, ...] = (None, "text", [], 7)
            for value in strange:
                older = {**contract, lacking: value}
                if value is None:
                    del older[lacking]
                client.app.state.pages.api._model = None  # type: ignore[attr-defined]
                text = client.get("/model").text
                assert "Model card" in text
                assert len(text) < len(whole), (lacking, value)
                assert not re.search(r"None|<h2[^>]*>[^<]*</h2>\s*</section>|<dl[^>]*></dl>\s*</section>", text)


def test_without_an_api_there_is_no_card() -> None:
    with pages(f"http://127.0.0.1:{free_port()}") as client:
        shows_error(client.get("/model"), 503, "cannot be reached")


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["validation", "test", "roc", "fpr", "tpr", "reliability", "counts", "train", "a", "images",
                         "confidence", "accuracy", "uncertain", "low", "parity", "label_flips", "rejected", "why"]),
        inner, max_size=4),
    max_leaves=15,
)  # fmt: skip


SECTIONS = ["metrics", "data", "serving", "decision", "training", "limits", "labels", "input", "libraries",
            "calibration", "out_of_distribution"]  # fmt: skip


@given(st.dictionaries(st.sampled_from(SECTIONS), json_values))
def test_no_contract_breaks_the_card(parts: dict[str, Any]) -> None:
    card = read_card(read_model({"version": "v1", **parts}))
    assert ("Version", "v1") in card.facts


def test_values_are_written_for_people() -> None:
    assert [plain(value) for value in (None, True, 7, 12345, 0.00001234, 0.5, "x", [1, 2.5], {"a_b": 1})] == [
        "", "yes", "7", "12\u202f345", "1.234e-05", "0.5", "x", "1, 2.5", "a b 1",
    ]  # fmt: skip


# --- pictures ---


def test_the_roc_curve_goes_from_corner_to_corner() -> None:
    curve = charts.roc({"fpr": [0.1], "tpr": [0.9]}, 0.9)
    assert curve is not None
    assert curve.line == "M46,252L70,36L286,12"
    assert "At 10% false alarms the sensitivity is 90%." in curve.words
    many = charts.roc({"fpr": [n / 9999 for n in range(10000)], "tpr": [n / 9999 for n in range(10000)]}, 0.5)
    assert many is not None and many.line.count("L") < 400
    wrongs: tuple[Any, ...] = (
        None,
        [],
        {},
        {"fpr": [0.1], "tpr": []},
        {"fpr": [2], "tpr": [1]},
        {"fpr": ["x"], "tpr": [1]},
    )
    for wrong in wrongs:
        assert charts.roc(wrong, None) is None


def test_the_reliability_diagram_shows_where_verdicts_lie() -> None:
    bins = [{"confidence": 0.75, "accuracy": 0.5, "images": 100}, {"confidence": 1.0, "accuracy": 1.0, "images": 25}]
    curve = charts.reliability(bins)
    assert curve is not None
    (first_x, first_y, first_r), (second_x, second_y, second_r) = curve.dots
    assert (first_x, first_y) == (166, 252), "the axes begin at one half"
    assert (second_x, second_y) == (286, 12)
    assert first_r > second_r
    low = charts.reliability([{"confidence": 0.3, "accuracy": 0.3, "images": 1}])
    assert low is not None and low.ticks[0].text == "0"
    for wrong in (None, [], [7], [{"confidence": 1}], [{"confidence": 1, "accuracy": 1, "images": 0}]):
        assert charts.reliability(wrong) is None


def test_the_confusion_matrix_has_a_row_per_true_label() -> None:
    matrix = charts.confusion([[9, 1], [0, 0]], ("Normal", "Pneumonia"))
    assert matrix is not None
    assert [(cell.count, cell.share, cell.right) for cell in matrix.cells] == [
        (9, "90%", True), (1, "10%", False), (0, "0%", False), (0, "0%", True),
    ]  # fmt: skip
    assert len(charts.confusion([[1] * 10] * 10, [str(n) for n in range(10)]).cells) == 100  # type: ignore[union-attr]
    wrongs: tuple[Any, ...] = (None, [[1, 2]], [[1], [2]], [[1, -1], [0, 0]], [[1, 2.5], [0, 0]])
    for wrong in wrongs:
        assert charts.confusion(wrong, ("Normal", "Pneumonia")) is None


# --- the scale ---


def a_case(**probabilities: float) -> Any:
    label = max(probabilities, key=lambda name: probabilities[name])
    share = probabilities[label]
    return read_case({
        "id": "1", "filename": "a", "verdict": label, "label": label, "confidence": share,
        "confidence_text": f"{share * 100:.2f}%", "probabilities": probabilities, "uncertain": False,
        "has_heatmap": False, "created": "2026-01-01T00:00:00Z", "model_version": "v", "source": "upload",
        "thumbnail": "",
    })  # fmt: skip


def test_the_scale_speaks_of_the_second_label() -> None:
    case = a_case(Normal=0.8, Pneumonia=0.2)
    shown = scale(case, "Pneumonia", 0.3, 0.25, 0.5, None)
    assert shown is not None
    assert (shown.value, shown.threshold) == (0.2, 0.3)
    assert [(zone.start, zone.end, zone.kind) for zone in shown.zones] == [
        (0, 0.25, "clear"), (0.25, 0.5, "uncertain"), (0.5, 1, "finding"),
    ]  # fmt: skip
    turned = scale(case, "Normal", 0.3, None, None, None)
    assert turned is not None and [zone.kind for zone in turned.zones] == ["finding", "clear"]
    assert scale(case, "Pneumonia", None, None, None, None) is None
    assert tone(case, "Pneumonia") == "clear"
    assert tone(case, None) == "neutral"


def test_the_scale_of_many_labels_is_the_confidence() -> None:
    case = a_case(one=0.1, two=0.7, three=0.2)
    shown = scale(case, None, None, None, None, 0.5)
    assert shown is not None
    assert (shown.value, [zone.kind for zone in shown.zones]) == (0.7, ["uncertain", "neutral"])
    assert scale(case, None, 0.5, None, None, None) is None


# --- dead hosts ---


def test_a_dead_host_costs_the_first_request_only() -> None:
    async def orders() -> tuple[list[str], list[list[str]], list[str]]:
        client = ApiClient(["http://a:1", "http://b:1"])
        client._failed["http://a:1"] = time.monotonic()
        during = [client._order() for _ in range(4)]
        client._failed["http://a:1"] = time.monotonic() - 60
        after = [client._order()[0] for _ in range(4)]
        single = ApiClient(["http://a:1"])
        single._failed["http://a:1"] = time.monotonic()
        return single._order(), during, after

    single, during, after = asyncio.run(orders())
    assert during == [["http://b:1", "http://a:1"]] * 4
    assert sorted(after) == ["http://a:1"] * 2 + ["http://b:1"] * 2
    assert single == ["http://a:1"] * 2, "there is no other"


def test_a_host_that_does_not_answer_is_stepped_over() -> None:
    """An address whose packets are dropped: each try waits for the connect time-out, so it must not be tried often."""
    with an_api(good) as url, pages("http://192.0.2.1:9", url) as client:
        begun = time.monotonic()
        for _ in range(8):
            assert 'data-verdict="Normal"' in upload(client, png(9), **{"X-Partial": "1"}).text
        # At most the first request and the first question for the model wait, one second each.
        assert time.monotonic() - begun < 3.5


def test_a_slow_host_is_stepped_over_afterwards() -> None:
    asked: list[str] = []

    def slow(request: Answers) -> tuple[int, bytes]:
        asked.append(request.command)
        time.sleep(1.5)
        return good(request)

    with an_api(slow) as dull, an_api(good) as url, pages(dull, url, timeout=0.4) as client:
        answers = [upload(client, png(9), **{"X-Partial": "1"}).status_code for _ in range(6)]
    assert answers.count(504) <= 1
    assert asked.count("POST") <= 1


def test_an_export_that_breaks_off_is_no_whole_one() -> None:
    def lines(request: Answers) -> tuple[int, bytes]:
        if request.path.startswith("/v1/cases.csv"):
            request.extra = {"Content-Type": "text/csv", "Content-Length": "1000"}
            request.close_connection = True
            return 200, b"id,created\n"
        return 404, b"{}"

    # The server closes the connection where an application fails in the middle of an answer.
    broken = pytest.raises(httpx.RemoteProtocolError, match="peer closed")
    with an_api(lines) as url, TestClient(create_app(Settings(api_urls=(url,)))) as client, broken:
        client.get("/export.csv")
