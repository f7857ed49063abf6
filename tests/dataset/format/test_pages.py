import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stoker.dataset.format.index import IndexRow, ShardIndex, read_index
from stoker.dataset.format.jpeg import Marks
from stoker.dataset.format.manifest import MANIFEST, PAGE_ROWS, Manifest, Shard, Split, read_manifest, write_manifest
from stoker.dataset.format.pages import PAGED_BYTES, check_pages, index_of_pages, pack_index, read_pages, verify_pages
from stoker.errors import DatasetError, StorageError
from stoker.storage import BlockCache, Reads, locate
from stoker.storage.retry import BadBody

MARKS = Marks(32, 32, 20, 200, 16, 16, 1, 150)


def index_of(count: int, key: str = "train/{:06d}") -> ShardIndex:
    return ShardIndex.of(
        IndexRow(512 * n, n, n % 7, 31, 32, 2**64 - 1 - n, key.format(n), 1 + n % 8, MARKS if n % 2 else None)
        for n in range(count)
    )


def stored(folder: Path, index: ShardIndex) -> Shard:
    packed = pack_index(index)
    (folder / "0.idx").write_bytes(packed.data)
    sums = "", "0.idx", packed.index_bytes, packed.index_checksum, packed.page_bytes
    shard = Shard("0.tar", 1, len(index), *sums)
    assert shard.index_object_bytes == len(packed.data)
    return shard


def assert_same_rows(found: ShardIndex, whole: ShardIndex, first: int) -> None:
    rows = slice(first, first + len(found))
    for name in ("offset", "length", "label", "width", "height", "checksum"):
        assert np.array_equal(getattr(found, name), getattr(whole, name)[rows])
    for row in range(len(found)):
        assert found.key(row) == whole.key(first + row)
        assert found.marks(row) == whole.marks(first + row)
        assert found.orientation(row) == whole.orientation(first + row)


@settings(deadline=None, max_examples=30)
@given(st.integers(200, 400), st.data())
def test_any_pages_hold_the_rows_of_the_index(count: int, data: st.DataObject) -> None:
    index = index_of(count, key="ä" * data.draw(st.integers(0, 9)) + "{}")
    packed = pack_index(index)
    shard = Shard("", 1, count, "", "", packed.index_bytes, packed.index_checksum, packed.page_bytes)
    last = -(-count // PAGE_ROWS)
    first = data.draw(st.integers(0, last - 1))
    stop = data.draw(st.integers(first + 1, last))
    begin, size = packed.index_bytes, packed.page_bytes
    body = packed.data[begin + first * size : begin + stop * size]
    check_pages(body, shard, first)
    found = index_of_pages(shard, first, [body[at : at + size] for at in range(0, len(body), size)])
    assert len(found) == min(count, stop * PAGE_ROWS) - first * PAGE_ROWS
    assert_same_rows(found, index, first * PAGE_ROWS)


def test_pages_of_an_index_of_version_1_0_say_that_nothing_is_turned_or_cut() -> None:
    index = dataclasses.replace(index_of(300), marked={})
    packed = pack_index(index)
    shard = Shard("", 1, 300, "", "", packed.index_bytes, packed.index_checksum, packed.page_bytes)
    page = packed.data[packed.index_bytes : packed.index_bytes + packed.page_bytes]
    assert_same_rows(index_of_pages(shard, 0, [page]), index, 0)


def test_the_index_before_its_pages_has_the_bytes_that_it_has_without_them(tmp_path: Path) -> None:
    index = index_of(1000)
    shard = stored(tmp_path, index)
    assert shard.page_bytes
    assert (tmp_path / "0.idx").read_bytes()[: shard.index_bytes] == index.to_bytes()
    assert read_index(locate(tmp_path), shard).keys == index.keys


def test_a_small_index_and_one_with_a_huge_key_have_no_pages() -> None:
    small = index_of(60)
    assert len(small.to_bytes()) <= PAGED_BYTES
    assert pack_index(small).page_bytes == 0
    assert pack_index(small).data == small.to_bytes()
    huge = ShardIndex.of(IndexRow(n, n, 0, 1, 1, n, "k" * (50_000 if n == 5 else 9)) for n in range(500))
    assert pack_index(huge).page_bytes == 0
    assert pack_index(huge).data == huge.to_bytes()


def test_every_changed_byte_of_a_page_is_noticed() -> None:
    packed = pack_index(index_of(1000))
    shard = Shard("", 1, 1000, "", "", packed.index_bytes, packed.index_checksum, packed.page_bytes)
    last = 1000 // PAGE_ROWS
    body = bytearray(packed.data[packed.index_bytes + last * packed.page_bytes :])
    check_pages(body, shard, last)
    for at in range(len(body)):
        body[at] ^= 1
        with pytest.raises(BadBody, match=f"page {last} "):
            check_pages(body, shard, last)
        body[at] ^= 1


def test_a_page_of_another_place_or_of_another_index_is_refused() -> None:
    packed, other = pack_index(index_of(1000)), pack_index(index_of(1000, key="other/{:06d}"))
    assert packed.page_bytes == other.page_bytes
    shard = Shard("", 1, 1000, "", "", packed.index_bytes, packed.index_checksum, packed.page_bytes)
    page = packed.data[packed.index_bytes :][: packed.page_bytes]
    check_pages(page, shard, 0)
    with pytest.raises(BadBody):
        check_pages(page, shard, 1)
    with pytest.raises(BadBody):
        check_pages(other.data[other.index_bytes :][: packed.page_bytes], shard, 0)
    with pytest.raises(BadBody, match="received"):
        check_pages(page[:-1], shard, 0)
    with pytest.raises(BadBody, match="received"):
        check_pages(b"", shard, 0)


def test_neighbouring_pages_are_one_request_and_then_come_from_the_nodes_cache(tmp_path: Path) -> None:
    index = index_of(1000)
    shard, root, reads = stored(tmp_path, index), locate(tmp_path), Reads()
    with BlockCache(tmp_path / "cache", 2**20) as cache:
        first = read_pages(root, shard, 3, 5, reads=reads, cache=cache)
        assert reads.counters.requests == 1
        assert reads.counters.bytes == 2 * shard.page_bytes
        assert read_pages(root, shard, 3, 5, reads=reads, cache=cache) == first
        assert reads.counters.requests == 1
        assert read_pages(root, shard, 4, 6, reads=reads, cache=cache)[0] == first[1]
        assert reads.counters.bytes == 3 * shard.page_bytes


def test_a_damaged_page_in_the_nodes_cache_is_read_from_the_store_again(tmp_path: Path) -> None:
    shard, root, reads = stored(tmp_path, index_of(1000)), locate(tmp_path), Reads()
    with BlockCache(tmp_path / "cache", 2**20) as cache:
        first = read_pages(root, shard, 3, 4, reads=reads, cache=cache)
        block = next(p for p in (tmp_path / "cache").rglob("*") if p.is_file() and p.stat().st_size > shard.page_bytes)
        body = bytearray(block.read_bytes())
        body[-shard.page_bytes + 30] ^= 1
        block.write_bytes(body)
        assert read_pages(root, shard, 3, 4, reads=reads, cache=cache) == first
        assert reads.counters.requests == 2
        assert cache.counters.damaged == 1


def test_a_damaged_page_on_the_store_is_an_error_that_names_it_and_a_missing_index_too(tmp_path: Path) -> None:
    shard, root = stored(tmp_path, index_of(1000)), locate(tmp_path, timeout_s=0.1)
    body = bytearray((tmp_path / "0.idx").read_bytes())
    body[shard.index_bytes + 2 * shard.page_bytes + 30] ^= 4
    (tmp_path / "0.idx").write_bytes(body)
    read_pages(root, shard, 0, 2)
    with pytest.raises(StorageError, match=r"0\.idx.*page 2 of the index"):
        read_pages(root, shard, 1, 4)
    (tmp_path / "0.idx").unlink()
    with pytest.raises(DatasetError, match=r"0\.idx: missing"):
        read_pages(root, shard, 0, 1)


@pytest.mark.parametrize("has_marks", [True, False])
def test_pages_that_say_something_else_than_their_index_do_not_pass_verification(
    tmp_path: Path, *, has_marks: bool
) -> None:
    root, index = locate(tmp_path), index_of(300)
    index = index if has_marks else dataclasses.replace(index, marked={})
    shard = stored(tmp_path, index)
    verify_pages(root, shard, read_index(root, shard))
    other = dataclasses.replace(index, label=index.label + (np.arange(300) == 299))
    with pytest.raises(DatasetError, match=r"0\.idx: its pages do not hold the rows"):
        verify_pages(root, shard, other)
    plain = dataclasses.replace(shard, page_bytes=0)
    verify_pages(root, plain, other)


def test_pages_change_neither_fingerprint_nor_the_manifest_of_a_set_without_them(tmp_path: Path) -> None:
    root, plain = locate(tmp_path), Shard("0.tar", 1, 1000, "a", "0.idx", 5, "b")
    paged = dataclasses.replace(plain, page_bytes=77)
    without, with_ = (Manifest(("x",), {"train": Split(1000, (shard,))}) for shard in (plain, paged))
    assert without.fingerprint == with_.fingerprint
    write_manifest(root, without)
    written = json.loads((tmp_path / MANIFEST).read_text())
    assert written["version"] == [1, 1]
    assert "page_bytes" not in written["splits"]["train"]["shards"][0]
    assert read_manifest(root) == without
    write_manifest(root, with_)
    assert json.loads((tmp_path / MANIFEST).read_text())["version"] == [1, 2]
    assert read_manifest(root) == with_
