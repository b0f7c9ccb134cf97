"""The serving form: a trained network compiled for ONNX Runtime, with its heat map and its test of familiarity.

The compiled graph has three outputs for an image: ``score``, as the network gives it; ``heat``, where the image speaks
for the finding, or for each of several classes; ``distance``, how far its features lie from those of the training
images. All three come from one pass. A network that does not end in global average pooling has no ``heat``.

TensorFlow compiles it, whatever trained the network: in this process where Keras runs on TensorFlow, else in one of its
own, ``python -m lightbox.export NETWORK.keras FAMILIAR.npz OUT.onnx``. Quantization needs ONNX Runtime alone.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightbox import backends, evaluation
from lightbox.architectures import SCORE

Doubles = NDArray[np.float64]
Batches = Iterator[NDArray[np.float32]]

# Largest difference between a score of the trained network and of its fp32 serving form.
PARITY = 1e-3
# What a form of lower precision may cost on the validation and test images: AUROC, share of labels that are others,
# and the largest difference of a score.
AUROC_DROP, FLIPS, DIFFERENCE = 0.002, 0.002, 0.05
# Directions of the feature space that are modelled one by one; the rest counts as one.
COMPONENTS = 32
# Share of the validation images that lie nearer than the limit from which an image is called unfamiliar.
FAMILIAR = 0.995
# Mean saturation from which an image is no grey one; scanners and JPEG leave less than a tenth of it.
MAX_CHROMA = 0.15
# Images that int8 ranges are taken from.
CALIBRATION_IMAGES = 200
OUTPUTS = {"score": "score", "heat": "heat", "distance": "distance"}


def _constant(values: Any) -> Any:
    """Return a float32 tensor. Made while a graph is traced it becomes part of it, and no further input."""
    from keras import ops

    return ops.convert_to_tensor(np.asarray(values, dtype=np.float32))


class ExportError(Exception):
    """The network cannot be compiled, or what was compiled is not the network."""


@dataclass(frozen=True)
class Familiar:
    """A normal distribution of features (probabilistic PCA, Tipping and Bishop 1999).

    Attributes:
        mean: shape (features,).
        directions: shape (features, components), orthonormal columns.
        variances: along the directions, shape (components,).
        rest: variance along each other direction.
    """

    mean: Doubles
    directions: Doubles
    variances: Doubles
    rest: float

    @classmethod
    def fit(cls, features: Doubles, components: int = COMPONENTS) -> Familiar:
        """Return the distribution of features, shape (images, features)."""
        mean = features.mean(axis=0)
        centred = features - mean
        kept = max(1, min(components, features.shape[1] - 1, features.shape[0] - 2))
        _, singular, rows = np.linalg.svd(centred, full_matrices=False)
        variances = singular**2 / max(1, features.shape[0] - 1)
        left = features.shape[1] - kept
        rest = float(variances[kept:].sum() / left)
        # A direction in which no training image differs would make every other image infinitely far.
        floor = max(1e-12, 1e-6 * float(variances[0]))
        return cls(mean, rows[:kept].T, np.maximum(variances[:kept], floor), max(rest, floor))

    def save(self, file: Path) -> None:
        """Write the distribution as an ``.npz`` file."""
        np.savez(file, **self.__dict__)

    @classmethod
    def load(cls, file: Path) -> Familiar:
        """Return the distribution that `save` wrote."""
        with np.load(file, allow_pickle=False) as arrays:
            return cls(arrays["mean"], arrays["directions"], arrays["variances"], float(arrays["rest"]))

    def distance(self, features: Any) -> Any:
        """Return the squared Mahalanobis distance per feature, about 1 for a training image.

        Args:
            features: Keras tensor or array of shape (n, features).

        Returns:
            Shape (n,).
        """
        from keras import ops

        centred = features - _constant(self.mean)
        directions = _constant(self.directions)
        along = ops.matmul(centred, directions)
        across = ops.sum(ops.square(centred - ops.matmul(along, ops.transpose(directions))), axis=1) / self.rest
        total = ops.sum(ops.square(along) / _constant(self.variances), axis=1) + across
        return total / float(self.mean.size)


# --- the graph --------------------------------------------------------------------------------------------------------


def _after_pooling(model: Any) -> tuple[Any, list[Any]]:
    """Return the pooling layer and the layers after it, in their order.

    Raises:
        ExportError: the network does not end in global average pooling and plain layers.
    """
    import keras

    found = [
        index for index, layer in enumerate(model.layers) if isinstance(layer, keras.layers.GlobalAveragePooling2D)
    ]
    if not found:
        raise ExportError(f"{model.name} has no global average pooling: its heat map has no closed form")
    pooling, head = model.layers[found[-1]], model.layers[found[-1] + 1 :]
    plain = (
        keras.layers.Dense,
        keras.layers.BatchNormalization,
        keras.layers.ReLU,
        keras.layers.Dropout,
    )
    for layer in head:
        if not isinstance(layer, plain):
            raise ExportError(f"{layer.name} of {model.name} is a {type(layer).__name__}: its gradient is not written")
    return pooling, head


def _features(model: Any) -> Any:
    """Return the tensor of a network's features: what it pools, or else what its last dense layer takes."""
    import keras

    try:
        return _after_pooling(model)[0].output
    except ExportError:
        before = [layer for layer in model.layers if not isinstance(layer, keras.layers.Dropout)]
        return before[before.index(model.get_layer(SCORE)) - 1].output


def _explanation(head: list[Any], familiar: Familiar | None) -> Any:
    """Return a layer from feature maps, their means and the outputs of the head's ReLUs to heat map and distance.

    A head of dense layers, batch normalisation in inference and ReLU is linear between its kinks, so the chain of its
    matrices and of the masks of its ReLUs is the gradient of the logit itself, with no backward pass.
    """
    import keras
    from keras import ops

    outputs = head[-1].units
    # From the score backwards: a matrix to multiply by, a vector to scale by, or None for the mask of a ReLU.
    chain: list[NDArray[np.float32] | None] = []
    for layer in reversed(head):
        if isinstance(layer, keras.layers.Dense):
            chain.append(np.asarray(layer.kernel).T)
        elif isinstance(layer, keras.layers.BatchNormalization):
            gamma = np.asarray(layer.gamma) if layer.scale else 1.0
            chain.append(gamma / np.sqrt(np.asarray(layer.moving_variance) + layer.epsilon))
        elif isinstance(layer, keras.layers.ReLU):
            chain.append(None)

    class Explanation(keras.layers.Layer):
        """Gradient of the logit, spread over the feature maps."""

        def call(self, maps: Any, pooled: Any, kinks: list[Any]) -> dict[str, Any]:
            waiting = list(kinks)
            # Shape (n or 1, outputs, units). What adds alike to the logits of all classes speaks for none of them.
            gradient = ops.ones((1, 1, 1)) if outputs == 1 else ops.expand_dims(ops.eye(outputs) - 1 / outputs, 0)
            for link in chain:
                if link is None:
                    gradient = ops.multiply(gradient, ops.expand_dims(ops.cast(waiting.pop() > 0, "float32"), 1))
                elif link.ndim == 1:
                    gradient = ops.multiply(gradient, _constant(link))
                else:
                    gradient = ops.matmul(gradient, _constant(link))
            if outputs == 1:
                heat = ops.sum(maps * ops.reshape(gradient, (-1, 1, 1, maps.shape[-1])), axis=-1)
            else:
                heat = ops.matmul(maps, ops.expand_dims(ops.transpose(gradient, (0, 2, 1)), 1))
            found = {"heat": heat}
            if familiar is not None:
                found["distance"] = familiar.distance(pooled)
            return found

    return Explanation(name="explanation")


def with_explanations(model: Any, familiar: Familiar | None) -> Any:
    """Return the network with its outputs ``score``, ``heat`` (n, height, width) and ``distance`` (n,).

    Of several classes ``heat`` has a map for each: (n, height, width, classes).

    ``heat`` is what each place of the last feature map adds to the logit: its mean is the logit less its constant part
    where the head is one layer (Zhou et al., 2016), and its first-order change otherwise (Selvaraju et al., 2017).

    Args:
        model: a network whose last layer is named ``score``.
        familiar: distribution of its pooled features; None leaves ``distance`` out.

    Raises:
        ExportError: the network does not end in global average pooling and a head of plain layers.
    """
    import keras

    pooling, head = _after_pooling(model)
    kinks = [layer.output for layer in head if isinstance(layer, keras.layers.ReLU)]
    found = _explanation(head, familiar)(pooling.input, pooling.output, kinks)
    return keras.Model(model.input, {"score": model.get_layer(SCORE).output, **found}, name=model.name)


def serving_network(model: Any, familiar: Familiar) -> Any:
    """Return the network with every output it can have: as `with_explanations` does, or without ``heat``.

    Args:
        model: a network whose last layer is named ``score``.
        familiar: distribution of its features.
    """
    import keras

    try:
        return with_explanations(model, familiar)
    except ExportError:
        pass

    class Distance(keras.layers.Layer):
        """How far features lie from those of the training images."""

        def call(self, values: Any) -> Any:
            return familiar.distance(values)

    outputs = {"score": model.get_layer(SCORE).output, "distance": Distance()(_features(model))}
    return keras.Model(model.input, outputs, name=model.name)


def features(model: Any, batches: Batches) -> Doubles:
    """Return the features of images, shape (n, features): what the network pools, or what its last layer takes."""
    import keras

    extractor = keras.Model(model.input, _features(model))
    return np.concatenate([np.asarray(extractor.predict_on_batch(x), dtype=np.float64) for x in batches])


def compile_network(model: Any, file: Path) -> None:
    """Write a network as an ONNX file, its outputs named as in `with_explanations`.

    Raises:
        ExportError: it cannot be compiled.
    """
    import keras

    signature = [keras.InputSpec(shape=(None, *model.input_shape[1:]), dtype="float32", name="image")]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.export(file, format="onnx", verbose=False, input_signature=signature)
    # The exporter raises whatever its layers raise.
    except Exception as error:
        raise ExportError(f"the model cannot be compiled to ONNX: {error}") from error


def compile_serving(model: Any, familiar: Familiar, file: Path) -> None:
    """Write the serving form of a network as an ONNX file.

    Args:
        model: the network, on any backend.
        familiar: distribution of its features.
        file: to write.

    Raises:
        ExportError: it cannot be compiled.
    """
    import keras

    if keras.backend.backend() == backends.TENSORFLOW:
        compile_network(serving_network(model, familiar), file)
        return
    with tempfile.TemporaryDirectory(dir=file.parent) as directory:
        network, known = Path(directory) / "network.keras", Path(directory) / "familiar.npz"
        model.save(network)
        familiar.save(known)
        # The processor is enough for it, and the GPU is the trainer's.
        others = {backends.VARIABLE: backends.TENSORFLOW, "CUDA_VISIBLE_DEVICES": "-1"}
        command = [sys.executable, "-m", "lightbox.export", str(network), str(known), str(file)]
        done = subprocess.run(command, env={**os.environ, **others}, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stdout.strip() or (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise ExportError(said)


def main(arguments: list[str]) -> int:
    """Compile a saved network; the exit status is 0, or 1 with the reason on standard output.

    Args:
        arguments: the network, the distribution of its features, and the file to write.
    """
    import keras

    network, known, file = (Path(argument) for argument in arguments)
    try:
        compile_network(serving_network(keras.models.load_model(network, compile=False), Familiar.load(known)), file)
    except ExportError as error:
        sys.stdout.write(f"{error}\n")
        return 1
    return 0


# --- what it says -----------------------------------------------------------------------------------------------------


def run(file: Path, batches: Batches) -> dict[str, NDArray[np.float32]]:
    """Return every output of a compiled form for images, by name, in their order."""
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    outputs = [output.name for output in session.get_outputs()]
    answers = [session.run(None, {name: x}) for x in batches]
    return {output: np.concatenate([answer[i] for answer in answers]) for i, output in enumerate(outputs)}


def compare(trained: Doubles, compiled: Doubles, limit: float) -> dict[str, Any]:
    """Return how far the scores of two forms of a network are apart and how many verdicts differ.

    Args:
        trained: shape (n,) or (n, classes).
        compiled: in the same shape.
        limit: the threshold, see `lightbox.evaluation.verdicts`.
    """
    return {
        "images": len(trained),
        "max_abs_difference": float(np.abs(trained - compiled).max()),
        "label_flips": int((evaluation.verdicts(trained, limit) != evaluation.verdicts(compiled, limit)).sum()),
    }


def check_parity(found: dict[str, Any]) -> None:
    """Hold the fp32 form to the trained network.

    Raises:
        ExportError: a score differs by more than 0.001 or a label is another.
    """
    if not found["max_abs_difference"] <= PARITY or found["label_flips"]:
        raise ExportError(
            f"the compiled model is not the trained one: scores differ by up to {found['max_abs_difference']:.2g} "
            f"(at most {PARITY} is allowed), {found['label_flips']} of {found['images']} labels are others; "
            "nothing is released"
        )


# --- lower precision --------------------------------------------------------------------------------------------------


def quantize(source: Path, target: Path, images: Batches) -> None:
    """Write an int8 form of a compiled network: convolutions and matrices per channel, ranges from images.

    Raises:
        ExportError: it cannot be quantized.
    """
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):
        """Hands images out one batch at a time."""

        def __init__(self, name: str) -> None:
            self.name = name

        def get_next(self) -> dict[str, Any] | None:
            batch = next(images, None)
            return None if batch is None else {self.name: batch}

    prepared = target.with_suffix(".prepared.onnx")
    logging.getLogger("root").setLevel(logging.ERROR)
    try:
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        quantization.quantize_static(
            prepared,
            target,
            Reader("image"),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            op_types_to_quantize=["Conv"],
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            # 7 bits for weights: with 8, processors without VNNI overflow and give other scores than those with it.
            reduce_range=True,
        )
    # The quantizer raises whatever it meets.
    except Exception as error:
        raise ExportError(f"the model cannot be quantized: {error}") from error
    finally:
        prepared.unlink(missing_ok=True)


def precision_gate(labels: NDArray[np.int64], full: Doubles, low: Doubles, limit: float) -> tuple[dict[str, Any], str]:
    """Compare a form of lower precision with the full one on labelled images.

    Args:
        labels: indices of the classes, shape (n,).
        full: scores of the fp32 form, shape (n,) or (n, classes).
        low: scores of the other, in the same shape.
        limit: the decision threshold.

    Returns:
        The figures, and in words why it may not serve; empty when it may.
    """
    figures = compare(full, low, limit)
    figures["auroc_drop"] = evaluation.auroc(labels, full) - evaluation.auroc(labels, low)
    reasons = []
    if not np.isfinite(low).all():
        reasons.append("some scores are not numbers")
    if not figures["auroc_drop"] <= AUROC_DROP:
        reasons.append(f"AUROC falls by {figures['auroc_drop']:.4f}, at most {AUROC_DROP} is allowed")
    if figures["label_flips"] > FLIPS * figures["images"]:
        reasons.append(f"{figures['label_flips']} of {figures['images']} labels are others, at most {FLIPS:.1%} may be")
    if not figures["max_abs_difference"] <= DIFFERENCE:
        reasons.append(f"a score differs by {figures['max_abs_difference']:.3f}, at most {DIFFERENCE} is allowed")
    return figures, "; ".join(reasons)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
