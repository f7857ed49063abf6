"""The folder of the node's block cache: a full disk, permissions, links and damaged records."""

from __future__ import annotations

import logging
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from blocks import BLOCK, HEADER, block, run_python, stored_files
from stoker.storage import BlockCache
from stoker.storage.cache_folder import CacheFolder


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[BlockCache]:
    with BlockCache(tmp_path, 5 * (BLOCK + HEADER)) as made:
        yield made


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], capture_output=True, check=False
    )
    if done.returncode != 0:
        pytest.skip("only root may mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_full_disk_keeps_no_more_blocks_and_says_so_once(small_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    with BlockCache(small_disk, 2**30) as cache:
        for number in range(50):
            cache.put(f"{number}", block(number))
        held = sum(cache.get(f"{number}") == block(number) for number in range(50))
        assert 5 < held == cache.counters.stored < 50
        assert cache.counters.refused == 50 - held
    (said,) = warnings_of(caplog)
    assert "stores no more blocks" in said
    assert "the disk is full" in said
    assert stored_files(small_disk, ".new") == []


LIMITED = """
import resource, sys
from stoker.storage import BlockCache
from stoker.storage.cache_folder import CacheFolder
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
with BlockCache(sys.argv[1], 2**30) as cache:
    cache.put("small", b"x" * 10_000)
    cache.put("large", b"x" * 100_000)
    print(cache.get("small") is not None, cache.get("large"), cache.counters.refused)
"""


def test_a_write_that_the_system_refuses_keeps_no_more_blocks(tmp_path: Path) -> None:
    process = run_python(LIMITED, tmp_path)
    said, _ = process.communicate(timeout=60)
    assert said == "True None 1\n"
    assert stored_files(tmp_path, ".new") == []


def test_a_folder_that_cannot_be_made_is_no_cache(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    with BlockCache(tmp_path / "file", 2**30) as cache:
        cache.put("a", block(1))
        assert cache.get("a") is None
    assert len(warnings_of(caplog)) == 1


def test_only_this_user_can_read_the_blocks(cache: BlockCache, tmp_path: Path) -> None:
    cache.put("a", block(1))
    assert stat.S_IMODE((tmp_path / "stoker-blocks").stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "stoker-blocks").iterdir()} == {0o600}


def test_links_are_not_followed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "stoker-blocks").symlink_to(elsewhere)
    with BlockCache(tmp_path / "cache", 2**30) as cache:
        cache.put("a", block(1))
    assert list(elsewhere.iterdir()) == []
    assert "not a folder of this user" in warnings_of(caplog)[0]


def test_a_link_in_place_of_a_block_is_a_miss(cache: BlockCache, tmp_path: Path) -> None:
    cache.put("a", block(1))
    (path,) = stored_files(tmp_path)
    os.replace(path, tmp_path / "moved")
    path.symlink_to(tmp_path / "moved")
    assert cache.get("a") is None


def test_a_usage_record_that_is_nonsense_is_counted_anew(tmp_path: Path) -> None:
    with BlockCache(tmp_path, 3 * (BLOCK + HEADER)) as cache:
        cache.put("0", block(0))
        (tmp_path / "stoker-blocks" / "usage").write_bytes(b"nonsense")
        for number in range(1, 5):
            cache.put(f"{number}", block(number))
        assert sum(cache.get(f"{number}") is not None for number in range(5)) == 3


def test_a_bound_of_nothing_keeps_nothing_and_says_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with BlockCache(tmp_path, 0) as cache:
        cache.put("a", block(1))
        assert cache.get("a") is None
    assert warnings_of(caplog) == []


def test_a_block_that_two_write_at_once_is_kept_and_counted_once(tmp_path: Path) -> None:
    folders = [CacheFolder(tmp_path, 1000) for _ in range(2)]
    begun = [folder.begin("block", 300) for folder in folders]
    published = []
    for folder, made in zip(folders, begun, strict=True):
        assert made is not None
        os.close(made[0])
        published.append(folder.publish(made[1], "block", 300))
    assert published == [True, False]
    assert os.listdir(folders[0].path).count("block.block") == 1
    assert list(tmp_path.glob("*.new")) == []
    assert folders[0].begin("other", 700) is not None, "300 bytes are used, not 600"
    for folder in folders:
        folder.close()
