"""Images to train on: where they come from, what is wrong with them, and who is on which side of the split.

A source is a directory, a MedMNIST- or Keras-style ``.npz``, ``s3://bucket/prefix``, ``https://….zip`` or ``.tar.gz``
with its SHA-256, a data set known by name, or ``synthetic``. Whatever it is, `prepare` returns a `Manifest`: every
image with its class, its patient and its split, every image that was left out with the reason, and the digest of it
all. A patient is never on two sides.

Layout of a directory or archive: ``train/<class>/*.jpeg`` (or PNG or DICOM files) with an optional ``test/`` and
``val/`` beside ``train/``, or just ``<class>/*.jpeg``. A ``test`` that is there is kept as the test split; a ``val``
only when it is large enough. A directory may also hold a single ``.npz``, or the four files in which MNIST is
published: ``train-images-idx3-ubyte`` and so on, or ``.gz``.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import shutil
import stat
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lightbox import dicom, synthetic
from lightbox.bundle import CENTRED, file_digest, to_pixels
from lightbox.centring import is_blank
from lightbox.images import JPEG_START, PNG_START, ImageError, open_image

DICOM = (".dcm", ".dicom")
SUFFIXES = (".jpeg", ".jpg", ".png", *DICOM)
ARCHIVES = (".zip", ".tar.gz", ".tgz", ".tar")
SPLITS = ("train", "validation", "test")
# Names of the folders and arrays that hold a split, as data sets are published.
GIVEN = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}
# A validation split that comes with the data is used as it is from this many images of each class on.
ENOUGH = 50
# Least number of images of one class that can be split in three.
FEWEST = 6
# Room that stays free on the disk beside the data, in bytes.
RESERVE = 512 * 1024 * 1024
MAX_PIXELS = 100_000_000
# Cells in each direction of the grid on which images are compared, and images compared at once.
GRID, BLOCK = 32, 1024
# First part of the name of an image that people judged on the pages.
FEEDBACK = "feedback"
TRIES = 4
# Data sets known by name: address and SHA-256, as Keras' own loaders have them.
KNOWN = {
    "mnist": (
        "https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz",
        "731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1",
    ),
}
SOURCES = f"a directory, .npz, s3://, https://, {', '.join(KNOWN)} or synthetic"
# Names of the files in which MNIST and its kin are published, by the split they hold.
IDX = {"train": "train", "test": "t10k"}

Pixels = NDArray[np.uint8]
Report = Callable[[str, int, int], None]
Split = Literal["train", "validation", "test"]


class DataError(Exception):
    """The data cannot be trained on; the text names what is wrong and what to do."""


@dataclass(frozen=True)
class Problem:
    """An image that was left out, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Sample:
    """One image.

    Attributes:
        name: path in the data set, ``/`` between its parts; for an ``.npz`` the array and index.
        label: index into the manifest's classes.
        patient: images with the same patient stay together.
        split: the side it is on; before the split is made, the side that the data set gives, or the empty string.
        row: its place in the array of pixels.
        digest: SHA-256 of its content.
    """

    name: str
    label: int
    patient: str
    split: str
    row: int = -1
    digest: str = ""

    @property
    def judged(self) -> bool:
        """Whether its label was given by people on the pages."""
        return self.name.startswith(f"{FEEDBACK}/")


@dataclass(frozen=True)
class Manifest:
    """What there is to train on.

    Attributes:
        source: kind of source: `directory`, `npz`, `idx`, `s3`, `archive` or `synthetic`.
        root: directory or ``.npz`` that holds the images on this machine.
        synthetic: whether the images were drawn.
        classes: names of the classes as the data set has them.
        samples: every usable image.
        left_out: every other image, with the reason.
        digest: SHA-256 over the names and contents of all images.
        feedback: directory on this machine of the images that people judged; empty where there is none.
    """

    source: str
    root: str
    synthetic: bool
    classes: tuple[str, ...]
    samples: tuple[Sample, ...]
    left_out: tuple[Problem, ...]
    digest: str
    feedback: str = ""

    def of(self, split: str) -> list[Sample]:
        """Return the images of one split."""
        return [sample for sample in self.samples if sample.split == split]

    def counts(self) -> dict[str, dict[str, int]]:
        """Return the number of images by split and class."""
        found = Counter((sample.split, sample.label) for sample in self.samples)
        return {split: {name: found[split, i] for i, name in enumerate(self.classes)} for split in SPLITS}

    def split_digest(self, split: str) -> str:
        """Return the digest of the images of one split and their labels, whatever they are called."""
        listing = sorted(f"{self.classes[sample.label]}\0{sample.digest}\n" for sample in self.of(split))
        return hashlib.sha256("".join(listing).encode()).hexdigest()

    def judged(self) -> dict[str, int]:
        """Return by class the number of images that people judged."""
        found = Counter(sample.label for sample in self.samples if sample.judged)
        return {name: found[label] for label, name in enumerate(self.classes)}

    def save(self, file: Path) -> None:
        """Write the manifest as JSON."""
        file.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, file: Path) -> Manifest:
        """Read what `save` wrote."""
        fields = json.loads(file.read_text())
        fields["samples"] = tuple(Sample(**item) for item in fields["samples"])
        fields["left_out"] = tuple(Problem(**item) for item in fields["left_out"])
        return cls(**{**fields, "classes": tuple(fields["classes"])})


# --- patients ---------------------------------------------------------------------------------------------------------

# File names of Kermany, Zhang and Goldbaum (2018), and of the synthetic images: what is captured is the patient.
# `NORMAL2-IM-0123` is another series than `IM-0123`: its numbers start anew.
CHEST_PATIENT = r"(person\d+)_|((?:NORMAL\d-)?IM-\d+)(?:-|$)|(synthetic-p\d+)-"
# What caused the pneumonia, in the same names.
CHEST_KIND = r"_(bacteria|virus)_"


def patient_of(name: str, pattern: str) -> str:
    """Return the patient that a file name speaks of; a name without one is a patient of its own.

    Args:
        name: path of the image; only the file's name counts.
        pattern: regular expression, matched at the start of the name; its first group that matched is the patient.
    """
    stem = PurePosixPath(name).stem
    found = re.match(pattern, stem) if pattern else None
    return next((group for group in found.groups() if group), stem) if found else f"={name}"


def kind_of(name: str, pattern: str) -> str:
    """Return what kind of image a file name says it is; empty when it does not tell.

    Args:
        name: path of the image; only the file's name counts.
        pattern: regular expression, searched in the name; its first group is the kind.
    """
    found = re.search(pattern, PurePosixPath(name).stem) if pattern else None
    return found[1] if found else ""


def split_by_patient(samples: Iterable[Sample], seed: int, validation: float, test: float) -> list[Sample]:
    """Put every patient on one side, so that each class is shared out in the proportions asked for.

    The order in which patients are dealt follows from the seed and their name alone: it does not depend on the order of
    the files. A sample whose split is `test` or `validation` already keeps it; patients who are there in part are left
    where the given split has them, so the caller drops them from the rest first.

    Args:
        samples: images, their split empty where it is to be decided.
        seed: another seed deals otherwise.
        validation: share of the images, from 0 to 1.
        test: share of the images, from 0 to 1; what is given already counts.
    """
    samples = list(samples)
    shares = {"test": test, "validation": validation}
    open_patients: dict[str, list[Sample]] = defaultdict(list)
    totals: Counter[int] = Counter()
    dealt: Counter[tuple[str, int]] = Counter()
    for sample in samples:
        totals[sample.label] += 1
        if sample.split:
            dealt[sample.split, sample.label] += 1
        else:
            open_patients[sample.patient].append(sample)
    given = {split for split, _ in dealt}

    strata: dict[int, list[str]] = defaultdict(list)
    for patient, images in open_patients.items():
        labels = Counter(image.label for image in images)
        strata[max(labels, key=lambda label: (labels[label], label))].append(patient)
    side: dict[str, str] = {}
    for label, patients in sorted(strata.items()):
        order = sorted(patients, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
        # Patients in the order drawn: the first fill the test split, the next validation, the rest is for training.
        for patient in order:
            count = len(open_patients[patient])
            for split in ("test", "validation"):
                room = round(shares[split] * totals[label]) - dealt[split, label]
                if split not in given and room > 0 and (count <= room or dealt[split, label] == 0):
                    side[patient] = split
                    break
            else:
                side[patient] = "train"
            dealt[side[patient], label] += count
    return [sample if sample.split else replace(sample, split=side[sample.patient]) for sample in samples]


# --- sources ----------------------------------------------------------------------------------------------------------


def _silent(_message: str, _done: int, _total: int) -> None:
    """Report to nobody."""


def need_room(directory: Path, size: int, what: str) -> None:
    """Raise DataError when the disk of a directory has no room for `size` bytes."""
    free = shutil.disk_usage(directory).free
    if free < size + RESERVE:
        raise DataError(
            f"{what} takes {size / 1e6:.0f} MB and {RESERVE / 1e6:.0f} MB must stay free, but the disk of {directory} "
            f"has {free / 1e6:.0f} MB: make room or name a larger disk with --cache"
        )


def _download(url: str, file: Path, sha256: str, report: Report) -> None:
    """Fetch a file whose digest is known; what an earlier, broken attempt left is continued."""
    part = file.with_name(file.name + ".part")
    for attempt in range(1, TRIES + 1):
        try:
            _continue(url, part, report)
            break
        except urllib.error.HTTPError as error:
            if error.code == 416:  # nothing follows what is there
                break
            if error.code < 500 or attempt == TRIES:
                raise DataError(f"{url} answers {error.code} {error.reason}: check the address") from error
        except (OSError, urllib.error.URLError) as error:
            if attempt == TRIES:
                raise DataError(
                    f"{url} cannot be fetched ({getattr(error, 'reason', error)}): put the file on this machine and "
                    "name it with --data"
                ) from error
        time.sleep(2 ** (attempt - 1) / 2)
    found = file_digest(part)
    if found != sha256:
        part.unlink()
        raise DataError(
            f"{url} is not what was expected: its SHA-256 is {found}, not {sha256}; it was thrown away. "
            "Check the address and --data-sha256"
        )
    part.replace(file)


def _continue(url: str, part: Path, report: Report) -> None:
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})  # noqa: S310  see below
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310  the caller checked the scheme
        have = have if answer.status == 206 else 0
        length = int(answer.headers.get("Content-Length") or 0)
        need_room(part.parent, 3 * length, f"the archive {url}, unpacked,")
        with part.open("ab" if have else "wb") as stream:
            while block := answer.read(1 << 20):
                stream.write(block)
                have += len(block)
                report("fetching the data in MB", have // 1_000_000, max(have, length) // 1_000_000)
        if length and have < length:
            raise OSError(f"the connection ended after {have} bytes")


def _inside(name: str) -> PurePosixPath:
    """Return a member's path, which must lead to a place in the archive."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or re.match(r"^[A-Za-z]:", name):
        raise DataError(f"the archive wants to write outside its directory ({name}): it is not unpacked")
    return path


def _zip_members(archive: zipfile.ZipFile) -> Iterator[tuple[str, int, Callable[[], IO[bytes]]]]:
    for info in archive.infolist():
        mode = info.external_attr >> 16
        if info.is_dir():
            continue
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
            raise DataError(f"the archive holds a link or device ({info.filename}): it is not unpacked")
        yield info.filename, info.file_size, lambda info=info: archive.open(info)  # type: ignore[misc]


def _tar_members(archive: tarfile.TarFile) -> Iterator[tuple[str, int, Callable[[], IO[bytes]]]]:
    for info in archive:
        if info.isdir():
            continue
        if not info.isreg():
            raise DataError(f"the archive holds a link or device ({info.name}): it is not unpacked")
        yield info.name, info.size, lambda info=info: archive.extractfile(info)  # type: ignore[misc]


def unpack(archive: Path, directory: Path, report: Report = _silent) -> None:
    """Unpack a zip or tar archive into a directory that appears whole or not at all.

    Raises:
        DataError: the archive is damaged, holds links, leads outside, or is too large for the disk.
    """
    unfinished = directory.with_name(directory.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        with zipfile.ZipFile(archive) if zipfile.is_zipfile(archive) else tarfile.open(archive) as opened:
            members = _zip_members(opened) if isinstance(opened, zipfile.ZipFile) else _tar_members(opened)
            written = 0
            for count, (name, size, open_member) in enumerate(members, 1):
                file = unfinished / _inside(name)
                if file.name.startswith("."):
                    continue
                if count % 64 == 1 or size > RESERVE:
                    need_room(unfinished, size, f"{archive.name}, unpacked,")
                file.parent.mkdir(parents=True, exist_ok=True)
                with open_member() as source, file.open("wb") as target:
                    # A member is never read past the size it states.
                    while block := source.read(min(1 << 20, size - target.tell())):
                        target.write(block)
                written += size
                if count % 100 == 0:
                    report("unpacking the archive, MB written", written // 1_000_000, 0)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError, RuntimeError, ValueError) as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise DataError(f"{archive} cannot be unpacked: {error}") from error
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    shutil.rmtree(directory, ignore_errors=True)
    unfinished.replace(directory)


def _s3_client(anonymous: bool) -> Any:
    import boto3
    from botocore import UNSIGNED
    from botocore.config import Config

    settings: dict[str, Any] = {"retries": {"max_attempts": 5, "mode": "standard"}, "max_pool_connections": 16}
    return boto3.client("s3", config=Config(**settings, **({"signature_version": UNSIGNED} if anonymous else {})))


def _fetch_s3(url: str, directory: Path, anonymous: bool, report: Report) -> Path:
    """Fetch every image under a prefix, or the one archive that is named; what is here is not fetched again."""
    import botocore.exceptions

    parts = urlsplit(url)
    bucket, prefix = parts.netloc, parts.path.lstrip("/")
    if not bucket:
        raise DataError(f"'{url}' is not an address of the form s3://bucket/prefix")
    single = prefix.endswith((*ARCHIVES, ".npz"))
    prefix = prefix if single or not prefix else prefix.rstrip("/") + "/"
    client = _s3_client(anonymous)
    try:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        objects = [
            (item["Key"], item["Size"], item["ETag"])
            for page in pages
            for item in page.get("Contents", [])
            if item["Key"] == prefix or (not single and item["Key"].lower().endswith(SUFFIXES))
        ]
        if not objects:
            raise DataError(f"there are no images under {url}: check bucket and prefix, and upload the data there")
        directory.mkdir(parents=True, exist_ok=True)
        record = directory / "objects.json"
        known: dict[str, str] = json.loads(record.read_text()) if record.is_file() else {}
        names = {key: str(_inside(key[len(prefix) :] or PurePosixPath(key).name)) for key, _, _ in objects}

        def missing(key: str, size: int, tag: str) -> bool:
            file = directory / "files" / names[key]
            return known.get(names[key]) != tag or not file.is_file() or file.stat().st_size != size

        wanted = [item for item in objects if missing(*item)]
        need_room(directory, sum(size for _, size, _ in wanted), f"the data under {url}")
        # What the source no longer has is not trained on.
        for file in [path for path in (directory / "files").rglob("*") if path.is_file()]:
            if str(file.relative_to(directory / "files")) not in set(names.values()):
                file.unlink()

        def one(item: tuple[str, int, str]) -> None:
            file = directory / "files" / names[item[0]]
            file.parent.mkdir(parents=True, exist_ok=True)
            client.download_file(bucket, item[0], str(file))

        with ThreadPoolExecutor(16) as pool:
            for done, _ in enumerate(pool.map(one, wanted), 1):
                if done % 50 == 0 or done == len(wanted):
                    report("fetching images", done, len(wanted))
        record.write_text(json.dumps({names[key]: tag for key, _, tag in objects}))
    except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
        raise DataError(f"{url} cannot be fetched: {error}") from error
    return directory / "files" / names[prefix] if single else directory / "files"


@dataclass(frozen=True)
class Located:
    """Data on this machine: kind of source, directory or ``.npz``, and whether it was drawn."""

    kind: str
    path: Path
    synthetic: bool = False


def locate(
    source: str,
    cache: Path,
    sha256: str = "",
    anonymous: bool = False,
    synthetic_images: int = 1200,
    seed: int = 1,
    report: Report = _silent,
    drawn: str = "chests",
) -> Located:
    """Bring a source to this machine.

    Args:
        source: directory, ``.npz``, archive, ``s3://…``, ``https://…``, a key of `KNOWN` or ``synthetic``.
        cache: directory for what is fetched, unpacked or drawn.
        sha256: digest of a file that is fetched or named; required for ``http(s)://``.
        anonymous: whether S3 is asked without credentials.
        synthetic_images: how many images are drawn.
        seed: which synthetic images are drawn.
        report: told a message, how much is done and how much there is.
        drawn: what they show, a key of `lightbox.synthetic.DRAWINGS`.

    Raises:
        DataError: the source is not there, is not what was expected, or the disk is full.
    """
    sha256 = sha256.lower().removeprefix("sha256:")
    if sha256 and not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise DataError("--data-sha256 is not a SHA-256: 64 hexadecimal digits are expected")
    cache.mkdir(parents=True, exist_ok=True)
    if source == "synthetic":
        directory = cache / f"synthetic-{drawn}-{synthetic_images}-{seed}"
        synthetic.generate(directory, synthetic_images, seed, report, drawn)
        return Located("synthetic", directory, synthetic=True)
    if source in KNOWN:
        source, published = KNOWN[source]
        sha256 = sha256 or published
    kind = "s3" if source.startswith("s3://") else "directory"
    path = _fetch(source, cache, sha256, anonymous, report)
    if path.is_dir():
        idx = _from_idx(path, cache)
        if idx is not None:
            return Located("idx", idx)
        npz = [file for file in path.glob("*.npz") if not file.name.startswith(".")]
        return Located("npz", npz[0]) if len(npz) == 1 else Located(kind, path)
    found = file_digest(path)
    if sha256 and found != sha256:
        raise DataError(f"{path} is damaged: its SHA-256 is {found}, not {sha256}; fetch it again")
    if path.suffix == ".npz":
        return Located("npz", path)
    if not path.name.endswith(ARCHIVES):
        raise DataError(f"{path} is neither a directory nor .npz, {', '.join(ARCHIVES)}")
    directory = cache / f"unpacked-{found[:16]}"
    if not directory.is_dir():
        unpack(path, directory, report)
    return Located("archive" if kind == "directory" else kind, directory)


def _fetch(source: str, cache: Path, sha256: str, anonymous: bool, report: Report) -> Path:
    """Return the directory or file on this machine that a source names or was fetched to."""
    parts = urlsplit(source)
    if parts.scheme == "s3":
        directory = cache / f"s3-{hashlib.sha256(source.encode()).hexdigest()[:16]}"
        return _fetch_s3(source, directory, anonymous, report)
    if parts.scheme in ("http", "https"):
        if not sha256:
            raise DataError(f"{source} needs its digest: give --data-sha256 (sha256sum FILE prints it)")
        suffix = next((s for s in (*ARCHIVES, ".npz") if parts.path.endswith(s)), "")
        if not suffix:
            raise DataError(f"{source} is no archive: {', '.join(ARCHIVES)} and .npz are known")
        file = cache / f"{sha256}{suffix}"
        if not (file.is_file() and file_digest(file) == sha256):
            _download(source, file, sha256, report)
        return file
    if parts.scheme:
        raise DataError(f"data cannot be fetched by {parts.scheme}: use {SOURCES}")
    path = Path(source)
    if not path.exists():
        raise DataError(f"there is no data at {path}: name {SOURCES}")
    return path


def _idx(file: Path) -> NDArray[np.uint8]:
    """Return the array in an IDX file: two zero bytes, type, number of axes, their lengths, and the values."""
    try:
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        shape = np.frombuffer(content, ">u4", count=content[3], offset=4)
        if content[:3] != b"\0\0\x08":
            raise ValueError("it holds no unsigned bytes")
        return np.frombuffer(content, np.uint8, offset=4 + 4 * shape.size).reshape(shape)
    except (OSError, EOFError, ValueError, IndexError) as error:
        raise DataError(f"{file} cannot be read as IDX: {error}; fetch it again") from error


def _from_idx(directory: Path, cache: Path) -> Path | None:
    """Return an ``.npz`` of the IDX files in a directory, named by their digests; None where there are none.

    Raises:
        DataError: one of them is missing or cannot be read.
    """
    files: dict[str, Path] = {}
    missing = []
    for split, prefix in IDX.items():
        for array, kind in (("x", "images?idx3"), ("y", "labels?idx1")):
            # The dot that some copies have in place of a hyphen is fine too.
            found = [file for end in ("", ".gz") for file in directory.glob(f"{prefix}-{kind}-ubyte{end}")]
            if found:
                files[f"{array}_{split}"] = found[0]
            else:
                missing.append(f"{prefix}-{kind.replace('?', '-')}-ubyte")
    if not files:
        return None
    if missing:
        raise DataError(f"{directory} lacks {', '.join(missing)} (or .gz): fetch the data again")
    digest = hashlib.sha256("".join(file_digest(file) for file in files.values()).encode()).hexdigest()
    target = cache / f"idx-{digest[:16]}.npz"
    if not target.is_file():
        part = target.with_suffix(".part")
        arrays: dict[str, Any] = {array: _idx(file) for array, file in files.items()}
        with part.open("wb") as stream:
            np.savez(stream, **arrays)
        part.replace(target)
    return target


# --- reading ----------------------------------------------------------------------------------------------------------


def _root(directory: Path) -> Path:
    """Descend into directories that hold one directory and nothing else, until splits or classes are in sight."""
    for _ in range(4):
        folders = [path for path in sorted(directory.iterdir()) if path.is_dir() and _visible(path)]
        if len(folders) != 1 or folders[0].name.lower() in GIVEN:
            break
        directory = folders[0]
    return directory


def _visible(path: Path) -> bool:
    return not path.name.startswith((".", "__MACOSX"))


def _scan(directory: Path, classes: tuple[str, ...] | None) -> tuple[Path, tuple[str, ...], list[tuple[str, int, str]]]:
    """Return the root, the classes, and name, label and given split of every file."""
    root = _root(directory)
    folders = [path for path in sorted(root.iterdir()) if path.is_dir() and _visible(path)]
    given = {path: GIVEN[path.name.lower()] for path in folders if path.name.lower() in GIVEN}
    if given and "train" not in given.values():
        raise DataError(f"{root} has {', '.join(path.name for path in given)} but no train directory")
    found = sorted(
        {c.name for top in given for c in top.iterdir() if c.is_dir() and _visible(c)} or {f.name for f in folders}
    )
    if classes is None:
        classes = tuple(found)
    lost, foreign = [name for name in classes if name not in found], [name for name in found if name not in classes]
    if lost or foreign or len(classes) < 2:
        raise DataError(
            f"{root} has the classes {', '.join(found) or 'none'}, expected {', '.join(classes)}: "
            "lay the images out as train/<class>/*.jpeg"
        )
    files = []
    for top, split in given.items() or {root: ""}.items():
        for label, name in enumerate(classes):
            if (top / name).is_dir():
                paths = sorted(path for path in (top / name).rglob("*") if path.is_file() and _visible(path))
                files += [(path.relative_to(root).as_posix(), label, split) for path in paths]
    if not files:
        raise DataError(f"{root} holds no images")
    return root, classes, files


@dataclass(frozen=True)
class Shape:
    """What images are turned into: pixels and colour mode."""

    height: int
    width: int
    color: str
    resize: str

    @property
    def channels(self) -> int:
        """Number of channels."""
        return 3 if self.color == "rgb" else 1


def _decode(content: bytes, shape: Shape) -> Pixels:
    """Return the pixels of a file.

    Raises:
        ValueError: it is not an image; the text says why.
    """
    if not content:
        raise ValueError("the file is empty")
    if not content.startswith((PNG_START, JPEG_START)) and dicom.is_dicom(content):
        # It becomes a picture as it does when it is served.
        try:
            return to_pixels(open_image(content), shape.height, shape.width, shape.color, shape.resize)
        except ImageError as error:
            raise ValueError(str(error)) from error
    try:
        with Image.open(BytesIO(content), formats=("JPEG", "PNG")) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width} by {image.height} pixels are too many")
            image.load()
            return to_pixels(image, shape.height, shape.width, shape.color, shape.resize)
    except ValueError:
        raise
    # Decoders fail in many ways on damaged files: whatever it was, the image is left out and the reason is shown.
    except Exception as error:
        reason = str(error).split(" <", 1)[0] or type(error).__name__
        raise ValueError(f"it cannot be read: {reason}") from error


def _npz_arrays(file: Path) -> Iterator[tuple[str, str, Pixels, NDArray[Any]]]:
    """Yield prefix, given split, images and labels of every part of a MedMNIST- or Keras-style file."""
    with np.load(file, allow_pickle=False) as arrays:
        pairs = [(s, f"{s}_images", f"{s}_labels") for s in GIVEN] + [(s, f"x_{s}", f"y_{s}") for s in GIVEN]
        present = [(split, x, y) for split, x, y in pairs if x in arrays and y in arrays]
        if not present:
            raise DataError(f"{file} has no train_images and train_labels (or x_train and y_train)")
        for split, x, y in present:
            images, labels = arrays[x], np.asarray(arrays[y]).reshape(-1)
            plain = images.dtype == np.uint8 and (images.ndim == 3 or (images.ndim == 4 and images.shape[3] in (1, 3)))
            if not plain or len(images) != len(labels) or labels.dtype.kind not in "iu":
                raise DataError(
                    f"{file}: {x} is {images.dtype} of shape {images.shape} with {len(labels)} labels; "
                    "expected uint8 (n, height, width) or (n, height, width, 3) and as many whole numbers"
                )
            yield x, GIVEN[split], images, labels


@dataclass(frozen=True)
class _Found:
    """One file before it is known whether it is an image."""

    name: str
    label: int
    given: str
    digest: str
    patient: str = ""


def _dicom_patients(root: Path, names: Iterable[str]) -> dict[str, str]:
    """Return a name for the patient of each DICOM file that tells one: the same for the same, and nothing of theirs."""
    keys = {name: key for name in names if (key := dicom.patient((root / name).read_bytes()))}
    numbers = {key: number for number, key in enumerate(sorted(set(keys.values())), 1)}
    return {name: f"dicom-{numbers[key]:05d}" for name, key in keys.items()}


def _read_directory(
    directory: Path, classes: tuple[str, ...] | None, report: Report
) -> tuple[Path, tuple[str, ...], list[_Found], Callable[[_Found, Shape], Pixels]]:
    root, classes, files = _scan(directory, classes)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        digests = list(pool.map(lambda item: file_digest(root / item[0]), files))
    report("images found", len(files), len(files))
    patients = _dicom_patients(root, [name for name, _, _ in files if name.lower().endswith(DICOM)])
    found = [_Found(*item, digest, patients.get(item[0], "")) for item, digest in zip(files, digests, strict=True)]

    def pixels(item: _Found, shape: Shape) -> Pixels:
        if not item.name.lower().endswith(SUFFIXES):
            raise ValueError(f"it is not one of {', '.join(SUFFIXES)}")
        return _decode((root / item.name).read_bytes(), shape)

    return root, classes, found, pixels


def _read_npz(
    file: Path, classes: tuple[str, ...]
) -> tuple[Path, tuple[str, ...], list[_Found], Callable[[_Found, Shape], Pixels]]:
    found, images = [], {}
    try:
        for prefix, split, array, labels in _npz_arrays(file):
            for index, (image, label) in enumerate(zip(array, labels, strict=True)):
                if not 0 <= label < len(classes):
                    raise DataError(f"{file}: {prefix} {index} has the label {label}, there are {len(classes)} classes")
                name = f"{prefix}/{index:06d}"
                images[name] = image
                digest = hashlib.sha256(str(image.shape).encode() + np.ascontiguousarray(image).tobytes()).hexdigest()
                found.append(_Found(name, int(label), split, digest))
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{file} cannot be read as .npz: {error}") from error

    def pixels(item: _Found, shape: Shape) -> Pixels:
        image = images[item.name]
        picture = Image.fromarray(image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image)
        return to_pixels(picture, shape.height, shape.width, shape.color, shape.resize)

    return file, classes, found, pixels


def _with_feedback(
    directory: Path, classes: tuple[str, ...], found: list[_Found], pixels: Callable[[_Found, Shape], Pixels]
) -> tuple[list[_Found], Callable[[_Found, Shape], Pixels]]:
    """Return files and decoder of a source and, after them, of the images that people judged."""
    files = [(label, file) for label, name in enumerate(classes) for file in sorted((directory / name).glob("*.jpeg"))]
    judged = {f"{FEEDBACK}/{file.relative_to(directory).as_posix()}": (label, file) for label, file in files}
    items = [_Found(name, label, FEEDBACK, file_digest(file)) for name, (label, file) in judged.items()]

    def either(item: _Found, shape: Shape) -> Pixels:
        return _decode(judged[item.name][1].read_bytes(), shape) if item.given == FEEDBACK else pixels(item, shape)

    return [*found, *items], either


def _same_images(found: list[_Found]) -> dict[str, str]:
    """Return name and reason of every image that is there more than once."""
    groups: dict[str, list[_Found]] = defaultdict(list)
    for item in found:
        groups[item.digest].append(item)
    reasons: dict[str, str] = {}
    for same in (group for group in groups.values() if len(group) > 1):
        first = min(same, key=lambda item: (item.given != "test", item.given == FEEDBACK, item.name))
        contradictory = len({item.label for item in same}) > 1
        for item in same:
            if contradictory:
                other = next(one for one in same if one.label != item.label)
                reasons[item.name] = f"the same image is in another class: {other.name}"
            elif item is not first:
                reasons[item.name] = f"it is the same image as {first.name}"
    return reasons


def _assign(
    found: list[_Found], unusable: Mapping[str, str], pattern: str, seed: int, validation: float, test: float
) -> tuple[list[Sample], list[Problem]]:
    """Return the samples with their split and what was left out, in the order of `found`."""
    judged = [
        Sample(item.name, item.label, patient_of(item.name, ""), "train", row, item.digest)
        for row, item in enumerate(item for item in found if item.name not in unusable)
        if item.given == FEEDBACK
    ]
    usable = [item for item in found if item.name not in unusable and item.given != FEEDBACK]
    problems = [Problem(item.name, unusable[item.name]) for item in found if item.name in unusable]
    labels = {item.label for item in usable}
    given = Counter((item.given, item.label) for item in usable)
    kept = {"test"} if any(given["test", label] for label in labels) else set()
    if all(given["validation", label] >= ENOUGH for label in labels):
        kept.add("validation")
    samples = [
        Sample(
            item.name,
            item.label,
            item.patient or patient_of(item.name, pattern),
            item.given if item.given in kept else "",
            row,
            item.digest,
        )
        for row, item in enumerate(usable)
    ]
    # A patient of a given test split is not trained on, nor is a choice made by looking at them.
    sides: dict[str, str] = {}
    for split in ("validation", "test"):
        sides.update({sample.patient: split for sample in samples if sample.split == split})
    clean = []
    for sample in samples:
        side = sides.get(sample.patient, "")
        if sample.split == side:
            clean.append(sample)
        else:
            problems.append(Problem(sample.name, f"another image of its patient {sample.patient} is in {side}"))
    # What people judged is for training alone, and does not move what is measured on.
    return [*split_by_patient(clean, seed, validation, test), *judged], problems


def _signatures(pixels: Pixels, rows: list[int]) -> NDArray[np.float32]:
    """Return what images show on a coarse grid, whatever their brightness and contrast: unit vectors, (n, 1024)."""
    found = np.empty((len(rows), GRID * GRID), np.float32)
    for place, row in enumerate(rows):
        image = Image.fromarray(np.asarray(pixels[row].mean(axis=-1), dtype=np.uint8))
        grey = np.asarray(image.resize((GRID, GRID), Image.Resampling.BOX), dtype=np.float32).reshape(-1)
        grey -= grey.mean()
        found[place] = grey / max(float(np.linalg.norm(grey)), 1e-6)
    return found


def without_copies(samples: list[Sample], pixels: Pixels, alike: float) -> tuple[list[Sample], list[Problem]]:
    """Take out copies, in whatever format, of images that a model is measured or chosen on.

    A copy in the test split stays; one in validation goes when the test split has it, and one in training, judged on
    the pages or not, when any of the two has it.

    Args:
        samples: images and their sides.
        pixels: of all, by row, shape (rows, height, width, channels).
        alike: correlation of two images on a grid of 32 by 32 from which on they count as the same. Of chest X-rays of
            different patients none of 13 million pairs reaches 0.98; a JPEG of quality 15 or a third of the size stays
            above 0.996.

    Returns:
        The samples that stay, and what was taken out with the reason.
    """
    kept = [sample for sample in samples if sample.split == "test"]
    problems: dict[str, Problem] = {}
    known = _signatures(pixels, [sample.row for sample in kept])
    for split in ("validation", "train"):
        side = [sample for sample in samples if sample.split == split]
        fresh = []
        for begin in range(0, len(side), BLOCK):
            block = side[begin : begin + BLOCK]
            signatures = _signatures(pixels, [sample.row for sample in block])
            likeness = signatures @ known.T
            for place, sample in enumerate(block):
                nearest = int(likeness[place].argmax()) if kept else -1
                if kept and likeness[place, nearest] >= alike:
                    one = kept[nearest]
                    problems[sample.name] = Problem(
                        sample.name, f"it shows the same as {one.name}, which is in {one.split}"
                    )
                else:
                    fresh.append((sample, signatures[place]))
        if split == "validation" and fresh:
            kept += [sample for sample, _ in fresh]
            known = np.concatenate([known, np.stack([signature for _, signature in fresh])])
    return [sample for sample in samples if sample.name not in problems], list(problems.values())


def _check_counts(manifest: Manifest, expected: Mapping[str, int]) -> None:
    found = Counter(manifest.classes[sample.label] for sample in manifest.samples if not sample.judged)
    wrong = [f"{name}: {found[name]} instead of {count}" for name, count in expected.items() if found[name] != count]
    if wrong:
        raise DataError(
            f"the data is not complete: {', '.join(wrong)} ({len(manifest.left_out)} images were left out); "
            "fetch it again"
        )
    for split, classes in manifest.counts().items():
        for name, count in classes.items():
            if count == 0:
                raise DataError(
                    f"no image of {name} is left for {split}: there are {found[name]} of {name} in all, "
                    f"at least {FEWEST} of different patients are needed"
                )


def prepare(
    source: str,
    cache: Path,
    shape: Shape,
    classes: tuple[str, ...] | None = None,
    pattern: str = CHEST_PATIENT,
    seed: int = 1,
    validation: float = 0.15,
    test: float = 0.1,
    sha256: str = "",
    anonymous: bool = False,
    synthetic_images: int = 1200,
    expected: Mapping[str, int] | None = None,
    report: Report = _silent,
    drawn: str = "chests",
    feedback: Path | None = None,
    alike: float | None = None,
) -> tuple[Manifest, Pixels]:
    """Bring data here, look at every image, and split it by patient.

    Args:
        source: see `locate`, also for `sha256`, `anonymous`, `synthetic_images` and `drawn`.
        cache: directory for what is fetched and decoded.
        shape: what the images are turned into.
        classes: names of the classes in the order of their labels; None takes what the directory has.
        pattern: see `patient_of`.
        seed: decides the split, and which synthetic images are drawn.
        validation: share of the images for choosing epoch and threshold.
        test: share of the images for the final figures.
        expected: number of usable images by class; anything else is an error.
        feedback: directory of images that people judged, ``<class>/*.jpeg``; they are for training alone.
        alike: correlation from which two images show the same, see `without_copies`; None where images are so simple
            that different ones look the same. Drawn images are never compared.
        report: told a message, how much is done and how much there is.

    Returns:
        The manifest, and the pixels of its samples by their row: read-only, shape (rows, height, width, channels).

    Raises:
        DataError: see `locate`; or classes, counts or arrays are not as they must be.
    """
    located = locate(source, cache, sha256, anonymous, synthetic_images, seed, report, drawn)
    seen = _look(located, cache, shape, classes, report, feedback)
    samples, problems = _assign(seen.found, seen.unusable, pattern, seed, validation, test)
    if alike is not None and not located.synthetic:
        samples, copies = without_copies(samples, seen.pixels, alike)
        problems += copies
    manifest = replace(seen.manifest(located, samples, problems), feedback=str(feedback or ""))
    _check_counts(manifest, expected or {})
    return manifest, seen.pixels


def gather(
    source: str,
    cache: Path,
    shape: Shape,
    classes: tuple[str, ...],
    pattern: str = CHEST_PATIENT,
    sha256: str = "",
    anonymous: bool = False,
    report: Report = _silent,
) -> tuple[Manifest, Pixels]:
    """Bring data here to measure a model on: as `prepare` does, but every usable image is on the side `test`.

    Raises:
        DataError: see `locate`; or a class has no image.
    """
    located = locate(source, cache, sha256, anonymous, report=report)
    seen = _look(located, cache, shape, classes, report)
    usable = [item for item in seen.found if item.name not in seen.unusable]
    problems = [Problem(name, reason) for name, reason in seen.unusable.items()]
    samples = [
        Sample(item.name, item.label, item.patient or patient_of(item.name, pattern), "test", row, item.digest)
        for row, item in enumerate(usable)
    ]
    manifest = seen.manifest(located, samples, problems)
    for name, count in manifest.counts()["test"].items():
        if not count:
            raise DataError(f"{source} has no usable image of {name}: every class is needed to measure a model")
    return manifest, seen.pixels


@dataclass(frozen=True)
class _Seen:
    """What was found at a source: files, why some cannot be used, their pixels, and the digest of it all."""

    root: Path
    classes: tuple[str, ...]
    found: list[_Found]
    unusable: dict[str, str]
    pixels: Pixels
    digest: str

    def manifest(self, located: Located, samples: Iterable[Sample], problems: Iterable[Problem]) -> Manifest:
        """Return the manifest of these samples."""
        return Manifest(
            located.kind,
            str(self.root),
            located.synthetic,
            self.classes,
            tuple(samples),
            tuple(problems),
            self.digest,
        )


def _look(
    located: Located,
    cache: Path,
    shape: Shape,
    classes: tuple[str, ...] | None,
    report: Report,
    feedback: Path | None = None,
) -> _Seen:
    """Look at every image of a source, and of those that people judged."""
    if located.path.is_file():
        if classes is None:
            raise DataError("an .npz does not name its classes: they must be given")
        root, names, found, pixels = _read_npz(located.path, classes)
    else:
        root, names, found, pixels = _read_directory(located.path, classes, report)
    if feedback is not None:
        found, pixels = _with_feedback(feedback, names, found, pixels)
    listing = hashlib.sha256()
    for item in found:
        listing.update(f"{item.name}\0{names[item.label]}\0{item.digest}\n".encode())
    digest = listing.hexdigest()
    unusable = _same_images(found)
    stem = f"pixels-{digest[:16]}-{shape.height}x{shape.width}-{shape.color}-{shape.resize}"
    array, unreadable = _decoded(
        cache / stem, [item for item in found if item.name not in unusable], shape, pixels, report
    )
    return _Seen(root, names, found, {**unusable, **unreadable}, array, digest)


def _decoded(
    stem: Path, wanted: list[_Found], shape: Shape, pixels: Callable[[_Found, Shape], Pixels], report: Report
) -> tuple[Pixels, dict[str, str]]:
    """Return the pixels of all readable images, decoded once and kept on disk, and why the others are not."""
    array_file, note = stem.with_suffix(".npy"), stem.with_suffix(".json")
    if array_file.is_file() and note.is_file():
        return np.load(array_file, mmap_mode="r"), json.loads(note.read_text())
    need_room(stem.parent, len(wanted) * shape.height * shape.width * shape.channels, "the decoded data")
    unreadable: dict[str, str] = {}
    part = stem.with_suffix(".part")
    size = (len(wanted), shape.height, shape.width, shape.channels)
    array = np.lib.format.open_memmap(part, mode="w+", dtype=np.uint8, shape=size)

    def one(item: _Found) -> Pixels | str:
        try:
            found = pixels(item, shape)
        except (ValueError, OSError) as error:
            return str(error)
        return "nothing is on it" if shape.resize == CENTRED and is_blank(found) else found

    row = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done, (item, result) in enumerate(zip(wanted, pool.map(one, wanted), strict=True), 1):
            if isinstance(result, str):
                unreadable[item.name] = result
            else:
                array[row] = result
                row += 1
            if done % 200 == 0 or done == len(wanted):
                report("decoding images", done, len(wanted))
    array.flush()
    del array
    if row < len(wanted):
        whole = np.load(part, mmap_mode="r")
        shorter = stem.with_suffix(".part2")
        with shorter.open("wb") as stream:
            np.save(stream, whole[:row])
        del whole
        shorter.replace(part)
    note.write_text(json.dumps(unreadable))
    part.replace(array_file)
    return np.load(array_file, mmap_mode="r"), unreadable


def pictures(manifest: Manifest, samples: Iterable[Sample]) -> Iterator[tuple[str, bytes]]:
    """Yield name and content, a PNG, JPEG or DICOM file, of images as the data set has them."""
    root = Path(manifest.root)
    arrays = {} if root.is_dir() else {prefix: images for prefix, _, images, _ in _npz_arrays(root)}
    for sample in samples:
        if sample.judged or root.is_dir():
            file = Path(manifest.feedback) / sample.name.partition("/")[2] if sample.judged else root / sample.name
            yield sample.name, file.read_bytes()
            continue
        prefix, _, index = sample.name.partition("/")
        image = arrays[prefix][int(index)]
        stream = BytesIO()
        Image.fromarray(image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image).save(stream, "PNG")
        yield f"{sample.name}.png", stream.getvalue()
