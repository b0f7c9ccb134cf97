"""Measure inference engines side by side: ``make bench-engines``, or ``python benchmarks/engines.py --help``.

One image at a time, one network after the other, in one run: Keras' ``model.predict``, the same network as a compiled
``tf.function``, ONNX Runtime on the serving form, ONNX Runtime on its int8 form, and OpenVINO on the serving form. The
time is that of the processor, over all threads, so that what else the machine does counts little; a table shows medians
and multiples of ``model.predict``. Weights are not trained, which changes no speed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np

SIZES = {"compact": 128, "mobilenet": 160, "resnet50": 224}
BASE = "Keras model.predict"


def milliseconds(predict: Callable[[], Any], rounds: int) -> tuple[float, float]:
    """Return the median time of the processor and of the clock for one call, in milliseconds."""
    for _ in range(3):
        predict()
    spent, waited = [], []
    for _ in range(rounds):
        begin, clock = time.process_time(), time.perf_counter()
        predict()
        spent.append(time.process_time() - begin)
        waited.append(time.perf_counter() - clock)
    return 1000 * statistics.median(spent), 1000 * statistics.median(waited)


def onnx(file: Path, image: Any) -> Callable[[], Any]:
    """Return a prediction by ONNX Runtime with one thread, as the API makes it."""
    from lightbox.serving import open_session

    session = open_session(file, threads=1)
    return lambda: session.run(["score"], {"image": image})


def openvino(file: Path, image: Any) -> Callable[[], Any]:
    """Return a prediction by OpenVINO with one thread, in single precision."""
    import openvino as ov

    settings = {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    request = ov.Core().compile_model(file, "CPU", settings).create_infer_request()
    return lambda: request.infer({"image": image})


def candidates(name: str, directory: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Make a network of an architecture in all its forms; yield the name of each engine and its prediction."""
    import tensorflow as tf

    from lightbox import cnn, export
    from lightbox.architectures import ARCHITECTURES

    architecture, size = ARCHITECTURES[name], SIZES[name]
    shape = (size, size, 3 if architecture.color == "rgb" else 1)
    settings = cnn.resolve({"architecture": name, "image_size": size, "weights": "none"})[1]
    network = architecture.build(shape, settings)
    image = np.random.default_rng(1).random((1, *shape), dtype=np.float32)
    yield BASE, lambda: network.predict(image, verbose=0)
    compiled = tf.function(network, jit_compile=False)
    yield "tf.function", lambda: compiled(image, training=False).numpy()
    single, low = directory / f"{name}.onnx", directory / f"{name}.int8.onnx"
    export.compile_network(export.with_explanations(network, None), single)
    yield "ONNX Runtime fp32", onnx(single, image)
    export.quantize(single, low, iter([image]))
    yield "ONNX Runtime int8", onnx(low, image)
    yield "OpenVINO fp32", openvino(single, image)


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", choices=sorted(SIZES), action="append", help="(all of them)")
    parser.add_argument("--rounds", type=int, default=30, help="predictions by each engine (30)")
    parser.add_argument("--out", type=Path, help="write all figures there as JSON")
    options = parser.parse_args()
    found: dict[str, dict[str, dict[str, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="lightbox-bench-") as folder:
        for name in options.architecture or SIZES:
            found[name] = {}
            print(f"\n{name:22}{'processor':>12}{'clock':>10}{'faster':>9}", flush=True)
            for engine, predict in candidates(name, Path(folder)):
                spent, waited = milliseconds(predict, options.rounds)
                base = found[name].get(BASE, {}).get("processor_ms", spent)
                found[name][engine] = {"processor_ms": spent, "clock_ms": waited, "times_keras": base / spent}
                print(f"{engine:22}{spent:9.2f} ms{waited:7.2f} ms{base / spent:8.1f}x", flush=True)
    if options.out:
        options.out.write_text(json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
