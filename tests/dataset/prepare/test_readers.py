"""Readers of samples: which bytes an entry stands for, and what is said of a file that is gone."""

from pathlib import Path

import pytest

from stoker.dataset.prepare import Entry
from stoker.dataset.prepare.sources import Reader
from stoker.dataset.prepare.sources.readers import ArchiveReader, FileReader, ListedFileReader, resolve
from stoker.errors import DatasetError, StorageError
from stoker.storage import Location, locate


def entry(path: str, size: int = 4, offset: int = 0) -> Entry:
    return Entry("key", 0, path, size, 0, offset)


def test_each_reader_reads_the_bytes_that_an_entry_names(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "1.jpg").write_bytes(b"0123456789")
    here = locate(tmp_path)
    assert FileReader(here).read(entry("cat/1.jpg")) == b"0123456789"
    assert ListedFileReader(here / "lists").read(entry("../cat/1.jpg")) == b"0123456789"
    assert ListedFileReader(here / "lists").read(entry(str(tmp_path / "cat/1.jpg"))) == b"0123456789"
    assert ArchiveReader(here).read(entry("cat/1.jpg#member.jpg", 4, 3)) == b"3456"


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (FileReader, r"all must see the source \(or give --local\), and broken links must be removed$"),
        (ListedFileReader, r"all must see the files of the list \(or give --local\)$"),
        (ArchiveReader, r"all must see the archives \(or give --local\)$"),
    ],
)
def test_a_file_that_is_gone_is_named_with_who_must_see_it(
    kind: type[FileReader | ListedFileReader | ArchiveReader], words: str, tmp_path: Path
) -> None:
    with pytest.raises(DatasetError, match=rf"{tmp_path}/gone\.tar: listed a moment ago but not there now; .*{words}"):
        kind(locate(tmp_path)).read(entry("gone.tar"))


@pytest.mark.parametrize(
    ("folder", "path", "found"),
    [
        ("/data/lists", "1.jpg", "/data/lists/1.jpg"),
        ("/data/lists", "../1.jpg", "/data/1.jpg"),
        ("/data/lists", "/elsewhere/1.jpg", "/elsewhere/1.jpg"),
        ("memory://bucket/lists/deep", "../../1.jpg", "memory://bucket/1.jpg"),
        ("memory://bucket/lists", "memory://other/1.jpg", "memory://other/1.jpg"),
    ],
)
def test_a_path_is_relative_to_the_list_or_absolute(folder: str, path: str, found: str) -> None:
    assert resolve(Location(folder, 7.0), path) == Location(found, 7.0)


def test_a_path_does_not_leave_its_bucket() -> None:
    with pytest.raises(StorageError, match="leads out of the bucket of the list"):
        resolve(Location("memory://bucket/lists"), "../../../1.jpg")


@pytest.mark.parametrize("kind", [FileReader, ListedFileReader, ArchiveReader])
def test_a_reader_takes_another_timeout(kind: type[FileReader | ListedFileReader | ArchiveReader]) -> None:
    reader: Reader = kind(Location("memory://bucket", 60.0))
    assert reader.with_timeout(3.0) == kind(Location("memory://bucket", 3.0))
