"""Measure serving side by side: ``make bench-serving``, or ``python benchmarks/serving.py --help``.

In one run, on the same cores, with the same model and images: the API of Lightbox with its case store, the baseline of
Flask and ``model.predict`` (`baseline_flask`), a serving framework (`baseline_litserve`), and the bare engine, which
decodes and assesses the same images in as many processes with nothing around it. Each server has two workers and the
machine to itself while it is measured; the rounds go through all of them in turn, so that a drift of the machine's
speed meets all alike, and medians are shown.

The model is made by the product's own training, on synthetic images: ResNet50 at 224 pixels, which is what the AWS
profile serves, and as it serves it: in int8, once the gate has found it as good as fp32. Lightbox, the framework and
the engine serve this form; the baseline has Keras' model. Its weights are not pre-trained and one class is shown as
negatives, so that two epochs tell the classes apart; neither changes a speed. ``--bundle`` takes any other bundle.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from PIL import Image, ImageOps

from lightbox.synthetic import generate

HERE = Path(__file__).resolve().parent
CLIENTS = (1, 8, 16)
# The load at which the servers are compared.
COMPARED = 8
WORKERS = 2
WARM_SECONDS = 3.0
# Between two loads: what the clients of the first left behind is computed by then, and their connections are closed.
SETTLE_SECONDS = 1.0
START_SECONDS = 180.0
# Redis as `inventories/pneumonia` has it.
CASE_STORE = ["--save", "3600 1 300 100", "--appendonly", "yes", "--appendfsync", "everysec",
              "--auto-aof-rewrite-min-size", "256mb", "--rdbcompression", "no"]  # fmt: skip


@dataclass
class Round:
    """What one server did in one round: by number of clients the requests per second, percentiles and failures."""

    rps: dict[int, float] = field(default_factory=dict)
    p50_ms: dict[int, float] = field(default_factory=dict)
    p99_ms: dict[int, float] = field(default_factory=dict)
    failed: int = 0
    memory_mb: float = 0.0
    ready_seconds: float = 0.0


def free_port() -> int:
    """Return a port on loopback that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def tree(pid: int) -> list[int]:
    """Return a process and all that descend from it."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            found += tree(int(child))
    return found


def memory_mb(pid: int) -> float:
    """Return the memory of a process and its descendants in MB; what several share is counted once (PSS)."""
    total = 0
    for one in tree(pid):
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{one}/smaps_rollup").read_text()
            total += int(re.search(r"^Pss:\s+(\d+)", text, re.MULTILINE).group(1))  # type: ignore[union-attr]
    return total * 1024 / 1e6  # the kernel's kB are of 1024 bytes


def post(url: str, path: Path) -> dict[str, Any]:
    """Upload one image; return the answer."""
    answer = httpx.post(f"{url}/predict", files={"file": (path.name, path.read_bytes())}, timeout=60)
    answer.raise_for_status()
    return dict(answer.json())


def drive(url: str, images: Path, clients: int, seconds: float) -> dict[str, float]:
    """Put load on a server with wrk; return requests, seconds, percentiles in milliseconds and failures."""
    time.sleep(SETTLE_SECONDS)
    done = subprocess.run(
        ["wrk", "--threads", "1", "--connections", str(clients), "--duration", f"{seconds:.0f}s", "--timeout", "60s",
         "--script", str(HERE / "upload.lua"), f"{url}/predict"],
        env={**os.environ, "IMAGES": str(images)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return dict(json.loads(done.stdout.splitlines()[-1]))


# --- what is measured -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def running(command: list[str], environment: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server in a process group of its own, and end all of it."""
    with log.open("ab") as stream:
        process = subprocess.Popen(
            command, env=environment, stdout=stream, stderr=stream, start_new_session=True, cwd=HERE
        )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(15)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def await_answer(process: subprocess.Popen[bytes], url: str, image: Path, log: Path) -> float:
    """Wait for the first prediction; return the seconds it took."""
    begin = time.monotonic()
    while time.monotonic() - begin < START_SECONDS:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended: {log.read_text()[-2000:]}")
        with contextlib.suppress(httpx.HTTPError):
            post(url, image)
            return time.monotonic() - begin
        time.sleep(0.05)
    raise RuntimeError(f"the server did not answer in {START_SECONDS:.0f} s: {log.read_text()[-2000:]}")


def gunicorn(*arguments: str) -> list[str]:
    """Return the command line of gunicorn in this environment."""
    return [sys.executable, "-m", "gunicorn", *arguments]


class Bench:
    """One benchmark: a bundle, images, a Redis of its own, and where logs go."""

    def __init__(self, bundle: Path, images: list[Path], directory: Path, seconds: float) -> None:
        self.bundle, self.images, self.directory, self.seconds = bundle, images, directory, seconds
        self.list = directory / "images.txt"
        self.list.write_text("\n".join(str(path) for path in images) + "\n")
        clean = {name: value for name, value in os.environ.items() if not name.startswith("LIGHTBOX_")}
        self.environment = {**clean, "TF_CPP_MIN_LOG_LEVEL": "2", "PYTHONWARNINGS": "ignore"}

    def lightbox(self, port: int, redis_port: int) -> tuple[list[str], dict[str, str]]:
        """Return how Lightbox' API is started."""
        bind = f"127.0.0.1:{port}"
        command = gunicorn(
            "--config", "python:lightbox.gunicorn_conf", "--bind", bind, "--workers", str(WORKERS),
            "lightbox.api.app:app",
        )  # fmt: skip
        return command, {"LIGHTBOX_BUNDLE": str(self.bundle), "LIGHTBOX_REDIS_PORT": str(redis_port)}

    def flask(self, port: int, _: int) -> tuple[list[str], dict[str, str]]:
        """Return how the baseline is started."""
        command = gunicorn("--bind", f"127.0.0.1:{port}", "--workers", str(WORKERS), "--timeout", "120",
                           "baseline_flask:app")  # fmt: skip
        return command, {"MODEL": str(self.bundle / "best_model.keras"), "CONTRACT": str(self.bundle / "model.json")}

    def framework(self, port: int, _: int) -> tuple[list[str], dict[str, str]]:
        """Return how the framework is started."""
        environment = {"BUNDLE": str(self.bundle), "PORT": str(port), "WORKERS": str(WORKERS)}
        return [sys.executable, str(HERE / "baseline_litserve.py")], environment

    @contextlib.contextmanager
    def started(self, name: str) -> Iterator[tuple[str, int, float]]:
        """Start a server; yield its address, its process and the seconds to its first answer."""
        port, redis_port = free_port(), free_port()
        command, more = getattr(self, name)(port, redis_port)
        log = self.directory / f"{name}.log"
        with contextlib.ExitStack() as stack:
            if name == "lightbox":
                cases = stack.enter_context(tempfile.TemporaryDirectory(dir=self.directory))
                store = ["redis-server", "--port", str(redis_port), "--bind", "127.0.0.1", "--dir", cases,
                         *CASE_STORE]  # fmt: skip
                stack.enter_context(running(store, self.environment, self.directory / "redis.log"))
            process = stack.enter_context(running(command, {**self.environment, **more}, log))
            url = f"http://127.0.0.1:{port}"
            yield url, process.pid, await_answer(process, url, self.images[0], log)

    def measure(self, name: str) -> Round:
        """Measure one server once."""
        found = Round()
        with self.started(name) as (url, pid, found.ready_seconds):
            drive(url, self.list, COMPARED, WARM_SECONDS)
            for clients in CLIENTS:
                told = drive(url, self.list, clients, self.seconds)
                found.rps[clients] = (told["requests"] - told["failed"]) / told["seconds"]
                found.p50_ms[clients], found.p99_ms[clients] = told["p50_ms"], told["p99_ms"]
                found.failed += int(told["failed"])
            found.memory_mb = memory_mb(pid)
        return found

    def engine(self) -> float:
        """Return the images per second of the bare engine, in as many processes as the servers have workers."""
        context = multiprocessing.get_context("spawn")
        with context.Pool(WORKERS) as pool:
            rates = pool.starmap(engine_rate, [(self.bundle, self.images, self.seconds)] * WORKERS)
        return float(sum(rates))

    def agreement(self, scores: dict[str, float]) -> dict[str, Any]:
        """Compare what the API answers with what Keras said of the same images at training."""
        positive = json.loads((self.bundle / "model.json").read_text())["labels"][1]
        threshold = json.loads((self.bundle / "model.json").read_text())["decision"]["threshold"]
        pairs = []
        with self.started("lightbox") as (url, _, _):
            for path in self.images:
                if path.stem in scores:
                    pairs.append((post(url, path)["probabilities"][positive], scores[path.stem]))
        if not pairs:
            return {"images": 0}
        return {
            "images": len(pairs),
            "max_abs_difference": max(abs(a - b) for a, b in pairs),
            "label_flips": sum((a >= threshold) != (b >= threshold) for a, b in pairs),
        }


def engine_rate(bundle: Path, images: list[Path], seconds: float) -> float:
    """Decode and assess images for some seconds, with nothing around; return images per second."""
    from lightbox.images import open_image
    from lightbox.serving import Engine

    engine, contents = Engine(bundle, threads=1), [path.read_bytes() for path in images]
    for content in contents[:5]:
        engine.assess(open_image(content))
    begin, count = time.monotonic(), 0
    while time.monotonic() - begin < seconds:
        engine.assess(open_image(contents[count % len(contents)]))
        count += 1
    return count / (time.monotonic() - begin)


# --- the model and the images -----------------------------------------------------------------------------------------


# A new ResNet50, whose layers the training takes as they are.
NEW_BASE = """
import keras
keras.utils.set_random_seed(1)
keras.applications.ResNet50(include_top=False, weights=None, input_shape=(224, 224, 3)).save("base.keras")
"""


def make_bundle(architecture: str, directory: Path) -> Path:
    """Train a network of an architecture for a moment on pictures that are easy to tell apart; return its bundle."""
    print(f"making a bundle of {architecture} …", flush=True)
    data = directory / "data"
    generate(data, 240, seed=1)
    for path in data.rglob("PNEUMONIA/*.png"):
        with Image.open(path) as picture:
            negative = ImageOps.invert(picture.convert("L"))
        negative.save(path)
    training = [sys.executable, "-m", "lightbox.cnn", "--architecture", architecture, "--data", str(data), "--augment",
                "false", "--epochs", "2", "--batch-size", "8", "--runs", str(directory / "runs"),
                "--out-link", str(directory / "bundle")]  # fmt: skip
    commands = [training]
    if architecture == "resnet50":
        commands = [[sys.executable, "-c", NEW_BASE], [*training, "--weights", "base.keras", "--head-epochs", "2"]]
    for command in commands:
        with (directory / "training.log").open("ab") as log:
            done = subprocess.run(command, stdout=log, stderr=log, cwd=directory, check=False)
        if done.returncode:
            raise RuntimeError((directory / "training.log").read_text()[-2000:])
    return (directory / "bundle").resolve()


def evaluation_images(bundle: Path, directory: Path) -> tuple[list[Path], dict[str, float]]:
    """Write the test images of a bundle's run as files; return them, and Keras' scores by the files' stems."""
    from lightbox.data import Manifest, pictures

    manifest = Manifest.load(bundle.parent / "manifest.json")
    lines = (bundle.parent / "predictions.csv").read_text().splitlines()[1:]
    known = {line.split(",")[0]: float(line.rsplit(",", 1)[1]) for line in lines}
    paths, scores = [], {}
    for number, (name, content) in enumerate(pictures(manifest, manifest.of("test"))):
        if isinstance(content, OSError):
            raise content
        suffix = "png" if content.startswith(b"\x89PNG") else "jpeg"
        paths.append(directory / f"{number:04d}.{suffix}")
        paths[-1].write_bytes(content)
        scores[paths[-1].stem] = known[name]
    return paths, scores


# --- the report -------------------------------------------------------------------------------------------------------


def median(values: list[float]) -> float:
    """Return the median."""
    return float(statistics.median(values))


def report(rounds: dict[str, list[Round]], engine: list[float], agreement: dict[str, Any]) -> dict[str, Any]:
    """Return all figures as they are written and printed: medians over the rounds, ratios as medians of ratios."""

    def ratio(of: Callable[[Round], float], other: str) -> float:
        pairs = zip(rounds["lightbox"], rounds[other], strict=True)
        return round(median([of(a) / of(b) for a, b in pairs]), 3)

    servers = {
        name: {
            "rps": {str(c): round(median([r.rps[c] for r in found]), 2) for c in CLIENTS},
            "p50_ms": {str(c): round(median([r.p50_ms[c] for r in found]), 1) for c in CLIENTS},
            "p99_ms": {str(c): round(median([r.p99_ms[c] for r in found]), 1) for c in CLIENTS},
            "memory_mb": round(median([r.memory_mb for r in found]), 1),
            "ready_seconds": round(median([r.ready_seconds for r in found]), 2),
            "failed": sum(r.failed for r in found),
        }
        for name, found in rounds.items()
    }
    per_engine = [a.rps[COMPARED] / b for a, b in zip(rounds["lightbox"], engine, strict=True)]
    return {
        "clients_compared": COMPARED,
        "workers": WORKERS,
        "rounds": len(engine),
        "servers": servers,
        "engine_images_per_second": round(median(engine), 2),
        "agreement_with_keras": agreement,
        "ratios": {
            "rps_vs_flask_keras": ratio(lambda r: r.rps[COMPARED], "flask"),
            "rps_vs_engine": round(median(per_engine), 3),
            "rps_vs_framework": ratio(lambda r: r.rps[COMPARED], "framework"),
            "p99_vs_framework": ratio(lambda r: r.p99_ms[COMPARED], "framework"),
            "memory_vs_flask_keras": ratio(lambda r: r.memory_mb, "flask"),
            "ready_vs_flask_keras": ratio(lambda r: r.ready_seconds, "flask"),
        },
    }


def show(found: dict[str, Any]) -> None:
    """Print the figures as a table."""
    titles = {"lightbox": "Lightbox", "flask": "Flask + model.predict", "framework": "LitServe + ONNX Runtime"}
    print(f"\n{'':26}" + "".join(f"{c:>4} clients: req/s    p50    p99" for c in CLIENTS) + "     MB  ready")
    for name, one in found["servers"].items():
        cells = "".join(
            f"{one['rps'][str(c)]:20.1f} {one['p50_ms'][str(c)]:6.0f} {one['p99_ms'][str(c)]:6.0f}" for c in CLIENTS
        )
        print(f"{titles[name]:26}{cells} {one['memory_mb']:6.0f} {one['ready_seconds']:5.1f}s")
    print(f"{'bare engine':26}{found['engine_images_per_second']:20.1f} images/s")
    agreement = found["agreement_with_keras"]
    if agreement["images"]:
        print(
            f"\nagreement with Keras on {agreement['images']} evaluation images: scores differ by at most "
            f"{agreement['max_abs_difference']:.2g}, {agreement['label_flips']} verdicts are others"
        )
    print()
    for name, value in found["ratios"].items():
        print(f"{name:24} {value:7.2f}")


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", default="resnet50", help="of the model that is made (resnet50)")
    parser.add_argument("--bundle", type=Path, help="bundle to serve, inside its run's directory")
    parser.add_argument("--rounds", type=int, default=3, help="(3)")
    parser.add_argument("--seconds", type=float, default=10, help="of load per measurement (10)")
    parser.add_argument("--keep", type=Path, help="directory for the model and the logs (temporary)")
    parser.add_argument("--out", type=Path, help="write all figures there as JSON")
    options = parser.parse_args()
    for program in ("wrk", "redis-server"):
        if not shutil.which(program):
            sys.exit(f"this benchmark needs {program}: install Debian's package of that name")
    with contextlib.ExitStack() as stack:
        directory = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lightbox-bench-")))
        directory.mkdir(parents=True, exist_ok=True)
        directory = directory.resolve()
        bundle = options.bundle.resolve() if options.bundle else make_bundle(options.architecture, directory)
        (directory / "images").mkdir(exist_ok=True)
        images, scores = evaluation_images(bundle, directory / "images")
        bench = Bench(bundle, images, directory, options.seconds)
        rounds: dict[str, list[Round]] = {"lightbox": [], "flask": [], "framework": []}
        engine: list[float] = []
        for number in range(options.rounds):
            for name, found in rounds.items():
                print(f"round {number + 1} of {options.rounds}: {name}", flush=True)
                found.append(bench.measure(name))
                if name == "lightbox":
                    # Right after it: the ratio of the two is close to 1, and a drift in between would show.
                    engine.append(bench.engine())
        found_all = report(rounds, engine, bench.agreement(scores))
        found_all["model"] = {
            key: json.loads((bundle / "model.json").read_text())[key] for key in ("version", "input", "serving")
        }
    show(found_all)
    if options.out:
        options.out.write_text(json.dumps(found_all, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
