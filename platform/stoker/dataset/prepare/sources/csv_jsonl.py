"""Read a list of images with their labels: CSV with a header line, or JSON lines.

``path`` (or url) and ``label`` are needed, ``split`` if the list has one. Paths are relative to the list; absolute
ones and URLs are used unchanged. Missing files are strays, as are lines without a path or label.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import posixpath
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import xxhash

from stoker.dataset.prepare.borders import parsing
from stoker.dataset.prepare.entries import Listing
from stoker.dataset.prepare.plan import Options
from stoker.dataset.prepare.sources.base import Source, split_name
from stoker.dataset.prepare.sources.columns import LABEL_COLUMNS, choose_column, class_names, label_text
from stoker.dataset.prepare.sources.files import FileStats, files_in, stamp_of
from stoker.dataset.prepare.sources.readers import ListedFileReader, resolve
from stoker.errors import DatasetError
from stoker.storage import Location
from stoker.storage.range_file import RangeFile
from stoker.storage.retry import call_with_retries

__all__ = ["is_list", "open_list"]

_SUFFIXES = (".csv", ".jsonl", ".ndjson")
_PATH_COLUMNS = ("path", "file", "filename", "file_name", "image", "image_path", "url", "image_url")
_LISTERS = 16
_TYPICAL_BYTES = 100_000
_LONGEST_LINE = 1 << 24
"""characters: a file without line ends is not read whole"""
"""assumed of an image on a web server that does not report its size"""

_Columns = tuple["array[int]", "array[int]", "array[int]"]


def is_list(url: str) -> bool:
    """Whether the name is that of a list, by its suffix."""
    return url.endswith(_SUFFIXES)


def open_list(location: Location, options: Options) -> Source:
    """Read the list and check that each file exists.

    Raises:
        DatasetError: the list is missing, lacks a column, or no line of it names an image that exists.
        StorageError: the list, or a place that it names, cannot be read.
    """
    rows = _Rows(location, options)
    files = _Files(rows.folder)
    files.look(rows)
    labels: set[str] = set()
    for _, path, label, _ in rows:
        if files.at(path) is not None:
            labels.add(label)
    if not labels:
        first = next((f"; {path}: {why}" for path, why in rows.strays), "")
        raise DatasetError(f"no images at {location}: no line of the list names a file that exists{first}")
    classes, number_of = class_names(labels, where=location.url, option="--label-column")
    listings: dict[str, Listing] = defaultdict(Listing)
    hashes: dict[str, array[int]] = defaultdict(lambda: array("Q"))
    strays: list[tuple[str, str]] = []
    for line, path, label, split in rows:
        found = files.at(path)
        if found is None:
            strays.append((path, f"no such file, although line {line} of the list names it"))
        else:
            listings[split].add(path, number_of[label], *found)
            hashes[split].append(_hash(path))
    strays += rows.strays
    splits = {}
    for split in ("train", "validation", "test"):
        if split in listings:
            entries = listings[split].entries()
            _, once = np.unique(np.array(hashes[split], np.uint64), return_index=True)
            is_first = np.zeros(len(entries), np.bool_)
            is_first[once] = True
            again = np.flatnonzero(~is_first).tolist()
            strays += [(entries.path(row), "the list names it more than once") for row in again]
            splits[split] = entries.take(is_first)
    return Source(
        location.url, classes, splits, ListedFileReader(rows.folder), tuple(strays), places=tuple(files.folders)
    )


class _Rows:
    """(line, path, label, split) of each valid line; each iteration reads the list again, so it is never in memory.

    ``strays`` are the other lines, known after an iteration.
    """

    def __init__(self, location: Location, options: Options) -> None:
        self.location = location
        self.folder = replace(location, url=location.url.rpartition("/")[0])
        self.strays: list[tuple[str, str]] = []
        try:
            self._size = location.size()
        except FileNotFoundError:
            raise DatasetError(f"no list at {location}: the file does not exist; check the path or URL") from None
        first = next(self._dicts(), None)
        if first is None or not isinstance(first[1], dict):
            raise DatasetError(
                f"{location} is not a valid list: it has no line with columns; see docs/how-to/prepare-sources.md"
            )
        columns = [str(name) for name in first[1] if name is not None]
        self._path = choose_column(
            columns,
            options.image_column,
            _PATH_COLUMNS,
            option="--image-column",
            purpose="names files",
            where=location.url,
        )
        self._label = choose_column(
            columns,
            options.label_column,
            LABEL_COLUMNS,
            option="--label-column",
            purpose="holds labels",
            where=location.url,
        )

        self._split = next((name for name in columns if name.strip().lower() == "split"), "split")

    def __iter__(self) -> Iterator[tuple[int, str, str, str]]:
        self.strays = []
        for line, row in self._dicts():
            good, why = self._row(row)
            if good is None:
                self.strays.append((f"line {line}", why))
            else:
                yield line, *good

    def _row(self, row: object) -> tuple[tuple[str, str, str] | None, str]:
        if not isinstance(row, dict):
            return None, "not a JSON object"
        path, label = row.get(self._path), label_text(row.get(self._label))
        if not isinstance(path, str) or not path.strip():
            return None, f"no {self._path}"
        if not _may_be_a_path(path):
            return None, f"{self._path} {path[:60]!r} is no name of a file"
        if label is None:
            return None, f"no {self._label} that is a number or a name"
        said = row.get(self._split) or "train"
        split = split_name(str(said))
        if split is None:
            return None, f"split {said!r} is none of train, validation, test"
        return (_clean(path.strip()), label, split), ""

    def _dicts(self) -> Iterator[tuple[int, object]]:
        raw = io.BufferedReader(RangeFile(self.location, self._size), 1 << 20)
        with (
            io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as text,
            parsing(self.location, "cannot be read as a list in UTF-8", "save it as UTF-8"),
        ):
            lines = _lines(text, self.location)
            yield from _csv(lines) if self.location.url.lower().endswith(".csv") else _json_lines(lines)


def _lines(text: io.TextIOWrapper, where: Location) -> Iterator[str]:
    for number in itertools.count(1):
        line = text.readline(_LONGEST_LINE)
        if not line:
            return
        if len(line) == _LONGEST_LINE:
            raise DatasetError(
                f"{where}: line {number} has {_LONGEST_LINE:,} characters and more, which no line of a list has; give "
                "a CSV or JSON lines file"
            )
        yield line


def _csv(text: Iterable[str]) -> Iterator[tuple[int, object]]:
    reader = csv.DictReader(text, skipinitialspace=True)
    for row in reader:
        yield reader.line_num, row


def _json_lines(text: Iterable[str]) -> Iterator[tuple[int, object]]:
    for number, line in enumerate(text, start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except Exception:  # RecursionError, for one
                row = None
            yield number, row


class _Files:
    """The listed files that exist: each folder is listed once; of web servers each file is requested.

    24 bytes a file are kept: hashes of its path and stamp, and its size.
    """

    def __init__(self, folder: Location) -> None:
        self._folder = folder
        self._hashes = np.empty(0, np.uint64)
        self._sizes = np.empty(0, np.int64)
        self._stamps = np.empty(0, np.uint64)
        self.folders: list[str] = []
        """URLs of the folders that were listed"""

    def look(self, rows: _Rows) -> None:
        folders: set[str] = set()
        asked: set[str] = set()
        for _, path, _, _ in rows:
            if resolve(self._folder, path).url.startswith(("http://", "https://")):
                asked.add(path)
            else:
                folders.add(path[: path.rfind("/") + 1])
        self.folders = sorted(self._at(folder).url for folder in folders)
        hashes, sizes, stamps = array("Q"), array("q"), array("Q")
        with ThreadPoolExecutor(_LISTERS, thread_name_prefix="stoker-list") as pool:
            for found in itertools.chain(pool.map(self._list, sorted(folders)), pool.map(self._ask, sorted(asked))):
                hashes.extend(found[0])
                sizes.extend(found[1])
                stamps.extend(found[2])
        order = np.argsort(np.frombuffer(hashes, np.uint64), kind="stable")
        self._hashes = np.frombuffer(hashes, np.uint64)[order]
        self._sizes = np.frombuffer(sizes, np.int64)[order]
        self._stamps = np.frombuffer(stamps, np.uint64)[order]

    def at(self, path: str) -> tuple[int, str] | None:
        """(bytes, stamp) of the file, or None if it does not exist."""
        wanted = np.uint64(_hash(path))
        row = int(np.searchsorted(self._hashes, wanted))
        if row == len(self._hashes) or self._hashes[row] != wanted:
            return None
        return int(self._sizes[row]), str(self._stamps[row])

    def _list(self, folder: str) -> _Columns:
        return _found({f"{folder}{name}": at for name, at in files_in(self._at(folder))[0].items()})

    def _at(self, folder: str) -> Location:
        return resolve(self._folder, folder.rstrip("/") or "/") if folder else self._folder

    def _ask(self, path: str) -> _Columns:
        where = resolve(self._folder, path)

        def once() -> dict[str, Any]:
            return dict(where.filesystem.info(where.path))

        try:
            info = call_with_retries(once, what="look at", url=where.url, timeout_s=where.timeout_s)
        except FileNotFoundError:
            return _found({})
        return _found({path: (int(info.get("size") or _TYPICAL_BYTES), stamp_of(info))})


def _found(files: FileStats) -> _Columns:
    """Hashes of the paths, sizes in bytes, hashes of the stamps."""
    hashes = array("Q", (_hash(path) for path in files))
    return hashes, array("q", (size for size, _ in files.values())), array("Q", (_hash(s) for _, s in files.values()))


def _hash(text: str) -> int:
    return xxhash.xxh3_64_intdigest(text.encode(errors="surrogateescape"))


def _may_be_a_path(path: str) -> bool:
    try:
        return b"\0" not in path.encode(errors="surrogateescape")
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can hold
        return False


def _clean(path: str) -> str:
    if "://" in path:
        return path
    return posixpath.normpath(path)
