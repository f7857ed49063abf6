"""Locations on a local disk and in memory."""

from __future__ import annotations

import pickle
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from stoker.errors import StorageError
from stoker.storage import Conflict, Location, locate
from stoker.storage.retry import BadBody


@pytest.fixture(params=["local", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    return locate(tmp_path / "data" if request.param == "local" else f"memory://{uuid.uuid4().hex}")


def test_what_was_written_is_read(place: Location) -> None:
    (place / "a" / "b.bin").write(b"0123456789")
    assert (place / "a/b.bin").read() == b"0123456789"
    assert (place / "a/b.bin").read_range(2, 5) == b"234"
    assert (place / "a/b.bin").size() == 10
    assert (place / "a/b.bin").exists()


def test_writing_again_replaces(place: Location) -> None:
    (place / "a").write(b"long long long")
    (place / "a").write(b"short")
    assert (place / "a").read() == b"short"


def test_an_absent_object_is_not_found(place: Location) -> None:
    with pytest.raises(FileNotFoundError):
        (place / "absent").read()
    assert not (place / "absent").exists()
    assert (place / "absent").version() is None
    assert place.children() == []
    assert list(place.walk()) == []


def test_a_prefix_is_no_object(place: Location) -> None:
    (place / "a" / "b").write(b"x")
    assert not (place / "a").exists()


def test_listing_is_sorted_and_leaves_out_hidden_names(place: Location) -> None:
    for name in ("b", "a", "c/d", ".hidden", "c/.hidden/e"):
        (place / name).write(b"xy")
    assert place.children() == ["a", "b", "c"]
    assert list(place.walk()) == [("a", 2), ("b", 2), ("c/d", 2)]


def test_a_range_past_the_end_is_a_failed_read(place: Location) -> None:
    (place / "a").write(b"0123456789")
    with pytest.raises(StorageError, match=r"cannot read .*a: no valid response.*asked for bytes 5 to 20"):
        (place / "a").with_timeout(0.2).read_range(5, 20)


def test_bytes_that_fail_their_check_are_read_again(place: Location) -> None:
    (place / "a").write(b"data")
    seen: list[bytes] = []

    def fail_twice(data: bytes) -> None:
        seen.append(data)
        if len(seen) < 3:
            raise BadBody("checksum differs")

    assert (place / "a").read(fail_twice) == b"data"
    assert len(seen) == 3


def test_create_refuses_to_overwrite_and_accepts_its_own_bytes(place: Location) -> None:
    (place / "a").create(b"first")
    with pytest.raises(Conflict, match="a exists already"):
        (place / "a").create(b"second")
    (place / "a").create(b"first")
    assert (place / "a").read() == b"first"


def test_swap_needs_the_version_that_is_there(place: Location) -> None:
    (place / "a").swap(b"one", None)
    found = (place / "a").version()
    assert found is not None
    (place / "a").swap(b"two", found[1])
    with pytest.raises(Conflict, match="changed by another writer"):
        (place / "a").swap(b"three", found[1])
    assert (place / "a").read() == b"two"


def test_deleting_takes_everything_below_and_nothing_is_no_error(place: Location) -> None:
    (place / "a" / "b").write(b"x")
    (place / "ab").write(b"x")
    (place / "a").delete()
    (place / "absent").delete()
    assert place.children() == ["ab"]


def test_one_of_many_local_creators_wins(tmp_path: Path) -> None:
    together = threading.Barrier(8)

    def create(number: int) -> bool:
        together.wait()
        try:
            locate(tmp_path / "a").create(f"writer {number}".encode())
        except Conflict:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(create, range(8)))
    assert won.count(True) == 1
    assert (tmp_path / "a").read_text() == f"writer {won.index(True)}"


def test_a_write_that_fails_leaves_what_was(tmp_path: Path) -> None:
    place = locate(tmp_path / "a")
    place.write(b"before")
    with pytest.raises(StorageError, match="cannot write"):
        place.write("no bytes")  # type: ignore[arg-type]
    assert place.read() == b"before"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


def test_a_location_travels_without_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret")
    place = locate("s3://bucket/prefix")
    sent = pickle.dumps(place)
    assert b"very-secret" not in sent
    assert pickle.loads(sent) == place


def test_an_unknown_protocol_is_refused_at_once() -> None:
    with pytest.raises(StorageError, match="cannot read nonsense:// URLs: unknown protocol; use s3://"):
        locate("nonsense://bucket/data")


def test_other_credentials_in_the_environment_make_another_filesystem(monkeypatch: pytest.MonkeyPatch) -> None:
    place = locate("s3://bucket")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "one")
    first = place.filesystem
    assert place.filesystem is first
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "two")
    assert place.filesystem is not first


def test_urls_of_files_are_absolute_paths_and_memory_stays_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert locate("file://data/x").url == str(tmp_path / "data" / "x")
    assert locate("file://localhost/tmp/x").url == "/tmp/x"
    assert locate("file:///tmp/x/").url == "/tmp/x"
    assert not locate("memory://").is_local
    assert (locate("memory://") / "a").url == "memory://a"
