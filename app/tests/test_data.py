"""Where images come from, what is left out and why, and that no patient is on two sides."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import importlib.metadata
import io
import json
import os
import shutil
import socket
import subprocess
import tarfile
import threading
import time
import urllib.request
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_kit import dicom
from PIL import Image

from lightbox import data
from lightbox.data import CHEST_PATIENT, DataError, Manifest, Sample, Shape, patient_of, pictures, split_by_patient

SHAPE = Shape(8, 8, "grayscale", "bilinear")
CLASSES = ("NORMAL", "PNEUMONIA")
MOTO = Path(__file__).resolve().parents[2] / ".venv/bin/moto_server"


def picture(number: int, side: int = 12) -> bytes:
    """Return a JPEG that differs from that of any other number."""
    grey = np.random.default_rng(number).integers(0, 255, (side, side), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(grey).save(stream, "JPEG", quality=95)
    return stream.getvalue()


def tree(root: Path, normal: int = 30, ill: int = 40, top: str = "train", first: int = 0) -> Path:
    """Write a data set as Kermany's: two images of every patient who is ill."""
    for name in CLASSES:
        (root / top / name).mkdir(parents=True, exist_ok=True)
    for i in range(first, first + normal):
        (root / top / "NORMAL" / f"IM-{i:04d}-0001.jpeg").write_bytes(picture(i))
    for i in range(first, first + ill):
        kind = "bacteria" if i % 2 else "virus"
        (root / top / "PNEUMONIA" / f"person{i // 2}_{kind}_{i}.jpeg").write_bytes(picture(10_000 + i))
    return root


def prepare(source: Path | str, cache: Path, **options) -> tuple[Manifest, np.ndarray]:
    return data.prepare(str(source), cache, SHAPE, CLASSES, **options)


def sides(manifest: Manifest) -> dict[str, set[str]]:
    found = defaultdict(set)
    for sample in manifest.samples:
        found[sample.patient].add(sample.split)
    return found


# --- patients


@pytest.mark.parametrize(
    ("name", "patient"),
    [
        ("train/PNEUMONIA/person123_bacteria_456.jpeg", "person123"),
        ("person123_virus_1.jpeg", "person123"),
        ("person1_virus_11_2.jpeg", "person1"),
        ("IM-0123-0001.jpeg", "IM-0123"),
        ("IM-0123-0001-0002.jpeg", "IM-0123"),
        ("NORMAL2-IM-0123-0001.jpeg", "NORMAL2-IM-0123"),
        ("synthetic-p0012-3.png", "synthetic-p0012"),
        ("a/scan.png", "=a/scan.png"),
    ],
)
def test_the_patient_is_read_off_the_file_name(name, patient):
    assert patient_of(name, CHEST_PATIENT) == patient


def test_files_of_the_same_name_in_two_places_are_two_patients():
    assert patient_of("a/scan.png", CHEST_PATIENT) != patient_of("b/scan.png", CHEST_PATIENT)


samples = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 1)), min_size=1, max_size=150).map(
    lambda pairs: [Sample(f"{i}.png", label, f"p{patient}", "", i) for i, (patient, label) in enumerate(pairs)]
)


@given(samples, st.integers(0, 5), st.floats(0.02, 0.45), st.floats(0.02, 0.45))
def test_a_patient_is_never_on_two_sides(items, seed, validation, test):
    split = split_by_patient(items, seed, validation, test)
    found = defaultdict(set)
    for sample in split:
        found[sample.patient].add(sample.split)
    assert all(len(where) == 1 for where in found.values())
    assert [replace(sample, split="") for sample in split] == items


@given(samples, st.integers(0, 5), st.randoms())
def test_the_split_does_not_depend_on_the_order_of_files(items, seed, random):
    shuffled = list(items)
    random.shuffle(shuffled)

    def by_name(split):
        return {sample.name: sample.split for sample in split}

    assert by_name(split_by_patient(shuffled, seed, 0.2, 0.2)) == by_name(split_by_patient(items, seed, 0.2, 0.2))


def test_classes_are_shared_out_alike_and_another_seed_deals_otherwise():
    items = [Sample(f"{i}", int(i >= 300), f"p{i // 3}", "", i) for i in range(1200)]
    split = split_by_patient(items, 1, 0.15, 0.10)
    for label, total in ((0, 300), (1, 900)):
        for name, share in (("validation", 0.15), ("test", 0.10), ("train", 0.75)):
            count = sum(sample.label == label and sample.split == name for sample in split)
            assert count == pytest.approx(share * total, abs=3)
    assert split != split_by_patient(items, 2, 0.15, 0.10)


# --- directories


def test_a_directory_is_split_decoded_and_kept(tmp_path):
    manifest, pixels = prepare(tree(tmp_path / "set"), tmp_path / "cache", seed=3)
    assert pixels.shape == (70, 8, 8, 1)
    assert pixels.dtype == np.uint8
    assert sum(sum(classes.values()) for classes in manifest.counts().values()) == 70
    assert all(len(where) == 1 for where in sides(manifest).values())
    for sample in manifest.samples:
        with Image.open(tmp_path / "set" / sample.name) as image:
            assert (pixels[sample.row] == data.to_pixels(image, 8, 8, "grayscale", "bilinear")).all()
        assert CLASSES[sample.label] in sample.name
    again, _ = prepare(tmp_path / "set", tmp_path / "cache", seed=3)
    assert again == manifest
    manifest.save(tmp_path / "manifest.json")
    assert Manifest.load(tmp_path / "manifest.json") == manifest


def test_images_are_decoded_once(tmp_path, monkeypatch):
    prepare(tree(tmp_path / "set"), tmp_path / "cache")
    monkeypatch.setattr(data, "to_pixels", None)
    prepare(tmp_path / "set", tmp_path / "cache")


def test_the_digest_follows_every_byte_and_name(tmp_path):
    digests = {prepare(tree(tmp_path / "set"), tmp_path / "cache")[0].digest}
    file = tmp_path / "set/train/NORMAL/IM-0001-0001.jpeg"
    file.write_bytes(picture(99))
    digests.add(prepare(tmp_path / "set", tmp_path / "cache")[0].digest)
    file.rename(file.with_name("IM-9999-0001.jpeg"))
    digests.add(prepare(tmp_path / "set", tmp_path / "cache")[0].digest)
    assert len(digests) == 3


def test_what_cannot_be_read_is_left_out_with_the_reason(tmp_path):
    folder = tree(tmp_path / "set") / "train/NORMAL"
    (folder / "empty.jpeg").write_bytes(b"")
    (folder / "text.jpeg").write_text("not an image")
    (folder / "cut.jpeg").write_bytes(picture(500, 64)[:400])
    (folder / "notes.txt").write_text("hello")
    (folder / ".DS_Store").write_bytes(b"x")
    manifest, pixels = prepare(tmp_path / "set", tmp_path / "cache")
    reasons = {problem.name.rsplit("/", 1)[1]: problem.reason for problem in manifest.left_out}
    assert set(reasons) == {"empty.jpeg", "text.jpeg", "cut.jpeg", "notes.txt"}
    assert "empty" in reasons["empty.jpeg"]
    assert "cannot identify" in reasons["text.jpeg"]
    assert "truncated" in reasons["cut.jpeg"]
    assert ".jpeg" in reasons["notes.txt"]
    assert len(pixels) == len(manifest.samples) == 70
    for sample in manifest.samples:
        with Image.open(tmp_path / "set" / sample.name) as image:
            assert (pixels[sample.row] == data.to_pixels(image, 8, 8, "grayscale", "bilinear")).all()


def test_an_image_that_is_there_twice_counts_once_and_in_two_classes_not_at_all(tmp_path):
    root = tree(tmp_path / "set")
    first = root / "train/PNEUMONIA/person0_virus_0.jpeg"
    (root / "train/PNEUMONIA/person900_virus_1.jpeg").write_bytes(first.read_bytes())
    other = root / "train/NORMAL/IM-0003-0001.jpeg"
    (root / "train/PNEUMONIA/person901_virus_1.jpeg").write_bytes(other.read_bytes())
    manifest, _ = prepare(root, tmp_path / "cache")
    left = {problem.name: problem.reason for problem in manifest.left_out}
    assert "same image as train/PNEUMONIA/person0_virus_0.jpeg" in left["train/PNEUMONIA/person900_virus_1.jpeg"]
    assert "another class" in left["train/NORMAL/IM-0003-0001.jpeg"]
    assert "another class" in left["train/PNEUMONIA/person901_virus_1.jpeg"]
    assert len(manifest.samples) == 69


def test_a_test_split_that_is_there_is_kept_and_its_patients_are_not_trained_on(tmp_path):
    root = tree(tmp_path / "set")
    tree(root, normal=10, ill=10, top="test", first=500)
    tree(root, normal=2, ill=2, top="val", first=700)
    (root / "test/PNEUMONIA/person3_virus_900.jpeg").write_bytes(picture(900))
    manifest, _ = prepare(root, tmp_path / "cache")
    tested = {sample.name for sample in manifest.of("test")}
    assert tested == {f"test/{p.parent.name}/{p.name}" for p in (root / "test").rglob("*.jpeg")}
    assert sides(manifest)["person3"] == {"test"}
    left = {problem.name: problem.reason for problem in manifest.left_out}
    assert set(left) == {"train/PNEUMONIA/person3_virus_6.jpeg", "train/PNEUMONIA/person3_bacteria_7.jpeg"}
    assert all("person3 is in test" in reason for reason in left.values())
    # Four images are no validation split: they are shared out with the rest.
    assert sum(manifest.counts()["validation"].values()) > 4


def test_more_training_images_leave_the_test_digest_as_it_is(tmp_path):
    root = tree(tmp_path / "set")
    tree(root, normal=10, ill=10, top="test", first=500)
    before, _ = prepare(root, tmp_path / "cache")
    more, _ = prepare(tree(root, normal=5, ill=5, first=300), tmp_path / "cache", seed=2)
    assert more.digest != before.digest
    assert more.split_digest("test") == before.split_digest("test")
    (root / "test/NORMAL/IM-0500-0001.jpeg").write_bytes(picture(99))
    assert prepare(root, tmp_path / "cache")[0].split_digest("test") != before.split_digest("test")


def test_folders_around_the_set_and_of_classes_alone_are_understood(tmp_path):
    root = tree(tmp_path / "outer/chest_xray")
    plain = tmp_path / "plain"
    shutil.copytree(root / "train", plain / "somewhere")
    shutil.move(str(plain / "somewhere/NORMAL"), plain / "NORMAL")
    shutil.move(str(plain / "somewhere/PNEUMONIA"), plain / "PNEUMONIA")
    (plain / "somewhere").rmdir()
    assert len(prepare(tmp_path / "outer", tmp_path / "cache")[0].samples) == 70
    assert len(prepare(plain, tmp_path / "cache")[0].samples) == 70


def test_other_classes_too_few_images_and_wrong_counts_are_named(tmp_path):
    root = tree(tmp_path / "set")
    with pytest.raises(DataError, match="NORMAL: 30 instead of 31"):
        prepare(root, tmp_path / "cache", expected={"NORMAL": 31, "PNEUMONIA": 40})
    prepare(root, tmp_path / "cache", expected={"NORMAL": 30, "PNEUMONIA": 40})
    (root / "train/CATS").mkdir()
    with pytest.raises(DataError, match="CATS"):
        prepare(root, tmp_path / "cache")
    with pytest.raises(DataError, match="no image of NORMAL"):
        prepare(tree(tmp_path / "few", normal=1), tmp_path / "cache")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="train/<class>"):
        prepare(tmp_path / "empty", tmp_path / "cache")
    with pytest.raises(DataError, match="there is no data at"):
        prepare(tmp_path / "nowhere", tmp_path / "cache")
    with pytest.raises(DataError, match="ftp"):
        prepare("ftp://host/x.zip", tmp_path / "cache")


def test_a_full_disk_is_said_before_it_is_full(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(data.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(DataError, match="make room"):
        prepare(tree(tmp_path / "set"), tmp_path / "cache")


# --- arrays


def arrays(file: Path, **changes) -> Path:
    rng = np.random.default_rng(1)
    content = {}
    for split, count in (("train", 60), ("val", 8), ("test", 20)):
        content[f"{split}_images"] = rng.integers(0, 255, (count, 28, 28), dtype=np.uint8)
        content[f"{split}_labels"] = (np.arange(count) % 2)[:, None].astype(np.uint8)
    np.savez(file, **{**content, **changes})
    return file


def test_a_medmnist_file_is_a_source(tmp_path):
    manifest, pixels = prepare(arrays(tmp_path / "m.npz"), tmp_path / "cache")
    assert manifest.source == "npz"
    assert len(manifest.of("test")) == 20
    assert pixels.shape == (88, 8, 8, 1)
    found = dict(pictures(manifest, manifest.of("test")))
    with np.load(tmp_path / "m.npz") as original, Image.open(io.BytesIO(found["test_images/000003.png"])) as image:
        assert (np.asarray(image) == original["test_images"][3]).all()


def test_a_file_as_keras_lays_it_out_is_a_source(tmp_path):
    rng = np.random.default_rng(1)
    x, y = rng.integers(0, 255, (50, 9, 9, 3), dtype=np.uint8), np.arange(50) % 2
    np.savez(tmp_path / "k.npz", x_train=x[:40], y_train=y[:40], x_test=x[40:], y_test=y[40:])
    manifest, _ = prepare(tmp_path / "k.npz", tmp_path / "cache")
    assert len(manifest.of("test")) == 10


# --- MNIST's own layouts

DIGITS = tuple("0123456789")


def digits(seed: int = 1) -> dict[str, np.ndarray]:
    """Return arrays as Keras has them: 300 images to train on and 50 to test, of ten classes."""
    rng = np.random.default_rng(seed)
    return {
        "x_train": rng.integers(0, 255, (300, 28, 28), dtype=np.uint8),
        "y_train": (np.arange(300) % 10).astype(np.uint8),
        "x_test": rng.integers(0, 255, (50, 28, 28), dtype=np.uint8),
        "y_test": (np.arange(50) % 10).astype(np.uint8),
    }


def write_idx(directory: Path, zipped: bool = False, dot: bool = False) -> Path:
    """Write these arrays as the four files in which MNIST is published."""
    directory.mkdir()
    for name, array in digits().items():
        kind = "images-idx3" if array.ndim == 3 else "labels-idx1"
        prefix = "train" if name.endswith("train") else "t10k"
        file = f"{prefix}-{kind}-ubyte"
        lengths = b"".join(length.to_bytes(4, "big") for length in array.shape)
        content = bytes([0, 0, 8, array.ndim]) + lengths + array.tobytes()
        file = file.replace("-idx", ".idx") if dot else file
        path = directory / (f"{file}.gz" if zipped else file)
        path.write_bytes(gzip.compress(content) if zipped else content)
    return directory


def read(source: Path | str, cache: Path, seed: int = 1):
    shape = data.Shape(28, 28, "grayscale", "bilinear")
    return data.prepare(str(source), cache, shape, DIGITS, pattern="", seed=seed, validation=0.1)


def test_ten_classes_as_keras_lays_them_out_keep_their_test_split(tmp_path):
    np.savez(tmp_path / "m.npz", **digits())
    manifest, pixels = read(tmp_path / "m.npz", tmp_path / "cache")
    assert {sample.name.split("/")[0] for sample in manifest.of("test")} == {"x_test"}
    assert {sample.name.split("/")[0] for sample in manifest.of("validation")} == {"x_train"}
    assert set(manifest.counts()["validation"].values()) == {4}, "a tenth of all images, of each class alike"
    assert len(manifest.of("test")) == 50
    assert (pixels[manifest.of("test")[3].row, ..., 0] == digits()["x_test"][3]).all()

    def validation(seed: int) -> set[str]:
        return {sample.name for sample in read(tmp_path / "m.npz", tmp_path / "cache", seed)[0].of("validation")}

    assert validation(1) == validation(1) != validation(2)


@pytest.mark.parametrize(("zipped", "dot"), [(False, False), (True, False), (False, True)])
def test_the_files_in_which_mnist_is_published_are_a_source(tmp_path, zipped, dot):
    manifest, pixels = read(write_idx(tmp_path / "idx", zipped, dot), tmp_path / "cache")
    assert manifest.source == "idx"
    np.savez(tmp_path / "m.npz", **digits())
    other, expected = read(tmp_path / "m.npz", tmp_path / "other")
    assert manifest.digest == other.digest
    assert (pixels == expected).all()
    name, content = next(pictures(manifest, manifest.of("test")[7:]))
    with Image.open(io.BytesIO(content)) as image:
        assert (np.asarray(image) == digits()["x_test"][7]).all(), name


def test_a_directory_that_holds_one_npz_is_that_file(tmp_path):
    (tmp_path / "mnist").mkdir()
    np.savez(tmp_path / "mnist/mnist.npz", **digits())
    (tmp_path / "mnist/README").touch()
    manifest, _ = read(tmp_path / "mnist", tmp_path / "cache")
    assert (manifest.source, Path(manifest.root).name, len(manifest.samples)) == ("npz", "mnist.npz", 350)


def test_idx_files_that_lack_something_are_named(tmp_path):
    directory = write_idx(tmp_path / "idx")
    images = directory / "train-images-idx3-ubyte"
    whole = images.read_bytes()
    for broken in (b"", whole[:-1], b"\0\0\x09" + whole[3:], whole[:6]):
        images.write_bytes(broken)
        with pytest.raises(DataError, match="train-images-idx3-ubyte cannot be read as IDX"):
            read(directory, tmp_path / "cache")
    images.unlink()
    with pytest.raises(DataError, match="lacks train-images-idx3-ubyte"):
        read(directory, tmp_path / "cache")


def test_mnist_by_its_name_is_the_file_that_keras_names():
    published = importlib.metadata.distribution("keras").locate_file("keras/src/datasets/mnist.py").read_text()
    address, digest = data.KNOWN["mnist"]
    assert all(part in published for part in (*address.rsplit("/", 1), digest))


# --- arrays that are wrong


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train_images": np.zeros((60, 28, 28), np.float32)}, "float32"),
        ({"train_labels": np.full((60, 1), 7)}, "label 7"),
        ({"train_labels": np.zeros((59, 1), np.uint8)}, "59 labels"),
        ({"train_images": np.array([{}] * 60, dtype=object)}, "cannot be read"),
    ],
)
def test_arrays_that_are_no_images_are_refused(tmp_path, changes, words):
    with pytest.raises(DataError, match=words):
        prepare(arrays(tmp_path / "m.npz", **changes), tmp_path / "cache")


def test_a_file_that_is_no_npz_is_refused(tmp_path):
    (tmp_path / "m.npz").write_bytes(b"PK\x03\x04 broken")
    with pytest.raises(DataError, match="cannot be read"):
        prepare(tmp_path / "m.npz", tmp_path / "cache")


# --- archives


def zipped(file: Path, root: Path) -> Path:
    with zipfile.ZipFile(file, "w") as archive:
        for path in sorted(root.rglob("*.jpeg")):
            archive.write(path, f"chest/{path.relative_to(root)}")
    return file


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_an_archive_is_unpacked_once(tmp_path, kind):
    root = tree(tmp_path / "set")
    if kind == "zip":
        file = zipped(tmp_path / "set.zip", root)
    else:
        file = tmp_path / "set.tar.gz"
        with tarfile.open(file, "w:gz") as archive:
            archive.add(root, "chest")
    manifest, _ = prepare(file, tmp_path / "cache")
    assert manifest.source == "archive"
    assert len(manifest.samples) == 70
    unpacked = Path(manifest.root)
    before = unpacked.stat().st_mtime_ns
    assert prepare(file, tmp_path / "cache")[0] == manifest
    assert unpacked.stat().st_mtime_ns == before


def evil_zip(file: Path, name: str) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("train/NORMAL/a.jpeg", picture(1))
        archive.writestr(name, b"evil")


def evil_tar(file: Path, **fields) -> None:
    with tarfile.open(file, "w") as archive:
        info = tarfile.TarInfo(fields.pop("name", "train/link"))
        for key, value in fields.items():
            setattr(info, key, value)
        archive.addfile(info, io.BytesIO(b""))


@pytest.mark.parametrize("name", ["../evil.jpeg", "/evil.jpeg", "train/../../evil.jpeg", "..\\evil.jpeg", "C:\\evil"])
def test_a_zip_that_writes_elsewhere_is_refused_and_leaves_nothing(tmp_path, name):
    evil_zip(tmp_path / "evil.zip", name)
    with pytest.raises(DataError, match="outside"):
        prepare(tmp_path / "evil.zip", tmp_path / "box/cache")
    assert not list(tmp_path.rglob("evil.jpeg"))
    assert not list((tmp_path / "box/cache").iterdir())
    assert not Path("/evil.jpeg").exists()


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "../evil", "size": 0},
        {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"},
        {"type": tarfile.LNKTYPE, "linkname": "../../x"},
        {"type": tarfile.CHRTYPE},
        {"type": tarfile.FIFOTYPE},
    ],
)
def test_a_tar_with_links_devices_or_ways_out_is_refused(tmp_path, fields):
    evil_tar(tmp_path / "evil.tar", **fields)
    with pytest.raises(DataError, match="not unpacked"):
        prepare(tmp_path / "evil.tar", tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_a_zip_with_a_link_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        info = zipfile.ZipInfo("train/link")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(DataError, match="link"):
        prepare(tmp_path / "evil.zip", tmp_path / "cache")


def test_a_damaged_archive_is_named(tmp_path):
    content = zipped(tmp_path / "set.zip", tree(tmp_path / "set")).read_bytes()
    middle = len(content) // 3
    (tmp_path / "set.zip").write_bytes(content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :])
    with pytest.raises(DataError, match=r"set\.zip cannot be unpacked"):
        prepare(tmp_path / "set.zip", tmp_path / "cache")
    (tmp_path / "cut.tar.gz").write_bytes(b"\x1f\x8b\x08\x00")
    with pytest.raises(DataError, match=r"cut\.tar\.gz cannot be unpacked"):
        prepare(tmp_path / "cut.tar.gz", tmp_path / "cache")


# --- over the network


class Server(http.server.BaseHTTPRequestHandler):
    """Serves one file; the first answer breaks off in the middle."""

    content = b""
    breaks = 0
    ranges: list[str | None] = []  # noqa: RUF012  shared on purpose: the server makes a handler for each request

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        Server.ranges.append(asked)
        begin = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        body = Server.content[begin:]
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if Server.breaks:
            Server.breaks -= 1
            body = body[: len(body) // 2]
        self.wfile.write(body)

    def log_message(self, *_args) -> None:
        pass


@pytest.fixture
def web() -> Iterator[str]:
    Server.breaks, Server.ranges = 0, []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_an_archive_is_fetched_continued_after_a_break_and_kept(tmp_path, web):
    Server.content = zipped(tmp_path / "set.zip", tree(tmp_path / "set")).read_bytes()
    Server.breaks = 1
    told: list[str] = []
    digest = hashlib.sha256(Server.content).hexdigest()
    manifest, _ = prepare(
        f"{web}/set.zip", tmp_path / "cache", sha256=digest, report=lambda message, *_: told.append(message)
    )
    assert len(manifest.samples) == 70
    assert Server.ranges == [None, f"bytes={len(Server.content) // 2}-"]
    assert any("fetching" in message for message in told)
    prepare(f"{web}/set.zip", tmp_path / "cache", sha256=digest)
    assert len(Server.ranges) == 2


def test_a_data_set_known_by_name_is_fetched_and_held_to_its_digest(tmp_path, web, monkeypatch):
    np.savez(tmp_path / "m.npz", **digits())
    Server.content = (tmp_path / "m.npz").read_bytes()
    monkeypatch.setitem(data.KNOWN, "mnist", (f"{web}/mnist.npz", hashlib.sha256(Server.content).hexdigest()))
    manifest, _ = read("mnist", tmp_path / "cache")
    assert (manifest.source, len(manifest.samples)) == ("npz", 350)
    monkeypatch.setitem(data.KNOWN, "mnist", (f"{web}/mnist.npz", "0" * 64))
    with pytest.raises(DataError, match="not what was expected"):
        read("mnist", tmp_path / "cache")


def test_a_tampered_archive_is_thrown_away(tmp_path, web):
    Server.content = zipped(tmp_path / "set.zip", tree(tmp_path / "set")).read_bytes()
    digest = hashlib.sha256(Server.content).hexdigest()
    Server.content = Server.content[:-1] + b"!"
    with pytest.raises(DataError, match="not what was expected"):
        prepare(f"{web}/set.zip", tmp_path / "cache", sha256=digest)
    assert not list((tmp_path / "cache").iterdir())


def test_an_archive_without_digest_or_of_unknown_kind_is_not_fetched(tmp_path, web):
    with pytest.raises(DataError, match="--data-sha256"):
        prepare(f"{web}/set.zip", tmp_path / "cache")
    with pytest.raises(DataError, match="no archive"):
        prepare(f"{web}/set.rar", tmp_path / "cache", sha256="0" * 64)
    with pytest.raises(DataError, match="64 hexadecimal"):
        prepare(f"{web}/set.zip", tmp_path / "cache", sha256="abc")
    assert not Server.ranges


@pytest.fixture(scope="module")
def s3(tmp_path_factory) -> Iterator[str]:
    if not MOTO.exists():
        pytest.skip("the controller's environment, which has an S3 to rehearse with, is not there")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = (tmp_path_factory.mktemp("s3") / "log").open("w")
    server = subprocess.Popen([MOTO, "-H", "127.0.0.1", "-p", str(port)], stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    for _ in range(300):
        try:
            urllib.request.urlopen(f"{address}/moto-api/", timeout=1)
            break
        except OSError:
            time.sleep(0.1)
    yield address
    server.terminate()
    server.wait()
    log.close()


def test_a_bucket_is_fetched_and_followed(tmp_path, s3, monkeypatch):
    import boto3

    monkeypatch.setenv("AWS_ENDPOINT_URL", s3)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION", "AWS_REGION"):
        monkeypatch.setenv(name, "us-east-1")
    client = boto3.client("s3")
    client.create_bucket(Bucket="x-rays")
    root = tree(tmp_path / "set", normal=10, ill=12)
    for path in root.rglob("*.jpeg"):
        client.upload_file(str(path), "x-rays", f"chest_xray/{path.relative_to(root)}")
    client.put_object(Bucket="x-rays", Key="chest_xray_old/train/NORMAL/other.jpeg", Body=b"no")

    manifest, _ = prepare("s3://x-rays/chest_xray", tmp_path / "cache")
    assert manifest.source == "s3"
    assert len(manifest.samples) == 22
    same, _ = prepare(root, tmp_path / "cache2")
    assert manifest.digest == same.digest

    kept = Path(manifest.root) / "train/NORMAL/IM-0002-0001.jpeg"
    before = kept.stat().st_mtime_ns
    client.put_object(Bucket="x-rays", Key="chest_xray/train/NORMAL/IM-0001-0001.jpeg", Body=picture(77))
    client.delete_object(Bucket="x-rays", Key="chest_xray/train/NORMAL/IM-0000-0001.jpeg")
    followed, _ = prepare("s3://x-rays/chest_xray/", tmp_path / "cache")
    assert followed.digest != manifest.digest
    again, _ = prepare("s3://x-rays/chest_xray", tmp_path / "cache")
    assert len(again.samples) == 21
    assert kept.stat().st_mtime_ns == before

    client.upload_file(str(zipped(tmp_path / "set.zip", root)), "x-rays", "set.zip")
    assert len(prepare("s3://x-rays/set.zip", tmp_path / "cache")[0].samples) == 22
    with pytest.raises(DataError, match="no images under"):
        prepare("s3://x-rays/nothing", tmp_path / "cache")
    with pytest.raises(DataError, match="cannot be fetched"):
        prepare("s3://no-such-bucket/x", tmp_path / "cache")


def xray() -> Path:
    return Path(os.environ.get("LIGHTBOX_XRAY", Path(__file__).resolve().parents[3] / "shared/data/xray"))


@pytest.mark.slow
def test_kermanys_images_are_all_found_and_split(tmp_path):
    if not xray().is_dir():
        pytest.skip("the real data set is not here: name it with LIGHTBOX_XRAY")
    manifest, pixels = prepare(xray(), tmp_path / "cache")
    assert len(manifest.samples) + len(manifest.left_out) == 5216
    assert len(pixels) == len(manifest.samples) > 5100
    assert all("same image" in problem.reason for problem in manifest.left_out)
    assert all(len(where) == 1 for where in sides(manifest).values())
    counts = manifest.counts()
    for name, total in (("NORMAL", 1341), ("PNEUMONIA", 3875)):
        assert counts["validation"][name] == pytest.approx(0.15 * total, rel=0.03)
    assert json.loads(json.dumps(counts)) == counts


def test_the_kind_of_an_image_is_read_from_its_name() -> None:
    kinds = [data.kind_of(name, data.CHEST_KIND) for name in (
        "train/PNEUMONIA/person1_bacteria_2.jpeg", "x/person1000_virus_1681.jpeg", "NORMAL/IM-0115-0001.jpeg",
        "virus_/IM-0115-0001.jpeg",
    )]  # fmt: skip
    assert kinds == ["bacteria", "virus", "", ""]
    assert data.kind_of("person1_bacteria_2.jpeg", "") == ""


def chest(number: int) -> Image.Image:
    """Return a picture in large shapes, as a film is: a blurred pattern that differs from that of any other number."""
    coarse = np.random.default_rng(number).integers(0, 255, (6, 6), dtype=np.uint8)
    return Image.fromarray(coarse).resize((96, 96), Image.Resampling.BICUBIC)


def test_dicom_files_are_images_and_tell_their_patients_apart(tmp_path):
    """Eight films of four patients in each class; names say nothing, and no number of a patient is written down."""
    for label, name in enumerate(CLASSES):
        for film in range(8):
            file = tmp_path / "set" / name / f"film-{film}.dcm"
            file.parent.mkdir(parents=True, exist_ok=True)
            values = np.asarray(chest(100 * label + film), dtype="u2") * 16
            number = f"secret-{label}-{film // 2}"
            file.write_bytes(dicom(values, PatientID=number, WindowCenter=2048, WindowWidth=4096))
    (tmp_path / "set/NORMAL/broken.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"nothing")
    shape = Shape(64, 64, "grayscale", "bilinear")
    found, pixels = data.prepare(str(tmp_path / "set"), tmp_path / "cache", shape, CLASSES, validation=0.25, test=0.25)
    assert len(found.samples) == 16
    assert [problem.name for problem in found.left_out] == ["NORMAL/broken.dcm"]
    of_one = defaultdict(set)
    for sample in found.samples:
        of_one[sample.patient].add((sample.label, int(sample.name[-5]) // 2, sample.split))
    # Eight patients, each with all of their films on one side.
    assert len(of_one) == 8 and all(len(where) == 1 for where in of_one.values())
    found.save(tmp_path / "manifest.json")
    assert "secret" not in (tmp_path / "manifest.json").read_text()
    sample = next(sample for sample in found.samples if sample.name == "NORMAL/film-3.dcm")
    expected = np.asarray(chest(3).resize((64, 64), Image.Resampling.BILINEAR), dtype=int)
    assert np.abs(pixels[sample.row][..., 0] - expected).max() <= 2


def test_a_copy_in_another_format_is_not_on_two_sides(tmp_path):
    root = tmp_path / "set"
    for number in range(40):
        for label, name in enumerate(CLASSES):
            file = root / "train" / name / f"IM-{number:04d}-0001.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            chest(100 * label + number).save(file)
    file = root / "test/NORMAL/IM-0500-0001.jpeg"
    file.parent.mkdir(parents=True)
    (root / "test/PNEUMONIA").mkdir()
    # One film of the training images, smaller and compressed, and one of nobody's.
    chest(3).resize((60, 60)).save(file, quality=30)
    chest(900).save(root / "test/PNEUMONIA/person900_virus_1.png")
    judged = tmp_path / "judged/PNEUMONIA"
    judged.mkdir(parents=True)
    chest(900).save(judged / "case1.jpeg", quality=60)
    chest(901).save(judged / "case2.jpeg", quality=60)
    shape = Shape(64, 64, "grayscale", "bilinear")
    found, _ = data.prepare(str(root), tmp_path / "cache", shape, CLASSES, feedback=tmp_path / "judged", alike=0.995)
    reasons = {problem.name: problem.reason for problem in found.left_out}
    copy, upload = "train/NORMAL/IM-0003-0001.png", "feedback/PNEUMONIA/case1.jpeg"
    assert reasons == {
        copy: "it shows the same as test/NORMAL/IM-0500-0001.jpeg, which is in test",
        upload: "it shows the same as test/PNEUMONIA/person900_virus_1.png, which is in test",
    }
    assert "feedback/PNEUMONIA/case2.jpeg" in {sample.name for sample in found.of("train")}
    assert not {copy, upload} & {sample.name for sample in found.samples}


@pytest.mark.slow
@pytest.mark.skipif(not xray().is_dir(), reason="the real data set is not here: name it with LIGHTBOX_XRAY")
def test_no_two_patients_of_kermanys_images_show_the_same(tmp_path):
    shape = Shape(64, 64, "grayscale", "bilinear")
    found, _ = data.prepare(str(xray()), tmp_path / "cache", shape, CLASSES, alike=0.98)
    assert len(found.samples) > 5100
    assert not [problem for problem in found.left_out if "shows the same" in problem.reason]
