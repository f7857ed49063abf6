import json
from dataclasses import replace
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


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ({"format": "other"}, "not a stoker data set"),
        ({"version": [2, 0]}, "newer"),
        ({"classes": ["cat", "cow"]}, "fingerprint"),
        ({"splits": {"train": {"samples": 3, "shards": [{}]}}}, "damaged"),
        ({"splits": None}, "damaged"),
    ],
)
def test_a_manifest_that_cannot_be_believed_is_refused(tmp_path: Path, damage: dict[str, object], words: str) -> None:
    write_manifest(locate(tmp_path), MANIFEST)
    file = tmp_path / "dataset.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | damage))

    with pytest.raises(DatasetError, match=words):
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
