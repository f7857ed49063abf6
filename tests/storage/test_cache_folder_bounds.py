"""The record of a cache folder's usage is the truth after each event, and what is left behind is found."""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from stoker.storage.cache_folder import CacheFolder

RECORD = struct.Struct("<8sq")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[CacheFolder]:
    made = CacheFolder(tmp_path / "a" / "b" / "blocks", 1000)
    yield made
    made.close()


def usage(folder: CacheFolder) -> int:
    return RECORD.unpack((folder.path / "usage").read_bytes())[1]


def record(folder: CacheFolder, magic: bytes, total: int) -> None:
    (folder.path / "usage").write_bytes(RECORD.pack(magic, total))


def store(folder: CacheFolder, name: str, size: int, used_s: int | None = None) -> Path:
    file, path, _ = folder.begin(name, size) or (0, "", 0)
    os.close(file)
    assert folder.publish(path, name, size)
    block = Path(folder.block(name))
    if used_s is not None:
        os.utime(block, (used_s, used_s))
    return block


def names(folder: CacheFolder) -> set[str]:
    return {path.name for path in folder.path.iterdir()} - {"usage", "users"}


def test_a_block_under_way_has_its_bytes_on_the_disk_and_in_the_record(folder: CacheFolder) -> None:
    begun = folder.begin("a", 300)
    assert begun is not None
    assert (os.fstat(begun[0]).st_size, usage(folder)) == (300, 300)
    os.close(begun[0])


def test_of_two_writers_of_a_block_the_slower_leaves_no_file_and_no_bytes(folder: CacheFolder) -> None:
    begun = [folder.begin("a", 300) for _ in range(2)]
    assert usage(folder) == 600
    for made in begun:
        assert made is not None
        os.close(made[0])
    assert [folder.publish(made[1], "a", 300) for made in begun if made] == [True, False]
    assert (names(folder), usage(folder)) == ({"a.block"}, 300)
    assert folder.begin("a", 300) is None


def test_removing_gives_the_bytes_back_once_and_never_more_than_there_are(folder: CacheFolder) -> None:
    path = str(store(folder, "a", 300))
    store(folder, "b", 200)
    folder.remove(path, 300)
    assert usage(folder) == 200
    folder.remove(path, 300)
    assert usage(folder) == 200, "it was not there any more"
    folder.remove(folder.block("b"), 900)
    assert usage(folder) == 0


@pytest.mark.parametrize(("magic", "total"), [(b"stoker99", 10**15), (b"stoker99", 0), (b"stoker01", -(10**15))])
def test_a_record_of_others_is_counted_anew(folder: CacheFolder, magic: bytes, total: int) -> None:
    store(folder, "a", 300)
    record(folder, magic, total)
    store(folder, "b", 700)
    assert usage(folder) == 1000
    with pytest.raises(BufferError):
        folder.begin("c", 1)


def test_a_record_that_says_too_much_is_set_right_even_where_there_is_no_room(folder: CacheFolder) -> None:
    store(folder, "a", 600)
    record(folder, b"stoker01", 999)
    with pytest.raises(BufferError):
        folder.begin("b", 500)
    assert usage(folder) == 600


def test_nothing_is_evicted_where_the_room_is_just_enough(folder: CacheFolder) -> None:
    store(folder, "old", 600, used_s=1)
    (folder.path / "usage").write_bytes(b"")
    store(folder, "new", 400)
    assert (names(folder), usage(folder)) == ({"old.block", "new.block"}, 1000)


def test_one_byte_too_few_evicts_what_was_unused_for_longest(folder: CacheFolder) -> None:
    for number, name in enumerate(("c", "a", "b")):
        store(folder, name, 300, used_s=number + 1)
    begun = folder.begin("new", 101)
    assert begun is not None
    os.close(begun[0])
    assert begun[2] == 1
    assert {"a.block", "b.block"} <= names(folder)
    assert "c.block" not in names(folder)
    assert usage(folder) == 701


def test_a_block_under_way_is_never_evicted(folder: CacheFolder) -> None:
    begun = folder.begin("slow", 900)
    assert begun is not None
    os.utime(begun[1], (1, 1))
    with pytest.raises(BufferError):
        folder.begin("new", 200)
    assert Path(begun[1]).exists()
    os.close(begun[0])


def test_all_that_dead_writers_left_is_removed_and_links_are_too(folder: CacheFolder, tmp_path: Path) -> None:
    store(folder, "a", 300)
    for number in range(5):
        (folder.path / f"{number}.dead.new").write_bytes(b"x" * 50)
    (folder.path / "dangling.new").symlink_to(tmp_path / "nowhere")
    (folder.path / "link.new").symlink_to(tmp_path)
    record(folder, b"nonsense", 0)
    store(folder, "b", 700)
    assert (names(folder), usage(folder)) == ({"a.block", "b.block"}, 1000)
    assert tmp_path.is_dir()


def test_the_record_is_locked_while_it_is_changed_and_free_afterwards(folder: CacheFolder) -> None:
    with open(folder.path / "usage", "rb") as other:
        with folder._locked(), pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_second_user_begins_no_period_and_the_next_after_both_does(tmp_path: Path) -> None:
    first = CacheFolder(tmp_path, 1000)
    store(first, "a", 300)
    os.utime(tmp_path / "users", ns=(0, 5 * 10**9))
    record(first, b"stoker01", 777)
    second = CacheFolder(tmp_path, 1000)
    assert (second.since_ns, usage(second)) == (5 * 10**9, 777)
    first.close()
    second.close()
    third = CacheFolder(tmp_path, 1000)
    assert third.since_ns > 5 * 10**9
    assert usage(third) == 300
    third.close()
