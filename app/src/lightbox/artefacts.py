"""The artefact store: bundles go to S3 from the trainer and come from it to the hosts that serve.

``python -m lightbox.artefacts push DIR s3://BUCKET/PREFIX`` and ``pull s3://BUCKET/PREFIX DIR``. Credentials come
from the host's instance profile. Both are safe to repeat: push sends only files whose digest the store lacks, pull
replaces the directory's contents with what the store holds.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lightbox.bundle import file_digest

# Room that a host keeps free beside a bundle, in bytes.
RESERVE = 256 * 1024 * 1024
DIGEST_KEY = "sha256"


class ArtefactError(Exception):
    """The store or the disk refused; the text says what to do."""


def split_url(url: str) -> tuple[str, str]:
    """Return bucket and key prefix (no slash at its end) of an ``s3://`` address.

    Raises:
        ArtefactError: the address is not of the form ``s3://bucket/prefix``.
    """
    parts = urlsplit(url)
    prefix = parts.path.strip("/")
    if parts.scheme != "s3" or not parts.netloc or not prefix:
        raise ArtefactError(f"'{url}' is not an address of the form s3://bucket/prefix")
    return parts.netloc, prefix


def stored(client: Any, bucket: str, prefix: str) -> dict[str, int]:
    """Return the objects under a prefix: name relative to it and size in bytes."""
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/")
    objects = [item for page in pages for item in page.get("Contents", []) if item["Size"]]
    return {item["Key"][len(prefix) + 1 :]: item["Size"] for item in objects}


def push(client: Any, directory: Path, url: str) -> int:
    """Send every file of a bundle; ``model.json`` goes last, so that a bundle in the store is whole.

    Returns:
        The number of files sent; 0 when the store had them all.
    """
    bucket, prefix = split_url(url)
    files = sorted((path for path in directory.iterdir() if path.is_file()), key=lambda path: path.name == "model.json")
    if not any(path.name == "model.json" for path in files):
        raise ArtefactError(f"{directory} holds no model.json: it is not a bundle")
    present = stored(client, bucket, prefix)
    sent = 0
    for path in files:
        digest = file_digest(path)
        if present.get(path.name) == path.stat().st_size:
            head = client.head_object(Bucket=bucket, Key=f"{prefix}/{path.name}")
            if head.get("Metadata", {}).get(DIGEST_KEY) == digest:
                continue
        client.upload_file(str(path), bucket, f"{prefix}/{path.name}", ExtraArgs={"Metadata": {DIGEST_KEY: digest}})
        sent += 1
    return sent


def pull(client: Any, url: str, directory: Path) -> int:
    """Fetch a bundle into a directory that holds it and nothing else afterwards.

    Returns:
        The number of files fetched.

    Raises:
        ArtefactError: there is no bundle at the address, or the disk has no room for it.
    """
    bucket, prefix = split_url(url)
    objects = stored(client, bucket, prefix)
    if "model.json" not in objects:
        raise ArtefactError(f"there is no bundle at {url}: model.json is missing")
    if any("/" in name or name.startswith(".") for name in objects):
        raise ArtefactError(f"{url} holds something other than a bundle")
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    needed, free = sum(objects.values()), shutil.disk_usage(directory).free
    if free < needed + RESERVE:
        shutil.rmtree(directory, ignore_errors=True)
        raise ArtefactError(
            f"the disk of {directory} has {free / 1e6:.0f} MB free, but the bundle takes {needed / 1e6:.0f} MB and "
            f"{RESERVE / 1e6:.0f} MB must stay free: make room, then release again"
        )
    try:
        for name in objects:
            client.download_file(bucket, f"{prefix}/{name}", str(directory / name))
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise
    return len(objects)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; the exit status is 0 when done and 1 with one line on standard error otherwise."""
    parser = argparse.ArgumentParser(prog="lightbox.artefacts", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    sender = commands.add_parser("push", help="send a bundle to the store")
    sender.add_argument("directory", type=Path)
    sender.add_argument("url")
    fetcher = commands.add_parser("pull", help="fetch a bundle from the store")
    fetcher.add_argument("url")
    fetcher.add_argument("directory", type=Path)
    options = parser.parse_args(arguments)

    import boto3
    import botocore.exceptions

    client = boto3.client("s3")
    try:
        if options.command == "push":
            count = push(client, options.directory, options.url)
            sys.stdout.write(f"{count} files sent\n")
        else:
            count = pull(client, options.url, options.directory)
            sys.stdout.write(f"{count} files fetched\n")
    except (ArtefactError, OSError, botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
