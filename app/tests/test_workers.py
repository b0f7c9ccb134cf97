"""Several hosts that train as one: processes on this machine, joined through the cluster that TF_CONFIG names."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightbox import cnn, training, workers
from lightbox.bundle import Bundle

# Batches of 15: the shares of two hosts differ.
CHESTS = ["--synthetic-images", "150", "--image-size", "32", "--width", "8", "--batch-size", "15", "--epochs", "3"]
DIGITS = ["--system", "mnist", "--synthetic-images", "400", "--batch-size", "31", "--epochs", "2"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def history(runs: Path) -> list[dict[str, Any]]:
    return json.loads((runs / "latest/history.json").read_text())


def alone(runs: Path, cache: Path, *arguments: str) -> list[dict[str, Any]]:
    """Return the history of a training by one process."""
    options = ["--runs", str(runs), "--cache", str(cache), "--out-link", str(runs / "latest")]
    assert cnn.main([*options, *arguments]) == 0
    return history(runs)


class Hosts:
    """Two hosts, each with a disk of its own; only the port tells them apart."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.runs = [place / "first", place / "second"]
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, *arguments: str, only_second: tuple[str, ...] = ()) -> None:
        """Start the training on both."""
        with socket.socket() as one, socket.socket() as other:
            for taken in (one, other):
                taken.bind(("127.0.0.1", 0))
            addresses = [f"127.0.0.1:{taken.getsockname()[1]}" for taken in (one, other)]
        self.processes = []
        for index, runs in enumerate(self.runs):
            runs.mkdir(parents=True, exist_ok=True)
            config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
            options = ["--runs", runs, "--out-link", runs / "latest", *arguments]
            command = [sys.executable, "-m", "lightbox.cnn", *options, *(only_second if index else ())]
            environment = {**os.environ, "TF_CONFIG": json.dumps(config)}
            with (runs / "log").open("w") as log:
                self.processes.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment))

    def ended(self, seconds: float = 120) -> list[int]:
        """Return both exit statuses."""
        until = time.monotonic() + seconds
        return [process.wait(max(0.1, until - time.monotonic())) for process in self.processes]

    def log(self, index: int) -> str:
        return (self.runs[index] / "log").read_text()

    def progress(self, index: int) -> dict[str, Any]:
        return json.loads((self.runs[index] / "progress.json").read_text())


@pytest.fixture
def hosts(tmp_path: Path):
    hosts = Hosts(tmp_path)
    yield hosts
    for process in hosts.processes:
        process.kill()
        process.wait()


# --- whole trainings


def test_two_hosts_train_what_one_would(hosts: Hosts, tmp_path: Path, cache: Path):
    hosts.start(*DIGITS)
    assert hosts.ended() == [0, 0], hosts.log(0) + hosts.log(1)
    together, expected = history(hosts.runs[0]), alone(tmp_path / "alone", cache, *DIGITS)
    for key in ("loss", "accuracy", "val_loss", "val_accuracy", "val_auroc"):
        assert [e[key] for e in together] == pytest.approx([e[key] for e in expected], abs=1e-4), key
    contract, of_one = (Bundle.load(runs / "latest").contract for runs in (hosts.runs[0], tmp_path / "alone"))
    assert (contract["training"]["hosts"], contract["training"]["replicas"]) == (2, 2)
    assert (of_one["training"]["hosts"], of_one["training"]["replicas"]) == (1, 1)
    # One name: hosts come and go, the run stays.
    assert contract["training"]["run"] == of_one["training"]["run"]
    assert contract["metrics"]["test"]["confusion_matrix"] == of_one["metrics"]["test"]["confusion_matrix"]
    # The second has what it takes to train, and no bundle.
    assert not list(hosts.runs[1].glob("*/bundle*")) and not (hosts.runs[1] / "latest").exists()
    assert not list(hosts.runs[1].glob("*/checkpoint-*"))
    assert [hosts.progress(index)["state"] for index in (0, 1)] == ["done", "done"]
    assert "has the bundle" in hosts.progress(1)["message"] and "2 hosts" in hosts.log(1)


def test_a_lost_host_ends_all_and_the_next_start_goes_on(hosts: Hosts, tmp_path: Path, cache: Path):
    hosts.start(*CHESTS)
    while not list(hosts.runs[0].glob("*/checkpoint-0001/state.json")):
        assert hosts.processes[0].poll() is None, hosts.log(0)
        time.sleep(0.02)
    hosts.processes[1].kill()
    lost = time.monotonic()
    assert hosts.ended(60) == [workers.LOST, -9], hosts.log(0)
    assert time.monotonic() - lost < 30
    assert hosts.progress(0)["state"] == "failed" and "another training host is gone" in hosts.progress(0)["message"]
    assert not list(hosts.runs[0].glob("*/bundle"))

    # The one that comes in its place has nothing on its disk.
    shutil.rmtree(hosts.runs[1])
    hosts.start(*CHESTS)
    assert hosts.ended() == [0, 0], hosts.log(0) + hosts.log(1)
    for index in (0, 1):
        assert "going on after epoch" in hosts.log(index)
    resumed, expected = history(hosts.runs[0]), alone(tmp_path / "alone", cache, *CHESTS)
    assert [entry["epoch"] for entry in resumed] == [1, 2, 3]
    for key in ("loss", "val_loss", "val_auroc"):
        assert [e[key] for e in resumed] == pytest.approx([e[key] for e in expected], abs=2e-3), key


def test_a_host_without_data_stops_all_before_they_begin(hosts: Hosts, tmp_path: Path):
    hosts.start(*CHESTS, only_second=("--data", str(tmp_path / "nowhere")))
    assert hosts.ended() == [1, 1], hosts.log(0)
    for index in (0, 1):
        assert "there is no data" in hosts.log(index) and "127.0.0.1" in hosts.progress(index)["message"]


def test_a_host_that_waits_for_the_others_can_be_stopped(hosts: Hosts):
    hosts.start(*CHESTS)
    hosts.processes[1].kill()
    while not hosts.place.joinpath("first/progress.json").exists() or "waiting" not in hosts.progress(0)["message"]:
        assert hosts.processes[0].poll() is None, hosts.log(0)
        time.sleep(0.1)
    time.sleep(4)  # by then it is past the imports
    hosts.processes[0].terminate()
    assert hosts.processes[0].wait(20) == 128 + signal.SIGTERM
    assert "started again, it goes on" in hosts.progress(0)["message"]


# --- all GPUs of a host, here two parts of its processor

REPLICAS = """
import sys, numpy as np, tensorflow as tf
from pathlib import Path
processor = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(processor, [tf.config.LogicalDeviceConfiguration()] * 2)
from lightbox import cnn, training
from lightbox.architectures import ARCHITECTURES
from lightbox.workers import Team
import keras
place = Path(sys.argv[1])
base = keras.applications.MobileNetV2(alpha=0.35, include_top=False, weights=None, input_shape=(32, 32, 3))
rng = np.random.default_rng(1)
pixels = rng.integers(0, 255, (60, 32, 32, 3), dtype=np.uint8)
# Figures of these images, as a trained base would have: without any, what it says of them vanishes.
for layer in base.layers:
    if hasattr(layer, "momentum"):
        layer.momentum = 0.0
base(pixels / np.float32(127.5) - 1, training=True)
base.save(place / "base.keras")
rows = {"train": rng.permutation(43), "validation": 43 + rng.permutation(17)}
sides = training.Sides(pixels, rows, {split: rng.integers(0, 2, of.size) for split, of in rows.items()})
settings = cnn.resolve({"architecture": "mobilenet", "weights": str(place / "base.keras"), "image_size": 32, "dense": 8,
                        "epochs": 2, "head_epochs": 2, "batch_size": 11})[1]
architecture = ARCHITECTURES["mobilenet"]
found = []
devices = ["CPU:0", "CPU:1"]
for name, strategy in (("one", tf.distribute.get_strategy()), ("two", tf.distribute.MirroredStrategy(devices))):
    team = Team(strategy)
    (place / name).mkdir()
    best, state = training.fit(place / name, sides, architecture, settings, team, lambda **_: None, print)
    with team.scope():
        model = keras.models.load_model(best, compile=False)
    whole = training.predict(model, sides, "train", architecture, team)
    features = np.load(place / name / "features-train.npy")
    found.append((team.replicas, [[e["loss"], e["val_loss"]] for e in state.history], features, whole))
(one, *first), (two, *second) = found
assert (one, two) == (1, 2)
np.testing.assert_allclose(*(np.array(history) for history, *_ in (first, second)), atol=1e-4)
for a, b in zip(first[1:], second[1:], strict=True):
    # Images differ by far more than that, so that their order shows.
    between = np.median(np.abs(a - np.roll(a, 1, axis=0)).mean(axis=tuple(range(1, a.ndim))))
    assert np.abs(a - b).mean() < 0.01 * between, (np.abs(a - b).mean(), between)
print("alike")
"""


def test_two_replicas_of_a_host_do_what_one_does_in_the_same_order(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-c", REPLICAS, str(tmp_path)], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0 and done.stdout.endswith("alike\n"), done.stdout + done.stderr[-4000:]


# --- parts


@pytest.mark.parametrize(("count", "parts"), [(0, 2), (1, 3), (31, 2), (32, 5), (4096, 7)])
def test_shares_are_the_whole_in_order_and_nearly_alike(count: int, parts: int):
    shares = [workers.share(count, parts, index) for index in range(parts)]
    assert [row for part in shares for row in range(count)[part]] == list(range(count))
    sizes = {part.stop - part.start for part in shares}
    assert max(sizes) - min(sizes) <= 1


def test_the_shares_of_a_batch_are_varied_as_the_whole_would_be():
    settings = cnn.Settings()
    pixels = np.random.default_rng(2).integers(0, 255, (7, 24, 24, 1)).astype(np.uint8)
    whole = training.augment(pixels, 5, settings).numpy()
    parts = [training.augment(pixels[own], 5, settings, own.start, 7).numpy() for own in (slice(0, 3), slice(3, 7))]
    assert np.concatenate(parts) == pytest.approx(whole, abs=1e-4)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "expected cluster.worker"),
        ('{"cluster": {"worker": ["a:1", "b:1"]}}', "expected cluster.worker and task.index"),
        ('{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 2}}', "index tells which"),
        ('{"cluster": {"chief": ["a:1"], "worker": ["b:1"]}, "task": {"type": "worker", "index": 0}}', "is a worker"),
    ],
)
def test_a_wrong_cluster_is_named(text: str, words: str, monkeypatch, tmp_path, capsys):
    with pytest.raises(workers.WorkersError, match=words):
        workers.cluster({"TF_CONFIG": text})
    monkeypatch.setenv("TF_CONFIG", text)
    assert cnn.main(["--runs", str(tmp_path)]) == 1
    assert words in capsys.readouterr().err


def test_hosts_that_are_not_to_train_the_same_are_named():
    assert cnn.refusal_of([("a:1", "r", ""), ("b:1", "r", "")]) == ""
    assert "a:1: run r, b:1: run other" in cnn.refusal_of([("a:1", "r", ""), ("b:1", "other", "")])
    assert cnn.refusal_of([("a:1", "r", ""), ("b:1", "", "no data")]) == "b:1: no data"


def test_a_cluster_of_one_is_a_host_alone():
    text = '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 0}}'
    assert workers.cluster({"TF_CONFIG": text}) == workers.cluster({}) == ((), 0)


def test_a_host_that_does_not_come_is_named(monkeypatch, tmp_path):
    """Waiting is the process's last act, so it has one of its own."""
    with socket.socket() as one, socket.socket() as other:
        for taken in (one, other):
            taken.bind(("127.0.0.1", 0))
        here, there = (f"127.0.0.1:{taken.getsockname()[1]}" for taken in (one, other))
    config = {"cluster": {"worker": [here, there]}, "task": {"type": "worker", "index": 0}}
    program = "import os; from lightbox import workers as w; w.PATIENCE = 1\ntry: w.join(os.environ)\n"
    program += "except w.WorkersError as error: print(error); w.leave(lambda: 1)"
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "TF_CONFIG": json.dumps(config)},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stdout == f"{there} did not come within 1 seconds: start the training there too\n", done.stderr[-2000:]
