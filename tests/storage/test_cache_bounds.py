"""What a block cache counts, keeps and gives back, to the block and the byte."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from blocks import BLOCK, HEADER, block, stored_files
from stoker.storage import BlockCache, cache_folder
from stoker.storage import cache as cache_module
from stoker.storage.cache_folder import CacheFolder


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[BlockCache]:
    with BlockCache(tmp_path, 5 * (BLOCK + HEADER)) as made:
        yield made


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def usage(folder: Path) -> int:
    return struct.unpack("<8sq", (folder / "stoker-blocks" / "usage").read_bytes())[1]


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_each_event_is_counted_once(cache: BlockCache) -> None:
    cache.put("a", block(1))
    cache.put("a", block(1))  # is there already
    cache.get("a")
    cache.get("b")
    assert cache.counters.snapshot() == {
        "hits": 1, "bytes": BLOCK, "misses": 1, "damaged": 0,
        "stored": 1, "stored_bytes": BLOCK, "refused": 0, "evicted": 0,
    }  # fmt: skip


def test_the_usage_is_the_bytes_in_the_folder_after_each_event(cache: BlockCache, tmp_path: Path) -> None:
    def there() -> int:
        return sum(path.stat().st_size for path in stored_files(tmp_path))

    for number in range(3):
        cache.put(f"{number}", block(number))
        assert usage(tmp_path) == there() == (number + 1) * (BLOCK + HEADER)
    os.truncate(stored_files(tmp_path)[0], HEADER)
    assert sum(cache.get(f"{number}") is not None for number in range(3)) == 2
    assert there() == 2 * (BLOCK + HEADER)
    assert there() <= usage(tmp_path) < there() + BLOCK + HEADER
    cache.close()
    with BlockCache(tmp_path, 2**20):
        assert usage(tmp_path) == there(), "the first user counts anew"


def test_a_bound_is_used_to_the_last_byte_and_not_beyond(tmp_path: Path) -> None:
    with BlockCache(tmp_path / "fits", 2 * (BLOCK + HEADER)) as cache:
        for number in range(2):
            cache.put(f"{number}", block(number))
        assert cache.counters.stored == 2
    with BlockCache(tmp_path / "one-byte-less", 2 * (BLOCK + HEADER) - 1) as cache:
        for number in range(2):
            cache.put(f"{number}", block(number))
        assert (cache.counters.stored, cache.counters.refused) == (1, 1)
    with BlockCache(tmp_path / "one", BLOCK + HEADER) as cache:
        cache.put("all", block(1))
        assert cache.get("all") == block(1)


def test_a_block_that_is_too_large_keeps_no_smaller_one_out(tmp_path: Path) -> None:
    with BlockCache(tmp_path, BLOCK + HEADER) as cache:
        cache.put("a byte too large", block(1) + b"x")
        assert cache.counters.refused == 1
        cache.put("fits", block(1))
        assert cache.get("fits") == block(1)


def test_a_full_cache_is_tried_again_after_half_a_minute(
    cache: BlockCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(cache_module.time, "monotonic", lambda: now[0])
    for number in range(6):
        cache.put(f"{number}", block(number))
    assert cache.counters.refused == 1
    for path in stored_files(tmp_path):
        path.unlink()
    now[0] += 29.9
    cache.put("too early", block(7))
    assert (cache.get("too early"), cache.counters.refused) == (None, 2)
    now[0] += 0.2
    cache.put("later", block(8))
    assert cache.get("later") == block(8)


def test_what_leaves_the_cache_lets_the_next_run_begin_a_period(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, 2**20)
    users = os.open(tmp_path / "stoker-blocks" / "users", os.O_RDWR)
    with pytest.raises(BlockingIOError):
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with cache:
        pass
    fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(users)
    cache.close()
    cache.put("a", block(1))
    assert (cache.get("a"), cache.counters.refused) == (None, 1)


def test_reading_and_storing_leave_no_file_open(cache: BlockCache, tmp_path: Path) -> None:
    cache.put("first", block(0))
    before = open_files()
    for number in range(20):
        cache.put(f"{number}", block(number))
        cache.get(f"{number}")
    (tmp_path / "other").write_bytes(b"")
    stored_files(tmp_path)[0].write_bytes(b"damaged")
    for number in range(5):
        cache.get(f"{number}")
    assert open_files() == before


@pytest.mark.parametrize(
    ("number", "said"), [(errno.ENOSPC, "the disk is full"), (errno.EDQUOT, "the disk is full"), (errno.EIO, "broken")]
)
def test_a_disk_that_fails_is_asked_once_and_named_once(
    cache: BlockCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    number: int, said: str,
) -> None:  # fmt: skip
    asked: list[int] = []

    def refuse(*_: object) -> None:
        asked.append(1)
        raise OSError(number, "broken")

    monkeypatch.setattr(cache_folder.os, "posix_fallocate", refuse)
    before = open_files()
    for attempt in range(3):
        cache.put(f"{attempt}", block(1))
    assert (len(asked), cache.counters.refused) == (1, 3)
    (warning,) = warnings_of(caplog)
    assert f"stores no more blocks: {'' if number != errno.EIO else '[Errno 5] '}{said};" in warning
    assert stored_files(tmp_path, ".new") == []
    assert (usage(tmp_path), open_files()) == (0, before)


def test_a_write_that_ends_early_leaves_neither_a_block_nor_its_bytes(
    cache: BlockCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache.put("before", block(1))
    monkeypatch.setattr(cache_module.os, "writev", lambda file, parts: os.write(file, parts[0]))
    cache.put("short", block(2))
    assert "64 of 10064 bytes were written" in warnings_of(caplog)[0]
    assert stored_files(tmp_path, ".new") == []
    assert usage(tmp_path) == BLOCK + HEADER
    assert cache.get("before") == block(1)


def test_a_folder_that_is_deleted_during_a_write_refuses_that_block_and_no_other(
    cache: BlockCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    publish = CacheFolder.publish

    def delete_first(folder: CacheFolder, *arguments: object) -> bool:
        shutil.rmtree(tmp_path / "stoker-blocks")
        return publish(folder, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(CacheFolder, "publish", delete_first)
    cache.put("a", block(1))
    monkeypatch.setattr(CacheFolder, "publish", publish)
    assert (cache.counters.refused, cache.counters.stored, warnings_of(caplog)) == (1, 0, [])
    cache.put("b", block(2))
    assert cache.get("b") == block(2)


def test_a_pipe_in_place_of_a_block_is_a_miss_and_never_waited_for(cache: BlockCache, tmp_path: Path) -> None:
    cache.put("a", block(1))
    (path,) = stored_files(tmp_path)
    path.unlink()
    os.mkfifo(path)
    assert cache.get("a") is None


def test_a_cache_of_nothing_says_nothing_of_a_folder_that_it_cannot_use(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    with BlockCache(tmp_path / "file", 0) as cache:
        cache.put("a", block(1))
        assert (cache.get("a"), cache.counters.refused) == (None, 1)
    assert warnings_of(caplog) == []


def test_a_block_that_an_earlier_run_stored_is_this_runs_once_it_was_read(tmp_path: Path) -> None:
    with BlockCache(tmp_path, 2**20) as cache:
        cache.put("a", block(1))
        (path,) = stored_files(tmp_path)
        os.utime(path, ns=(0, 10**9))
        cache.get("a")
        used = path.stat().st_mtime_ns
        assert used > 10**9
        cache.get("a")
        assert path.stat().st_mtime_ns == used, "it is marked once a run, not at each read"


@pytest.mark.parametrize("loose", [0o755, 0o777])
def test_a_folder_that_others_could_read_is_closed_to_them(tmp_path: Path, loose: int) -> None:
    folder = tmp_path / "stoker-blocks"
    folder.mkdir()
    folder.chmod(loose)
    with BlockCache(tmp_path, 2**20) as cache:
        cache.put("a", block(1))
    assert folder.stat().st_mode & 0o777 == 0o700


def test_room_is_made_by_a_twentieth_of_the_bound_the_longest_unused_first(tmp_path: Path) -> None:
    with BlockCache(tmp_path, 2**30) as cache:
        for number in range(100):
            cache.put(f"{number}", block(number))
            newest = max(stored_files(tmp_path), key=lambda path: path.stat().st_mtime_ns)
            os.utime(newest, ns=(0, (number + 1) * 10**9))
    with BlockCache(tmp_path, 100 * (BLOCK + HEADER)) as cache:
        cache.put("new", block(200))
        assert cache.counters.evicted == 5
        assert [n for n in range(100) if cache.get(f"{n}") is None] == [0, 1, 2, 3, 4]


def test_no_block_is_evicted_where_that_would_not_make_enough_room(tmp_path: Path) -> None:
    with BlockCache(tmp_path, 3 * (BLOCK + HEADER)) as cache:
        for number in range(3):
            cache.put(f"{number}", block(number))
        oldest = stored_files(tmp_path)[0]
        os.utime(oldest, ns=(0, 10**9))
        cache.put("two at once", block(1) + block(2))
        assert (cache.counters.evicted, cache.counters.refused, len(stored_files(tmp_path))) == (0, 1, 3)
        assert oldest.exists()
