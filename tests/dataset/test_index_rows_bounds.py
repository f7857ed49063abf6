"""Which indexes stay in memory."""

from __future__ import annotations

from stoker.dataset.format.manifest import Shard
from stoker.dataset.index_rows import INDEX_BYTES, IndexRows, uses_pages

SHARDS = [Shard(f"{n}.tar", 10, 5, "sum", f"{n}.idx", 100, "sum") for n in range(3)]


class Source:
    """Indexes that are only asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def whole(self, number: int) -> str:
        self.asked.append(number)
        return f"index {number}"

    def pages(self, number: int, first: int, stop: int) -> list[bytes]:
        raise AssertionError("they have none")


def test_a_reader_holds_a_quarter_of_a_gibibyte_of_indexes() -> None:
    assert INDEX_BYTES == 268_435_456
    assert (uses_pages(SHARDS, 300), uses_pages(SHARDS, 299)) == (False, True)


def test_the_index_that_was_unused_for_longest_leaves_first() -> None:
    source = Source()
    rows = IndexRows(SHARDS, source, 200)  # type: ignore[arg-type]
    for number in (0, 1, 0, 2, 0, 1):
        assert rows.rows(number, 0, 5) == (f"index {number}", 0)
        assert rows.held_bytes <= 200
    assert source.asked == [0, 1, 2, 1]


def test_one_index_is_kept_however_large_it_is() -> None:
    source = Source()
    rows = IndexRows(SHARDS, source, 1)  # type: ignore[arg-type]
    assert [rows.rows(0, 0, 5)[0] for _ in range(2)] == ["index 0"] * 2
    assert (source.asked, rows.held_bytes) == ([0], 100)
    rows.rows(1, 0, 5)
    assert rows.held_bytes == 100


def test_no_lock_stays_for_an_index_that_was_read() -> None:
    rows = IndexRows(SHARDS, Source(), 300)  # type: ignore[arg-type]
    for number in range(3):
        rows.rows(number, 0, 5)
    assert rows._loading == {}
