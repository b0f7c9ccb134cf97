"""What people judged on the pages becomes images to train on, and moves nothing that a model is measured on."""

from __future__ import annotations

import io
import json
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from serving_kit import PASSWORD, RedisServer

from lightbox import cnn, data, feedback, training
from lightbox.architectures import ARCHITECTURES
from lightbox.data import Shape
from lightbox.store import Case, CaseStore, Feedback
from lightbox.synthetic import generate

NOW = datetime.now(timezone.utc)
SHAPE = Shape(16, 16, "grayscale", "bilinear")
CLASSES = ("NORMAL", "PNEUMONIA")


def picture(number: int) -> bytes:
    stream = io.BytesIO()
    grey = np.random.default_rng(number).integers(0, 255, (24, 24), dtype=np.uint8)
    Image.fromarray(grey).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def judge(store: CaseStore, number: int, label: str | None, source: str = "upload") -> str:
    """Store a case, called Normal, and what a person says of it; return its id."""
    case = Case(f"case{number:04d}", f"{number}.png", "Normal", 0.9, (0.1,), "v1", source, NOW)
    store.add(case, picture(number) if source == "upload" else b"")
    if label:
        store.set_feedback(case.id, Feedback(label, NOW + timedelta(seconds=number)))
    return case.id


@pytest.fixture
def store(redis_server: RedisServer) -> CaseStore:
    return CaseStore.connect("127.0.0.1", redis_server.port, "api", PASSWORD)


def arguments(redis: RedisServer, out: Path) -> list[str]:
    return ["--out", str(out), "--redis-port", str(redis.port), "--redis-user", "api",
            "--redis-password-file", str(redis.password_file)]  # fmt: skip


def written(directory: Path) -> set[str]:
    return {file.relative_to(directory).as_posix() for file in directory.rglob("*") if file.is_file()}


def test_every_judged_upload_is_written_under_the_label_people_gave(tmp_path, store, redis_server, capsys):
    for number in range(130):
        judge(store, number, "Pneumonia" if number % 2 else "Normal")
    judge(store, 500, None)
    judge(store, 501, "Pneumonia", source="batch")
    assert feedback.main(arguments(redis_server, tmp_path / "judged")) == 0
    assert written(tmp_path / "judged") == {
        f"{'PNEUMONIA' if number % 2 else 'NORMAL'}/case{number:04d}.jpeg" for number in range(130)
    }
    assert (tmp_path / "judged/NORMAL/case0000.jpeg").read_bytes() == picture(0)
    said = capsys.readouterr()
    assert "130 judged cases: 65 NORMAL, 65 PNEUMONIA" in said.out
    assert "case0501: it is one of the images that a model was measured on" in said.err


def test_a_small_upload_is_its_own_thumbnail(tmp_path, store, redis_server):
    case = Case("small", "small.png", "Normal", 0.9, (0.1,), "v1", "upload", NOW, thumbnail=picture(7))
    store.add(case)
    store.set_feedback(case.id, Feedback("Pneumonia", NOW))
    assert feedback.main(arguments(redis_server, tmp_path / "judged")) == 0
    assert (tmp_path / "judged/PNEUMONIA/small.jpeg").read_bytes() == picture(7)


def test_what_is_taken_back_goes_and_what_is_judged_otherwise_moves(tmp_path, store, redis_server):
    ids = [judge(store, number, "Pneumonia") for number in range(3)]
    assert feedback.main(arguments(redis_server, tmp_path / "judged")) == 0
    store.set_feedback(ids[0], None)
    store.set_feedback(ids[1], Feedback("Normal", NOW))
    assert feedback.main(arguments(redis_server, tmp_path / "judged")) == 0
    assert written(tmp_path / "judged") == {"NORMAL/case0001.jpeg", "PNEUMONIA/case0002.jpeg"}


def test_without_redis_the_directory_stays_as_it_is(tmp_path, store, redis_server, capsys):
    judge(store, 1, "Pneumonia")
    assert feedback.main(arguments(redis_server, tmp_path / "judged")) == 0
    redis_server.stop()
    assert feedback.main(arguments(redis_server, tmp_path / "judged")) == 1
    assert written(tmp_path / "judged") == {"PNEUMONIA/case0001.jpeg"}
    assert capsys.readouterr().err


@pytest.fixture
def judged(tmp_path: Path) -> Path:
    """Fifty images that people judged."""
    for number in range(50):
        file = tmp_path / "judged" / CLASSES[number % 2] / f"case{number:04d}.jpeg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(picture(number))
    return tmp_path / "judged"


def test_judged_images_are_trained_on_and_measure_nothing(tmp_path, judged):
    generate(tmp_path / "set", 80, seed=1)
    alone, _ = data.prepare(str(tmp_path / "set"), tmp_path / "cache", SHAPE, CLASSES)
    both, pixels = data.prepare(str(tmp_path / "set"), tmp_path / "cache", SHAPE, CLASSES, feedback=judged)
    assert both.digest != alone.digest
    assert both.split_digest("test") == alone.split_digest("test")
    assert both.split_digest("train") != alone.split_digest("train")
    assert both.judged() == {"NORMAL": 25, "PNEUMONIA": 25}
    rest = [sample for sample in both.samples if not sample.judged]
    assert [(sample.name, sample.split) for sample in rest] == [(s.name, s.split) for s in alone.samples]
    assert {sample.split for sample in both.samples if sample.judged} == {"train"}
    # Each has its own pixels and its own file.
    sample = next(sample for sample in both.samples if sample.name == "feedback/PNEUMONIA/case0001.jpeg")
    assert dict(data.pictures(both, [sample])) == {sample.name: picture(1)}
    with Image.open(io.BytesIO(picture(1))) as image:
        expected = data.to_pixels(image, 16, 16, "grayscale", "bilinear")
    assert (pixels[sample.row] == expected).all()


def test_an_image_that_the_set_has_is_not_trained_on_twice(tmp_path, judged):
    generate(tmp_path / "set", 80, seed=1)
    known = next((tmp_path / "set").rglob("PNEUMONIA/*.png"))
    (judged / "PNEUMONIA/again.jpeg").write_bytes(known.read_bytes())
    both, _ = data.prepare(str(tmp_path / "set"), tmp_path / "cache", SHAPE, CLASSES, feedback=judged)
    assert "feedback/PNEUMONIA/again.jpeg" in {problem.name for problem in both.left_out}
    assert known.relative_to(tmp_path / "set").as_posix() in {sample.name for sample in both.samples}


def test_the_weight_counts_in_every_batch_and_the_images_in_the_contract(tmp_path, judged):
    given = ["--synthetic-images", "120", "--image-size", "48", "--width", "8", "--batch-size", "16", "--epochs", "1",
             "--runs", str(tmp_path / "runs"), "--class-weighting", "none", "--feedback", str(judged),
             "--feedback-weight", "3"]  # fmt: skip
    job, settings = cnn.parse(given)
    assert cnn.main(given) == 0
    (run,) = (tmp_path / "runs").glob("*/manifest.json")
    contract = json.loads((run.parent / "bundle/model.json").read_text())
    assert contract["data"]["feedback"] == {"NORMAL": 25, "PNEUMONIA": 25, "weight": 3.0}
    assert "NORMAL 25, PNEUMONIA 25, weight 3" in (run.parent / "bundle/report.html").read_text()
    manifest = data.Manifest.load(run)
    pixels = np.zeros((len(manifest.samples), 48, 48, 1), np.uint8)
    sides = cnn.sides_of(manifest, pixels, settings.feedback_weight)
    batches, _ = training.training_batches(sides, ARCHITECTURES["compact"], settings)(0)
    weights = np.concatenate([weight.numpy().reshape(-1) for _, _, weight in batches])
    assert set(weights) == {1.0, 3.0}
    assert 30 < (weights == 3).sum() <= 50
    assert job.feedback == str(judged)
