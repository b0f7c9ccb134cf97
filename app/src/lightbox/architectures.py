"""The networks one can choose from, side by side. What an image goes through before a network belongs to it.

`ARCHITECTURES` is the register: a name, its input, its preprocessing, its own defaults of the hyper-parameters and the
function that builds it. A new network is one more entry.

A network takes float32 of shape (n, height, width, channels), already multiplied by `scale` and shifted by `offset`,
and gives probabilities from a dense layer named ``score``: of the second of two classes, shape (n, 1), or of each of
more, shape (n, classes).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lightbox.bundle import CENTRED, file_digest

# Means that Keras' ResNet50 weights were trained with, in the order blue, green, red, on a scale of 0 to 255.
IMAGENET_BGR = (103.939, 116.779, 123.68)
IMAGENET, NOTHING = "imagenet", "none"
SCORE = "score"
# Of batch normalisation that is trained. Epochs are short: the running figures must follow within one.
MOMENTUM = 0.95


class ArchitectureError(Exception):
    """A network cannot be built as asked; the text says what to do."""


@dataclass(frozen=True)
class Architecture:
    """One entry of the register.

    Attributes:
        name: what it is chosen by.
        summary: one line for people.
        color: colour mode of its input, a key of `lightbox.bundle.COLOR_MODES`.
        scale: what pixels from 0 to 255 are multiplied by.
        offset: what is added then.
        build: makes the Keras model from (height, width, channels), the hyper-parameters and the number of classes.
        defaults: hyper-parameters in which it differs from the general defaults.
        pretrained: whether it starts from weights, so that its head is trained alone first.
        resize: how images are brought to its size.
    """

    name: str
    summary: str
    color: str
    scale: float
    offset: float
    build: Callable[[tuple[int, int, int], Any, int], Any]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    pretrained: bool = False
    resize: str = "bilinear"


def _conv(x: Any, filters: int, size: int, stride: int = 1, activate: bool = True) -> Any:
    from keras import layers

    x = layers.Conv2D(
        filters, size, strides=stride, padding="same", use_bias=False, kernel_initializer="he_normal"
    )(x)  # fmt: skip
    x = layers.BatchNormalization(momentum=MOMENTUM)(x)
    return layers.ReLU()(x) if activate else x


def _residual(x: Any, filters: int, stride: int) -> Any:
    from keras import layers

    y = _conv(_conv(x, filters, 3, stride), filters, 3, activate=False)
    if stride > 1:
        x = layers.AveragePooling2D(stride, padding="same")(x)
    if x.shape[-1] != filters:
        x = _conv(x, filters, 1, activate=False)
    return layers.ReLU()(layers.Add()([x, y]))


def _score(x: Any, classes: int) -> Any:
    """Put the last layer on a network: a sigmoid for two classes, a softmax for more."""
    from keras import layers

    units, activation = (1, "sigmoid") if classes == 2 else (classes, "softmax")
    return layers.Dense(units, activation=activation, name=SCORE, dtype="float32")(x)


def compact(shape: tuple[int, int, int], settings: Any, classes: int = 2) -> Any:
    """Build a small residual network to be trained from nothing on a CPU; `width` scales its channels.

    Each image is first brought to zero mean and unit variance in the network itself, so that exposure does not count.
    """
    import keras
    from keras import layers

    w = settings.width
    image = keras.Input(shape, name="image")
    x = layers.LayerNormalization(axis=[1, 2, 3], center=False, scale=False, epsilon=1e-4)(image)
    x = _conv(x, max(8, 2 * w // 3), 5, 2)
    x = layers.MaxPooling2D(3, 2, padding="same")(x)
    # The last block keeps its size: the heat map is as fine as its maps.
    for factor, stride in ((1, 1), (2, 2), (4, 2), (4, 1)):
        x = _residual(x, factor * w, stride)
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dropout(settings.dropout, seed=settings.seed)(x)
    return keras.Model(image, _score(x, classes), name="compact")


def mnist(shape: tuple[int, int, int], settings: Any, classes: int = 2) -> Any:
    """Build the classic network for digits: two convolutions, each followed by pooling, and a dense layer.

    It has 211,690 weights for 28 by 28 grey pixels and ten classes; dropout before the last layer adds none.
    """
    import keras
    from keras import layers

    x = image = keras.Input(shape, name="image")
    for _ in range(2):
        x = layers.Conv2D(32, 3, padding="same", activation="relu")(x)
        x = layers.MaxPooling2D()(x)
    x = layers.Dense(128, activation="relu")(layers.Flatten()(x))
    x = layers.Dropout(settings.dropout, seed=settings.seed)(x)
    return keras.Model(image, _score(x, classes), name="mnist")


def _head(base: Any, image: Any, x: Any, settings: Any, classes: int, name: str) -> Any:
    """Put the classifier on a pre-trained base: two dense layers with L2, batch normalisation and dropout each."""
    import keras
    from keras import layers, regularizers

    # Batch normalisation inside a pre-trained base keeps the figures it was trained with; without weights it has none.
    x = base(x) if settings.weights == NOTHING else base(x, training=False)
    x = layers.GlobalAveragePooling2D()(x)
    for _ in range(2):
        x = layers.Dense(settings.dense, kernel_regularizer=regularizers.L2(settings.l2), use_bias=False)(x)
        x = layers.BatchNormalization(momentum=MOMENTUM)(x)
        x = layers.ReLU()(x)
        x = layers.Dropout(settings.dropout, seed=settings.seed)(x)
    return keras.Model(image, _score(x, classes), name=name)


def resnet50(shape: tuple[int, int, int], settings: Any, classes: int = 2) -> Any:
    """Build ResNet50 (He et al., 2015) with ImageNet weights and a new head; takes RGB from 0 to 255."""
    import keras
    from keras import layers

    image = keras.Input(shape, name="image")
    # Keras' weights expect blue, green, red less their means: a fixed 1x1 convolution, so that servers need not know.
    swap = layers.Conv2D(3, 1, trainable=False, name="rgb_to_imagenet")
    x = swap(image)
    swap.set_weights([np.eye(3, dtype=np.float32)[::-1][None, None], -np.asarray(IMAGENET_BGR, dtype=np.float32)])
    base = keras.applications.ResNet50(include_top=False, weights=None, input_shape=shape)
    load_weights(base, settings.weights, settings.weights_sha256, keras.applications.ResNet50)
    return _head(base, image, x, settings, classes, "resnet50")


def mobilenet(shape: tuple[int, int, int], settings: Any, classes: int = 2) -> Any:
    """Build MobileNetV2 (Sandler et al., 2018) at 0.35 of its width with ImageNet weights and a new head."""
    import keras

    def make(**options: Any) -> Any:
        return keras.applications.MobileNetV2(alpha=0.35, **options)

    image = keras.Input(shape, name="image")
    base = make(include_top=False, weights=None, input_shape=shape)
    load_weights(base, settings.weights, settings.weights_sha256, make)
    return _head(base, image, image, settings, classes, "mobilenet")


def load_weights(base: Any, weights: str, sha256: str, published: Callable[..., Any]) -> None:
    """Give a base its weights.

    Args:
        base: Keras model.
        weights: ``imagenet`` (Keras fetches them), ``none``, or a file: ``.npz`` with arrays ``<layer>/<weight>``,
            ``.keras`` with the same model, ``.h5`` as Keras publishes.
        sha256: digest that the file must have; empty for none.
        published: makes the model with ``weights="imagenet"``.

    Raises:
        ArchitectureError: the weights cannot be had, are damaged, or are another network's.
    """
    if weights == NOTHING:
        for layer in base.layers:
            if hasattr(layer, "momentum"):
                layer.momentum = MOMENTUM
        return
    if weights == IMAGENET:
        try:
            original = published(include_top=False, weights=IMAGENET, input_shape=base.input_shape[1:])
        # Keras wraps whatever the download raised.
        except Exception as error:
            raise ArchitectureError(
                f"the ImageNet weights of {base.name} cannot be fetched ({error}): put the file on this machine and "
                "name it with --weights FILE --weights-sha256 DIGEST, choose --architecture compact, or --weights none"
            ) from error
        base.set_weights(original.get_weights())
        return
    file = Path(weights)
    if not file.is_file():
        raise ArchitectureError(f"there are no weights at {file}: name a .h5, .keras or .npz file, imagenet or none")
    if sha256 and (found := file_digest(file)) != sha256.lower():
        raise ArchitectureError(f"{file} is not the file expected: its SHA-256 is {found}, not {sha256}")
    try:
        if file.suffix == ".npz":
            _load_npz(base, file)
        elif file.suffix == ".keras":
            import keras

            base.set_weights(keras.models.load_model(file, compile=False).get_weights())
        else:
            base.load_weights(file)
    except ArchitectureError:
        raise
    # Formats differ in what they raise; whatever it was, the file does not fit the network.
    except Exception as error:
        raise ArchitectureError(f"{file} does not hold the weights of {base.name}: {error}") from error


def _load_npz(base: Any, file: Path) -> None:
    """Give each layer the arrays named after it; every weight of the base must be there, in its shape."""
    with np.load(file, allow_pickle=False) as arrays:
        for layer in base.layers:
            values = []
            for weight in layer.weights:
                name = f"{layer.name}/{weight.path.rsplit('/', 1)[-1]}"
                # Keras 2 called the kernel of a depthwise convolution so.
                old = f"{layer.name}/depthwise_kernel"
                key = name if name in arrays else old
                if key not in arrays or arrays[key].shape != tuple(weight.shape):
                    found = arrays[key].shape if key in arrays else "nothing"
                    raise ArchitectureError(f"{file} has {found} for {name} of {base.name}, expected {weight.shape}")
                values.append(arrays[key])
            layer.set_weights(values)


ARCHITECTURES: dict[str, Architecture] = {
    one.name: one
    for one in (
        Architecture(
            name="compact",
            summary="residual network of 0.4 million weights, trained from nothing; for CPUs",
            color="grayscale",
            scale=1 / 255,
            offset=0.0,
            build=compact,
        ),
        Architecture(
            name="resnet50",
            summary="ResNet50 on ImageNet weights, its head first and then its upper layers; for GPUs",
            color="rgb",
            scale=1.0,
            offset=0.0,
            build=resnet50,
            pretrained=True,
            defaults={
                "image_size": 224,
                "learning_rate": 1e-3,
                "epochs": 20,
                "head_epochs": 4,
                "fine_tune_layers": 40,
                "fine_tune_learning_rate": 1e-4,
                "weights": IMAGENET,
                "precision": "int8",
            },
        ),
        Architecture(
            name="mobilenet",
            summary="MobileNetV2 at 0.35 of its width on ImageNet weights; between the two",
            color="rgb",
            scale=1 / 127.5,
            offset=-1.0,
            build=mobilenet,
            pretrained=True,
            defaults={
                "image_size": 160,
                "learning_rate": 1e-3,
                "epochs": 16,
                "head_epochs": 3,
                "fine_tune_layers": 60,
                "fine_tune_learning_rate": 3e-4,
                "weights": IMAGENET,
            },
        ),
        Architecture(
            name="mnist",
            summary="two convolutions and a dense layer, 211,690 weights; for small images such as digits",
            color="grayscale",
            scale=1 / 255,
            offset=0.0,
            build=mnist,
            resize=CENTRED,
            defaults={
                "image_size": 28,
                "epochs": 16,
                "batch_size": 128,
                "learning_rate": 2e-3,
                "dropout": 0.4,
                "label_smoothing": 0.02,
            },
        ),
    )
}
