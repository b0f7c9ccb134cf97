"""What the tests of serving share: bundles with a real ONNX model, real Redis servers, real gunicorn processes.

The model is arithmetic made by hand: the mean of a grey image goes through a steep logistic, so that a bright picture
is ``Pneumonia`` and a dark one ``Normal``, and every score is known without training anything.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

SIDE = 16
# Cells of the heat map, in each direction.
GRID = 4
SOURCE = Path(__file__).parents[1] / "src"
# What the case store's role grants to the API's user.
ACL = "~lightbox:* -@all +@read +@write +@connection +@transaction -@dangerous -@admin -@scripting -@blocking -@pubsub"
PASSWORD = "a-password-for-tests"


def logistic(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def model_bytes(gain: float = 12.0, middle: float = 0.5) -> bytes:
    """Return an ONNX model for (N, SIDE, SIDE, 1): sigmoid(gain * (mean - middle)), a heat map and a distance.

    The heat map is the picture in a grid of GRID by GRID less ``middle``; the distance is the share of light that
    changes from one cell to the next, so that flat pictures are familiar and noise is not.
    """
    from onnx import TensorProto, checker, helper

    block = SIDE // GRID
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["image"], ["mean"], axes=[1, 2], keepdims=0),
            helper.make_node("Sub", ["mean", "middle"], ["centred"]),
            helper.make_node("Mul", ["centred", "gain"], ["logit"]),
            helper.make_node("Sigmoid", ["logit"], ["score"]),
            helper.make_node("Transpose", ["image"], ["planes"], perm=[0, 3, 1, 2]),
            helper.make_node("AveragePool", ["planes"], ["cells"], kernel_shape=[block, block], strides=[block, block]),
            helper.make_node("Squeeze", ["cells", "first"], ["grid"]),
            helper.make_node("Sub", ["grid", "middle"], ["heat"]),
            helper.make_node("ReduceMean", ["grid"], ["level"], axes=[1, 2], keepdims=1),
            helper.make_node("Sub", ["grid", "level"], ["unevenness"]),
            helper.make_node("ReduceL2", ["unevenness"], ["distance"], axes=[1, 2], keepdims=0),
        ],
        "brightness",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", SIDE, SIDE, 1])],
        [
            helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N", 1]),
            helper.make_tensor_value_info("heat", TensorProto.FLOAT, ["N", GRID, GRID]),
            helper.make_tensor_value_info("distance", TensorProto.FLOAT, ["N"]),
        ],
        [
            helper.make_tensor("middle", TensorProto.FLOAT, [1], [middle]),
            helper.make_tensor("gain", TensorProto.FLOAT, [1], [gain]),
            helper.make_tensor("first", TensorProto.INT64, [1], [1]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    checker.check_model(model)
    return model.SerializeToString()


def png(value: int = 255, side: int = 32, mode: str = "L", form: str = "PNG") -> bytes:
    """Return a flat picture of one grey value."""
    stream = io.BytesIO()
    Image.new("L", (side, side), value).convert(mode).save(stream, form)
    return stream.getvalue()


def write_bundle(
    directory: Path,
    version: str = "20260101T000000Z-aaaaaaaa",
    gain: float = 12.0,
    synthetic: bool = False,
    temperature: float = 1.0,
    smoke_score: float | None = None,
    change: Callable[[dict[str, Any]], None] | None = None,
) -> Path:
    """Write a bundle with the arithmetic model; return its directory."""
    directory.mkdir(parents=True)
    files = {
        "best_model.keras": f"weights of {version}".encode(),
        "model.onnx": model_bytes(gain),
        "smoke.png": png(64),
    }
    for name, content in files.items():
        (directory / name).write_bytes(content)
    score = logistic(gain * (64 / 255 - 0.5) / temperature) if smoke_score is None else smoke_score
    metrics = {"accuracy": 0.9, "sensitivity": 0.9, "specificity": 0.9, "precision": 0.9, "f1": 0.9, "auroc": 0.95,
               "brier": 0.08, "ece": 0.03, "loss": 0.3, "images": 20, "confusion_matrix": [[9, 1], [1, 9]],
               "roc": {"fpr": [0.0, 0.0, 0.1, 0.5, 1.0], "tpr": [0.0, 0.6, 0.9, 1.0, 1.0]},
               "reliability": [{"confidence": 0.6, "accuracy": 0.5, "images": 4},
                               {"confidence": 0.95, "accuracy": 0.94, "images": 16}]}  # fmt: skip
    counts = {"NORMAL": 10, "PNEUMONIA": 10}
    contract: dict[str, Any] = {
        "schema": 1,
        "name": "pneumonia",
        "version": version,
        "created": "2026-01-01T00:00:00Z",
        "files": {
            name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
            for name, content in files.items()
        },
        "serving": {"file": "model.onnx", "engine": "onnxruntime", "precision": "fp32",
                    "outputs": {"score": "score", "heat": "heat", "distance": "distance"}, "heat_scale": 0.5,
                    "parity": {"images": 20, "max_abs_difference": 0.0, "label_flips": 0}},
        "input": {"height": SIDE, "width": SIDE, "channels": 1, "color": "grayscale", "form": "upload"},
        "preprocessing": {"resize": "bilinear", "scale": 1 / 255, "offset": 0.0},
        "labels": ["Normal", "Pneumonia"],
        "output": "sigmoid",
        "decision": {"positive": "Pneumonia", "threshold": 0.5, "chosen_by": "hand",
                     "uncertain": {"low": 0.4, "high": 0.6, "chosen_by": "hand"}},
        "out_of_distribution": {"method": "mahalanobis", "threshold": 0.8, "max_chroma": 0.1, "chosen_by": "hand"},
        "calibration": {"method": "temperature", "temperature": temperature},
        "metrics": {"validation": metrics, "test": metrics},
        "data": {"source": "synthetic" if synthetic else "directory", "synthetic": synthetic, "digest": "0" * 64,
                 "counts": {"train": counts, "validation": counts, "test": counts}},
        "training": {"architecture": "arithmetic", "run": "0", "epochs": 0, "seed": 1, "parameters": {}},
        "smoke": {"file": "smoke.png", "scores": [score], "label": "Normal"},
        "libraries": {},
        "git_revision": "",
    }  # fmt: skip
    if change:
        change(contract)
    (directory / "model.json").write_text(json.dumps(contract))
    return directory


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(what: str, condition: Callable[[], Any], seconds: float = 20.0) -> Any:
    """Wait until a condition holds; return what it gave. An httpx error counts as "not yet"."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(httpx.HTTPError, OSError):
            if found := condition():
                return found
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds} s: {what}")


class RedisServer:
    """A Redis of our own on a loopback port, with a password and the API's ACL."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.directory = directory
        self.password_file = directory / "password"
        self.password_file.write_text(PASSWORD + "\n")
        self.configuration = directory / "redis.conf"
        self.configuration.write_text(
            f'bind 127.0.0.1\nport {self.port}\ndir {directory}\nsave ""\nappendonly yes\n'
            f"user default off\nuser api on >{PASSWORD} {ACL}\nuser root on >{PASSWORD} ~* +@all\n"
        )
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self.directory / "redis.log").open("ab") as log:
            self.process = subprocess.Popen(["redis-server", str(self.configuration)], stdout=log, stderr=log)

        def answers() -> bool:
            with socket.create_connection(("127.0.0.1", self.port), 1) as connection, connection.makefile("rb") as said:
                connection.sendall(f"AUTH api {PASSWORD}\r\nPING\r\n".encode())
                # Whoever logs in is let in while the file is still read; every other command is refused until then.
                return [said.readline(), said.readline()] == [b"+OK\r\n", b"+PONG\r\n"]

        wait_for("Redis answers", answers)

    def stop(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait(10)
            self.process = None

    def client(self) -> Any:
        import redis

        return redis.Redis(port=self.port, username="root", password=PASSWORD, decode_responses=True)

    @property
    def environment(self) -> dict[str, str]:
        return {
            "LIGHTBOX_REDIS_HOST": "127.0.0.1",
            "LIGHTBOX_REDIS_PORT": str(self.port),
            "LIGHTBOX_REDIS_USER": "api",
            "LIGHTBOX_REDIS_PASSWORD_FILE": str(self.password_file),
        }


class Gunicorn:
    """An application under gunicorn, as the hosts run it."""

    def __init__(
        self, module: str, log: Path, environment: dict[str, str], workers: int = 2, port: int | None = None
    ) -> None:
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = log
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("LIGHTBOX_", "PROMETHEUS_"))}
        with log.open("ab") as stream:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gunicorn", "--config", "python:lightbox.gunicorn_conf",
                 "--bind", f"127.0.0.1:{self.port}", "--workers", str(workers), module],
                env={**clean, "PYTHONPATH": str(SOURCE), **environment}, stdout=stream, stderr=stream,
            )  # fmt: skip

    def wait(self) -> Gunicorn:
        def up() -> bool:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            return httpx.get(f"{self.url}/health", timeout=2).status_code == 200

        wait_for(f"{self.url} answers", up, 30)
        return self

    def reload(self) -> None:
        self.process.send_signal(signal.SIGHUP)

    def workers(self) -> list[int]:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(pid) for pid in children.split()]

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(5)


Start = Callable[..., Gunicorn]


class Load:
    """Requests in the background, one after the other in each of a few threads, until the block ends."""

    def __init__(self, ask: Callable[[httpx.Client], Any], threads: int = 3) -> None:
        self.answers: list[Any] = []
        self.failures: list[BaseException] = []
        self._ask, self._stop = ask, threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(threads)]

    def _run(self) -> None:
        with httpx.Client(timeout=30) as client:
            while not self._stop.is_set() and len(self.answers) < 5000:
                try:
                    self.answers.append(self._ask(client))
                except Exception as error:
                    self.failures.append(error)
                time.sleep(0.01)

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(40)


def noise(side: int, seed: int = 1) -> bytes:
    """Return a PNG that does not compress, about ``side`` squared bytes."""
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side), dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()
