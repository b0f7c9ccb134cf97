"""The digits: from images to a bundle, the API and the model card, with ten classes where the X-rays have two."""

from __future__ import annotations

import csv
import io
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from serving_kit import RedisServer
from starlette.testclient import TestClient
from test_ui_model import page_of
from test_v1 import send, store_of

from lightbox import bundle, cnn, export, synthetic, training
from lightbox.api.app import create_app
from lightbox.api.service import Settings
from lightbox.bundle import Bundle
from lightbox.data import Manifest
from lightbox.images import open_image
from lightbox.serving import Engine

MNIST = Path(os.environ.get("LIGHTBOX_MNIST", Path(__file__).resolve().parents[3] / "shared/data/mnist/mnist.npz"))
DIGITS = [str(digit) for digit in range(10)]
QUICK = ["--system", "mnist", "--synthetic-images", "1500", "--epochs", "6", "--batch-size", "64"]


def train(runs: Path, cache: Path, *arguments: str) -> int:
    return cnn.main(["--runs", str(runs), "--cache", str(cache), *QUICK, *arguments])


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """The runs directory of one training on drawn digits."""
    directory = tmp_path_factory.mktemp("runs")
    assert train(directory, cache, "--out-link", str(directory / "latest")) == 0
    return directory


@pytest.fixture(scope="module")
def contract(runs: Path) -> dict[str, Any]:
    return Bundle.load(runs / "latest").contract


def digit(number: int, seed: int = 99) -> bytes:
    """Return a drawn digit as PNG."""
    stream = io.BytesIO()
    synthetic.draw_digit(number, np.random.default_rng(seed)).save(stream, "PNG")
    return stream.getvalue()


def test_a_system_brings_its_settings_and_the_command_line_wins() -> None:
    settings = cnn.resolve({"system": "mnist", "noise": 0.02})[1]
    assert (settings.architecture, settings.image_size, settings.batch_size) == ("mnist", 28, 128)
    assert (settings.flip, settings.gamma, settings.noise) == (False, 0.0, 0.02)
    other = cnn.resolve({"system": "mnist", "architecture": "compact"})[1]
    assert (other.architecture, other.image_size, other.gamma) == ("compact", 128, 0.0)
    assert cnn.resolve({"architecture": "mnist"})[1].gamma == cnn.Settings().gamma, "X-rays vary as X-rays do"


def test_a_run_makes_a_bundle_of_ten_classes_that_predicts_as_recorded(runs: Path, contract: dict[str, Any]) -> None:
    assert bundle.main(["verify", str(runs / "latest"), "--smoke"]) == 0
    found = Bundle.load(runs / "latest")
    assert (list(found.labels), found.output, found.input.form) == (DIGITS, "softmax", "canvas")
    assert found.uncertain == contract["decision"]["uncertain"] and set(found.uncertain or {}) == {"below", "chosen_by"}
    assert contract["decision"]["positive"] is None
    assert contract["calibration"]["folded"].keys() == {"temperature"} and found.temperature == 1.0
    assert contract["data"]["synthetic"] is True and "nobody wrote" in contract["limits"][0]
    assert contract["serving"]["parity"]["label_flips"] == 0
    # Without global average pooling nothing says where in the image a verdict comes from.
    assert contract["serving"]["outputs"] == {"score": "score", "distance": "distance"}
    assert "heat_scale" not in contract["serving"]


def test_the_figures_are_of_all_classes_and_of_each(runs: Path, contract: dict[str, Any], capsys: Any) -> None:
    test = contract["metrics"]["test"]
    matrix = np.asarray(test["confusion_matrix"])
    assert matrix.shape == (10, 10) and matrix.sum() == test["images"]
    assert test["accuracy"] == pytest.approx(np.trace(matrix) / matrix.sum()) and test["accuracy"] > 0.8
    assert list(test["classes"]) == DIGITS
    assert test["classes"]["3"]["images"] == matrix[3].sum()
    assert test["classes"]["3"]["recall"] == pytest.approx(matrix[3, 3] / matrix[3].sum())
    assert set(test["classes"]["3"]["intervals"]) <= {"recall", "precision", "f1", "auroc", "auprc"}
    for name, (low, high) in test["intervals"].items():
        assert low <= test[name] <= high, name
    assert set(test["intervals"]) == {
        "accuracy", "recall", "precision", "f1", "auroc", "auprc", "loss", "brier", "ece",
    }  # fmt: skip
    assert contract["calibration"]["ece"]["after"] == test["ece"] and contract["calibration"]["ece"]["before"] >= 0
    for metric in ("accuracy", "auroc", "f1"):
        assert bundle.main(["gate", str(runs / "latest"), "-", "--metric", metric]) == 0
        assert metric in capsys.readouterr().out


def test_digits_are_changed_as_digits_are(contract: dict[str, Any]) -> None:
    rows = contract["robustness"]["perturbations"]
    assert {row["name"] for row in rows} == set(cnn.SYSTEMS["mnist"].perturbations)
    assert all(0 <= row["accuracy"] <= 1 and "sensitivity" not in row for row in rows)
    assert contract["shortcuts"] == {}


def test_predictions_tell_ten_probabilities_of_every_image(runs: Path) -> None:
    directory = (runs / "latest").resolve().parent
    samples = {s.name: s for s in Manifest.load(directory / "manifest.json").samples if s.split != "train"}
    with (directory / "predictions.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert {row["image"] for row in rows} == set(samples)
    for row in rows:
        scores = [float(row[f"score {label}"]) for label in DIGITS]
        assert sum(scores) == pytest.approx(1, abs=1e-4)
        assert row["label"] == str(samples[row["image"]].label)


def test_the_engine_knows_drawn_digits_and_not_other_pictures(runs: Path) -> None:
    engine = Engine(runs / "latest")
    assert engine.self_test() < 1e-4
    said = [engine.assess(open_image(digit(number, seed))) for number in range(10) for seed in (1, 2, 3)]
    right = [one.verdict.label == DIGITS[n // 3] for n, one in enumerate(said)]
    assert np.mean(right) > 0.8
    assert all(one.heat is None and len(one.scores) == 10 for one in said)
    assert np.mean([one.unfamiliar is None for one in said]) > 0.8
    grains = np.random.default_rng(1).integers(0, 256, (28, 28), dtype=np.uint8)
    assert "unlike" in str(engine.assess(Image.fromarray(grains)).unfamiliar)
    assert "colour" in str(engine.assess(Image.new("RGB", (28, 28), (255, 0, 0))).unfamiliar)


def test_the_api_answers_ten_probabilities(runs: Path, redis_server: RedisServer) -> None:
    with TestClient(create_app(Settings(bundle=runs / "latest"), store_of(redis_server))) as client:
        answer = send(client, digit(7), "seven.png", "?heatmap=true")
        assert answer.status_code == 201, answer.text
        body = answer.json()
        assert list(body["probabilities"]) == DIGITS
        assert sum(body["probabilities"].values()) == pytest.approx(1, abs=1e-4)
        assert body["label"] == max(body["probabilities"], key=body["probabilities"].get)
        assert (body["has_heatmap"], body["heatmap"], body["threshold"]) == (False, None, None)
        assert client.get(f"/v1/cases/{body['id']}/heatmap").status_code == 404
        model = client.get("/v1/model").json()
        assert model["labels"] == DIGITS
        assert client.get("/ready").status_code == 200


def test_the_model_card_shows_the_figures_of_ten_classes(contract: dict[str, Any]) -> None:
    text = page_of(contract)
    test = contract["metrics"]["test"]
    for words in ("10 labels", "Recall", "the mean over labels", "Confusion matrix", "Reliability diagram",
                  "Each class", f"{test['classes']['4']['recall'] * 100:.1f}%", "confidence below 75%",
                  "Turned by 5 degrees", "Synthetic images.", "nobody wrote them",
                  "images like these are drawn anew"):  # fmt: skip
        assert words in text, words
    for words in ("Sensitivity", "ROC curve", "patients", "Shortcuts", "Threshold</dt>"):
        assert words not in text, words


def test_nothing_changed_nothing_trained(runs: Path, cache: Path, capsys: Any) -> None:
    assert train(runs, cache) == 0
    told = capsys.readouterr().out
    assert "nothing changed, nothing trained" in told and "macro F1" in told


def test_the_smoke_image_is_right_and_close_to_uncertain(runs: Path) -> None:
    manifest = Manifest.load((runs / "latest").resolve().parent / "manifest.json")
    labels = np.asarray([sample.label for sample in manifest.of("test")])
    scores = np.full((labels.size, 10), 0.01)
    scores[np.arange(labels.size), labels] = 0.91
    scores[5], scores[6] = 0.2 / 9, 0.2 / 9
    scores[5, labels[5]], scores[6, (labels[6] + 1) % 10] = 0.8, 0.8
    wanted = Path(manifest.root) / manifest.of("test")[5].name
    with Image.open(io.BytesIO(cnn._smoke(manifest, scores, labels, 0.75))) as found, Image.open(wanted) as original:
        assert (np.asarray(found) == np.asarray(original)).all()


def test_int8_serves_where_it_is_as_good(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in ("DIFFERENCE", "FLIPS", "AUROC_DROP"):
        monkeypatch.setattr(export, limit, 0.9)
    assert train(tmp_path, cache, "--epochs", "1", "--precision", "int8", "--out-link", str(tmp_path / "latest")) == 0
    assert Bundle.load(tmp_path / "latest").contract["serving"]["precision"] == "int8"
    assert bundle.main(["verify", str(tmp_path / "latest"), "--smoke"]) == 0


def test_a_network_with_average_pooling_shows_where_each_digit_is(cache: Path, tmp_path: Path) -> None:
    small = ["--architecture", "compact", "--image-size", "32", "--width", "8", "--epochs", "1"]
    assert train(tmp_path, cache, *small, "--out-link", str(tmp_path / "latest")) == 0
    found = Engine(tmp_path / "latest").assess(open_image(digit(3)))
    assert found.heat is not None and found.heat.label == found.verdict.label and found.heat.values.ndim == 2


def test_classes_count_alike_when_balanced() -> None:
    labels = np.array([0, 1, 1, 2, 2, 2])
    weights = training.class_weights(labels, "balanced", 3)
    assert weights.tolist() == pytest.approx([2, 1, 2 / 3])
    assert training.class_weights(labels, "none", 3).tolist() == [1, 1, 1]


def test_of_several_classes_an_epoch_is_better_by_its_accuracy() -> None:
    pairs = ((0.98, 0.99, 0.1), (0.99, 0.98, 0.3), (0.99, 0.97, 0.2))
    entries = [{"val_accuracy": a, "val_auroc": r, "val_loss": v} for a, r, v in pairs]
    assert max(entries, key=lambda entry: training.merit(entry, 10)) is entries[2]


def test_calibration_changes_confidences_and_no_verdict() -> None:
    import keras

    keras.utils.set_random_seed(1)
    image = keras.Input((4,))
    model = keras.Model(image, keras.layers.Dense(3, activation="softmax", name="score")(image))
    x = np.random.default_rng(1).normal(size=(4000, 4)).astype(np.float32)
    honest = np.asarray(model(x))
    labels = np.array([np.random.default_rng(n).choice(3, p=row / row.sum()) for n, row in enumerate(honest)])
    layer = model.get_layer("score")
    layer.set_weights([3 * weights for weights in layer.get_weights()])
    boastful = np.asarray(model(x), dtype=np.float64)
    found = training.calibrate(model, labels, boastful, "balanced")
    assert found == {"temperature": pytest.approx(3, rel=0.1)}
    after = np.asarray(model(x))
    assert (after.argmax(axis=1) == boastful.argmax(axis=1)).all()
    assert np.abs(after - honest).max() < 0.05


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_real_digits_are_learnt_in_five_minutes(tmp_path: Path) -> None:
    if not MNIST.is_file():
        pytest.skip("MNIST is not here: name its .npz with LIGHTBOX_MNIST")
    begin = os.times()
    arguments = ["--system", "mnist", "--data", str(MNIST), "--runs", str(tmp_path)]
    assert cnn.main([*arguments, "--out-link", str(tmp_path / "latest")]) == 0
    end = os.times()
    found = Bundle.load(tmp_path / "latest").contract
    assert found["metrics"]["test"]["images"] == 10_000
    assert found["metrics"]["test"]["accuracy"] >= 0.992
    # Processor time does not depend on what else the machine does: five minutes on two cores.
    assert (end.user + end.system) - (begin.user + begin.system) < 2 * 300
    assert json.loads((tmp_path / "progress.json").read_text())["state"] == "done"
    assert replace(cnn.Settings(), **found["training"]["parameters"]) == cnn.resolve({"system": "mnist"})[1]
