import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from stoker.dataset.format.manifest import Manifest, Shard, Split, checksum, expect, read_manifest, write_manifest
from stoker.errors import DatasetError
from stoker.storage import locate
from stoker.storage.retry import BadBody

SHARD = Shard("train/000000.tar", 10240, 3, checksum(b"tar"), "train/000000.idx", 99, checksum(b"idx"))
MANIFEST = Manifest(("cat", "dog"), {"train": Split(3, (SHARD,))})


def test_a_manifest_reads_back_as_it_was_written(tmp_path: Path) -> None:
    write_manifest(locate(tmp_path), MANIFEST)
    assert read_manifest(locate(tmp_path)) == MANIFEST


def test_the_fingerprint_changes_with_data_classes_and_order_and_with_nothing_else() -> None:
    other = replace(SHARD, checksum=checksum(b"other"))
    moved = replace(SHARD, path="elsewhere/1.tar")
    fingerprints = {
        MANIFEST.fingerprint,
        Manifest(("dog", "cat"), MANIFEST.splits).fingerprint,
        Manifest(MANIFEST.classes, {"train": Split(3, (other,))}).fingerprint,
        Manifest(MANIFEST.classes, {"train": Split(6, (SHARD, other))}).fingerprint,
        Manifest(MANIFEST.classes, {"train": Split(6, (other, SHARD))}).fingerprint,
    }
    assert len(fingerprints) == 5
    assert Manifest(MANIFEST.classes, {"train": Split(3, (moved,))}).fingerprint == MANIFEST.fingerprint


def test_where_there_is_no_manifest_the_error_names_place_and_remedy(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no data set at .*stoker prepare"):
        read_manifest(locate(tmp_path))


def _fingerprinted(content: dict[str, object], words: str) -> dict[str, object]:
    """The fingerprint that goes with the shards, where the fingerprint is not what is wrong."""
    splits = content["splits"]
    shards = splits["train"]["shards"] if isinstance(splits, dict) else []  # type: ignore[index]
    if words == "fingerprint" or shards == [{}] or "train" not in (splits or {}):
        return {}
    identity = {
        "classes": content["classes"],
        "splits": {"train": [[s["samples"], s["checksum"], s["index_checksum"]] for s in shards]},
    }
    text = json.dumps(identity, separators=(",", ":"))
    return {"fingerprint": "sha256:" + hashlib.sha256(text.encode()).hexdigest()}


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ({"format": "other"}, "not a stoker data set"),
        ({"version": [2, 0]}, "newer"),
        ({"classes": ["cat", "cow"]}, "fingerprint"),
        ({"splits": {"train": {"samples": 3, "shards": [{}]}}}, "damaged"),
        ({"splits": None}, "damaged"),
        ({"version": [1]}, "damaged"),
        ({"version": ["1", 2]}, "damaged, invalid field: .*version is '1'"),
        ({"classes": ["cat", 7]}, "damaged"),
        ({"splits": {"train": {"samples": 4, "shards": [asdict(SHARD)]}}}, "has 4 samples and its shards 3"),
        ({"splits": {"train": {"samples": "three", "shards": [asdict(SHARD)]}}}, "samples is 'three'"),
        ({"splits": {"train": {"samples": 3, "shards": [asdict(SHARD) | {"bytes": -5}]}}}, "bytes is -5"),
        ({"splits": {"train": {"samples": 3, "shards": [asdict(SHARD) | {"page_bytes": "x"}]}}}, "page_bytes is 'x'"),
        ({"splits": {"train": {"samples": 3, "shards": [asdict(SHARD) | {"path": None}]}}}, "path is None"),
        ({"splits": {"train": {"samples": 3, "shards": [asdict(SHARD) | {"samples": True}]}}}, "samples is True"),
    ],
)
def test_a_manifest_that_cannot_be_believed_is_refused(tmp_path: Path, damage: dict[str, object], words: str) -> None:
    write_manifest(locate(tmp_path), MANIFEST)
    file = tmp_path / "dataset.json"
    content = json.loads(file.read_text()) | damage
    file.write_text(json.dumps(content | _fingerprinted(content, words)))

    with pytest.raises(DatasetError, match=words):
        read_manifest(locate(tmp_path))


def test_a_manifest_that_no_parser_takes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text("[" * 100_000)
    with pytest.raises(DatasetError, match="damaged, not JSON"):
        read_manifest(locate(tmp_path))


def test_a_newer_minor_version_with_fields_of_its_own_is_read(tmp_path: Path) -> None:
    write_manifest(locate(tmp_path), MANIFEST)
    file = tmp_path / "dataset.json"
    content = json.loads(file.read_text()) | {"version": [1, 7], "colour": "blue"}
    content["splits"]["train"]["shards"][0]["colour"] = "red"
    file.write_text(json.dumps(content))

    assert read_manifest(locate(tmp_path)) == MANIFEST


def test_a_body_of_another_length_or_content_is_a_failed_read() -> None:
    expect(b"tar", 3, checksum(b"tar"))
    for body in (b"ta", b"tap"):
        with pytest.raises(BadBody):
            expect(body, 3, checksum(b"tar"))
