"""The training loop: batches, augmentation, checkpoints and calibration.

Keras and what it trains with are imported where they are used. Batches come from TensorFlow whatever Keras trains with.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightbox import backends, evaluation, workers
from lightbox.architectures import NOTHING, SCORE, Architecture
from lightbox.workers import Team

# Quiet by default: what people read in the journal is what this program says.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# TensorFlow takes oneDNN's convolutions by itself only where the CPU has instructions for neural networks.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
# The environment alone decides, not the file of settings in somebody's home.
os.environ.setdefault(backends.VARIABLE, backends.TENSORFLOW)
# JAX, as TensorFlow here, takes memory of a GPU as it needs it, not most of it at once.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

Pixels = NDArray[np.uint8]
Doubles = NDArray[np.float64]
PREDICT_BATCH = 128
# Random streams of one batch in `augment`.
STREAMS = 16


class TrainingError(Exception):
    """Training cannot go on; the text says what to do."""


@dataclass
class Sides:
    """Pixels and what is known of them.

    Attributes:
        pixels: of all images.
        rows: of each split, shape (n,).
        labels: of each split, shape (n,).
        classes: how many there are.
        weights: how much each image of `train` counts beside its class's weight, shape (n,); None for all alike.
    """

    pixels: Pixels
    rows: dict[str, NDArray[np.int64]]
    labels: dict[str, NDArray[np.int64]]
    classes: int = 2
    weights: NDArray[np.float32] | None = None


@dataclass
class State:
    """What a checkpoint remembers beside the weights.

    Attributes:
        epoch: epochs that are done.
        seconds: time spent in them.
        best: figures of the best epoch so far and the file that holds its weights.
        waited: epochs since then.
        history: figures of every epoch.
    """

    epoch: int = 0
    seconds: float = 0.0
    best: dict[str, Any] = field(default_factory=dict)
    waited: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Stage:
    """Consecutive epochs that are trained alike: up to, not including, `end`; `layers` of the base are trained too."""

    begin: int
    end: int
    learning_rate: float
    layers: int | None


def stages(architecture: Architecture, settings: Any) -> list[Stage]:
    """Return the stages: a pre-trained network first trains its head alone, then its upper layers too.

    A network that starts without weights has nothing to keep: all of it is trained from the first epoch on.
    """
    if not architecture.pretrained or settings.weights == NOTHING or not settings.head_epochs:
        return [Stage(0, settings.epochs, settings.learning_rate, None)]
    first = min(settings.head_epochs, settings.epochs)
    head = Stage(0, first, settings.learning_rate, 0)
    if first == settings.epochs:
        return [head]
    return [head, Stage(first, settings.epochs, settings.fine_tune_learning_rate, settings.fine_tune_layers)]


def prepare_machine(seed: int) -> tuple[Team, str]:
    """Return what trains together, the accelerators of this host and of others, and a line about them for people.

    Raises:
        BackendError: Keras was imported with another backend before.
        WorkersError: the hosts are not named as they should be.
        LostError: another host did not come.
    """
    import keras
    import tensorflow as tf

    backend = backends.chosen(os.environ)
    if keras.backend.backend() != backend:
        raise backends.BackendError(
            f"Keras was imported with {keras.backend.backend()}: set {backends.VARIABLE} to {backend} before it is"
        )

    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"keras\..*")
    keras.utils.set_random_seed(seed)
    gpus = backends.gpus(backend)
    machine = {0: f"{os.cpu_count()} CPU cores, no GPU", 1: "one GPU"}.get(gpus)
    if backend != backends.TENSORFLOW:
        # It brings the batches alone: the memory of the GPU is the other's.
        tf.config.set_visible_devices([], "GPU")
        machine = machine or f"one of {gpus} GPUs, for only TensorFlow shares batches among several"
        return Team(tf.distribute.get_strategy()), f"{machine}, with {backends.NAMES[backend]}"
    for gpu in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(gpu, True)
    machine = machine or f"{gpus} GPUs, each batch shared among them"
    if team := workers.join(os.environ):
        return team, f"{team.hosts} hosts, each batch shared among them; on this one {machine}"
    if gpus > 1:
        return Team(tf.distribute.MirroredStrategy()), machine
    return Team(tf.distribute.get_strategy()), machine


# --- batches ----------------------------------------------------------------------------------------------------------


def augment(pixels: Any, number: Any, settings: Any, begin: int = 0, size: int | None = None) -> Any:
    """Vary images as those of a system vary: position, size, proportions, exposure, sharpness, noise.

    Args:
        pixels: tensor of shape (n, height, width, channels), 0 to 255.
        number: of the batch; with the seed it decides everything, so that a resumed run sees what it would have seen.
        settings: hyper-parameters.
        begin: place of the first of these images within the batch, where they are a share of it.
        size: images of the batch then; what is drawn is drawn for all of them.

    Returns:
        float32 tensor of the same shape, 0 to 255.
    """
    import tensorflow as tf

    count, height, width = tf.shape(pixels)[0], pixels.shape[1], pixels.shape[2]
    whole = count if size is None else size

    def uniform(stream: int, low: float, high: float) -> Any:
        seed = tf.stack([tf.cast(number, tf.int32) * STREAMS + stream, settings.seed])
        return tf.random.stateless_uniform([whole], seed, low, high)[begin : begin + count]

    def each(values: Any) -> Any:
        return tf.reshape(values, [-1, 1, 1, 1])

    x = tf.cast(pixels, tf.float32) / 255.0
    angle = uniform(0, -1, 1) * (settings.rotation * math.pi / 180)
    zoom = tf.exp(uniform(1, -settings.zoom, settings.zoom))
    stretch = tf.exp(uniform(2, -settings.stretch, settings.stretch))
    right, down = uniform(3, -settings.shift, settings.shift), uniform(4, -settings.shift, settings.shift)
    mirror = tf.where(uniform(5, 0, 1) < 0.5, -1.0, 1.0) if settings.flip else tf.ones([count])
    # The transform leads from a place in the result to one in the source, about the middle of the image.
    a0, a1 = mirror * tf.cos(angle) * zoom * stretch, -mirror * tf.sin(angle) * zoom * stretch
    b0, b1 = tf.sin(angle) * zoom / stretch, tf.cos(angle) * zoom / stretch
    cx, cy = (width - 1) / 2, (height - 1) / 2
    a2, b2 = cx - a0 * cx - a1 * cy + right * width, cy - b0 * cx - b1 * cy + down * height
    none = tf.zeros([count])
    # Edges are continued outwards: a black border, which no image has as it came, would move every score.
    x = tf.raw_ops.ImageProjectiveTransformV3(
        images=x,
        transforms=tf.stack([a0, a1, a2, b0, b1, b2, none, none], 1),
        output_shape=[height, width],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="NEAREST",
    )
    if settings.gamma:
        x = tf.pow(tf.clip_by_value(x, 1e-4, 1.0), each(tf.exp(uniform(6, -settings.gamma, settings.gamma))))
    x = x * each(1 + uniform(7, -settings.contrast, settings.contrast))
    x = x + each(uniform(8, -settings.brightness, settings.brightness))
    # As many images are sharpened as blurred, and half get no noise: an image as it came lies in the middle of those
    # that are trained on, not at their edge.
    if settings.blur:
        # Twice a mean of 3 by 3: about a Gaussian of 1.2 pixels.
        soft = mean3(mean3(x))
        x = x + each(uniform(9, -settings.blur, settings.blur)) * (soft - x)
    if settings.noise:
        grain = tf.random.stateless_normal(
            tf.concat([[whole], tf.shape(x)[1:]], 0),
            tf.stack([tf.cast(number, tf.int32) * STREAMS + 10, settings.seed]),
        )[begin : begin + count]
        x = x + grain * each(tf.maximum(uniform(11, -settings.noise, settings.noise), 0.0))
    if settings.frame:
        x = x * _inside(uniform(12, -2 * settings.frame, settings.frame), height, width)
    return tf.clip_by_value(x, 0.0, 1.0) * 255.0


def mean3(pixels: Any) -> Any:
    """Return the mean of the 3 by 3 pixels around each, at the edges of those that are there.

    It is what average pooling of stride 1 gives, for which a CPU takes several times the rest of the augmentation.

    Args:
        pixels: float32 tensor of shape (n, height, width, channels); both sides have two pixels or more.

    Returns:
        Tensor of the same shape.
    """
    import tensorflow as tf

    for axis in (1, 2):
        side = pixels.shape[axis]
        there = np.full(side, 3, np.float32)
        there[[0, -1]] = 2
        wide = tf.pad(pixels, [[int(a == axis)] * 2 for a in range(4)])
        before, here, after = (wide[:, i : i + side] if axis == 1 else wide[:, :, i : i + side] for i in range(3))
        pixels = (before + here + after) / there.reshape([side if a == axis else 1 for a in range(4)])
    return pixels


def _inside(share: Any, height: int, width: int) -> Any:
    """Return 0 in a frame around images and 1 inside, shape (n, height, width, 1).

    Args:
        share: thickness of each frame as a share of the side, shape (n,); none where it is not positive.
        height: of the images, in pixels.
        width: of the images, in pixels.
    """
    import tensorflow as tf

    def along(side: int) -> Any:
        place = tf.range(side, dtype=tf.float32) + 0.5
        edge = share[:, None] * side
        return tf.cast((place >= edge) & (place < side - edge), tf.float32)

    return along(height)[:, :, None, None] * along(width)[:, None, :, None]


def class_weights(labels: NDArray[np.int64], rule: str, classes: int = 2) -> NDArray[np.float32]:
    """Return a weight for each class, 1 on average: `balanced` makes classes count alike, `none` makes images."""
    counts = np.bincount(labels, minlength=classes).astype(np.float64)
    weights = labels.size / (classes * counts) if rule == "balanced" else np.ones(classes)
    return weights.astype(np.float32)


def _batch_size(count: int, settings: Any) -> int:
    """Return how many images make a batch."""
    return int(min(settings.batch_size, count))


def _order(count: int, settings: Any, epoch: int) -> tuple[NDArray[np.int64], int]:
    """Return which images an epoch takes in which order, and how many make a batch; what makes no batch is left out."""
    size = _batch_size(count, settings)
    order = np.random.default_rng([settings.seed, epoch]).permutation(count)
    return order[: count // size * size], size


def _targets(sides: Sides, settings: Any) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return what a network should say of the training images, (n, 1) or one-hot, and how much each counts, (n,)."""
    labels = sides.labels["train"]
    weights = class_weights(labels, settings.class_weighting, sides.classes)[labels]
    if sides.weights is not None:
        weights = weights * sides.weights
    targets = labels[:, None] if sides.classes == 2 else np.eye(sides.classes)[labels]
    return targets.astype(np.float32), weights


def training_batches(
    sides: Sides, architecture: Architecture, settings: Any, team: Team | None = None
) -> Callable[[int], tuple[Any, int]]:
    """Return what gives the batches of an epoch, in an order that follows from seed and epoch, and how many there are.

    Of a team, these are the rows of each batch that this host takes.

    Each is (images float32 (n, height, width, channels) ready for the network, labels, weights (n, 1)). Labels of two
    classes have the shape (n, 1), of more they are one-hot, shape (n, classes).
    """
    import tensorflow as tf

    rows = sides.rows["train"]
    targets, weights = _targets(sides, settings)
    shape = sides.pixels.shape[1:]
    size = _batch_size(rows.size, settings)
    own = team.rows(size) if team else slice(0, size)
    taken = own.stop - own.start

    # Traced once for all epochs; there is nothing in it for AutoGraph to rewrite.
    @tf.function(autograph=False)
    def finish(pixels: Any, y: Any, weight: Any, number: Any) -> tuple[Any, Any, Any]:
        x = augment(pixels, number, settings, own.start, size) if settings.augment else tf.cast(pixels, tf.float32)
        return x * architecture.scale + architecture.offset, y, weight

    signature = (
        tf.TensorSpec((taken, *shape), tf.uint8),
        tf.TensorSpec((taken, targets.shape[1]), tf.float32),
        tf.TensorSpec((taken, 1), tf.float32),
        tf.TensorSpec((), tf.int64),
    )

    def of(epoch: int) -> tuple[Any, int]:
        order, _ = _order(rows.size, settings, epoch)
        steps = order.size // size

        def generate() -> Iterator[tuple[Any, ...]]:
            for step in range(steps):
                # Rows in ascending order read the file from its beginning to its end.
                chosen = np.sort(order[step * size : (step + 1) * size])[own]
                yield (
                    sides.pixels[rows[chosen]],
                    targets[chosen],
                    weights[chosen][:, None],
                    epoch * steps + step,
                )

        data = tf.data.Dataset.from_generator(generate, output_signature=signature)
        data = data.apply(tf.data.experimental.assert_cardinality(steps))
        return data.map(finish, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).prefetch(4), steps

    return of


def batches(sides: Sides, rows: NDArray[np.int64], architecture: Architecture) -> Iterator[NDArray[np.float32]]:
    """Return images as the network takes them, in batches of at most 128, in the order of the rows."""
    for begin in range(0, rows.size, PREDICT_BATCH):
        x = sides.pixels[rows[begin : begin + PREDICT_BATCH]].astype(np.float32)
        yield x * np.float32(architecture.scale) + np.float32(architecture.offset)


def head_of(model: Any) -> tuple[Any, Any]:
    """Return a network's part up to its pooled features, and the rest of it as a network of the same layers."""
    import keras

    index = next(i for i, layer in enumerate(model.layers) if isinstance(layer, keras.layers.GlobalAveragePooling2D))
    pooled = model.layers[index].output
    x = given = keras.Input(pooled.shape[1:], name="features")
    for layer in model.layers[index + 1 :]:
        x = layer(x)
    return keras.Model(model.input, pooled), keras.Model(given, x)


def _outputs(
    model: Any,
    sides: Sides,
    rows: NDArray[np.int64],
    architecture: Architecture,
    team: Team | None,
    report: Callable[[int, int], None] = lambda _done, _total: None,
) -> NDArray[np.float32]:
    """Return what a network says of images, shape (n, outputs), in the order of the rows."""
    own = rows[team.rows(rows.size)] if team else rows

    def images() -> Iterator[NDArray[np.float32]]:
        # Every batch has the same shape, so that the graph is built once.
        padded = np.resize(own, -(-own.size // PREDICT_BATCH) * PREDICT_BATCH)
        for number, x in enumerate(batches(sides, padded, architecture)):
            if number:
                report(number * PREDICT_BATCH, own.size)
            yield x
        report(own.size, own.size)

    if team and team.replicas > 1:
        return workers.outputs(model, images(), rows.size, team)
    return np.concatenate([np.asarray(model.predict_on_batch(x), dtype=np.float32) for x in images()])[: rows.size]


def features(
    extractor: Any,
    sides: Sides,
    split: str,
    architecture: Architecture,
    file: Path,
    report: Callable[[int, int], None],
    team: Team | None = None,
) -> NDArray[np.float32]:
    """Return the pooled features of a split's images as they are, shape (n, features): computed once, then read.

    Args:
        extractor: the network up to them.
        sides: images.
        split: which.
        architecture: which network.
        file: where they are kept.
        report: told how many images of how many are done.
        team: the replicas that share the work.
    """
    known = file.is_file()
    # A host that has none cannot compute its share alone.
    if all(team.every(known)) if team else known:
        return np.asarray(np.load(file))
    whole = _outputs(extractor, sides, sides.rows[split], architecture, team, report)
    part = file.with_suffix(".part")
    with part.open("wb") as stream:
        np.save(stream, whole)
    part.replace(file)
    return whole


def feature_batches(
    known: NDArray[np.float32], sides: Sides, settings: Any, epoch: int, team: Team | None = None
) -> tuple[Any, int]:
    """Return the batches of one epoch of a head, like those of `training_batches`: features in the place of images."""
    import tensorflow as tf

    labels = sides.labels["train"]
    chosen, size = _order(labels.size, settings, epoch)
    targets, weights = _targets(sides, settings)
    data = tf.data.Dataset.from_tensor_slices((known[chosen], targets[chosen], weights[chosen][:, None]))
    own = team.rows(size) if team else slice(0, size)
    data = data.batch(size, drop_remainder=True).map(lambda *parts: tuple(part[own] for part in parts))
    return data, chosen.size // size


def predict(model: Any, sides: Sides, split: str, architecture: Architecture, team: Team | None = None) -> Doubles:
    """Return the scores of every image of a split, shape (n,) for two classes and (n, classes) for more.

    Of a team, each host looks at its share, and all have the whole.
    """
    return plain(_outputs(model, sides, sides.rows[split], architecture, team))


def plain(scores: Any) -> Doubles:
    """Return a network's scores, shape (n, 1) or (n, classes), as everything else takes them: (n,) or (n, classes)."""
    found = np.asarray(scores, dtype=np.float64)
    return found[:, 0] if found.shape[1] == 1 else found


# --- checkpoints ------------------------------------------------------------------------------------------------------


def _checkpoints(directory: Path) -> list[Path]:
    return sorted(path for path in directory.glob("checkpoint-*") if (path / "state.json").is_file())


def save_checkpoint(model: Any, state: State, directory: Path) -> None:
    """Write model, optimizer and state; they appear together or not at all, and replace the one before.

    The network of the best epoch is there already.
    """
    unfinished = directory / "unfinished-checkpoint"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    if state.best["epoch"] == state.epoch:
        shutil.copyfile(directory / state.best["file"], unfinished / "model.keras")
    else:
        model.save(unfinished / "model.keras")
    (unfinished / "state.json").write_text(json.dumps(state.__dict__))
    before = _checkpoints(directory)
    unfinished.replace(directory / f"checkpoint-{state.epoch:04d}")
    for old in before:
        shutil.rmtree(old, ignore_errors=True)
    kept = state.best.get("file")
    for file in directory.glob("best-*.keras"):
        if file.name != kept:
            file.unlink()


def keep(model: Any, state: State, directory: Path, whole: bool) -> None:
    """Write the network when it is the best so far, and a checkpoint when one is wanted."""
    if state.best["epoch"] == state.epoch:
        model.save(directory / state.best["file"])
    if whole:
        save_checkpoint(model, state, directory)


def share_checkpoint(directory: Path, team: Team) -> None:
    """Give every host the checkpoint of the chief, and no other: that is where all go on."""
    if team.hosts == 1:
        return
    last = team.agreed([path.name for path in _checkpoints(directory)[-1:]])
    if not team.chief:
        for old in directory.glob("checkpoint-*"):
            shutil.rmtree(old)
    for name in last:
        place = directory / name
        place.mkdir(exist_ok=True)
        for file in ("model.keras", "state.json"):
            team.hand_over(place / file if team.chief else None, place / file)


def load_checkpoint(directory: Path) -> tuple[Any, State]:
    """Return model and state of the last checkpoint; no model and a fresh state when there is none."""
    import keras

    for path in reversed(_checkpoints(directory)):
        try:
            state = State(**json.loads((path / "state.json").read_text()))
            return keras.models.load_model(path / "model.keras"), state
        # A disk that lost power may hold anything: the run then starts from nothing, it does not fail for ever.
        except Exception as error:
            sys.stderr.write(f"{path} cannot be read and is thrown away: {error}\n")
            shutil.rmtree(path, ignore_errors=True)
    return None, State()


# --- the loop ---------------------------------------------------------------------------------------------------------


def _freeze(model: Any, stage: Stage) -> None:
    """Set what is trained."""
    import keras

    base = next((layer for layer in model.layers if isinstance(layer, keras.Model)), None)
    if base is not None and stage.layers is not None:
        base.trainable = stage.layers > 0
        for index, layer in enumerate(base.layers):
            frozen = index < len(base.layers) - stage.layers or isinstance(layer, keras.layers.BatchNormalization)
            layer.trainable = stage.layers > 0 and not frozen


def _compile(model: Any, stage: Stage, steps: int, settings: Any) -> None:
    """Set how it is trained: the learning rate rises for one epoch and falls along half a cosine."""
    import keras

    total = steps * (stage.end - stage.begin)
    warm = min(steps, max(1, total // 10))
    rate = keras.optimizers.schedules.CosineDecay(
        stage.learning_rate / 10,
        max(1, total - warm),
        alpha=0.01,
        warmup_target=stage.learning_rate,
        warmup_steps=warm,
    )
    binary = model.output_shape[-1] == 1
    loss = keras.losses.BinaryCrossentropy if binary else keras.losses.CategoricalCrossentropy
    accuracy = keras.metrics.BinaryAccuracy if binary else keras.metrics.CategoricalAccuracy
    model.compile(
        optimizer=keras.optimizers.AdamW(rate, weight_decay=settings.weight_decay),
        loss=loss(label_smoothing=settings.label_smoothing),
        metrics=[accuracy(name="accuracy")],
    )
    # Within the first step, that would have TensorFlow trace it twice; hosts that share batches could not do it there.
    model.optimizer.build(model.trainable_variables)


def _reseed(model: Any, seed: int, epoch: int) -> None:
    """Give dropout a stream that follows from seed and epoch, so that a resumed run draws what it would have drawn."""
    import keras

    for index, layer in enumerate(model.layers):
        if isinstance(layer, keras.layers.Dropout):
            # Far apart: PyTorch seeds itself with the sum of the two, and every draw adds one to it; it does so only
            # for a layer that was made with a seed.
            state = np.random.SeedSequence([seed, epoch, index]).generate_state(2)
            # What is well below 2**31 is drawn from as it is, by Keras as by the replicas of `lightbox.workers`.
            layer.seed_generator.state.assign(state >> 2)


def merit(entry: dict[str, Any], classes: int = 2) -> tuple[float, float]:
    """Return what epochs are compared by: the area under the curve, of more than two classes the accuracy, and then the
    loss, all of the validation images.

    The loss alone moves with the offset of all scores, which calibration takes away at the end. Of several classes
    there is no threshold left to choose, and areas of one against the rest are near 1 long before verdicts are right.
    """
    return round(entry["val_auroc" if classes == 2 else "val_accuracy"], 4), -entry["val_loss"]


@dataclass(frozen=True)
class Feed:
    """What a stage trains, and on what.

    Attributes:
        trainee: the network, or its head.
        batches: gives the batches of an epoch and how many there are.
        scores: gives what the trainee says of the validation images.
        kept: whether every epoch is worth a checkpoint.
    """

    trainee: Any
    batches: Callable[[int], tuple[Any, int]]
    scores: Callable[[], Doubles]
    kept: bool = True


def _feed(
    model: Any,
    stage: Stage,
    state: State,
    directory: Path,
    sides: Sides,
    architecture: Architecture,
    settings: Any,
    team: Team,
    progress: Callable[..., None],
) -> Feed:
    """Make a network ready for a stage; one that goes on in the middle of it is ready already.

    A head alone is given the same in every epoch, so that is computed once. It is then trained in seconds: broken off,
    it begins anew, from the features that are kept.
    """
    count = sides.rows["train"].size
    steps = count // _batch_size(count, settings)
    if stage.layers == 0:
        _freeze(model, stage)
        extractor, head = head_of(model)

        def tell(done: int, total: int) -> None:
            progress(message=f"features of the base, {done} of {total} images")

        known = {
            split: features(extractor, sides, split, architecture, directory / f"features-{split}.npy", tell, team)
            for split in ("train", "validation")
        }
        _compile(head, stage, steps, settings)
        return Feed(
            head,
            lambda epoch: feature_batches(known["train"], sides, settings, epoch, team),
            # So small a network is asked by every host alone.
            lambda: plain(
                head.predict(known["validation"], batch_size=PREDICT_BATCH, verbose=0)
                if team.replicas == 1
                else np.asarray(head(known["validation"], training=False))
            ),
            kept=False,
        )
    if state.epoch == stage.begin:
        _freeze(model, stage)
        _compile(model, stage, steps, settings)
    return Feed(
        model,
        training_batches(sides, architecture, settings, team),
        lambda: predict(model, sides, "validation", architecture, team),
    )


def _entry(epoch: int, logs: dict[str, Any], scores: Doubles, sides: Sides, settings: Any) -> dict[str, Any]:
    """Return the figures of an epoch; the loss on validation is no number where a score is none."""
    truth = sides.labels["validation"]
    found = {"epoch": epoch, "loss": float(logs["loss"][0]), "accuracy": float(logs["accuracy"][0])}
    if not np.isfinite(scores).all():
        return {**found, "val_loss": math.nan}
    weights = class_weights(sides.labels["train"], settings.class_weighting, sides.classes)
    weighted = [
        weights[c] * (truth == c).sum() * evaluation.log_loss(truth[truth == c], scores[truth == c])
        for c in range(sides.classes)
    ]
    return {
        **found,
        # Weighted as the training loss is, so that the two can be compared.
        "val_loss": float(sum(weighted) / truth.size),
        "val_accuracy": float(np.mean(evaluation.verdicts(scores, 0.5) == truth)),
        "val_auroc": evaluation.auroc(truth, scores),
    }


def fit(
    directory: Path,
    sides: Sides,
    architecture: Architecture,
    settings: Any,
    team: Team,
    progress: Callable[..., None],
    say: Callable[[str], None],
) -> tuple[Path, State]:
    """Train, or go on with a run that was broken off.

    Args:
        directory: of the run; checkpoints are kept there.
        sides: images of `train` and `validation`.
        architecture: which network.
        settings: hyper-parameters.
        team: the replicas that share the work.
        progress: told what to write into the progress file, often.
        say: told one line for people per epoch.

    Returns:
        The file with the weights of the best epoch, which the chief has, and the state at the end.

    Raises:
        TrainingError: the loss is no longer a number.
        WorkersError: a batch has less images than there are replicas.
    """
    import keras

    shape = sides.pixels.shape[1:]
    share_checkpoint(directory, team)
    with team.scope():
        model, state = load_checkpoint(directory)
        if model is not None:
            say(f"going on after epoch {state.epoch}, which a broken run had finished")
        else:
            # A run that begins anew must not depend on how many networks this process has built.
            keras.utils.set_random_seed(settings.seed)
            model = architecture.build(shape, settings, sides.classes)

    class Steps(keras.callbacks.Callback):
        """Tells the progress file after every batch."""

        def __init__(self, epoch: int, steps: int, begin: float) -> None:
            super().__init__()
            self.epoch, self.steps, self.begin = epoch, steps, begin

        def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
            spent = time.monotonic() - self.begin
            per_step = spent / (batch + 1)
            left = (settings.epochs - self.epoch) * self.steps - batch - 1
            logs = logs or {}
            progress(
                epoch=self.epoch + 1,
                step=batch + 1,
                steps=self.steps,
                images_per_second=round(_batch_size(sides.rows["train"].size, settings) / per_step, 1),
                eta_seconds=round(left * per_step),
                loss=round(float(logs.get("loss", math.nan)), 5),
                accuracy=round(float(logs.get("accuracy", math.nan)), 5),
            )

    for stage in stages(architecture, settings):
        if state.epoch >= stage.end:
            continue
        with team.scope():
            feed = _feed(model, stage, state, directory, sides, architecture, settings, team, progress)
        size = _batch_size(sides.rows["train"].size, settings)
        together = workers.Together(feed.trainee, size, team) if team.replicas > 1 else None
        last_stage = stage.end == settings.epochs
        while state.epoch < stage.end and not (last_stage and state.waited >= settings.patience):
            begin = time.monotonic()
            _reseed(model, settings.seed, state.epoch)
            data, steps = feed.batches(state.epoch)
            tell = Steps(state.epoch, steps, begin)
            if together:
                logs = together.epoch(data, tell.on_train_batch_end)
            else:
                logs = feed.trainee.fit(data, epochs=1, verbose=0, callbacks=[tell]).history
            trained = time.monotonic() - begin
            # The chief's figures decide for all: another processor may differ in the last digit.
            entry = team.agreed(_entry(state.epoch + 1, logs, feed.scores(), sides, settings))
            if not math.isfinite(entry["loss"] + entry["val_loss"]):
                raise TrainingError(
                    f"the loss is no longer a number in epoch {state.epoch + 1}: "
                    f"lower --learning-rate (now {stage.learning_rate:g})"
                )
            entry["seconds"] = round(time.monotonic() - begin, 2)
            better = not state.best or merit(entry, sides.classes) > merit(state.best, sides.classes)
            state.epoch += 1
            state.waited = 0 if better or not last_stage else state.waited + 1
            state.seconds += entry["seconds"]
            state.history.append(entry)
            if better:
                state.best = {**entry, "file": f"best-{state.epoch:04d}.keras"}
            if team.chief:
                keep(model, state, directory, feed.kept or state.epoch == stage.end)
            say(
                f"epoch {state.epoch}/{settings.epochs}: loss {entry['loss']:.4f}, accuracy {entry['accuracy']:.4f}; "
                f"validation loss {entry['val_loss']:.4f}, accuracy {entry['val_accuracy']:.4f}, "
                f"AUROC {entry['val_auroc']:.4f}; {entry['seconds']:.0f} s, "
                f"{sides.rows['train'].size / max(trained, 1e-9):.0f} images/s{', best so far' if better else ''}"
            )
            progress(
                now=True,
                val_loss=round(entry["val_loss"], 5),
                val_accuracy=round(entry["val_accuracy"], 5),
                val_auroc=round(entry["val_auroc"], 5),
            )
    if state.epoch < settings.epochs:
        say(f"stopped early: {state.waited} epochs brought nothing better than epoch {state.best['epoch']}")
    return directory / state.best["file"], state


# --- the end ----------------------------------------------------------------------------------------------------------


def calibrate(model: Any, labels: NDArray[np.int64], scores: Doubles, rule: str) -> dict[str, float]:
    """Fold threshold and temperature into the last layer, so that no server can forget them.

    The logits are shifted so that the threshold chosen on validation lies at 0.5, which keeps a verdict from being
    shown with a confidence below one half, and divided by the temperature that makes them honest. Of more than two
    classes the most probable one is the verdict: there is no threshold and nothing is shifted.

    Args:
        model: the network; its layer ``score`` is changed.
        labels: of the validation images, shape (n,).
        scores: what the network says of them, shape (n,) or (n, classes).
        rule: see `lightbox.evaluation.threshold`.

    Returns:
        `temperature`, and of two classes `threshold` as it was found and `shift` in logits.
    """
    found, shift = {}, 0.0
    if scores.ndim == 1:
        found["threshold"] = evaluation.threshold(labels, scores, rule)
        found["shift"] = shift = float(evaluation.logits([found["threshold"]])[0])
    shifted = evaluation.probabilities(evaluation.logits(scores) - shift)
    found["temperature"] = temperature = evaluation.temperature(labels, shifted)
    layer = model.get_layer(SCORE)
    kernel, bias = layer.get_weights()
    layer.set_weights([kernel / temperature, (bias - shift) / temperature])
    return found
