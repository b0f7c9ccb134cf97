"""What Keras trains with: TensorFlow, or JAX or PyTorch where ``KERAS_BACKEND`` in the environment says so.

TensorFlow is there in any case: it brings the batches, varies the images and compiles the serving form.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping

VARIABLE = "KERAS_BACKEND"
TENSORFLOW, JAX, TORCH = "tensorflow", "jax", "torch"
NAMES = {TENSORFLOW: "TensorFlow", JAX: "JAX", TORCH: "PyTorch"}
# Distributions whose versions decide what a backend computes.
PACKAGES = {TENSORFLOW: ("tensorflow", "tensorflow-cpu"), JAX: ("jax", "jaxlib"), TORCH: ("torch",)}


class BackendError(Exception):
    """The backend asked for cannot train; the text says what to do."""


def chosen(environment: Mapping[str, str], hosts: int = 1) -> str:
    """Return the backend that the environment asks for.

    Keras is not imported for it, and its own file of settings does not count.

    Args:
        environment: of the process.
        hosts: how many train together.

    Raises:
        BackendError: it is none of the three, is not installed, or cannot train on so many hosts.
    """
    name = environment.get(VARIABLE) or TENSORFLOW
    if name not in NAMES:
        raise BackendError(f"{VARIABLE} is {name!r}, expected one of {', '.join(NAMES)}")
    if importlib.util.find_spec(name) is None:
        raise BackendError(
            f"{VARIABLE} is {name}, but {NAMES[name]} is not installed: install lightbox' extra trainer-{name}, "
            f"or leave {VARIABLE} out"
        )
    if hosts > 1 and name != TENSORFLOW:
        raise BackendError(
            f"{VARIABLE} is {name}, but TF_CONFIG names {hosts} hosts, and only TensorFlow trains on several: "
            f"leave {VARIABLE} out, or train on one host without TF_CONFIG"
        )
    return name


def gpus(name: str) -> int:
    """Return how many GPUs a backend sees."""
    if name == JAX:
        import jax

        return sum(device.platform == "gpu" for device in jax.devices())
    if name == TORCH:
        import torch

        return int(torch.cuda.device_count())
    import tensorflow as tf

    return len(tf.config.list_physical_devices("GPU"))
