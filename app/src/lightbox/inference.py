"""Score a directory of images into Redis: ``python -m lightbox.inference --bundle DIR --images DIR --redis-host HOST``.

The images go through the same engine as uploads. An image has one identity, made of its name, its content and the
model, so scoring a directory twice leaves one case per image.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path, PurePosixPath

from lightbox.bundle import BundleError
from lightbox.data import Manifest, pictures
from lightbox.images import ImageError, enough_for, open_image, thumbnail
from lightbox.serving import Engine, ServingError
from lightbox.store import Case, CaseStore, StoreError, identity

SUFFIXES = (".jpeg", ".jpg", ".png", ".dcm", ".dicom")
# Images that are scored before they are stored.
CHUNK = 100


class InferenceError(Exception):
    """Nothing can be scored; the text says why and what to do."""


@dataclass(frozen=True)
class Images:
    """Images to score: where they are, their names, and what yields name and content (or why it cannot be read)."""

    place: str
    names: tuple[str, ...]
    read: Callable[[Sequence[str]], Iterator[tuple[str, bytes | OSError]]]


def _files(root: Path, names: Sequence[str]) -> Iterator[tuple[str, bytes | OSError]]:
    for name in names:
        try:
            yield name, (root / name).read_bytes()
        except OSError as error:
            yield name, error


def _below(directory: Path) -> Images | None:
    if not directory.is_dir():
        return None
    found = (path for path in directory.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    names = sorted(path.relative_to(directory).as_posix() for path in found if not path.name.startswith("."))
    return Images(str(directory), tuple(names), partial(_files, directory)) if names else None


def _of_run(bundle: Path) -> tuple[Path, Images] | None:
    """Return the source that a bundle's run was trained on and its test images; None where they are not here."""
    try:
        manifest = Manifest.load(bundle.resolve().parent / "manifest.json")
    except (OSError, ValueError, KeyError, TypeError):
        return None
    samples = {sample.name: sample for sample in manifest.of("test")}
    root = Path(manifest.root)
    if not samples or not root.exists():
        return None

    def arrays(names: Sequence[str]) -> Iterator[tuple[str, bytes | OSError]]:
        yield from pictures(manifest, [samples[name] for name in names])

    read = partial(_files, root) if root.is_dir() else arrays
    return root, Images(f"{root} (test images)", tuple(sorted(samples)), read)


def find_images(bundle: Path, images: Path | None) -> Images:
    """Find the images to score; those that the model was not trained on come first.

    Args:
        bundle: the bundle's directory; the run around it knows its test images.
        images: a directory, or None for the run's test images.

    Returns:
        The test images of the bundle's run when ``images`` is what it was trained on, or else those below
        ``images/test``, or else all below ``images``; where there are none, those of the run after all, for a model of
        drawn images has no others.

    Raises:
        InferenceError: there is no image.
    """
    known = _of_run(bundle)
    if known is not None:
        root = known[0].resolve()
        if images is None or images.resolve() == root or images.resolve() in root.parents:
            return known[1]
    found = (_below(images / "test") or _below(images)) if images is not None else None
    if found is None and known is not None:
        found = known[1]
    if found is None:
        where = f"no JPEG, PNG or DICOM file in {images}" if images else "nothing left of the run's test images"
        raise InferenceError(f"there is {where}: name a directory with --images")
    return found


def spread(names: Sequence[str], limit: int | None) -> list[str]:
    """Return ``limit`` of the names, evenly spread, so that all folders are seen."""
    if limit is None or limit >= len(names):
        return list(names)
    return [names[number * len(names) // limit] for number in range(limit)]


def score(engine: Engine, name: str, content: bytes | OSError, created: datetime) -> Case:
    """Return the case of one image.

    Raises:
        OSError, ImageError, ServingError: there is no verdict on it; the text says why.
    """
    if isinstance(content, OSError):
        raise content
    takes = engine.bundle.input
    image = open_image(content, enough=enough_for(takes.height, takes.width))
    found = engine.assess(image)
    return Case(
        id=identity("batch", engine.version, name, content),
        filename=PurePosixPath(name).name,
        model_version=engine.version,
        source="batch",
        created=created,
        thumbnail=thumbnail(image),
        **found.kept(),
    )


def run(engine: Engine, store: CaseStore, images: Images, limit: int | None = None) -> tuple[int, list[str]]:
    """Score images into the store; return how many were stored, and which could not be scored and why.

    Raises:
        StoreError: Redis failed; what was stored before stays.
    """
    store.ping()
    names = spread(images.names, limit)
    problems: list[str] = []
    stored, begin, start = 0, time.monotonic(), datetime.now(timezone.utc)
    for first in range(0, len(names), CHUNK):
        cases = []
        for number, (name, content) in enumerate(images.read(names[first : first + CHUNK]), first):
            try:
                # A table that is sorted by time shows the images in the order of their names.
                cases.append(score(engine, name, content, start - timedelta(milliseconds=number)))
            except (OSError, ImageError, ServingError) as error:
                problems.append(f"{name}: {error}")
        stored += store.add_many(cases)
        done = min(first + CHUNK, len(names))
        sys.stdout.write(f"{done} of {len(names)} images scored, {done / (time.monotonic() - begin):.0f} a second\n")
        sys.stdout.flush()
    return stored, problems


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not 1 or more")
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status is 0 when every readable image was stored, 1 otherwise."""
    parser = argparse.ArgumentParser(prog="lightbox.inference", description="Score a directory of images into Redis.")
    parser.add_argument("--bundle", type=Path, required=True, metavar="DIR", help="the model's bundle")
    parser.add_argument("--images", type=Path, metavar="DIR",
                        help="images, at any depth; those under its test/ when there is one, the model's own test "
                        "images when it was trained on that directory (the test images of the bundle's run)",
    )  # fmt: skip
    parser.add_argument("--limit", type=_positive, metavar="N", help="score N images only, evenly spread")
    parser.add_argument("--redis-host", default="127.0.0.1", metavar="HOST", help="(127.0.0.1)")
    parser.add_argument("--redis-port", type=int, default=6379, metavar="PORT", help="(6379)")
    parser.add_argument("--redis-user", metavar="NAME", help="Redis user (the default user)")
    parser.add_argument("--redis-password-file", type=Path, metavar="FILE", help="file that holds its password")
    parser.add_argument(
        "--retention-days", type=float, default=0, metavar="N", help="delete cases after N days (never)"
    )
    parser.add_argument("--threads", type=_positive, default=1, metavar="N", help="processor threads per image (1)")
    options = parser.parse_args(arguments)
    try:
        password = None
        if options.redis_password_file:
            password = options.redis_password_file.read_text(encoding="utf-8").strip()
        engine = Engine(options.bundle, options.threads)
        images = find_images(options.bundle, options.images)
        sys.stdout.write(f"{len(images.names)} images in {images.place}, model {engine.version}\n")
        store = CaseStore.connect(
            options.redis_host,
            options.redis_port,
            options.redis_user,
            password,
            timedelta(days=options.retention_days),
            timeout=10.0,
        )
        stored, problems = run(engine, store, images, options.limit)
    except (InferenceError, BundleError, ServingError, StoreError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    for problem in problems:
        sys.stderr.write(f"left out: {problem}\n")
    sys.stdout.write(f"{stored} cases stored\n")
    return 0 if stored else 1


if __name__ == "__main__":
    sys.exit(main())
