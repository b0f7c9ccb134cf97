"""Cases that people judged, as labelled images: ``python -m lightbox.feedback --redis-host HOST --out DIR``.

Each case becomes ``DIR/<class>/<id>.jpeg``, the picture that its page shows. What people took back since is gone from
the directory. Cases of batch inference are left out: a model was measured on their images.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from lightbox.cnn import SYSTEMS
from lightbox.store import Case, CaseStore, StoreError

# Cases that are asked for at once.
CHUNK = 100


def pull(store: CaseStore, classes: Mapping[str, str], directory: Path) -> tuple[Counter[str], list[str]]:
    """Write the picture of every judged case; return how many there are of each class, and what was left out and why.

    Args:
        store: the case store.
        classes: name of a class's directory to the label that people see.
        directory: is replaced as a whole, once all of it is there.

    Raises:
        StoreError: Redis failed; the directory is as it was.
        OSError: the disk refused; the directory is as it was.
    """
    folders = {label: name for name, label in classes.items()}
    unfinished = directory.with_name(f"{directory.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    for name in classes:
        (unfinished / name).mkdir(parents=True)
    counts: Counter[str] = Counter()
    left_out: list[str] = []
    number, pages = 1, 1
    while number <= pages:
        page = store.with_feedback(number, CHUNK)
        for case in page.cases:
            content, why = _picture(store, case, folders)
            if why:
                left_out.append(f"{case.id}: {why}")
                continue
            name = folders[case.feedback.label]  # type: ignore[union-attr]
            (unfinished / name / f"{case.id}.jpeg").write_bytes(content)
            counts[name] += 1
        number, pages = number + 1, page.pages
    shutil.rmtree(directory, ignore_errors=True)
    unfinished.replace(directory)
    return counts, left_out


def _picture(store: CaseStore, case: Case, folders: Mapping[str, str]) -> tuple[bytes, str]:
    """Return the picture of a case, or why it is not trained on."""
    if case.source == "batch":
        return b"", "it is one of the images that a model was measured on"
    if case.feedback is None or case.feedback.label not in folders:
        return b"", "its label is not one of this system's"
    # A small upload is its own thumbnail.
    content = store.picture(case.id) or case.thumbnail
    return content, "" if content else "its picture is not kept"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status is 0 when the directory holds what people judged, 1 otherwise."""
    parser = argparse.ArgumentParser(prog="lightbox.feedback", description="Write judged cases as labelled images.")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="directory to replace")
    parser.add_argument("--system", default="pneumonia", choices=SYSTEMS, help="what is classified (pneumonia)")
    parser.add_argument("--redis-host", default="127.0.0.1", metavar="HOST", help="(127.0.0.1)")
    parser.add_argument("--redis-port", type=int, default=6379, metavar="PORT", help="(6379)")
    parser.add_argument("--redis-user", metavar="NAME", help="Redis user (the default user)")
    parser.add_argument("--redis-password-file", type=Path, metavar="FILE", help="file that holds its password")
    options = parser.parse_args(arguments)
    try:
        password = None
        if options.redis_password_file:
            password = options.redis_password_file.read_text(encoding="utf-8").strip()
        store = CaseStore.connect(options.redis_host, options.redis_port, options.redis_user, password, timeout=10.0)
        counts, left_out = pull(store, SYSTEMS[options.system].classes, options.out)
    except (StoreError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    for line in left_out:
        sys.stderr.write(f"left out: {line}\n")
    told = ", ".join(f"{counts[name]} {name}" for name in SYSTEMS[options.system].classes if counts[name])
    sys.stdout.write(f"{counts.total()} judged cases{': ' + told if told else ''}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
