"""A training as Prometheus sees it: the fields of its progress as metrics, for as long as the training runs."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any

from prometheus_client import CollectorRegistry, Metric, ProcessCollector, start_http_server
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector

PREFIX = "lightbox_training"
# Longer than this nobody waits for a GPU to tell how it is: Prometheus gives up after five.
GPU_SECONDS = 3.0
STATES = ("preparing", "training", "evaluating", "exporting", "done", "unchanged", "failed")
# Name of the metric and what it is, by field of the progress.
GAUGES = {
    "epoch": ("epoch", "Epoch that is trained, the first being 1; 0 before it"),
    "epochs": ("epochs", "Most epochs"),
    "step": ("step", "Steps done in this epoch"),
    "steps": ("steps", "Steps of an epoch"),
    "images_per_second": ("images_per_second", "Training images per second in this epoch"),
    "eta_seconds": ("eta_seconds", "Seconds left if every epoch is trained"),
    "loss": ("loss", "Mean loss of this epoch so far"),
    "accuracy": ("accuracy", "Accuracy of this epoch so far, from 0 to 1"),
    "val_loss": ("validation_loss", "Loss of the last finished epoch on the validation images"),
    "val_accuracy": ("validation_accuracy", "Accuracy of the last finished epoch on the validation images"),
    "val_auroc": ("validation_auroc", "AUROC of the last finished epoch on the validation images"),
}


def gpus() -> list[tuple[str, float, float]]:
    """Return number, share of the time in use (0 to 1) and bytes of memory in use of each GPU that there is."""
    asked = ["nvidia-smi", "--query-gpu=index,utilization.gpu,memory.used", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(asked, capture_output=True, text=True, timeout=GPU_SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return read_gpus(told)


def read_gpus(told: str) -> list[tuple[str, float, float]]:
    """Return what nvidia-smi told: a line for each GPU with its number, per cent in use and MiB in use.

    What a GPU does not measure is said in words; such a GPU is left out.
    """
    found = []
    for line in told.splitlines():
        number, busy, used = ([part.strip() for part in line.split(",")] + ["", "", ""])[:3]
        try:
            found.append((number, float(busy) / 100, float(used) * 2**20))
        except ValueError:
            continue
    return found


class TrainingCollector(Collector):
    """Reads a training's progress whenever somebody asks; what is not known yet is left out."""

    def __init__(self, fields: Mapping[str, Any], architecture: str) -> None:
        self.fields, self.architecture = fields, architecture

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        fields = dict(self.fields)
        for field, (name, meaning) in GAUGES.items():
            if fields.get(field) is not None:
                yield GaugeMetricFamily(f"{PREFIX}_{name}", meaning, value=fields[field])
        told = datetime.fromisoformat(fields["updated"].replace("Z", "+00:00")).timestamp()
        yield GaugeMetricFamily(
            f"{PREFIX}_progress_timestamp_seconds", "When the training last got on, in seconds since 1970", value=told
        )
        yield from self._gpus()
        state = GaugeMetricFamily(f"{PREFIX}_state", "1 for the state the training is in, else 0", labels=["state"])
        for one in STATES:
            state.add_metric([one], fields["state"] == one)
        yield state
        what = {"run": fields.get("run") or "", "architecture": self.architecture}
        yield InfoMetricFamily(PREFIX, "What is trained", value=what)

    @staticmethod
    def _gpus() -> Iterator[Metric]:
        found = gpus()
        yield GaugeMetricFamily(f"{PREFIX}_gpus", "GPUs that this host measures", value=len(found))
        busy = GaugeMetricFamily(
            f"{PREFIX}_gpu_busy_ratio", "Share of the time a GPU is in use, 0 to 1", labels=["gpu"]
        )
        used = GaugeMetricFamily(f"{PREFIX}_gpu_memory_bytes", "Memory of a GPU that is in use", labels=["gpu"])
        for number, share, memory in found:
            busy.add_metric([number], share)
            used.add_metric([number], memory)
        yield from (busy, used)


def serve(
    address: str, port: int, fields: Mapping[str, Any], architecture: str, say: Callable[[str], None]
) -> Callable[[], None]:
    """Answer Prometheus while a training runs; a port that cannot be had is said, and stops nothing.

    Args:
        address: to listen on.
        port: to listen on; 0 for not at all.
        fields: the progress, read anew for every answer; see `lightbox.cnn.Progress`.
        architecture: name of the network.
        say: told one line when nobody can listen.

    Returns:
        What ends it and gives the port back.
    """
    if not port:
        return lambda: None
    registry = CollectorRegistry()
    registry.register(TrainingCollector(fields, architecture))
    ProcessCollector(registry=registry)
    try:
        server, thread = start_http_server(port, address, registry)
    except OSError as error:
        say(f"no metrics on {address}:{port}: {error.strerror or error}; the training goes on without them")
        return lambda: None

    def end() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return end
