"""The artefact store, by its command line, against S3 as moto serves it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

ROOT = Path(__file__).parents[2]
BUCKET = "lightbox-artefacts"
URL = f"s3://{BUCKET}/models/pneumonia"
APPROVALS = f"s3://{BUCKET}/approvals/pneumonia"


class Store:
    """A bucket, and the command that hosts use with it."""

    def __init__(self, url: str) -> None:
        keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
        kept = {key: value for key, value in os.environ.items() if not key.startswith("AWS_")}
        self.environment = {**kept, **keys, "AWS_ENDPOINT_URL": url, "PYTHONPATH": str(ROOT / "app/src")}
        self.s3 = boto3.client(
            "s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id="test", aws_secret_access_key="test"
        )

    def ask(self, *arguments: str) -> tuple[int, str, str]:
        """Run the command; return its exit status and what it wrote to its two streams."""
        command = [sys.executable, "-m", "lightbox.artefacts", *arguments]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout, done.stderr

    def objects(self) -> dict[str, str]:
        """Return what the bucket holds: key and ETag."""
        found = self.s3.list_objects_v2(Bucket=BUCKET).get("Contents", [])
        return {item["Key"]: item["ETag"] for item in found}


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an S3 in a process of its own: moto's settings are the process's, and the lab has others."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    with (tmp_path_factory.mktemp("s3") / "log").open("wb") as log:
        command = [str(Path(sys.executable).parent / "moto_server"), "-H", "127.0.0.1", "-p", str(port)]
        with subprocess.Popen(command, stdout=log, stderr=log) as server:
            for _ in range(300):
                with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/moto-api/", timeout=1):
                    break
                time.sleep(0.1)
            yield address
            server.terminate()


@pytest.fixture
def store(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    store = Store(s3)
    store.s3.create_bucket(Bucket=BUCKET)
    yield store
    for key in store.objects():
        store.s3.delete_object(Bucket=BUCKET, Key=key)
    store.s3.delete_bucket(Bucket=BUCKET)


def write(directory: Path, version: str, model: bytes = b"weights", **contract: Any) -> Path:
    """Write what passes for a bundle in a store, which looks at names and digests alone."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "best_model.keras").write_bytes(model)
    (directory / "model.json").write_text(json.dumps({"version": version, **contract}))
    return directory


def test_a_bundle_goes_and_comes_back_and_goes_only_once(store: Store, tmp_path: Path) -> None:
    bundle = write(tmp_path / "b", "1")
    assert store.ask("push", str(bundle), f"{URL}/1") == (0, "2 files sent\n", "")
    assert store.ask("push", str(bundle), f"{URL}/1") == (0, "0 files sent\n", "")
    assert store.ask("pull", f"{URL}/1", str(tmp_path / "back"))[:2] == (0, "2 files fetched\n")
    assert {path.name: path.read_bytes() for path in (tmp_path / "back").iterdir()} == {
        path.name: path.read_bytes() for path in bundle.iterdir()
    }
    head = store.s3.head_object(Bucket=BUCKET, Key="models/pneumonia/1/best_model.keras")
    assert head["Metadata"]["sha256"] == hashlib.sha256(b"weights").hexdigest()


def test_a_bundle_in_the_store_is_never_changed(store: Store, tmp_path: Path) -> None:
    bundle = write(tmp_path / "b", "1")
    store.ask("push", str(bundle), f"{URL}/1")
    before = store.objects()
    (bundle / "best_model.keras").write_bytes(b"Weights")
    code, _, said = store.ask("push", str(bundle), f"{URL}/1")
    assert code == 1
    assert "differs in best_model.keras" in said
    assert "train again" in said
    assert said.count("\n") == 1
    (bundle / "best_model.keras").write_bytes(b"weights")
    (bundle / "more.txt").write_text("more")
    assert "differs in more.txt" in store.ask("push", str(bundle), f"{URL}/1")[2]
    (bundle / "more.txt").unlink()
    (bundle / "best_model.keras").unlink()
    assert "differs in best_model.keras" in store.ask("push", str(bundle), f"{URL}/1")[2]
    assert store.objects() == before


def test_a_push_that_broke_off_is_finished_by_the_next(store: Store, tmp_path: Path) -> None:
    bundle = write(tmp_path / "b", "1")
    store.s3.put_object(Bucket=BUCKET, Key="models/pneumonia/1/best_model.keras", Body=b"wei")
    assert "there is no bundle" in store.ask("pull", f"{URL}/1", str(tmp_path / "back"))[2]
    assert store.ask("push", str(bundle), f"{URL}/1")[1] == "2 files sent\n"
    assert store.ask("pull", f"{URL}/1", str(tmp_path / "back"))[0] == 0


def test_the_contract_comes_alone(store: Store, tmp_path: Path) -> None:
    bundle = write(tmp_path / "b", "1")
    store.ask("push", str(bundle), f"{URL}/1")
    assert store.ask("contract", f"{URL}/1", str(tmp_path / "c")) == (0, "", "")
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["model.json"]
    assert "there is no bundle" in store.ask("contract", f"{URL}/2", str(tmp_path / "d"))[2]


def test_the_list_names_every_bundle_the_newest_first(store: Store, tmp_path: Path) -> None:
    data = {"source": "directory", "digest": "d" * 64, "synthetic": False,
            "counts": {"train": {"N": 30, "P": 50}, "test": {"N": 10, "P": 10}}}  # fmt: skip
    metrics = {"test": {"auroc": 0.95, "accuracy": 0.9, "roc": {"fpr": [0.0, 1.0]}}}
    for number, contract in enumerate([{}, {"created": "2026-01-02T00:00:00Z", "data": data, "metrics": metrics}]):
        version = f"2026010{number + 1}T000000Z-aaaaaaaa"
        store.ask("push", str(write(tmp_path / version, version, **contract)), f"{URL}/{version}")
    store.s3.put_object(Bucket=BUCKET, Key="models/pneumonia/unfinished/best_model.keras", Body=b"x")
    store.s3.put_object(Bucket=BUCKET, Key="models/pneumonia/damaged/model.json", Body=b"{")
    approval = {"version": "20260101T000000Z-aaaaaaaa", "approved_by": "ada"}
    key = "approvals/pneumonia/20260101T000000Z-aaaaaaaa.json"
    store.s3.put_object(Bucket=BUCKET, Key=key, Body=json.dumps(approval).encode())

    code, out, _ = store.ask("list", URL, "--approvals", APPROVALS)
    found = {item["version"]: item for item in json.loads(out)}
    assert code == 0
    assert list(found) == ["damaged", "20260102T000000Z-aaaaaaaa", "20260101T000000Z-aaaaaaaa"]
    whole = found["20260102T000000Z-aaaaaaaa"]
    assert whole["created"] == "2026-01-02T00:00:00Z"
    assert whole["data"] == {"source": "directory", "digest": "d" * 64, "synthetic": False, "images": 100}
    assert whole["metrics"]["auroc"] == 0.95
    assert "roc" not in whole["metrics"]
    assert whole["approval"] is None
    assert found["20260101T000000Z-aaaaaaaa"]["approval"] == approval
    assert found["damaged"]["created"] is None
    assert [item["version"] for item in json.loads(store.ask("list", URL, "--limit", "1")[1])] == ["damaged"]


def test_an_empty_store_lists_nothing_and_a_wrong_address_is_told(store: Store) -> None:
    assert store.ask("list", URL)[:2] == (0, "[]\n")
    assert "is not an address of the form s3://bucket/prefix" in store.ask("list", "models/pneumonia")[2]
    assert "NoSuchBucket" in store.ask("list", "s3://elsewhere/models")[2]
