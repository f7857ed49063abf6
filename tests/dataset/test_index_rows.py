from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from made import write_samples
from stoker.dataset.format.index import IndexRow, ShardIndex
from stoker.dataset.format.manifest import PAGE_ROWS, Shard, Split, read_manifest
from stoker.dataset.format.pages import pack_index
from stoker.dataset.index_rows import PAGE_OVERHEAD_BYTES, IndexRows, StoredIndexes
from stoker.dataset.samples import ShardReader
from stoker.storage import BlockCache, Location, Reads


class Counted:
    """Indexes in memory, and what is asked of them."""

    def __init__(self, shards: int, samples: int) -> None:
        self.index = ShardIndex.of(IndexRow(n, n, n % 3, 1, 1, n, f"{n:09d}") for n in range(samples))
        self.packed = pack_index(self.index)
        sizes = self.packed.index_bytes, self.packed.index_checksum, self.packed.page_bytes
        self.shards = [Shard("", 1, samples, "", "", *sizes)] * shards
        self.asked: list[tuple[int, int, int]] = []

    def whole(self, number: int) -> ShardIndex:
        self.asked.append((number, 0, -1))
        return self.index

    def pages(self, number: int, first: int, stop: int) -> list[bytes]:
        self.asked.append((number, first, stop))
        begin, size = self.packed.index_bytes, self.packed.page_bytes
        return [self.packed.data[begin + page * size : begin + (page + 1) * size] for page in range(first, stop)]


def test_indexes_that_fit_into_memory_are_read_whole_and_once() -> None:
    source = Counted(4, 1000)
    rows = IndexRows(source.shards, source, 4 * source.packed.index_bytes)
    for _ in range(3):
        for number in range(4):
            assert rows.rows(number, 500, 516) == (source.index, 0)
    assert source.asked == [(number, 0, -1) for number in range(4)]


def test_indexes_that_do_not_fit_are_read_by_page_and_a_kept_page_is_not_read_again() -> None:
    source = Counted(4, 1000)
    rows = IndexRows(source.shards, source, 4 * source.packed.index_bytes - 1)
    found, base = rows.rows(2, PAGE_ROWS - 1, PAGE_ROWS + 15)
    assert (base, len(found)) == (0, 2 * PAGE_ROWS)
    found, base = rows.rows(2, PAGE_ROWS, 2 * PAGE_ROWS)
    assert (base, len(found), found.key(0)) == (PAGE_ROWS, PAGE_ROWS, f"{PAGE_ROWS:09d}")
    found, base = rows.rows(2, PAGE_ROWS, 2 * PAGE_ROWS + 1)
    assert (base, len(found)) == (PAGE_ROWS, 2 * PAGE_ROWS)
    found, base = rows.rows(2, 995, 1000)
    assert found.key(995 - base) == f"{995:09d}"
    assert source.asked == [(2, 0, 2), (2, 2, 3), (2, 31, 32)]


def test_old_indexes_without_pages_are_read_whole_whatever_their_size() -> None:
    source = Counted(4, 1000)
    old = [Shard("", 1, 1000, "", "", source.packed.index_bytes, source.packed.index_checksum)] * 4
    rows = IndexRows(old, source, source.packed.index_bytes)
    assert rows.rows(3, 10, 12) == (source.index, 0)
    assert source.asked == [(3, 0, -1)]
    assert rows.held_bytes == source.packed.index_bytes
    rows.rows(2, 10, 12)
    assert rows.held_bytes == source.packed.index_bytes


def test_an_index_that_is_larger_than_the_bound_is_kept_until_the_next() -> None:
    source = Counted(2, 1000)
    old = [Shard("", 1, 1000, "", "", source.packed.index_bytes, source.packed.index_checksum)] * 2
    rows = IndexRows(old, source, source.packed.index_bytes // 2)
    for number in (0, 0, 1, 1):
        rows.rows(number, 10, 12)
    assert source.asked == [(0, 0, -1), (1, 0, -1)]


def test_a_page_that_is_read_again_between_others_counts_once() -> None:
    source = Counted(2, 1000)
    rows = IndexRows(source.shards, source, source.packed.index_bytes)
    rows.rows(0, PAGE_ROWS, PAGE_ROWS + 1)
    rows.rows(0, 0, 3 * PAGE_ROWS)
    assert source.asked == [(0, 1, 2), (0, 0, 3)]
    assert rows.held_bytes == 3 * (source.packed.page_bytes + 512)


def test_memory_stays_bounded_and_rows_right_with_many_threads() -> None:
    source = Counted(64, 1000)
    bound = 20 * (source.packed.page_bytes + PAGE_OVERHEAD_BYTES)
    rows = IndexRows(source.shards, source, bound)

    def read(turn: int) -> bool:
        number, first = turn * 37 % 64, turn * 613 % 984
        found, base = rows.rows(number, first, first + 16)
        keys = [found.key(row - base) for row in range(first, first + 16)]
        return keys == [f"{row:09d}" for row in range(first, first + 16)] and rows.held_bytes <= bound

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(2000)))
    assert 0 < rows.held_bytes <= bound


@pytest.mark.parametrize("has_cache", [False, True])
def test_samples_read_by_page_are_those_read_with_whole_indexes(tmp_path: Path, *, has_cache: bool) -> None:
    samples = [("bin", bytes([n % 251]) * (5 + n % 7), n % 3) for n in range(450)]
    root = write_samples(str(tmp_path / "data"), [samples[:205], samples[205:430], samples[430:]])
    split = read_manifest(root).split("train")
    assert [bool(shard.page_bytes) for shard in split.shards] == [True, True, False]
    with BlockCache(tmp_path / "cache", 2**22) as cache:
        reads = Reads()
        paged = paged_reader(root, split, reads, cache if has_cache else None)
        whole = ShardReader(root, split)
        for _ in range(2):
            for first in range(0, 450, 16):
                stop = min(450, first + 16)
                assert paged.read(first, stop) == whole.read(first, stop)
                assert paged.read(first + 1, first + 2, is_alone=True) == whole.read(first + 1, first + 2)
        assert paged.read(3, 448) == whole.read(3, 448)


def paged_reader(root: Location, split: Split, reads: Reads, cache: BlockCache | None) -> ShardReader:
    """A reader whose memory holds no index, so that each is read by page."""
    reader = ShardReader(root, split, reads=reads, cache=cache, block=16)
    reader._indexes = IndexRows(split.shards, StoredIndexes(root, split.shards, reads, cache), 4096)
    return reader
