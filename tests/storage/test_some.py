"""A look at the first objects of a prefix: right on each kind of store, and as cheap where a billion objects are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import Store
from stoker.storage import Location, locate


def fill(root: Location) -> None:
    for name in ("a.txt", "folder/b.txt", "folder/deep/c.txt", ".hidden", ".cache/d.txt", "folder/.e"):
        (root / name).write(b"x")


def looks_right(root: Location) -> None:
    assert root.some(10) == []
    (root / ".hidden").write(b"x")
    assert root.some(10) == []
    fill(root)
    everything = ["a.txt", "folder/b.txt", "folder/deep/c.txt"]
    assert sorted(root.some(10)) == everything
    assert sorted(root.some(3)) == everything
    assert len(root.some(2)) == 2
    assert set(root.some(2)) < set(everything)
    assert (root / "a.txt").some(10) == []
    (root / "a.txt").delete()
    (root / "folder").delete()
    assert root.some(10) == []


def test_files_below_a_local_folder_are_named_and_hidden_ones_are_not(tmp_path: Path) -> None:
    looks_right(locate(tmp_path / "data"))


def test_empty_folders_are_no_objects_and_links_are(tmp_path: Path) -> None:
    (tmp_path / "data" / "empty" / "below").mkdir(parents=True)
    assert locate(tmp_path / "data").some(10) == []
    (tmp_path / "data" / "loop").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "gone").symlink_to(tmp_path / "nowhere")
    assert sorted(locate(tmp_path / "data").some(10)) == ["gone", "loop"]


def test_a_filesystem_without_a_way_of_its_own_is_walked() -> None:
    root = locate("memory://some-objects")
    try:
        looks_right(root)
    finally:
        root.delete()


@pytest.mark.store
def test_objects_on_the_store_are_named_and_deleted_ones_are_not(store: Store) -> None:
    looks_right(locate(store.fresh("some")))


@pytest.mark.store
def test_a_bucket_that_does_not_exist_holds_nothing(store: Store) -> None:
    assert store.fresh("bucket")  # the store's address is in the environment
    assert locate("s3://no-such-bucket-at-all/data").some(10) == []


class Bucket:
    """A bucket of a billion objects, the first ``hidden`` of which are hidden; counts what it names."""

    def __init__(self, hidden: int = 0) -> None:
        self.hidden, self.named, self.requests = hidden, 0, 0

    def list_objects_v2(self, method: str, **request: Any) -> dict[str, Any]:
        assert method == "list_objects_v2"
        assert (request["Bucket"], request["Prefix"]) == ("bucket", "data/")
        self.requests += 1
        first = int(request.get("ContinuationToken", 0))
        keys = range(first, min(first + request["MaxKeys"], 10**9))
        self.named += len(keys)
        found = [{"Key": f"data/{'.' if n < self.hidden else ''}{n:09d}.jpg"} for n in keys]
        return {"Contents": found, "IsTruncated": True, "NextContinuationToken": str(keys.stop)}


@pytest.mark.parametrize(("hidden", "requests"), [(0, 1), (3, 1), (2500, 3)])
def test_of_a_billion_objects_only_the_first_are_listed(
    hidden: int, requests: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    bucket, root = Bucket(hidden), locate("s3://bucket/data")
    monkeypatch.setattr(root.filesystem, "call_s3", bucket.list_objects_v2)
    assert root.some(4) == [f"{n:09d}.jpg" for n in range(hidden, hidden + 4)]
    assert (bucket.requests, bucket.named) == (requests, 1000 * requests)


def test_of_a_large_local_folder_only_the_first_entries_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(500):
        (tmp_path / f"{number}.jpg").touch()
    read, scandir = [0], os.scandir

    class Counted:
        def __init__(self, path: str) -> None:
            self._entries = scandir(path)

        def __enter__(self) -> Iterator[os.DirEntry[str]]:
            return self._counted()

        def __exit__(self, *_: object) -> None:
            self._entries.close()

        def _counted(self) -> Iterator[os.DirEntry[str]]:
            for entry in self._entries:
                read[0] += 1
                yield entry

    monkeypatch.setattr(os, "scandir", Counted)
    assert len(locate(tmp_path).some(5)) == 5
    assert read[0] == 5
