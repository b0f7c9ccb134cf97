"""Networks side by side, and the weights they start from."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lightbox import architectures, cnn, training
from lightbox.architectures import ARCHITECTURES, SCORE, ArchitectureError, load_weights
from lightbox.bundle import Bundle

SHARED = Path(__file__).resolve().parents[3] / "shared/data/weights/mobilenet_v2_0.35_224_notop.npz"


def settings(name: str, **changes):
    return cnn.resolve({"architecture": name, "weights": "none", **changes})[1]


@pytest.fixture(scope="module")
def base():
    """A small pre-trained base, as far as these tests are concerned."""
    import keras

    keras.utils.set_random_seed(1)
    return keras.applications.MobileNetV2(alpha=0.35, include_top=False, weights=None, input_shape=(32, 32, 3))


def fresh():
    import keras

    return keras.applications.MobileNetV2(alpha=0.35, include_top=False, weights=None, input_shape=(32, 32, 3))


def write_npz(model, file: Path) -> Path:
    arrays = {
        f"{layer.name}/{weight.path.rsplit('/', 1)[-1]}": np.asarray(weight)
        for layer in model.layers
        for weight in layer.weights
    }
    np.savez(file, **arrays)
    return file


def same(first, second) -> bool:
    return all((a == b).all() for a, b in zip(first.get_weights(), second.get_weights(), strict=True))


@pytest.mark.parametrize("kind", ["npz", "keras", "weights.h5"])
def test_weights_come_from_a_file_of_each_kind(base, tmp_path, kind):
    file = tmp_path / f"w.{kind}"
    if kind == "npz":
        write_npz(base, file)
    elif kind == "keras":
        base.save(file)
    else:
        base.save_weights(file)
    other = fresh()
    assert not same(other, base)
    load_weights(other, str(file), hashlib.sha256(file.read_bytes()).hexdigest(), None)
    assert same(other, base)


def test_damaged_missing_and_foreign_weights_are_named(base, tmp_path):
    file = write_npz(base, tmp_path / "w.npz")
    with pytest.raises(ArchitectureError, match="not the file expected"):
        load_weights(fresh(), str(file), "0" * 64, None)
    with pytest.raises(ArchitectureError, match="no weights at"):
        load_weights(fresh(), str(tmp_path / "nothing.h5"), "", None)
    with np.load(file) as arrays:
        content = dict(arrays)
    name = next(iter(content))
    np.savez(tmp_path / "less.npz", **{key: value for key, value in content.items() if key != name})
    with pytest.raises(ArchitectureError, match=f"nothing for {name}"):
        load_weights(fresh(), str(tmp_path / "less.npz"), "", None)
    np.savez(tmp_path / "other.npz", **{**content, name: np.zeros((1, 1))})
    with pytest.raises(ArchitectureError, match="expected"):
        load_weights(fresh(), str(tmp_path / "other.npz"), "", None)
    (tmp_path / "broken.h5").write_bytes(b"nothing of the kind")
    with pytest.raises(ArchitectureError, match="does not hold the weights"):
        load_weights(fresh(), str(tmp_path / "broken.h5"), "", None)


def test_weights_that_cannot_be_fetched_are_said_with_the_way_out(base):
    def offline(**_options):
        raise OSError("no route to host")

    with pytest.raises(ArchitectureError, match=r"no route to host.*--weights FILE"):
        load_weights(fresh(), "imagenet", "", offline)


def test_published_weights_are_taken_over(base):
    asked = {}

    def published(**options):
        asked.update(options)
        return base

    other = fresh()
    load_weights(other, "imagenet", "", published)
    assert same(other, base)
    assert asked == {"include_top": False, "weights": "imagenet", "input_shape": (32, 32, 3)}


def test_real_imagenet_weights_fit_layer_by_layer():
    if not SHARED.exists():
        pytest.skip("the small ImageNet weights are not here")
    model = architectures.mobilenet((160, 160, 3), settings("mobilenet", weights=str(SHARED)))
    base = next(layer for layer in model.layers if layer.name.startswith("mobilenetv2"))
    with np.load(SHARED) as arrays:
        assert (base.get_layer("Conv1").get_weights()[0] == arrays["Conv1/kernel"]).all()


def test_resnet_sees_what_its_weights_were_trained_on():
    model = architectures.resnet50((32, 32, 3), settings("resnet50", dense=8))
    swap = model.get_layer("rgb_to_imagenet")
    rgb = np.random.default_rng(1).uniform(0, 255, (2, 4, 4, 3)).astype(np.float32)
    expected = rgb[..., ::-1] - np.array([103.939, 116.779, 123.68])
    assert np.asarray(swap(rgb)) == pytest.approx(expected, abs=1e-3)
    assert not swap.trainable
    assert (ARCHITECTURES["resnet50"].scale, ARCHITECTURES["resnet50"].color) == (1.0, "rgb")


def test_compact_does_not_see_exposure():
    model = architectures.compact((48, 48, 1), settings("compact", width=8))
    image = np.random.default_rng(1).random((1, 48, 48, 1)).astype(np.float32)
    assert np.asarray(model(image)) == pytest.approx(np.asarray(model(image * 0.5 + 0.2)), abs=1e-3)


def test_compact_is_as_small_as_it_says():
    assert architectures.compact((128, 128, 1), settings("compact")).count_params() < 600_000


def test_the_digit_network_has_the_weights_of_the_original():
    model = ARCHITECTURES["mnist"].build((28, 28, 1), settings("mnist"), 10)
    assert model.count_params() == 211_690
    assert model.output_shape == (None, 10)


@pytest.mark.parametrize("name", ["compact", "mnist", "mobilenet", "resnet50"])
def test_every_network_tells_two_classes_by_one_score_and_more_by_one_each(name):
    chosen, channels = settings(name, dense=8, width=8), 3 if ARCHITECTURES[name].color == "rgb" else 1
    shape = (32, 32, channels)
    assert ARCHITECTURES[name].build(shape, chosen).output_shape == (None, 1)
    scores = ARCHITECTURES[name].build(shape, chosen, 5)(np.zeros((2, *shape), np.float32))
    assert np.asarray(scores).sum(axis=1) == pytest.approx([1, 1], abs=1e-5)


def test_a_pretrained_network_is_trained_in_two_stages_and_served(tmp_path, base):
    weights = write_npz(base, tmp_path / "w.npz")
    arguments = ["--architecture", "mobilenet", "--weights", str(weights), "--image-size", "32", "--dense", "8"]
    arguments += ["--synthetic-images", "80", "--epochs", "3", "--head-epochs", "2", "--fine-tune-layers", "4"]
    link = tmp_path / "latest"
    assert cnn.main([*arguments, "--runs", str(tmp_path / "runs"), "--out-link", str(link)]) == 0
    # What the head was trained on is not needed any more.
    assert not list((tmp_path / "runs").rglob("features-*"))
    found = Bundle.load(link)
    found.verify()
    assert (found.input.color, found.input.channels) == ("rgb", 3)
    assert found.contract["preprocessing"] == {"resize": "bilinear", "scale": 1 / 127.5, "offset": -1.0}
    assert len(json.loads((link / "history.json").read_text())) == 3

    import keras

    trained = keras.models.load_model(link / "best_model.keras")
    inner = next(layer for layer in trained.layers if isinstance(layer, keras.Model))
    # The lower layers are as they came.
    assert (inner.get_layer("Conv1").get_weights()[0] == base.get_layer("Conv1").get_weights()[0]).all()
    assert replace(settings("mobilenet"), seed=2) != settings("mobilenet")


def test_a_head_on_features_computed_once_is_the_head_of_the_network(tmp_path, base):
    chosen = settings("mobilenet", weights=str(write_npz(base, tmp_path / "w.npz")), dense=8)
    model = architectures.mobilenet((32, 32, 3), chosen)
    pixels = np.random.default_rng(1).integers(0, 255, (5, 32, 32, 3), dtype=np.uint8)
    sides = training.Sides(pixels, {"train": np.array([3, 0, 4])}, {"train": np.array([0, 1, 0])})
    extractor, head = training.head_of(model)
    told: list[tuple[int, int]] = []
    file = tmp_path / "features.npy"

    def known() -> np.ndarray:
        return training.features(
            extractor, sides, "train", ARCHITECTURES["mobilenet"], file, lambda *now: told.append(now)
        )

    expected = training.predict(model, sides, "train", ARCHITECTURES["mobilenet"])
    assert training.plain(head.predict(known(), verbose=0)) == pytest.approx(expected, abs=1e-5)
    assert (known() == known()).all() and told == [(3, 3)], "they are computed once"
    # The layers are the network's own: what the head learns, the network knows.
    layer = head.get_layer(SCORE)
    layer.set_weights([weights + 0.5 for weights in layer.get_weights()])
    changed = training.predict(model, sides, "train", ARCHITECTURES["mobilenet"])
    assert training.plain(head.predict(known(), verbose=0)) == pytest.approx(changed, abs=1e-5)
    assert np.abs(changed - expected).max() > 1e-4
