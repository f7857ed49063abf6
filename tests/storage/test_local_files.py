"""Files on a local disk: who may read them, what is left of a killed writer, and what a full disk says."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from stoker.errors import StorageError
from stoker.storage import local as local_files
from stoker.storage import locate
from stoker.storage.retry import BadBody
from stoker.storage.uploads import write_pieces

WRITERS: dict[str, Callable[[str], object]] = {
    "write": lambda url: locate(url).write(b"data"),
    "create": lambda url: locate(url).create(b"data"),
    "swap": lambda url: locate(url).swap(b"data", None),
    "write_pieces": lambda url: write_pieces(locate(url), lambda: [b"da", b"ta"]),
}


@contextlib.contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize(
    ("mask", "file", "folder"), [(0o022, 0o644, 0o755), (0o002, 0o664, 0o775), (0o077, 0o600, 0o700)]
)
def test_permissions_follow_the_umask(tmp_path: Path, writer: str, mask: int, file: int, folder: int) -> None:
    with umask(mask):
        WRITERS[writer](str(tmp_path / "a/b/data"))
    assert (tmp_path / "a/b/data").read_bytes() == b"data"
    assert (tmp_path / "a/b/data").stat().st_mode & 0o777 == file
    assert (tmp_path / "a").stat().st_mode & 0o777 == folder
    assert os.listdir(tmp_path / "a/b") == ["data"]


@pytest.mark.parametrize("writer", WRITERS)
def test_content_is_on_the_disk_before_it_is_visible_and_its_name_before_the_call_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: str
) -> None:
    done: list[str] = []
    fsync, replace, link = os.fsync, os.replace, os.link

    def synced(handle: int) -> None:
        done.append("folder" if os.path.isdir(f"/proc/self/fd/{handle}") else "file")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", lambda *names: (done.append("visible"), replace(*names)))
    monkeypatch.setattr(os, "link", lambda *names: (done.append("visible"), link(*names)))
    WRITERS[writer](str(tmp_path / "data"))
    assert done == ["file", "visible", "folder"]


def test_a_new_folder_is_on_the_disk_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr(local_files, "_sync_folder", lambda folder: synced.append(str(folder)))
    local_files.write_file(tmp_path / "a/b/data", b"")
    assert synced == [str(tmp_path), str(tmp_path / "a"), str(tmp_path / "a/b")]


KILLED = """
import os, signal, sys
from pathlib import Path
from stoker.storage.local import publishing
with publishing(Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    if sys.argv[2] == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    print("writing", flush=True)
    sys.stdin.read()
"""


def writer(path: Path, does: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path), does], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def make_old(folder: Path) -> list[Path]:
    left = list(folder.glob(".*.new"))
    for path in left:
        os.utime(path, (0, time.time() - 3600))
    return left


def test_what_a_killed_writer_left_is_removed_by_a_later_one_and_never_a_live_ones(tmp_path: Path) -> None:
    assert writer(tmp_path / "data", "dies").wait(60) == -9
    live = writer(tmp_path / "other", "waits")
    assert live.stdout is not None
    assert live.stdout.readline() == "writing\n"
    assert len(make_old(tmp_path)) == 2
    local_files.write_file(tmp_path / "third", b"")
    assert [path.name.split(".")[1] for path in tmp_path.glob(".*.new")] == ["other"]
    live.communicate("", 60)
    assert (tmp_path / "other").read_bytes() == b"half"
    assert not list(tmp_path.glob(".*"))


def test_a_file_that_a_writer_has_just_made_is_not_removed(tmp_path: Path) -> None:
    young = tmp_path / ".data.0123.new"
    young.write_bytes(b"not yet locked")
    local_files.write_file(tmp_path / "data", b"")
    assert young.exists()


def test_a_name_as_long_as_a_filesystem_allows_is_written(tmp_path: Path) -> None:
    for name in ("x" * 255, "ñ" * 127, "漢" * 85):
        local_files.write_file(tmp_path / name, b"data")
    assert len(os.listdir(tmp_path)) == 3


def test_a_filesystem_without_fsync_is_written_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", fail)
    local_files.write_file(tmp_path / "data", b"data")
    assert (tmp_path / "data").read_bytes() == b"data"


@pytest.mark.parametrize("is_new", [True, False])
def test_a_writer_that_fails_leaves_what_was_there(tmp_path: Path, is_new: bool) -> None:
    (tmp_path / "data").write_bytes(b"before")

    def write_half() -> None:
        with local_files.publishing(tmp_path / "data", is_new=is_new) as file:
            file.write(b"half")
            raise KeyError

    with pytest.raises(KeyError):
        write_half()
    assert (tmp_path / "data").read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["data"]


def mounted(folder: Path, options: str) -> Iterator[Path]:
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot mount here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    yield from mounted(tmp_path / "small", "size=64k")


@pytest.fixture
def read_only_disk(tmp_path: Path) -> Iterator[Path]:
    yield from mounted(tmp_path / "fixed", "ro")


@pytest.mark.parametrize("writer", ["write", "create", "write_pieces"])
def test_a_full_disk_is_said_at_once_with_the_path(small_disk: Path, writer: str) -> None:
    place, data = locate(small_disk / "data", timeout_s=600), b"x" * 2**20
    writes = {"write": place.write, "create": place.create, "write_pieces": lambda d: write_pieces(place, lambda: [d])}
    with pytest.raises(StorageError, match=r"small/data \(No space left on device: .*small/\S+\); free space there"):
        writes[writer](data)
    assert os.listdir(small_disk) == []


def test_a_read_only_disk_is_said_at_once_with_the_path(read_only_disk: Path) -> None:
    with pytest.raises(StorageError, match=r"fixed/a/data \(Read-only file system: .*fixed/\S+\); it is read-only"):
        locate(read_only_disk / "a/data", timeout_s=600).write(b"")


@pytest.mark.parametrize("number", [errno.EDQUOT, errno.EFBIG, errno.ENAMETOOLONG, errno.ENOSPC, errno.EROFS])
def test_no_write_that_cannot_succeed_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    tries: list[int] = []

    def fail(handle: int) -> None:
        tries.append(handle)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError, match="or choose another place"):
        locate(tmp_path / "data", timeout_s=600).write(b"")
    assert len(tries) == 1


def test_a_file_where_a_folder_should_be_is_said(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    for writer in WRITERS.values():
        with pytest.raises(StorageError, match=r"a file is where a folder should be: '.*/a'"):
            writer(str(tmp_path / "a/b/data"))


def test_an_error_of_the_writers_own_keeps_its_words(tmp_path: Path) -> None:
    with pytest.raises(BadBody, match=r"^the checksum differs$"), local_files.publishing(tmp_path / "data"):
        raise BadBody("the checksum differs")
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_be_written_and_not_read_is_written(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir(0o300)
    locate(tmp_path / "in/data").write(b"data")
    (tmp_path / "in").chmod(0o700)
    assert (tmp_path / "in/data").read_bytes() == b"data"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_cannot_be_listed_is_no_empty_one(tmp_path: Path) -> None:
    (tmp_path / "in/a").mkdir(parents=True)
    (tmp_path / "in/a").chmod(0)
    with pytest.raises(StorageError, match="not permitted to list"):
        list(locate(tmp_path / "in").walk())
    (tmp_path / "in/a").chmod(0o700)


def test_where_files_cannot_be_locked_age_alone_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = tmp_path / ".data.0123456789ab.new"
    left.write_bytes(b"")
    os.utime(left, (time.time() - 3600,) * 2)

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(local_files.fcntl, "flock", refuse)
    locate(tmp_path / "data").write(b"data")
    assert os.listdir(tmp_path) == ["data"]


def test_a_hidden_file_of_somebody_elses_is_left_alone(tmp_path: Path) -> None:
    theirs = [".env.new", ".data.new", ".data.0123456789AB.new", ".data.0123456789abc.new", "data.0123456789ab.new"]
    for name in theirs:
        (tmp_path / name).write_bytes(b"theirs")
        os.utime(tmp_path / name, (0, 0))
    (tmp_path / ".two\nlines.0123456789ab.new").write_bytes(b"")
    os.utime(tmp_path / ".two\nlines.0123456789ab.new", (0, 0))
    locate(tmp_path / "data").write(b"data")
    assert sorted(os.listdir(tmp_path)) == sorted([*theirs, "data"])
