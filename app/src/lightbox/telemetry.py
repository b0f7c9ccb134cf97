"""A training as Prometheus sees it: the fields of its progress as metrics, for as long as the training runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any

from prometheus_client import CollectorRegistry, Metric, ProcessCollector, start_http_server
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector

PREFIX = "lightbox_training"
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
        state = GaugeMetricFamily(f"{PREFIX}_state", "1 for the state the training is in, else 0", labels=["state"])
        for one in STATES:
            state.add_metric([one], fields["state"] == one)
        yield state
        what = {"run": fields.get("run") or "", "architecture": self.architecture}
        yield InfoMetricFamily(PREFIX, "What is trained", value=what)


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
