"""Blocks on the node's disk: bounded over processes, checked, and never a reason to fail."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from blocks import BLOCK, HEADER, block, fill, run_python, stored_files
from stoker.storage import BlockCache
from stoker.storage.cache_folder import CacheFolder
from stoker.storage.retry import BadBody


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[BlockCache]:
    with BlockCache(tmp_path, 5 * (BLOCK + HEADER)) as made:
        yield made


def test_what_was_put_is_got_again_by_this_process_and_the_next(tmp_path: Path) -> None:
    with BlockCache(tmp_path, 2**20) as cache:
        cache.put("a/0-10", block(1))
        assert cache.get("a/0-10") == block(1)
    with BlockCache(tmp_path, 2**20) as cache:
        assert cache.get("a/0-10") == block(1)
        assert cache.get("a/0-11") is None
        assert cache.counters.snapshot() == {
            "hits": 1, "bytes": BLOCK, "misses": 1, "damaged": 0,
            "stored": 0, "stored_bytes": 0, "refused": 0, "evicted": 0,
        }  # fmt: skip


def test_an_empty_block_is_a_block(cache: BlockCache) -> None:
    cache.put("empty", b"")
    assert cache.get("empty") == b""


def test_blocks_of_the_present_run_stay_and_others_are_not_admitted(cache: BlockCache, tmp_path: Path) -> None:
    for number in range(20):
        cache.put(f"{number}", block(number))
    assert [number for number in range(20) if cache.get(f"{number}") is not None] == [0, 1, 2, 3, 4]
    assert cache.counters.refused == 15
    assert sum(path.stat().st_size for path in stored_files(tmp_path)) <= 5 * (BLOCK + HEADER)


def test_blocks_of_earlier_runs_leave_first_unless_this_run_used_them(tmp_path: Path) -> None:
    fill(tmp_path, range(5))
    with BlockCache(tmp_path, 5 * (BLOCK + HEADER)) as cache:
        assert cache.get("0") == block(0)
        for number in range(5, 20):
            cache.put(f"{number}", block(number))
        held = [number for number in range(20) if cache.get(f"{number}") is not None]
        assert held == [0, 5, 6, 7, 8]
        assert cache.counters.evicted == 4


def test_a_smaller_bound_is_kept_from_the_next_put_on(tmp_path: Path) -> None:
    fill(tmp_path, range(10))
    with BlockCache(tmp_path, 3 * (BLOCK + HEADER)) as cache:
        cache.put("new", block(99))
        assert cache.get("new") == block(99)
    assert sum(path.stat().st_size for path in stored_files(tmp_path)) <= 3 * (BLOCK + HEADER)


def test_a_block_larger_than_the_bound_is_refused(cache: BlockCache) -> None:
    cache.put("large", bytes(6 * BLOCK))
    assert cache.get("large") is None
    assert cache.counters.refused == 1


@pytest.mark.parametrize("at", [0, 8, 20, HEADER, HEADER + BLOCK - 1])
def test_a_damaged_block_is_a_miss_deleted_and_counted(cache: BlockCache, tmp_path: Path, at: int) -> None:
    cache.put("a", block(1))
    (path,) = stored_files(tmp_path)
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)
    assert cache.get("a") is None
    assert cache.counters.damaged == 1
    assert stored_files(tmp_path) == []
    cache.put("a", block(1))
    assert cache.get("a") == block(1)


@pytest.mark.parametrize("size", [0, 30, HEADER, HEADER + BLOCK - 1])
def test_a_truncated_block_is_a_miss(cache: BlockCache, tmp_path: Path, size: int) -> None:
    cache.put("a", block(1))
    os.truncate(stored_files(tmp_path)[0], size)
    assert cache.get("a") is None
    assert cache.counters.damaged == 1


def test_a_block_under_another_name_is_a_miss(cache: BlockCache, tmp_path: Path) -> None:
    cache.put("a", block(1))
    (first,) = stored_files(tmp_path)
    cache.put("b", block(2))
    (second,) = set(stored_files(tmp_path)) - {first}
    os.replace(first, second)
    assert cache.get("b") is None


def test_the_callers_check_decides_when_it_is_given(cache: BlockCache) -> None:
    def refuse(data: memoryview) -> None:
        raise BadBody("not what the index says")

    cache.put("a", block(1))
    assert cache.get("a", lambda data: None) == block(1)
    assert cache.get("a", refuse) is None
    assert cache.get("a") is None
    assert cache.counters.damaged == 1


def test_deleting_files_or_the_folder_makes_misses_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    with BlockCache(folder, 3 * (BLOCK + HEADER)) as cache:
        for turn in range(3):
            for number in range(3):
                cache.put(f"{turn}-{number}", block(number))
                assert cache.get(f"{turn}-{number}") == block(number)
            if turn == 0:
                shutil.rmtree(folder)
            else:
                for path in folder.glob("stoker-blocks/*"):
                    path.unlink()
            assert cache.get(f"{turn}-0") is None


def test_a_folder_that_is_deleted_while_threads_use_it_never_fails(tmp_path: Path) -> None:
    done = threading.Event()

    def use(thread: int) -> int:
        number = 0
        while not done.is_set():
            number += 1
            key = f"{thread}-{number % 5}"
            cache.put(key, block(number % 5))
            found = cache.get(key)
            assert found is None or found == block(number % 5)
        return number

    with BlockCache(tmp_path / "cache", 2**30) as cache, ThreadPoolExecutor(2) as pool:
        running = [pool.submit(use, thread) for thread in range(2)]
        for _ in range(10):
            shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        done.set()
        assert all(future.result() > 0 for future in running)
        cache.put("afterwards", block(7))
        assert cache.get("afterwards") == block(7)


USE = """
import sys
from stoker.storage import BlockCache
folder, first, bound = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
with BlockCache(folder, bound) as cache:
    print("ready", flush=True)
    sys.stdin.readline()
    for number in range(first, first + 100):
        cache.put(str(number), bytes([number % 256]) * 10_000)
    found = sum(cache.get(str(number)) is not None for number in range(200))
    print(cache.counters.stored, found, flush=True)
    sys.stdin.readline()
"""


def test_processes_share_the_blocks_and_the_bound(tmp_path: Path) -> None:
    bound = 60 * (BLOCK + HEADER)
    ranks = [run_python(USE, tmp_path, first, bound) for first in (0, 50)]
    for rank in ranks:
        assert rank.stdout is not None
        assert rank.stdin is not None
        assert rank.stdout.readline() == "ready\n"
    for rank in ranks:
        rank.stdin.write("go\n")  # type: ignore[union-attr]
        rank.stdin.flush()  # type: ignore[union-attr]
    stored = [int(rank.stdout.readline().split()[0]) for rank in ranks]  # type: ignore[union-attr]
    for rank in ranks:
        rank.communicate("end\n", timeout=60)
        assert rank.returncode == 0
    assert sum(stored) == len(stored_files(tmp_path)) <= 60
    assert len(stored_files(tmp_path)) >= 55
    with BlockCache(tmp_path, bound) as cache:
        assert sum(cache.get(f"{number}") == block(number) for number in range(200)) == len(stored_files(tmp_path))


DIE = """
import os, signal, sys
from pathlib import Path
from stoker.storage import BlockCache
with BlockCache(sys.argv[1], 2**30) as cache:
    cache.put("whole", b"x" * 10_000)
    os.rename = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    cache.put("half", b"y" * 10_000)
"""


def test_what_a_killed_writer_left_is_removed_and_never_read(tmp_path: Path) -> None:
    process = run_python(DIE, tmp_path)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert len(stored_files(tmp_path, ".new")) == 1
    with BlockCache(tmp_path, 2 * (BLOCK + HEADER)) as cache:
        assert stored_files(tmp_path, ".new") == []
        assert cache.get("half") is None
        assert cache.get("whole") == b"x" * 10_000
        cache.put("half", block(1))
        assert cache.get("half") == block(1)


def test_what_is_being_written_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with BlockCache(tmp_path, 3 * (BLOCK + HEADER)) as cache:
        publish, seen = CacheFolder.publish, []

        def look_first(folder: CacheFolder, *arguments: object) -> bool:
            monkeypatch.setattr(CacheFolder, "publish", publish)
            with BlockCache(tmp_path, 3 * (BLOCK + HEADER)) as other:
                for number in range(5):
                    other.put(f"{number}", block(number))
                seen.append(sum(other.get(f"{number}") is not None for number in range(5)))
            return publish(folder, *arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(CacheFolder, "publish", look_first)
        cache.put("slow", block(9))
        assert cache.get("slow") == block(9)
        assert seen == [2]  # the bytes of the one under way were set aside
