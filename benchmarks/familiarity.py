"""Measure how well a model knows what it does not know: ``python benchmarks/familiarity.py BUNDLE``.

Counts how many pictures are called unfamiliar: the test images of the bundle's own run, which should not be; the same
turned, inverted and upside down; drawn noise, text, gradients and flat grey, which should be; and those of any
directory that is named. Everything is made grey first, so that colour does not give it away.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from lightbox.images import ImageError, open_image
from lightbox.inference import SUFFIXES, spread
from lightbox.serving import Engine

MOST = 500


def noise(generator: np.random.Generator) -> Image.Image:
    """Return grains of every grey."""
    return Image.fromarray(generator.integers(0, 256, (224, 224), dtype=np.uint8))


def text(generator: np.random.Generator) -> Image.Image:
    """Return a page of words."""
    page = Image.new("L", (400, 300), 255)
    draw = ImageDraw.Draw(page)
    for y in range(5, 295, 12):
        draw.text((5, y), "".join(generator.choice(list("abcdefghij klmnop"), 60)), fill=0)
    return page


def gradient(dark: int, bright: int) -> Image.Image:
    """Return grey that rises from left to right."""
    return Image.fromarray(np.tile(np.linspace(dark, bright, 200), (200, 1)).astype(np.uint8))


def below(directory: Path) -> Iterable[Image.Image]:
    """Return at most 500 pictures of a directory, evenly spread."""
    names = sorted(str(path) for path in directory.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not names:
        sys.exit(f"there is no picture in {directory}")
    for name in spread(names, MOST):
        try:
            yield open_image(Path(name).read_bytes())
        except ImageError as error:
            print(f"left out {name}: {error}")


def of_run(bundle: Path) -> list[Image.Image]:
    """Return the test images of a bundle's run."""
    from lightbox.data import Manifest, pictures

    manifest = Manifest.load(bundle.resolve().parent / "manifest.json")
    return [open_image(content) for _, content in pictures(manifest, manifest.of("test")) if isinstance(content, bytes)]


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="bundle inside its run's directory")
    parser.add_argument("--images", action="append", default=[], metavar="NAME=DIR", help="other pictures to try")
    parser.add_argument("--out", type=Path, help="write the figures there as JSON")
    options = parser.parse_args()
    engine = Engine(options.bundle)
    generator = np.random.default_rng(1)
    films = of_run(options.bundle)
    kinds: dict[str, Iterable[Image.Image]] = {
        "test images": films,
        "turned by 90 degrees": [film.rotate(90, expand=True) for film in films],
        "upside down": [film.rotate(180) for film in films],
        "inverted": [Image.eval(film.convert("L"), lambda value: 255 - value) for film in films],
        "noise": [noise(generator) for _ in range(40)],
        "text": [text(generator) for _ in range(40)],
        "gradients": [gradient(dark, bright) for dark in (0, 50, 128) for bright in (100, 200, 255)],
        "flat grey": [Image.new("L", (100, 100), value) for value in range(0, 256, 16)],
    }
    for named in options.images:
        name, _, directory = named.partition("=")
        kinds[name] = below(Path(directory))
    found = {}
    for name, images in kinds.items():
        flags = [engine.assess(image.convert("L")).unfamiliar is not None for image in images]
        found[name] = {"images": len(flags), "unfamiliar": sum(flags)}
        print(f"{name:22} {sum(flags):5} of {len(flags):5} unfamiliar {sum(flags) / len(flags):7.1%}", flush=True)
    if options.out:
        options.out.write_text(json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
