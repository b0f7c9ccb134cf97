"""Batch inference: which images are scored, and that Redis then holds exactly what the engine says of them."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from PIL import Image
from serving_kit import PASSWORD, RedisServer, noise, png, write_bundle

from lightbox.data import Manifest, Sample, Shape, prepare
from lightbox.heat import pack
from lightbox.images import open_image
from lightbox.inference import InferenceError, find_images, main, spread
from lightbox.serving import Engine
from lightbox.store import CaseStore


def tree(root: Path, *names: str, value: int = 255) -> Path:
    """Write a flat picture under every name."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(value))
    return root


def manifest(run: Path, root: Path, **splits: list[str]) -> None:
    samples = tuple(
        Sample(name, int("PNEUMONIA" in name), name, split) for split, names in splits.items() for name in names
    )
    run.mkdir(parents=True, exist_ok=True)
    Manifest("directory", str(root), False, ("NORMAL", "PNEUMONIA"), samples, (), "0" * 64).save(run / "manifest.json")


def arguments(redis: RedisServer, bundle: Path, *more: str) -> list[str]:
    return [
        "--bundle", str(bundle), "--redis-port", str(redis.port), "--redis-user", "api",
        "--redis-password-file", str(redis.password_file), *more,
    ]  # fmt: skip


def cases(redis: RedisServer) -> list:
    return list(CaseStore.connect(port=redis.port, user="api", password=PASSWORD).page(1, 1000).cases)


def test_redis_holds_what_the_engine_says(tmp_path, bundle, redis_server):
    images = tmp_path / "images"
    images.mkdir()
    for number in range(12):
        (images / f"{number:02d}.png").write_bytes(noise(40, number))
    for number, grey in enumerate((0, 90, 160, 255)):
        (images / f"flat{number}.png").write_bytes(png(grey))
    assert main(arguments(redis_server, bundle, "--images", str(images))) == 0
    engine = Engine(bundle)
    found = cases(redis_server)
    assert [case.filename for case in found] == sorted(path.name for path in images.iterdir())
    assert {case.label for case in found} == {"Normal", "Pneumonia"}
    for case in found:
        found = engine.assess(open_image((images / case.filename).read_bytes()))
        verdict, scores = found.verdict, found.scores
        assert (case.label, case.source, case.model_version) == (verdict.label, "batch", engine.version)
        assert case.confidence == pytest.approx(verdict.confidence, abs=1e-6)
        assert case.scores == pytest.approx(scores, abs=1e-6)
        assert case.probabilities == pytest.approx(verdict.probabilities, abs=1e-6)
        assert (case.uncertain, case.unfamiliar) == (verdict.uncertain, found.unfamiliar)
        assert (case.heat, case.heat_label) == (pack(found.heat.values), "Pneumonia")
        with Image.open(io.BytesIO(case.thumbnail)) as thumbnail:
            assert thumbnail.format == "JPEG"


def test_scoring_twice_leaves_one_case_per_image(tmp_path, bundle, redis_server, capsys):
    images = tree(tmp_path / "images", "NORMAL/a.png", "PNEUMONIA/a.png", "b.jpeg")
    for _ in range(2):
        assert main(arguments(redis_server, bundle, "--images", str(images))) == 0
        assert "3 cases stored" in capsys.readouterr().out
    assert len(cases(redis_server)) == 3


def test_an_unreadable_image_is_named_and_the_others_are_stored(tmp_path, bundle, redis_server, capsys):
    images = tree(tmp_path / "images", "good.png")
    (images / "broken.jpeg").write_bytes(b"\xff\xd8 not a picture")
    (images / "empty.png").write_bytes(b"")
    assert main(arguments(redis_server, bundle, "--images", str(images))) == 0
    errors = capsys.readouterr().err
    assert "left out: broken.jpeg" in errors
    assert "left out: empty.png" in errors
    assert [case.filename for case in cases(redis_server)] == ["good.png"]


def test_nothing_readable_is_a_failure(tmp_path, bundle, redis_server):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "broken.png").write_bytes(b"x")
    assert main(arguments(redis_server, bundle, "--images", str(tmp_path / "images"))) == 1


def test_the_test_folder_is_preferred(tmp_path, bundle):
    images = tree(tmp_path / "images", "train/NORMAL/a.png", "test/NORMAL/b.png", "test/PNEUMONIA/.hidden.png")
    assert find_images(bundle, images).names == ("NORMAL/b.png",)


def test_a_model_is_shown_images_that_it_was_not_trained_on(tmp_path, redis_server):
    names = [f"train/{name}/{number}.png" for name in ("NORMAL", "PNEUMONIA") for number in range(4)]
    images = tree(tmp_path / "images", *names)
    manifest(tmp_path / "run", images, train=names[:3] + names[4:7], test=[names[3], names[7]])
    bundle = write_bundle(tmp_path / "run" / "bundle")
    link = tmp_path / "latest"
    link.symlink_to(bundle)
    for given in (str(images), f"{images}/../images"):
        assert find_images(link, Path(given)).names == (names[3], names[7])
    assert find_images(link, None).names == (names[3], names[7])
    other = tree(tmp_path / "other", "x.png")
    assert find_images(link, other).names == ("x.png",)
    assert main(arguments(redis_server, link)) == 0
    assert sorted(case.filename for case in cases(redis_server)) == ["3.png", "3.png"]


def test_where_there_are_no_images_those_of_the_run_are_scored(tmp_path):
    images = tree(tmp_path / "cache" / "drawn", "train/NORMAL/a.png")
    manifest(tmp_path / "run", images, test=["train/NORMAL/a.png"])
    bundle = write_bundle(tmp_path / "run" / "bundle")
    assert find_images(bundle, tmp_path / "absent").names == ("train/NORMAL/a.png",)
    (tmp_path / "run" / "manifest.json").unlink()
    with pytest.raises(InferenceError, match="absent"):
        find_images(bundle, tmp_path / "absent")


def test_images_of_an_array_file_are_scored(tmp_path, redis_server):
    file = tmp_path / "images.npz"
    # Dark ones are normal, light ones a finding, both for the labels and for the arithmetic model.
    greys = [*range(0, 80, 2), *range(170, 250, 2)]
    pixels = np.stack([np.full((28, 28), grey, dtype=np.uint8) for grey in greys])
    np.savez(file, train_images=pixels, train_labels=(pixels[:, :1, 0] > 127).astype(np.uint8))
    found, _ = prepare(str(file), tmp_path / "cache", Shape(28, 28, "grayscale", "bilinear"), ("NORMAL", "PNEUMONIA"))
    run = tmp_path / "run"
    run.mkdir()
    found.save(run / "manifest.json")
    assert main(arguments(redis_server, write_bundle(run / "bundle"))) == 0
    test = {f"{PurePosixPath(sample.name).name}.png": sample.label for sample in found.of("test")}
    assert {0, 1} == set(test.values())
    assert {case.filename: int(case.label == "Pneumonia") for case in cases(redis_server)} == test


def test_a_limit_takes_images_of_every_folder(tmp_path, bundle, redis_server):
    names = [f"{name}/{number}.png" for name in ("NORMAL", "PNEUMONIA") for number in range(10)]
    images = tree(tmp_path / "images", *names)
    assert main(arguments(redis_server, bundle, "--images", str(images), "--limit", "4")) == 0
    assert len(cases(redis_server)) == 4
    assert {name.partition("/")[0] for name in spread(find_images(bundle, images).names, 4)} == {"NORMAL", "PNEUMONIA"}


@pytest.mark.parametrize(("count", "limit"), [(1, 1), (7, 3), (7, 7), (7, 9), (100, 99)])
def test_a_limit_never_takes_an_image_twice(count, limit):
    names = [str(number) for number in range(count)]
    assert len(set(spread(names, limit))) == min(count, limit)


def test_a_wrong_password_is_said_without_showing_it(tmp_path, bundle, redis_server, capsys):
    images = tree(tmp_path / "images", "a.png")
    wrong = tmp_path / "password"
    wrong.write_text("wrong-secret\n")
    given = [*arguments(redis_server, bundle, "--images", str(images)), "--redis-password-file", str(wrong)]
    assert main(given) == 1
    output = capsys.readouterr()
    assert "refused the user or password" in output.err
    assert "wrong-secret" not in output.out + output.err
    assert main([*given[:-1], str(tmp_path / "none")]) == 1
    assert "none" in capsys.readouterr().err


def test_a_damaged_bundle_scores_nothing(tmp_path, bundle, redis_server, capsys):
    content = bytearray((bundle / "model.onnx").read_bytes())
    content[-1] ^= 1
    (bundle / "model.onnx").write_bytes(content)
    images = tree(tmp_path / "images", "a.png")
    assert main(arguments(redis_server, bundle, "--images", str(images))) == 1
    assert "damaged" in capsys.readouterr().err
    assert cases(redis_server) == []


def test_it_runs_as_a_module_without_tensorflow(tmp_path, bundle, redis_server):
    images = tree(tmp_path / "images", "a.png")
    (tmp_path / "tensorflow.py").write_text("raise SystemExit('TensorFlow was imported')")
    done = subprocess.run(
        [sys.executable, "-m", "lightbox.inference", *arguments(redis_server, bundle, "--images", str(images))],
        check=False, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "1 cases stored" in done.stdout
