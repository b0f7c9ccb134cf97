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

SMALL = ["--synthetic-images", "120", "--image-size", "32", "--width", "8", "--batch-size", "16", "--epochs", "4"]
TWO_HOSTS = json.dumps({"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 0}})


def start(name: str, runs: Path, cache: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "lightbox.cnn", "--runs", runs, "--cache", cache, "--out-link", runs / "latest"]
    with (runs / "log").open("w") as log:
        environment = {**os.environ, backends.VARIABLE: name}
        return subprocess.Popen([*command, *SMALL], stdout=log, stderr=log, env=environment)


def history(runs: Path) -> list[Any]:
    entries = json.loads((runs / "latest/history.json").read_text())
    return [[entry[key] for key in ("epoch", "loss", "accuracy", "val_loss", "val_auroc")] for entry in entries]


@pytest.mark.parametrize("name", [backends.JAX, backends.TORCH])
def test_another_backend_trains_goes_on_where_it_was_killed_and_makes_a_bundle(name, tmp_path, capsys):
    import keras

    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{backends.NAMES[name]} is not installed here: pip install {name}")
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    straight.mkdir()
    process = start(name, straight, tmp_path / "cache")
    while not list(straight.glob("*/checkpoint-0001/state.json")):
        assert process.poll() is None, (straight / "log").read_text()
        time.sleep(0.02)
    # What a run that is killed now leaves behind goes on beside the one that is not.
    process.send_signal(signal.SIGSTOP)
    shutil.copytree(straight, killed)
    process.send_signal(signal.SIGCONT)
    resumed = start(name, killed, tmp_path / "cache")
    assert process.wait(240) == 0, (straight / "log").read_text()
    assert resumed.wait(240) == 0, (killed / "log").read_text()

    assert f"with {backends.NAMES[name]}" in (straight / "log").read_text()
    assert "going on after epoch" not in (straight / "log").read_text()
    assert "going on after epoch" in (killed / "log").read_text()
    assert np.isfinite(history(straight)).all() and len(history(straight)) == 4
    assert np.asarray(history(killed)) == pytest.approx(np.asarray(history(straight)), abs=1e-3)

    found = Bundle.load(straight / "latest")
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


SERVED = """
import sys, keras, numpy as np
from pathlib import Path
from lightbox import backends, cnn, export, training
from lightbox.architectures import ARCHITECTURES
assert keras.backend.backend() == "jax"
rng = np.random.default_rng(1)
file = Path(sys.argv[1]) / "model.onnx"
model = ARCHITECTURES["mnist"].build((28, 28, 1), cnn.resolve({"architecture": "mnist"})[1], 10)
x = rng.random((40, 28, 28, 1), dtype=np.float32)
known = export.Familiar.fit(export.features(model, iter([x])))
export.compile_serving(model, known, file)
assert [path.name for path in file.parent.iterdir()] == ["model.onnx"]
found, said = export.run(file, iter([x])), export.serving_network(model, known)(x)
assert set(found) == set(said) == {"score", "distance"}, found
for name, values in said.items():
    np.testing.assert_allclose(np.asarray(values), found[name], rtol=1e-3, atol=1e-5)

file.unlink()
image = keras.Input((8, 8, 1))
odd = keras.layers.Activation("gelu")(keras.layers.Flatten()(image))
try:
    export.compile_serving(keras.Model(image, keras.layers.Dense(1, name="other")(odd)), known, file)
except ValueError as error:
    raise SystemExit(f"not said in words: {error}")
except export.ExportError as error:
    print(error)
"""


def test_the_network_of_another_backend_is_compiled_whole_and_what_cannot_be_is_said(tmp_path) -> None:
    environment = {**os.environ, backends.VARIABLE: backends.JAX}
    command = [sys.executable, "-c", SERVED, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    assert "No such layer: score" in done.stdout


def test_what_is_familiar_is_kept_to_the_last_digit(tmp_path) -> None:
    known = Familiar.fit(np.random.default_rng(1).random((50, 6)))
    known.save(tmp_path / "familiar.npz")
    again = Familiar.load(tmp_path / "familiar.npz")
    assert (again.mean == known.mean).all() and (again.directions == known.directions).all()
    assert (again.variances == known.variances).all() and again.rest == known.rest
