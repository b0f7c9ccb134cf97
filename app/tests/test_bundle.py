"""The contract between training and serving, and the gate between a candidate and the page."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lightbox.bundle import Bundle, BundleError, decide, gate, main, preprocess


def write(directory: Path, **changes: Any) -> Path:
    """Write a bundle whose files hold a few bytes each."""
    directory.mkdir(parents=True, exist_ok=True)
    files = {}
    for name in ("best_model.keras", "model.onnx", "smoke.png"):
        (directory / name).write_bytes(name.encode())
        files[name] = {"sha256": hashlib.sha256(name.encode()).hexdigest(), "bytes": len(name)}
    contract = {
        "schema": 1,
        "name": "pneumonia",
        "version": "1",
        "files": files,
        "serving": {"file": "model.onnx", "engine": "onnxruntime"},
        "input": {"height": 4, "width": 6, "channels": 1, "color": "grayscale", "form": "upload"},
        "preprocessing": {"resize": "bilinear", "scale": 1 / 255, "offset": 0.0},
        "labels": ["Normal", "Pneumonia"],
        "output": "sigmoid",
        "decision": {"positive": "Pneumonia", "threshold": 0.4},
        "metrics": {"test": {"auroc": 0.95}},
        "data": {"synthetic": False},
        "smoke": {"file": "smoke.png", "scores": [0.2], "label": "Normal"},
        **changes,
    }
    (directory / "model.json").write_text(json.dumps(contract))
    return directory


def test_a_whole_bundle_is_verified(tmp_path, capsys):
    assert main(["verify", str(write(tmp_path / "b"))]) == 0
    assert "1 is whole" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["best_model.keras", "model.onnx", "smoke.png"])
def test_one_changed_byte_is_found_and_named(tmp_path, capsys, name):
    directory = write(tmp_path / "b")
    content = bytearray((directory / name).read_bytes())
    content[0] ^= 1
    (directory / name).write_bytes(content)
    assert main(["verify", str(directory)]) == 1
    message = capsys.readouterr().err
    assert name in message
    assert "fetch the bundle again" in message
    assert message.count("\n") == 1


def test_a_missing_file_is_named(tmp_path):
    directory = write(tmp_path / "b")
    (directory / "model.onnx").unlink()
    with pytest.raises(BundleError, match=r"model\.onnx is missing"):
        Bundle.load(directory).verify()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schema": 2}, "schema 2"),
        ({"output": "tanh"}, "output"),
        ({"labels": ["Normal"]}, "labels"),
        ({"labels": ["a", "b", "c"]}, "labels"),
        ({"preprocessing": {"resize": "magic", "scale": 1, "offset": 0}}, "magic"),
        ({"input": {"height": 4, "width": 6, "channels": 3, "color": "grayscale"}}, "channels"),
        ({"input": {"height": 4}}, "width"),
        ({"decision": {}}, "threshold"),
        ({"serving": {"file": "other.onnx"}}, "other.onnx"),
        ({"files": {"../model.onnx": {"sha256": "0"}}, "serving": {"file": "../model.onnx"}}, "outside"),
    ],
)
def test_a_contract_that_cannot_be_served_is_refused_in_words(tmp_path, changes, words):
    with pytest.raises(BundleError, match=words):
        Bundle.load(write(tmp_path / "b", **changes))


def test_no_bundle_and_no_json_are_told_apart(tmp_path):
    with pytest.raises(BundleError, match="there is no bundle"):
        Bundle.load(tmp_path / "nothing")
    directory = write(tmp_path / "b")
    (directory / "model.json").write_text("{")
    with pytest.raises(BundleError, match="cannot be read"):
        Bundle.load(directory)


@given(st.binary(max_size=200))
def test_any_contract_loads_or_is_refused(content):
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "model.json").write_bytes(content)
        with pytest.raises(BundleError):
            Bundle.load(directory)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "I;16", "I", "1", "CMYK"])
def test_every_kind_of_image_becomes_what_the_model_takes(tmp_path, mode):
    bundle = Bundle.load(write(tmp_path / "b"))
    image = Image.new(mode, (50, 40))
    array = preprocess(image, bundle)
    assert array.shape == (1, 4, 6, 1)
    assert array.dtype == np.float32
    assert array.min() >= 0
    assert array.max() <= 1


def test_sixteen_bits_keep_their_greys(tmp_path):
    bundle = Bundle.load(write(tmp_path / "b"))
    image = Image.fromarray(np.full((8, 8), 32768, dtype=np.uint16))
    assert preprocess(image, bundle).mean() == pytest.approx(0.5, abs=0.01)


def test_the_camera_held_sideways_is_turned(tmp_path):
    bundle = Bundle.load(write(tmp_path / "b"))
    upright = Image.new("L", (40, 20))
    upright.paste(255, (0, 0, 20, 20))  # left half white
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned; shown after a quarter turn to the right
    stream = io.BytesIO()
    upright.transpose(Image.Transpose.ROTATE_90).save(stream, "JPEG", exif=exif, quality=95)
    with Image.open(io.BytesIO(stream.getvalue())) as stored:
        assert preprocess(stored, bundle) == pytest.approx(preprocess(upright, bundle), abs=0.1)


@given(st.floats(0, 1))
def test_confidence_is_that_of_the_label_shown(score):
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        bundle = Bundle.load(write(Path(directory)))
    verdict = decide([score], bundle)
    assert verdict.label == ("Pneumonia" if np.float32(score) >= np.float32(0.4) else "Normal")
    assert verdict.confidence == verdict.probabilities[verdict.label]
    assert sum(verdict.probabilities.values()) == pytest.approx(1)


def test_a_normal_chest_is_not_called_less_than_certain(tmp_path):
    verdict = decide([0.0088], Bundle.load(write(tmp_path / "b")))
    assert verdict.label == "Normal"
    assert verdict.confidence == pytest.approx(0.9912)


@pytest.mark.parametrize("scores", [[], [0.1, 0.9], [float("nan")], [float("inf")]])
def test_an_output_that_is_no_score_is_no_verdict(tmp_path, scores):
    with pytest.raises(BundleError):
        decide(scores, Bundle.load(write(tmp_path / "b")))


def test_the_highest_of_many_labels_wins(tmp_path):
    bundle = Bundle.load(write(tmp_path / "b", labels=["0", "1", "2"], output="softmax"))
    verdict = decide([0.2, 0.5, 0.3], bundle)
    assert (verdict.label, verdict.confidence) == ("1", pytest.approx(0.5))


def candidates(tmp_path: Path, new: dict[str, Any], old: dict[str, Any]) -> tuple[Bundle, Bundle]:
    return Bundle.load(write(tmp_path / "new", version="2", **new)), Bundle.load(write(tmp_path / "old", **old))


def test_the_gate_lets_the_better_and_the_barely_worse_pass(tmp_path):
    new, old = candidates(tmp_path, {"metrics": {"test": {"auroc": 0.945}}}, {})
    assert "0.9450" in gate(new, old, "auroc", 0.01)
    assert gate(new, None, "auroc", 0.01)


def test_the_gate_stops_the_worse_and_says_by_how_much(tmp_path, capsys):
    write(tmp_path / "new", version="2", metrics={"test": {"auroc": 0.90}})
    write(tmp_path / "old")
    assert main(["gate", str(tmp_path / "new"), str(tmp_path / "old"), "--metric", "auroc", "--tolerance", "0.01"]) == 1
    assert "auroc 0.9000, 0.0500 worse" in capsys.readouterr().err


def test_of_errors_less_is_better(tmp_path):
    new, old = candidates(tmp_path, {"metrics": {"test": {"brier": 0.3}}}, {"metrics": {"test": {"brier": 0.1}}})
    with pytest.raises(BundleError, match="worse"):
        gate(new, old, "brier", 0.01)


def test_synthetic_never_replaces_real_and_real_always_replaces_synthetic(tmp_path):
    drawn = {"data": {"synthetic": True}, "metrics": {"test": {"auroc": 0.999}}}
    new, old = candidates(tmp_path, drawn, {})
    with pytest.raises(BundleError, match="synthetic"):
        gate(new, old, "auroc", 0.01)
    assert gate(old, new, "auroc", 0.01)


def test_a_model_of_other_labels_or_without_the_figure_is_stopped(tmp_path):
    new, old = candidates(tmp_path, {"labels": ["cat", "dog"]}, {})
    with pytest.raises(BundleError, match="different questions"):
        gate(new, old, "auroc", 0.01)
    with pytest.raises(BundleError, match="no figure"):
        gate(old, None, "f1", 0.01)


def test_below_the_minimum_nothing_passes_whatever_is_live(tmp_path, capsys):
    new, old = candidates(tmp_path, {"metrics": {"test": {"auroc": 0.75}}}, {"metrics": {"test": {"auroc": 0.70}}})
    assert gate(new, old, "auroc", 0.01, 0.75)
    for live in (old, None):
        with pytest.raises(BundleError, match=r"2 has auroc 0\.7500; the gate lets 0\.8 or more pass"):
            gate(new, live, "auroc", 0.01, 0.8)
    assert main(["gate", str(new.path), "-", "--minimum", "0.8"]) == 1
    assert "0.8 or more" in capsys.readouterr().err
    high = Bundle.load(write(tmp_path / "high", metrics={"test": {"brier": 0.3}}))
    with pytest.raises(BundleError, match=r"0\.2 or less"):
        gate(high, None, "brier", 0.01, 0.2)


@pytest.mark.parametrize(
    ("new", "old", "same"),
    [
        ({"test_digest": "a", "digest": "1"}, {"test_digest": "a", "digest": "2"}, True),
        ({"test_digest": "a", "digest": "1"}, {"test_digest": "b", "digest": "1"}, False),
        ({"digest": "1", "counts": {"test": {"N": 3}}}, {"digest": "1", "counts": {"test": {"N": 3}}}, True),
        ({"digest": "1", "counts": {"test": {"N": 3}}}, {"digest": "1", "counts": {"test": {"N": 4}}}, False),
        ({"digest": "1", "test_digest": "a"}, {"digest": "1"}, True),
        ({}, {}, False),
    ],
)
def test_the_gate_says_when_the_two_were_tested_on_different_images(tmp_path, new, old, same):
    candidate, live = candidates(tmp_path, {"data": new}, {"data": old})
    assert ("on another test set" in gate(candidate, live, "auroc", 0.01)) is not same


def test_data_dealt_by_another_seed_is_another_test_set(tmp_path):
    data = {"data": {"digest": "1", "counts": {"test": {"N": 3}}}}
    candidate, live = candidates(tmp_path, {**data, "training": {"seed": 2}}, {**data, "training": {"seed": 1}})
    assert "on another test set" in gate(candidate, live, "auroc", 0.01)


def test_a_comparison_shows_both_models_with_their_intervals_and_what_the_gate_says(tmp_path, capsys):
    test = {"accuracy": 0.91, "auroc": 0.93, "sensitivity": 0.9, "auroc_worst": None, "images": 624,
            "intervals": {"accuracy": [0.88, 0.935]}}  # fmt: skip
    write(tmp_path / "new", version="2", metrics={"test": test})
    write(tmp_path / "old")
    assert main(["compare", str(tmp_path / "new"), str(tmp_path / "old"), "--tolerance", "0.01"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["candidate", "live"]
    assert lines[1].split() == ["version", "2", "1"]
    assert lines[2].split() == ["test", "images", "624", "real", "unknown", "real"]
    assert "0.9100 (0.880 to 0.935)" in lines[3]
    assert lines[4].split() == ["AUROC", "0.9300", "0.9500"]
    assert lines[7].startswith("worst AUROC on changed images  not stated")
    assert lines[8] == "The two were tested on different images."
    assert lines[9].startswith("The gate stops it: 2 has auroc 0.9300, 0.0200 worse than the live 1")


def test_a_first_model_is_compared_with_nothing(tmp_path, capsys):
    assert main(["compare", str(write(tmp_path / "new")), "-"]) == 0
    out = capsys.readouterr().out
    assert "No model is live." in out
    assert out.endswith("The gate lets it pass: auroc 0.9500, no model is live.\n")
