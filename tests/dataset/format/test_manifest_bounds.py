"""The manifest and the index as they are stored: bytes that every version reads and writes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from stoker.dataset.format.index import IndexRow, ShardIndex, payload_checksum, read_index
from stoker.dataset.format.manifest import PAGE_ROWS, Manifest, Shard, Split, checksum, write_manifest
from stoker.errors import DatasetError, StorageError
from stoker.storage import BlockCache, Reads, locate

SHARD = Shard("train/000000.tar", 10240, 40, "xxh3_128:" + "0" * 32, "train/000000.idx", 3000, "xxh3_128:" + "1" * 32)
MANIFEST = Manifest(("cat", "dog"), {"train": Split(40, (SHARD,)), "test": Split(0, ())})
FINGERPRINT = "sha256:c67f6eb8ac054a98ef9c0b467c2636e967a1ba0cb6d27ffccf2e59a60f1ae734"


def stored(place: Path, manifest: Manifest) -> dict[str, object]:
    write_manifest(locate(place), manifest)
    return json.loads((place / "dataset.json").read_text())


def test_fingerprint_and_checksums_are_the_same_in_every_version() -> None:
    assert MANIFEST.fingerprint == FINGERPRINT
    assert checksum(b"stoker") == "xxh3_128:a7e7c37e9fb625b3bfcfa6131ec4526c"
    assert payload_checksum(b"stoker") == 12175671659091799023


def test_a_manifest_has_the_fields_of_the_format_and_no_others(tmp_path: Path) -> None:
    shard = {
        "path": "train/000000.tar", "bytes": 10240, "samples": 40, "checksum": "xxh3_128:" + "0" * 32,
        "index_path": "train/000000.idx", "index_bytes": 3000, "index_checksum": "xxh3_128:" + "1" * 32,
    }  # fmt: skip
    assert stored(tmp_path, MANIFEST) == {
        "format": "stoker-dataset",
        "version": [1, 1],
        "fingerprint": FINGERPRINT,
        "classes": ["cat", "dog"],
        "splits": {"train": {"samples": 40, "shards": [shard]}, "test": {"samples": 0, "shards": []}},
    }


def test_one_shard_with_pages_makes_the_set_one_of_version_1_2_and_only_it_names_them(tmp_path: Path) -> None:
    paged = replace(SHARD, page_bytes=2000)
    content = stored(tmp_path, Manifest(("cat",), {"train": Split(80, (SHARD, paged))}))
    assert content["version"] == [1, 2]
    shards = content["splits"]["train"]["shards"]  # type: ignore[index]
    assert [shard.get("page_bytes") for shard in shards] == [None, 2000]


@pytest.mark.parametrize(("samples", "pages"), [(1, 1), (31, 1), (32, 1), (33, 2), (64, 2), (65, 3)])
def test_an_index_object_is_the_index_and_a_page_for_each_32_samples_begun(samples: int, pages: int) -> None:
    assert PAGE_ROWS == 32
    assert replace(SHARD, samples=samples, page_bytes=100).index_object_bytes == 3000 + 100 * pages
    assert replace(SHARD, samples=samples).index_object_bytes == 3000


@pytest.mark.parametrize(
    ("path", "url"),
    [
        ("train/000000.tar", "s3://bucket/set/train/000000.tar"),
        ("/disk/a.tar", "/disk/a.tar"),
        ("s3://other/a.tar", "s3://other/a.tar"),
        ("https://host/a.tar", "https://host/a.tar"),
    ],
)
def test_a_shard_is_in_the_set_or_where_it_was_indexed(path: str, url: str) -> None:
    tar = replace(SHARD, path=path).tar(locate("s3://bucket/set", timeout_s=7))
    assert (tar.url, tar.timeout_s) == (url, 7)


def test_a_split_is_found_by_its_name_and_others_are_named() -> None:
    assert MANIFEST.split("train") is MANIFEST.splits["train"]
    with pytest.raises(DatasetError, match="no split 'val'; it has test, train"):
        MANIFEST.split("val")


def rows(count: int) -> ShardIndex:
    return ShardIndex.of([IndexRow(512 * n, 10, n % 3, 4, 5, n, f"key{n}") for n in range(count)])


def shard_of(place: Path, index: ShardIndex, samples: int) -> Shard:
    body = index.to_bytes()
    (place / "a.idx").write_bytes(body)
    return replace(SHARD, samples=samples, index_path="a.idx", index_bytes=len(body), index_checksum=checksum(body))


def test_an_index_is_read_from_the_store_once_and_then_from_the_cache(tmp_path: Path) -> None:
    shard = shard_of(tmp_path, rows(5), 5)
    with BlockCache(tmp_path / "cache", 2**20) as cache:
        reads = [Reads(), Reads()]
        for read in reads:
            assert read_index(locate(tmp_path), shard, reads=read, cache=cache).keys == [f"key{n}" for n in range(5)]
        assert [read.counters.requests for read in reads] == [1, 0]
        assert (cache.counters.stored, cache.counters.hits) == (1, 1)


def test_an_index_of_other_bytes_is_refused_although_its_length_fits(tmp_path: Path) -> None:
    shard = shard_of(tmp_path, rows(5), 5)
    body = bytearray((tmp_path / "a.idx").read_bytes())
    body[-1] ^= 1
    (tmp_path / "a.idx").write_bytes(body)
    with pytest.raises(StorageError, match="checksum"):
        read_index(locate(tmp_path, timeout_s=0.1), shard)


@pytest.mark.parametrize("samples", [4, 6])
def test_an_index_of_another_number_of_samples_than_the_manifest_says_is_refused(tmp_path: Path, samples: int) -> None:
    with pytest.raises(DatasetError, match=f"holds 5 samples, the manifest says {samples}"):
        read_index(locate(tmp_path), shard_of(tmp_path, rows(5), samples))


def test_an_index_without_marks_says_that_it_is_of_version_1_0() -> None:
    assert b'"stoker-index":"1.1"' in rows(2).to_bytes()
    assert b'"stoker-index":"1.0"' in replace(rows(2), marked={}).to_bytes()
