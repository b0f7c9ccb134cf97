"""JAX and PyTorch in the place of TensorFlow: what they train, that they go on, and what is refused."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightbox import backends, bundle, cnn, export
from lightbox.backends import BackendError
from lightbox.bundle import Bundle
from lightbox.export import Familiar

SMALL = ["--synthetic-images", "120", "--image-size", "32", "--width", "8", "--batch-size", "16", "--epochs", "3"]
TWO_HOSTS = json.dumps({"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 0}})


def start(name: str, runs: Path, cache: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "lightbox.cnn", "--runs", runs, "--cache", cache, "--out-link", runs / "latest"]
    with (runs / "log").open("w") as log:
        environment = {**os.environ, backends.VARIABLE: name}
        return subprocess.Popen([*command, *SMALL], stdout=log, stderr=log, env=environment)


def wait_for_epoch(runs: Path, process: subprocess.Popen[bytes], epoch: int) -> Path:
    while not (found := list(runs.glob(f"*/checkpoint-{epoch:04d}/state.json"))):
        assert process.poll() is None, (runs / "log").read_text()
        time.sleep(0.02)
    return found[0]


def figures(history: list[dict[str, Any]]) -> Any:
    return np.asarray([[entry[key] for key in ("epoch", "loss", "accuracy", "val_loss")] for entry in history])


@pytest.mark.parametrize("name", [backends.JAX, backends.TORCH])
def test_another_backend_trains_goes_on_where_it_was_killed_and_makes_a_bundle(name, tmp_path, capsys):
    import keras

    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{backends.NAMES[name]} is not installed here: pip install {name}")
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    straight.mkdir()
    process = start(name, straight, tmp_path / "cache")
    wait_for_epoch(straight, process, 1)
    # What a run that is killed now leaves behind goes on beside the one that trains to its last epoch.
    process.send_signal(signal.SIGSTOP)
    shutil.copytree(straight, killed)
    process.send_signal(signal.SIGCONT)
    resumed = start(name, killed, tmp_path / "cache")
    whole = json.loads(wait_for_epoch(straight, process, 3).read_text())["history"]
    process.kill()
    process.wait()
    assert resumed.wait(240) == 0, (killed / "log").read_text()

    told = (killed / "log").read_text()
    assert f"with {backends.NAMES[name]}" in told and "going on after epoch" in told
    found = Bundle.load(killed / "latest")
    history = json.loads((found.path / "history.json").read_text())
    assert np.isfinite(figures(history)).all() and [entry["epoch"] for entry in history] == [1, 2, 3]
    assert figures(history) == pytest.approx(figures(whole), abs=1e-3)

    training = found.contract["training"]
    assert (training["backend"], training["hosts"], training["replicas"]) == (name, 1, 1)
    assert {name, "tensorflow-cpu", "keras"} <= set(found.contract["libraries"])
    assert {"best_model.keras", "model.onnx", "smoke.png", "report.html"} <= set(found.contract["files"])
    # Nothing is left of what was handed over to be compiled.
    assert {path.name for path in found.path.iterdir()} == {*found.contract["files"], "model.json"}
    assert found.contract["serving"]["parity"]["max_abs_difference"] <= 1e-4
    assert set(found.outputs) == {"score", "heat", "distance"}
    assert bundle.main(["verify", str(found.path), "--smoke"]) == 0
    assert bundle.main(["gate", str(found.path), "-"]) == 0
    capsys.readouterr()

    # The file names no backend: TensorFlow says the same of the same images.
    x = np.random.default_rng(1).random((7, 32, 32, 1), dtype=np.float32)
    model = keras.models.load_model(found.path / "best_model.keras", compile=False)
    served = export.run(found.path / found.serving_file, iter([x]))["score"]
    assert np.asarray(model(x)) == pytest.approx(served, abs=1e-4)


def test_another_backend_is_another_run() -> None:
    job, settings = cnn.resolve({})
    assert len({cnn.run_id("d", job, settings, name) for name in backends.NAMES}) == 3
    assert cnn.run_id("d", job, settings) == cnn.run_id("d", job, settings, backends.TENSORFLOW)


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"KERAS_BACKEND": "numpy"}, "KERAS_BACKEND is 'numpy', expected one of tensorflow, jax, torch"),
        ({"KERAS_BACKEND": "jax", "TF_CONFIG": TWO_HOSTS}, "TF_CONFIG names 2 hosts, and only TensorFlow trains on"),
    ],
)
def test_what_a_backend_cannot_do_is_refused_before_anything_else(environment, words, monkeypatch, tmp_path, capsys):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cnn.main(["--runs", str(tmp_path)]) == 1
    assert words in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["progress.json"]


def test_a_backend_that_is_not_installed_is_named(monkeypatch) -> None:
    monkeypatch.setitem(backends.NAMES, "nowhere", "Nowhere")
    with pytest.raises(BackendError, match="Nowhere is not installed: install lightbox' extra trainer-nowhere"):
        backends.chosen({"KERAS_BACKEND": "nowhere"})


def test_nothing_said_is_tensorflow() -> None:
    assert backends.chosen({}) == backends.chosen({"KERAS_BACKEND": ""}) == "tensorflow"
    assert backends.chosen({}, hosts=2) == "tensorflow"


REFUSED = """
import sys, keras, numpy as np
from pathlib import Path
from lightbox import export
image = keras.Input((8, 8, 1))
model = keras.Model(image, keras.layers.Dense(1, name="other")(keras.layers.Flatten()(image)))
known = export.Familiar.fit(np.random.default_rng(1).random((50, 6)))
try:
    export.compile_serving(model, known, Path(sys.argv[1]) / "model.onnx")
except export.ExportError as error:
    print(keras.backend.backend(), error)
"""


def test_why_the_network_of_another_backend_cannot_be_compiled_is_said(tmp_path) -> None:
    environment = {**os.environ, backends.VARIABLE: backends.JAX}
    command = [sys.executable, "-c", REFUSED, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.stdout.startswith("jax ") and "No such layer: score" in done.stdout, done.stdout + done.stderr[-4000:]
    assert not list(tmp_path.iterdir())


def test_what_is_familiar_is_kept_to_the_last_digit(tmp_path) -> None:
    known = Familiar.fit(np.random.default_rng(1).random((50, 6)))
    known.save(tmp_path / "familiar.npz")
    again = Familiar.load(tmp_path / "familiar.npz")
    assert (again.mean == known.mean).all() and (again.directions == known.directions).all()
    assert (again.variances == known.variances).all() and again.rest == known.rest
