"""Training from the command line: what it makes, when it does nothing, and what it survives."""

from __future__ import annotations

import fcntl
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from lightbox import bundle, cnn, export, robustness, training
from lightbox.architectures import ARCHITECTURES
from lightbox.bundle import Bundle
from lightbox.data import Manifest, pictures
from lightbox.images import open_image
from lightbox.serving import Engine
from lightbox.telemetry import gpus, read_gpus

SMALL = ["--synthetic-images", "160", "--image-size", "48", "--width", "8", "--batch-size", "16", "--epochs", "4"]


def progress(runs: Path) -> dict[str, Any]:
    return json.loads((runs / "progress.json").read_text())


def train(runs: Path, cache: Path, *arguments: str) -> int:
    return cnn.main(["--runs", str(runs), "--cache", str(cache), *SMALL, *arguments])


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def runs(tmp_path_factory, cache) -> Path:
    """The runs directory of one training that went well."""
    directory = tmp_path_factory.mktemp("runs")
    assert train(directory, cache, "--out-link", str(directory / "latest"), "--git-revision", "abc") == 0
    return directory


# --- settings


def test_defaults_come_from_the_architecture_and_the_command_line_wins(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"architecture": "resnet50", "epochs": 7, "seed": 3, "augment": False, "data": "/x"}))
    job, settings = cnn.parse(["--config", str(file), "--seed", "4"])
    assert (settings.image_size, settings.weights) == (224, "imagenet")
    assert (settings.epochs, settings.seed, settings.augment, job.data) == (7, 4, False, "/x")
    assert cnn.parse([])[1] == cnn.Settings()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"learning_rat": 1}, "did you mean 'learning_rate'"),
        ({"learning_rate": "fast"}, "learning_rate is 'fast', expected float"),
        ({"learning_rate": 0}, "1e-08 to 1"),
        ({"epochs": 2.5}, "expected int"),
        ({"metrics_port": 70000}, "metrics_port is 70000, expected 0 to 65535"),
        ({"architecture": "alexnet"}, "compact, resnet50"),
        ({"system": "cats"}, "pneumonia"),
        ({"threshold": "high"}, "no rule"),
        ({"augment": "perhaps"}, "expected bool"),
        ({"validation_share": 0.4, "test_share": 0.4}, "leave less"),
    ],
)
def test_a_wrong_setting_is_named(given, words):
    with pytest.raises(cnn.SettingsError, match=words):
        cnn.resolve(given)


def test_a_wrong_setting_ends_the_command_with_one_line(tmp_path, capsys):
    assert cnn.main(["--epochs", "many", "--runs", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "epochs is 'many', expected int\n"
    (tmp_path / "config.json").write_text("[1]")
    assert cnn.main(["--config", str(tmp_path / "config.json")]) == 1
    assert "not a JSON object" in capsys.readouterr().err


def test_a_run_is_named_by_data_settings_and_code_and_by_nothing_else(monkeypatch, tmp_path):
    job, settings = cnn.resolve({})
    name = cnn.run_id("d", job, settings)
    assert cnn.run_id("d", replace(job, runs="/elsewhere", data="s3://x/y"), settings) == name
    others = {
        cnn.run_id("e", job, settings),
        cnn.run_id("d", job, replace(settings, seed=2)),
        cnn.run_id("d", job, replace(settings, noise=0.01)),
    }
    (tmp_path / "w.npz").write_bytes(b"1")
    with_file = replace(settings, weights=str(tmp_path / "w.npz"))
    others.add(cnn.run_id("d", job, with_file))
    (tmp_path / "w.npz").write_bytes(b"2")
    others.add(cnn.run_id("d", job, with_file))
    monkeypatch.setattr(cnn, "code_digest", lambda: "other code")
    others.add(cnn.run_id("d", job, settings))
    assert len(others - {name}) == 6


# --- what a run makes


def test_a_run_makes_a_whole_bundle_that_predicts_as_recorded(runs, capsys):
    assert bundle.main(["verify", str(runs / "latest"), "--smoke"]) == 0
    assert "predicts as recorded" in capsys.readouterr().out
    assert bundle.main(["gate", str(runs / "latest"), "-"]) == 0


def test_the_contract_says_everything(runs):
    found = Bundle.load(runs / "latest")
    contract = found.contract
    assert set(contract["files"]) == {"best_model.keras", "model.onnx", "smoke.png", "history.json", "report.html"}
    assert (found.labels, found.output, found.input.color) == (("Normal", "Pneumonia"), "sigmoid", "grayscale")
    assert (found.input.height, found.input.width) == (48, 48)
    assert contract["data"]["synthetic"] is True
    assert contract["data"]["source"] == "synthetic"
    assert contract["serving"]["parity"]["label_flips"] == 0
    assert contract["serving"]["parity"]["max_abs_difference"] <= 1e-3
    assert contract["training"]["parameters"]["image_size"] == 48
    assert contract["git_revision"] == "abc"
    assert contract["version"].endswith(contract["training"]["run"][:8])
    for split in ("validation", "test"):
        figures = contract["metrics"][split]
        (tn, fp), (fn, tp) = figures["confusion_matrix"]
        assert tn + fp + fn + tp == figures["images"] == sum(contract["data"]["counts"][split].values())
        assert figures["accuracy"] == pytest.approx((tn + tp) / figures["images"])
        assert {"sensitivity", "specificity", "auroc", "brier", "ece", "loss", "f1"} <= set(figures)


def test_the_contract_tells_how_sure_its_figures_are(runs):
    contract = Bundle.load(runs / "latest").contract
    test = contract["metrics"]["test"]
    for name, (low, high) in test["intervals"].items():
        assert low <= test[name] <= high, name
    assert {"accuracy", "sensitivity", "specificity", "auroc", "auprc", "brier", "ece", "f1"} <= set(test["intervals"])
    calibration = contract["calibration"]["ece"]
    assert calibration["after"] == test["ece"] and calibration["before"] >= 0
    rows = contract["robustness"]["perturbations"]
    assert contract["robustness"]["images"] == test["images"]
    assert {row["name"] for row in rows} == {one.name for one in robustness.PERTURBATIONS}
    assert contract["robustness"]["worst"]["auroc"] == min(row["auroc"] for row in rows) == test["auroc_worst"]
    assert all(0 <= contract["shortcuts"][name] <= 1 for name in ("covered_auroc", "files_auroc"))


def test_the_contract_tells_where_the_model_ends(runs):
    contract = Bundle.load(runs / "latest").contract
    assert contract["serving"]["precision"] == "fp32"
    assert contract["serving"]["heat_scale"] > 0
    limit = contract["out_of_distribution"]
    assert limit["threshold"] > 0 and limit["max_chroma"] == 0.15 and "validation images" in limit["chosen_by"]
    band = contract["decision"]["uncertain"]
    assert (band["low"], band["high"]) == (0.25, 0.75)
    assert any("synthetic" in sentence for sentence in contract["limits"])
    curve = contract["metrics"]["test"]["roc"]
    assert (curve["fpr"][0], curve["tpr"][0], curve["fpr"][-1], curve["tpr"][-1]) == (0, 0, 1, 1)


def test_the_engine_tells_heat_and_familiarity_of_a_real_network(runs):
    found = Engine(runs / "latest").assess(open_image((runs / "latest/smoke.png").read_bytes()))
    assert found.heat is not None and found.heat.label == "Pneumonia" and found.heat.values.ndim == 2
    assert found.unfamiliar is None
    grains = np.random.default_rng(1).integers(0, 256, (64, 64), dtype=np.uint8)
    assert "unlike" in str(Engine(runs / "latest").assess(Image.fromarray(grains)).unfamiliar)


def test_int8_serves_where_it_is_as_good_and_the_contract_says_so_either_way(runs, cache, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "DIFFERENCE", 0.5)
    monkeypatch.setattr(export, "FLIPS", 0.2)
    monkeypatch.setattr(export, "AUROC_DROP", 0.2)
    quick = ["--epochs", "1", "--image-size", "32", "--precision", "int8"]
    assert train(tmp_path / "a", cache, *quick, "--out-link", str(tmp_path / "good")) == 0
    contract = Bundle.load(tmp_path / "good").contract
    assert contract["serving"]["precision"] == "int8" and contract["serving"]["against_fp32"]["images"] > 0
    monkeypatch.setattr(export, "DIFFERENCE", -1.0)
    assert train(tmp_path / "b", cache, *quick, "--out-link", str(tmp_path / "bad")) == 0
    contract = Bundle.load(tmp_path / "bad").contract
    assert contract["serving"]["precision"] == "fp32" and "differs" in contract["serving"]["rejected"]["why"]
    assert bundle.main(["verify", str(tmp_path / "good"), "--smoke"]) == 0


def test_a_verdict_is_never_less_certain_than_even(runs):
    found = Bundle.load(runs / "latest")
    assert found.threshold == 0.5
    # Nothing is left for a server to apply.
    assert found.temperature == 1.0
    assert found.contract["calibration"]["folded"]["temperature"] > 0


def test_the_serving_form_is_the_trained_model(runs):
    import keras
    import onnxruntime

    found = Bundle.load(runs / "latest")
    model = keras.models.load_model(found.path / "best_model.keras")
    session = onnxruntime.InferenceSession(found.path / found.serving_file)
    images = np.random.default_rng(1).random((7, 48, 48, 1), dtype=np.float32)
    compiled = session.run([found.outputs["score"]], {session.get_inputs()[0].name: images})[0]
    assert np.abs(model.predict_on_batch(images) - compiled).max() < 1e-5


def test_progress_and_history_tell_the_story(runs):
    told = progress(runs)
    assert told["state"] == "done"
    assert (told["epoch"], told["epochs"]) == (4, 4)
    assert told["images_per_second"] > 0
    assert told["bundle"] == str((runs / "latest").resolve())
    assert told["updated"].endswith("Z")
    history = json.loads((runs / "latest/history.json").read_text())
    assert [entry["epoch"] for entry in history] == [1, 2, 3, 4]
    assert history[-1]["loss"] < history[0]["loss"]


def test_predictions_and_manifest_name_every_image(runs):
    directory = (runs / "latest").resolve().parent
    manifest = Manifest.load(directory / "manifest.json")
    lines = (directory / "predictions.csv").read_text().splitlines()[1:]
    assert {line.split(",")[0] for line in lines} == {s.name for s in manifest.samples if s.split != "train"}
    where: dict[str, set[str]] = {}
    for sample in manifest.samples:
        where.setdefault(sample.patient, set()).add(sample.split)
    assert all(len(splits) == 1 for splits in where.values())
    assert not list(directory.glob("checkpoint-*"))


# --- when nothing is to be done


def test_nothing_changed_nothing_trained(runs, cache, capsys):
    before = (runs / "latest/model.json").stat().st_mtime_ns
    target = (runs / "latest").resolve()
    assert train(runs, cache, "--out-link", str(runs / "latest")) == 0
    assert "nothing changed, nothing trained" in capsys.readouterr().out
    told = progress(runs)
    assert told["state"] == "unchanged"
    assert told["bundle"] == str(target)
    assert (runs / "latest/model.json").stat().st_mtime_ns == before


def test_a_damaged_bundle_is_made_again(tmp_path, cache, capsys):
    quick = ["--epochs", "1", "--image-size", "32"]
    assert train(tmp_path, cache, *quick, "--out-link", str(tmp_path / "latest")) == 0
    weights = tmp_path / "latest/best_model.keras"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    assert bundle.main(["verify", str(tmp_path / "latest")]) == 1
    assert "best_model.keras" in capsys.readouterr().err
    assert train(tmp_path, cache, *quick, "--out-link", str(tmp_path / "latest")) == 0
    assert "made again" in capsys.readouterr().out
    assert bundle.main(["verify", str(tmp_path / "latest"), "--smoke"]) == 0


# --- what it survives


def start(runs: Path, cache: Path, *arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "lightbox.cnn", "--runs", runs, "--cache", cache, *SMALL, *arguments]
    with (runs / "log").open("w") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)


def wait_for_checkpoint(runs: Path, process: subprocess.Popen[bytes], epoch: int) -> None:
    for _ in range(1200):
        if list(runs.glob(f"*/checkpoint-{epoch:04d}/state.json")):
            return
        assert process.poll() is None, (runs / "log").read_text()
        time.sleep(0.05)
    raise AssertionError("no checkpoint came")


def test_killed_in_the_middle_it_goes_on_and_ends_as_if_nothing_had_been(runs, cache, tmp_path, capsys):
    process = start(tmp_path, cache)
    wait_for_checkpoint(tmp_path, process, 2)
    process.kill()
    process.wait()
    assert not list(tmp_path.glob("*/bundle"))
    begun = len((tmp_path / "log").read_text().split("epoch ")) - 1
    assert begun < 4, "it was over before it was killed"

    assert train(tmp_path, cache, "--out-link", str(tmp_path / "latest")) == 0
    assert "going on after epoch" in capsys.readouterr().out
    resumed = json.loads((tmp_path / "latest/history.json").read_text())
    straight = json.loads((runs / "latest/history.json").read_text())
    assert [entry["epoch"] for entry in resumed] == [1, 2, 3, 4]
    for key in ("loss", "val_loss", "val_auroc"):
        assert [e[key] for e in resumed] == pytest.approx([e[key] for e in straight], abs=0.02), key


def test_stopped_by_systemd_it_says_so(tmp_path):
    process = start(tmp_path, tmp_path / "cache", "--synthetic-images", "100000")
    while not (tmp_path / "progress.json").exists() or "drawing" not in progress(tmp_path)["message"]:
        assert process.poll() is None, (tmp_path / "log").read_text()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 128 + signal.SIGTERM
    told = progress(tmp_path)
    assert told["state"] == "failed"
    assert "goes on after" in told["message"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_stop_is_heard_though_it_comes_while_an_object_is_deleted(tmp_path, monkeypatch):
    class Deleted:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    steps = []

    def train(_job: object, _settings: object, progress: cnn.Progress) -> None:
        Deleted()
        steps.append("goes on")
        progress(step=1)
        steps.append("still goes on")

    monkeypatch.setattr(cnn, "train", train)
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as stop:
            cnn.main(["--runs", str(tmp_path)])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (stop.value.code, steps) == (128 + signal.SIGTERM, ["goes on"])
    told = progress(tmp_path)
    assert told["state"] == "failed" and "goes on after" in told["message"]


# --- what is told to Prometheus


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def scrape(port: int) -> dict[str, float]:
    """Return the value of every sample, its labels in order behind the name; nothing when nobody answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            text = answer.read().decode()
    except OSError:
        return {}
    return {
        sample.name.removeprefix("lightbox_training_")
        + "".join(value for _, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_a_training_is_scraped_while_it_runs(tmp_path, cache):
    port = free_port()
    process = start(tmp_path, cache, "--epochs", "500", "--patience", "500", "--metrics-port", str(port))
    try:
        first: dict[str, float] = {}
        while not first:
            assert process.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.05)
            first = scrape(port)
        assert "loss" not in first and "validation_auroc" not in first, "what is not known is not told"
        assert (first["epoch"], first["epochs"], first["statepreparing"], first["statetraining"]) == (0, 500, 1, 0)
        wait_for_checkpoint(tmp_path, process, 3)
        told = scrape(port)
        run = progress(tmp_path)["run"]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
    assert 3 <= told["epoch"] < 500
    assert 1 <= told["step"] <= told["steps"]
    assert told["images_per_second"] > 0 and told["eta_seconds"] > 0
    assert 0 < told["loss"] < 10 and 0 < told["validation_loss"] < 10
    assert all(0 <= told[name] <= 1 for name in ("accuracy", "validation_accuracy", "validation_auroc"))
    assert (told["statepreparing"], told["statetraining"], told["statefailed"]) == (0, 1, 0)
    assert told[f"infocompact{run}"] == 1
    assert told["gpus"] == len([name for name in told if name.startswith("gpu_busy_ratio")])
    assert time.time() - 120 < told["progress_timestamp_seconds"] <= time.time()
    assert told["process_resident_memory_bytes"] > 1e6
    assert scrape(port) == {}, "nobody answers when nothing trains"


def test_gpus_are_read_and_those_that_measure_nothing_left_out():
    assert read_gpus("0, 97, 10240\n1, [N/A], [N/A]\n2, 0, 0\n") == [("0", 0.97, 10240 * 2**20), ("2", 0.0, 0.0)]
    assert read_gpus("No devices were found\n\n") == []
    assert shutil.which("nvidia-smi") or gpus() == []


def test_a_port_that_is_taken_stops_no_training(runs, cache, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert train(runs, cache, "--metrics-port", str(port)) == 0
    told = [line for line in capsys.readouterr().out.splitlines() if "metrics" in line]
    assert len(told) == 1 and told[0].startswith(f"no metrics on 127.0.0.1:{port}: Address already in use")
    assert train(runs, cache, "--metrics-port", str(port)) == 0
    assert "no metrics" not in capsys.readouterr().out
    with socket.create_server(("127.0.0.1", port)):
        pass  # the port is given back


def test_two_do_not_train_the_same_run(runs, cache, capsys):
    directory = (runs / "latest").resolve().parent
    with (directory / "lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        assert train(runs, cache) == 1
    assert "another process is training" in capsys.readouterr().err


def test_a_broken_checkpoint_is_thrown_away(tmp_path, capsys):
    directory = tmp_path / "checkpoint-0003"
    directory.mkdir()
    (directory / "state.json").write_text('{"epoch": 3}')
    (directory / "model.keras").write_bytes(b"half")
    model, state = training.load_checkpoint(tmp_path)
    assert model is None
    assert state.epoch == 0
    assert not directory.exists()
    assert "thrown away" in capsys.readouterr().err


def test_data_that_cannot_be_had_fails_loudly(tmp_path, capsys):
    assert cnn.main(["--data", str(tmp_path / "nowhere"), "--runs", str(tmp_path / "runs")]) == 1
    told = progress(tmp_path / "runs")
    assert told["state"] == "failed"
    assert "there is no data" in told["message"]
    assert capsys.readouterr().err.count("\n") == 1


def test_a_link_that_is_a_directory_is_not_replaced(runs, cache, tmp_path, capsys):
    (tmp_path / "link").mkdir()
    assert train(runs, cache, "--out-link", str(tmp_path / "link")) == 1
    assert "not a symbolic link" in capsys.readouterr().err


# --- parts


def test_the_smoke_image_is_right_and_close_to_uncertain(runs):
    manifest = Manifest.load((runs / "latest").resolve().parent / "manifest.json")
    samples = manifest.of("test")
    labels = np.asarray([sample.label for sample in samples])
    scores = np.where(labels == 1, 0.99, 0.01)
    scores[0], scores[1], scores[2] = 1 - labels[0] * 0.81, abs(labels[1] - 0.3), abs(labels[2] - 0.19)
    _, content = next(pictures(manifest, [samples[2]]))
    with (
        Image.open(io.BytesIO(content)) as wanted,
        Image.open(io.BytesIO(cnn._smoke(manifest, scores, labels, 0.75))) as found,
    ):
        wanted.thumbnail((512, 512))
        assert (np.asarray(found.convert("L")) == np.asarray(wanted.convert("L"))).all()


def test_classes_count_alike_when_balanced():
    labels = np.array([0, 1, 1, 1])
    weights = training.class_weights(labels, "balanced")
    assert weights[0] == pytest.approx(3 * weights[1])
    assert weights[labels].sum() == pytest.approx(4)
    assert (training.class_weights(labels, "none") == 1).all()


def batch() -> np.ndarray:
    rng = np.random.default_rng(2)
    return np.kron(rng.integers(0, 255, (6, 6, 6, 1)), np.ones((1, 8, 8, 1))).astype(np.uint8)


def test_augmentation_varies_images_and_follows_from_seed_and_step():
    settings = cnn.Settings()
    first = training.augment(batch(), 5, settings).numpy()
    assert first.shape == (6, 48, 48, 1)
    assert first.min() >= 0
    assert first.max() <= 255
    assert (first == training.augment(batch(), 5, settings).numpy()).all()
    assert np.abs(first - training.augment(batch(), 6, settings).numpy()).mean() > 1
    assert np.abs(first - training.augment(batch(), 5, replace(settings, seed=2)).numpy()).mean() > 1


@pytest.mark.parametrize("shape", [(2, 9, 7, 1), (1, 4, 6, 3), (3, 2, 2, 1)])
def test_the_mean_that_blurs_is_of_the_pixels_that_are_there(shape):
    pixels = np.random.default_rng(4).random(shape, np.float32)
    padded = np.pad(pixels, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
    assert np.abs(training.mean3(pixels).numpy() - np.nanmean(windows, (-2, -1))).max() < 1e-6


def test_an_epoch_has_batches_of_its_own_from_what_was_traced_once_for_all(monkeypatch):
    traced = []
    augment = training.augment
    monkeypatch.setattr(training, "augment", lambda *arguments: traced.append(1) or augment(*arguments))
    pixels = np.random.default_rng(5).integers(0, 256, (12, 16, 16, 1), np.uint8)
    rows, labels = {"train": np.arange(12)}, {"train": np.arange(12) % 2}
    settings = replace(cnn.Settings(), batch_size=4)
    of = training.training_batches(training.Sides(pixels, rows, labels), ARCHITECTURES["compact"], settings)
    first, second, again = (np.stack([x.numpy() for x, *_ in of(epoch)[0]]) for epoch in (0, 1, 0))
    assert first.shape == (3, 4, 16, 16, 1) and len(traced) == 1
    assert (first == again).all() and (first != second).any()


def test_augmentation_without_any_change_changes_nothing():
    names = ("rotation", "shift", "zoom", "stretch", "gamma", "contrast", "brightness", "blur", "noise", "frame")
    settings = replace(cnn.Settings(), **dict.fromkeys(names, 0.0))
    assert np.abs(training.augment(batch(), 1, settings).numpy() - batch()).max() < 0.1


def test_some_images_get_a_black_frame_and_none_a_thicker_one_than_asked_for():
    names = ("rotation", "shift", "zoom", "stretch", "gamma", "contrast", "brightness", "blur", "noise")
    settings = replace(cnn.Settings(), **dict.fromkeys(names, 0.0), frame=0.25)
    bright = np.full((64, 32, 32, 1), 200, np.uint8)
    framed = training.augment(bright, 1, settings).numpy()[..., 0] < 1
    thickness = framed[:, 16, :16].sum(axis=1)
    assert thickness.max() <= 8
    assert 8 < (thickness > 0).sum() < 40
    # All four sides alike, and the middle as it was.
    assert (thickness == framed[:, 16, 16:].sum(axis=1)).all() and (thickness == framed[:, :16, 16].sum(axis=1)).all()
    assert not framed[:, 8:24, 8:24].any()


def test_mirroring_is_off_unless_asked_for():
    names = ("rotation", "shift", "zoom", "stretch", "gamma", "contrast", "brightness", "blur", "noise", "frame")
    settings = replace(cnn.Settings(), **dict.fromkeys(names, 0.0), flip=True)
    mirrored = training.augment(batch(), 1, settings).numpy()
    plain, turned = batch().astype(float), batch()[:, :, ::-1].astype(float)
    kinds = [
        (np.abs(m - p).max() < 0.1, np.abs(m - t).max() < 0.1) for m, p, t in zip(mirrored, plain, turned, strict=True)
    ]
    assert all(p or t for p, t in kinds)
    assert any(t for _, t in kinds)
    assert any(p for p, _ in kinds)
    assert cnn.Settings().flip is False


def test_an_epoch_is_better_by_its_ranking_and_then_by_its_loss():
    entries = [{"val_auroc": a, "val_loss": v} for a, v in ((0.9, 0.1), (0.95, 0.3), (0.95, 0.2), (0.94, 0.05))]
    assert max(entries, key=training.merit) is entries[2]


def test_stages_train_the_head_first():
    job_settings = cnn.resolve({"architecture": "resnet50", "epochs": 10, "head_epochs": 3})[1]
    head, rest = training.stages(ARCHITECTURES["resnet50"], job_settings)
    assert (head.begin, head.end, head.layers) == (0, 3, 0)
    assert (rest.begin, rest.end, rest.layers) == (3, 10, job_settings.fine_tune_layers)
    assert rest.learning_rate < head.learning_rate
    assert len(training.stages(ARCHITECTURES["compact"], cnn.Settings())) == 1


def test_a_network_without_weights_is_trained_as_a_whole():
    job_settings = cnn.resolve({"architecture": "resnet50", "weights": "none", "epochs": 10})[1]
    (stage,) = training.stages(ARCHITECTURES["resnet50"], job_settings)
    assert (stage.begin, stage.end, stage.layers) == (0, 10, None)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_real_chests_are_learnt_in_ten_minutes(tmp_path):
    from test_data import xray

    if not xray().is_dir():
        pytest.skip("the real data set is not here: name it with LIGHTBOX_XRAY")
    begin = os.times()
    arguments = ["--data", str(xray()), "--runs", str(tmp_path), "--out-link", str(tmp_path / "latest")]
    assert cnn.main([*arguments, "--architecture", "compact"]) == 0
    end = os.times()
    found = Bundle.load(tmp_path / "latest").contract
    assert found["metrics"]["validation"]["accuracy"] >= 0.93
    assert found["metrics"]["test"]["auroc"] >= 0.97
    # Processor time does not depend on what else the machine does: ten minutes on two cores.
    assert (end.user + end.system) - (begin.user + begin.system) < 2 * 600
