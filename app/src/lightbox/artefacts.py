"""The artefact store: bundles go to S3 from the trainer and come from it to the hosts that serve.

``python -m lightbox.artefacts push DIR s3://BUCKET/PREFIX`` and ``pull s3://BUCKET/PREFIX DIR`` send and fetch a
bundle, ``contract s3://BUCKET/PREFIX DIR`` fetches its ``model.json`` alone, and ``list s3://BUCKET/PREFIX`` says, as
JSON, which bundles there are. Credentials come from the host's instance profile. All are safe to repeat: a bundle in
the store is never changed, push sends only what an interrupted one left out, pull replaces the directory's contents.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lightbox.bundle import file_digest

# Room that a host keeps free beside a bundle, in bytes.
RESERVE = 256 * 1024 * 1024
DIGEST_KEY = "sha256"
CONTRACT = "model.json"
# Figures on test images that a list of bundles gives.
LISTED = ("accuracy", "auroc", "sensitivity", "specificity", "auroc_worst")


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

    Raises:
        ArtefactError: the directory is no bundle, or the store has a bundle of this version with other content.
    """
    bucket, prefix = split_url(url)
    files = sorted((path for path in directory.iterdir() if path.is_file()), key=lambda path: path.name == CONTRACT)
    if not any(path.name == CONTRACT for path in files):
        raise ArtefactError(f"{directory} holds no {CONTRACT}: it is not a bundle")
    present = stored(client, bucket, prefix)
    wanted = {path: file_digest(path) for path in files}

    def is_there(path: Path) -> bool:
        if present.get(path.name) != path.stat().st_size:
            return False
        head = client.head_object(Bucket=bucket, Key=f"{prefix}/{path.name}")
        return bool(head.get("Metadata", {}).get(DIGEST_KEY) == wanted[path])

    missing = [path for path in files if not is_there(path)]
    if CONTRACT in present:
        other = sorted({path.name for path in missing} | (set(present) - {path.name for path in files}))
        if other:
            raise ArtefactError(
                f"{url} is in the store already and differs in {', '.join(other)}: a bundle there is never changed; "
                "train again, which gives a version of its own"
            )
        return 0
    for path in missing:
        metadata = {DIGEST_KEY: wanted[path]}
        client.upload_file(str(path), bucket, f"{prefix}/{path.name}", ExtraArgs={"Metadata": metadata})
    return len(missing)


def pull(client: Any, url: str, directory: Path) -> int:
    """Fetch a bundle into a directory that holds it and nothing else afterwards.

    Returns:
        The number of files fetched.

    Raises:
        ArtefactError: there is no bundle at the address, or the disk has no room for it.
    """
    bucket, prefix = split_url(url)
    objects = stored(client, bucket, prefix)
    if CONTRACT not in objects:
        raise ArtefactError(f"there is no bundle at {url}: {CONTRACT} is missing")
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


def fetch_contract(client: Any, url: str, directory: Path) -> None:
    """Fetch ``model.json`` of a bundle, and nothing else of it, into a directory that is made where it is missing.

    Raises:
        ArtefactError: there is no bundle at the address.
    """
    bucket, prefix = split_url(url)
    if CONTRACT not in stored(client, bucket, prefix):
        raise ArtefactError(f"there is no bundle at {url}: {CONTRACT} is missing")
    directory.mkdir(parents=True, exist_ok=True)
    client.download_file(bucket, f"{prefix}/{CONTRACT}", str(directory / CONTRACT))


def _json(client: Any, bucket: str, key: str) -> dict[str, Any]:
    """Return an object of the store that holds a JSON object; empty when it holds anything else."""
    try:
        found = json.loads(client.get_object(Bucket=bucket, Key=key)["Body"].read())
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def summary(version: str, contract: dict[str, Any]) -> dict[str, Any]:
    """Return what a list says of a bundle: version, when it was trained, on what, and its figures on test images.

    Args:
        version: the bundle's place in the store.
        contract: its ``model.json``; what it does not state is None here.
    """
    data = contract.get("data") or {}
    test = (contract.get("metrics") or {}).get("test") or {}
    counts = [count for classes in (data.get("counts") or {}).values() for count in classes.values()]
    return {
        "version": version,
        "created": contract.get("created"),
        "data": {
            "source": data.get("source"),
            "digest": data.get("digest"),
            "synthetic": data.get("synthetic"),
            "images": sum(counts) if counts else None,
        },
        "metrics": {name: test.get(name) for name in LISTED},
        "approval": None,
    }


def bundles(client: Any, url: str, approvals: str = "", limit: int | None = None) -> Iterator[dict[str, Any]]:
    """Say of every bundle under an address what `summary` gives, newest first.

    Takes one listing, one of the approvals, and one GET of each bundle and each approval.

    Args:
        client: of S3.
        url: of the folder whose folders are bundles, by their version, which begins with the time of training.
        approvals: address of the folder that holds ``VERSION.json`` of every approved version; empty: nobody looks.
        limit: how many bundles at most; None for all.
    """
    bucket, prefix = split_url(url)
    names = (name.split("/") for name in stored(client, bucket, prefix))
    versions = sorted((parts[0] for parts in names if parts[1:] == [CONTRACT]), reverse=True)[:limit]
    approved: dict[str, int] = {}
    if approvals:
        approvals_bucket, approvals_prefix = split_url(approvals)
        approved = stored(client, approvals_bucket, approvals_prefix)
    for version in versions:
        item = summary(version, _json(client, bucket, f"{prefix}/{version}/{CONTRACT}"))
        if f"{version}.json" in approved:
            item["approval"] = _json(client, approvals_bucket, f"{approvals_prefix}/{version}.json")
        yield item


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; the exit status is 0 when done and 1 with one line on standard error otherwise."""
    parser = argparse.ArgumentParser(prog="lightbox.artefacts", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    sender = commands.add_parser("push", help="send a bundle to the store")
    sender.add_argument("directory", type=Path)
    sender.add_argument("url")
    for name, words in (("pull", "fetch a bundle from the store"), ("contract", "fetch a bundle's model.json alone")):
        fetcher = commands.add_parser(name, help=words)
        fetcher.add_argument("url")
        fetcher.add_argument("directory", type=Path)
    lister = commands.add_parser("list", help="print the bundles under an address as JSON, newest first")
    lister.add_argument("url")
    lister.add_argument("--approvals", default="", help="address of the approvals, one VERSION.json each")
    lister.add_argument("--limit", type=int, help="how many at most")
    options = parser.parse_args(arguments)

    import boto3
    import botocore.exceptions

    client = boto3.client("s3")
    try:
        if options.command == "push":
            count = push(client, options.directory, options.url)
            sys.stdout.write(f"{count} files sent\n")
        elif options.command == "pull":
            count = pull(client, options.url, options.directory)
            sys.stdout.write(f"{count} files fetched\n")
        elif options.command == "contract":
            fetch_contract(client, options.url, options.directory)
        else:
            found = list(bundles(client, options.url, options.approvals, options.limit))
            sys.stdout.write(json.dumps(found) + "\n")
    except (ArtefactError, OSError, botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
