"""The serving form: what it says besides the score, and what lower precision may cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightbox import cnn, export
from lightbox.architectures import ARCHITECTURES
from lightbox.export import ExportError, Familiar


def network(name: str, size: int = 32, **changes: Any) -> Any:
    """Return an untrained network whose batch normalisations have seen something."""
    import keras

    keras.utils.set_random_seed(3)
    settings = cnn.resolve({"architecture": name, "weights": "none", "width": 8, "dense": 16, **changes})[1]
    architecture = ARCHITECTURES[name]
    channels = 3 if architecture.color == "rgb" else 1
    model = architecture.build((size, size, channels), settings)
    model(np.random.default_rng(1).random((16, size, size, channels), dtype=np.float32), training=True)
    return model


def images(model: Any, count: int = 5, seed: int = 2) -> np.ndarray:
    return np.random.default_rng(seed).random((count, *model.input_shape[1:]), dtype=np.float32)


def gradients(model: Any, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the last feature maps and the gradient of the logit with respect to their mean, by automatic means."""
    import keras
    import tensorflow as tf

    pooling = next(layer for layer in reversed(model.layers) if isinstance(layer, keras.layers.GlobalAveragePooling2D))
    score = model.layers[-1]
    maps = keras.Model(model.input, pooling.input)(x)
    head = model.layers[model.layers.index(pooling) : -1]
    with tf.GradientTape() as tape:
        tape.watch(maps)
        y = maps
        for layer in head:
            y = layer(y, training=False)
        logit = y @ score.kernel + score.bias
    slope = tape.gradient(logit, maps)
    return np.asarray(maps), np.asarray(slope).sum(axis=(1, 2))


@pytest.mark.parametrize("name", ["compact", "mobilenet"])
def test_the_heat_map_is_grad_cam(name: str) -> None:
    model = network(name)
    x = images(model)
    heat = np.asarray(export.with_explanations(model, None)(x)["heat"])
    maps, slope = gradients(model, x)
    assert heat == pytest.approx(np.einsum("nhwc,nc->nhw", maps, slope), rel=1e-3, abs=1e-5)


def test_a_head_of_one_layer_adds_up_to_its_logit() -> None:
    model = network("compact")
    found = export.with_explanations(model, None)(images(model))
    score = np.asarray(found["score"])[:, 0]
    bias = float(model.layers[-1].get_weights()[1][0])
    assert np.asarray(found["heat"]).mean(axis=(1, 2)) == pytest.approx(np.log(score / (1 - score)) - bias, abs=1e-4)


def test_a_network_without_a_closed_form_is_refused() -> None:
    import keras

    image = keras.Input((8, 8, 1))
    flat = keras.Model(image, keras.layers.Dense(1, name="score")(keras.layers.Flatten()(image)), name="flat")
    with pytest.raises(ExportError, match="no global average pooling"):
        export.with_explanations(flat, None)
    x = keras.layers.GlobalAveragePooling2D()(image)
    curved = keras.Model(image, keras.layers.Dense(1, name="score")(keras.layers.Activation("tanh")(x)), name="curved")
    with pytest.raises(ExportError, match="Activation"):
        export.with_explanations(curved, None)


def test_of_several_classes_each_has_a_heat_map_that_adds_up_to_its_logit() -> None:
    import keras

    keras.utils.set_random_seed(3)
    model = ARCHITECTURES["compact"].build((32, 32, 1), cnn.resolve({"width": 8})[1], 4)
    found = export.with_explanations(model, None)(images(model))
    heat, logits = np.asarray(found["heat"]), np.log(np.asarray(found["score"]))
    assert heat.shape[0] == 5 and heat.shape[3] == 4
    bias = model.layers[-1].get_weights()[1]
    expected = logits - bias
    assert heat.mean(axis=(1, 2)) == pytest.approx(expected - expected.mean(axis=1, keepdims=True), abs=1e-4)


def test_several_classes_behind_a_head_of_layers_have_their_gradient() -> None:
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(3)
    settings = cnn.resolve({"architecture": "mobilenet", "weights": "none", "dense": 16})[1]
    model = ARCHITECTURES["mobilenet"].build((32, 32, 3), settings, 3)
    x = images(model)
    pooling = next(layer for layer in model.layers if isinstance(layer, keras.layers.GlobalAveragePooling2D))
    maps = keras.Model(model.input, pooling.input)(x)
    with tf.GradientTape() as tape:
        tape.watch(maps)
        y = maps
        for layer in model.layers[model.layers.index(pooling) : -1]:
            y = layer(y, training=False)
        logits = y @ model.layers[-1].kernel
        speaks = (logits - tf.reduce_mean(logits, axis=1, keepdims=True))[:, 2]
    slope = np.asarray(tape.gradient(speaks, maps)).sum(axis=(1, 2))
    heat = np.asarray(export.with_explanations(model, None)(x)["heat"])[..., 2]
    assert heat == pytest.approx(np.einsum("nhwc,nc->nhw", np.asarray(maps), slope), rel=1e-3, abs=1e-5)


def test_a_network_without_average_pooling_is_served_without_a_heat_map(tmp_path: Path) -> None:
    model = ARCHITECTURES["mnist"].build((28, 28, 1), cnn.resolve({"architecture": "mnist"})[1], 10)
    x, many = images(model, 9), images(model, 60)
    known = export.features(model, iter([many]))
    assert known.shape == (60, 128)
    export.compile_network(export.serving_network(model, Familiar.fit(known)), tmp_path / "model.onnx")
    compiled = export.run(tmp_path / "model.onnx", iter([x[:4], x[4:]]))
    assert set(compiled) == {"score", "distance"}
    assert compiled["score"] == pytest.approx(np.asarray(model(x)), abs=1e-5)
    expected = np.asarray(Familiar.fit(known).distance(export.features(model, iter([x])).astype(np.float32)))
    assert compiled["distance"] == pytest.approx(expected, rel=1e-3)


def test_distance_is_about_one_for_what_is_known_and_large_for_what_is_not() -> None:
    rng = np.random.default_rng(1)
    mixing = rng.normal(size=(6, 40))
    known = rng.normal(size=(800, 6)) @ mixing + 0.05 * rng.normal(size=(800, 40))
    familiar = Familiar.fit(known, components=6)
    again = rng.normal(size=(200, 6)) @ mixing + 0.05 * rng.normal(size=(200, 40))
    near = np.asarray(familiar.distance(again.astype(np.float32)))
    far = np.asarray(familiar.distance(rng.normal(size=(200, 40)).astype(np.float32)))
    assert near.mean() == pytest.approx(1, abs=0.15)
    assert far.min() > 3 * near.max()


def test_features_that_never_differ_give_finite_distances() -> None:
    features = np.ones((50, 8))
    features[:, 0] = np.linspace(0, 1, 50)
    distances = np.asarray(Familiar.fit(features).distance(np.zeros((2, 8), dtype=np.float32)))
    assert np.isfinite(distances).all()


def test_the_compiled_form_says_what_the_network_says(tmp_path: Path) -> None:
    model = network("compact")
    x = images(model, 9)
    explained = export.with_explanations(model, Familiar.fit(export.features(model, iter([images(model, 40)]))))
    export.compile_network(explained, tmp_path / "model.onnx")
    compiled = export.run(tmp_path / "model.onnx", iter([x[:4], x[4:]]))
    assert set(compiled) == set(export.OUTPUTS.values())
    for name, value in explained(x).items():
        assert compiled[name] == pytest.approx(np.asarray(value), rel=1e-3, abs=1e-4), name


def test_int8_is_made_and_keeps_every_output(tmp_path: Path) -> None:
    model = network("compact")
    export.compile_network(export.with_explanations(model, None), tmp_path / "model.onnx")
    export.quantize(tmp_path / "model.onnx", tmp_path / "low.onnx", iter([images(model, 8)]))
    low = export.run(tmp_path / "low.onnx", iter([images(model)]))
    assert set(low) == {"score", "heat"}
    assert low["score"] == pytest.approx(np.asarray(model(images(model))), abs=0.1)
    assert (tmp_path / "low.onnx").stat().st_size < 0.6 * (tmp_path / "model.onnx").stat().st_size
    assert sorted(path.name for path in tmp_path.iterdir()) == ["low.onnx", "model.onnx"]


def test_a_serving_form_that_says_otherwise_is_not_released() -> None:
    trained = np.array([0.1, 0.4, 0.9])
    export.check_parity(export.compare(trained, trained + 1e-5, 0.5))
    with pytest.raises(ExportError, match=r"differ by up to 0\.05"):
        export.check_parity(export.compare(trained, trained + 0.05, 0.5))
    with pytest.raises(ExportError, match="1 of 3 labels"):
        export.check_parity(export.compare(np.array([0.1, 0.4999, 0.9]), np.array([0.1, 0.5001, 0.9]), 0.5))
    with pytest.raises(ExportError):
        export.check_parity(export.compare(trained, np.array([0.1, np.nan, 0.9]), 0.5))


LABELS = np.repeat([0, 1], 500)
SCORES = np.concatenate([np.linspace(0.01, 0.6, 500), np.linspace(0.4, 0.99, 500)])


@pytest.mark.parametrize(
    ("low", "words"),
    [
        (SCORES, ""),
        (SCORES + 0.0001, ""),
        (1 - SCORES, "AUROC falls"),
        (np.clip(SCORES + 0.1, 0, 1), "labels are others"),
        (np.where(np.arange(1000) == 3, 0.3, SCORES), "a score differs by 0.2"),
        (np.where(np.arange(1000) == 3, np.nan, SCORES), "not numbers"),
    ],
)
def test_lower_precision_serves_only_where_it_is_as_good(low: np.ndarray, words: str) -> None:
    _, why = export.precision_gate(LABELS, SCORES, low, 0.5)
    assert (words in why) if words else why == ""


def test_of_several_classes_lower_precision_is_held_to_every_probability() -> None:
    rng = np.random.default_rng(1)
    labels, full = rng.integers(0, 3, 600), rng.dirichlet(np.ones(3), 600)
    full[np.arange(600), labels] += 3
    full /= 4
    assert export.precision_gate(labels, full, full + 1e-5, 0.5)[1] == ""
    assert "labels are others" in export.precision_gate(labels, full, full[:, ::-1], 0.5)[1]
    low = full.copy()
    low[7, labels[7]] -= 0.06
    assert "a score differs by 0.060" in export.precision_gate(labels, full, low, 0.5)[1]
