"""A data set on the controller: what it is made of, and one archive of it.

``python data_set.py manifest SOURCE`` prints ``{"digest": …, "files": …, "bytes": …}`` as JSON: the number of files,
their bytes, and a SHA-256 of names, sizes and times of change. No file is opened, so that a large data set is known at
once.

``python data_set.py pack SOURCE ARCHIVE GROUP`` writes a tar of the same files, in the same order whatever the file
system's, owned by root and readable by GROUP.

SOURCE is a directory or a single file. Names that begin with a dot, and what macOS adds to archives, are left out.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path


def members(source: Path) -> Iterator[tuple[str, Path]]:
    """Yield name within the archive and path of every file, sorted by name; links are followed.

    Raises:
        FileNotFoundError: there is nothing at the path, or a link leads nowhere.
    """
    if not source.is_dir():
        source.stat()
        yield source.name, source
        return
    found: dict[str, Path] = {}
    for directory, names, files in os.walk(source, followlinks=True):
        names[:] = [name for name in names if not name.startswith(".") and name != "__MACOSX"]
        for name in files:
            if not name.startswith("."):
                path = Path(directory, name)
                found[path.relative_to(source).as_posix()] = path
    yield from sorted(found.items())


def manifest(source: Path) -> dict[str, str | int]:
    """Return the digest, the number of files and the sum of their sizes in bytes."""
    digest = hashlib.sha256()
    count = size = 0
    for name, path in members(source):
        status = path.stat()
        digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
        count += 1
        size += status.st_size
    return {"digest": digest.hexdigest(), "files": count, "bytes": size}


def pack(source: Path, archive: Path, group: str) -> None:
    """Write the files to an uncompressed tar: images do not shrink any further."""

    def readable(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.uid = entry.gid = 0
        entry.uname, entry.gname = "root", group
        entry.mode = 0o750 if entry.isdir() else 0o640
        return entry

    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT, dereference=True) as tar:
        known: set[str] = set()
        for name, path in members(source):
            # Directories come first, so that they too get their owner and mode.
            for parent in reversed(Path(name).parents[:-1]):
                if parent.as_posix() not in known:
                    known.add(parent.as_posix())
                    entry = tarfile.TarInfo(parent.as_posix())
                    entry.type = tarfile.DIRTYPE
                    tar.addfile(readable(entry))
            tar.add(path, name, recursive=False, filter=readable)


def main(arguments: list[str]) -> int:
    """Run the command line; return the exit status."""
    try:
        if len(arguments) == 2 and arguments[0] == "manifest":
            print(json.dumps(manifest(Path(arguments[1]).expanduser())))
        elif len(arguments) == 4 and arguments[0] == "pack":
            pack(Path(arguments[1]).expanduser(), Path(arguments[2]), arguments[3])
        else:
            print(__doc__, file=sys.stderr)
            return 2
    except OSError as error:
        print(f"The data set cannot be read: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
