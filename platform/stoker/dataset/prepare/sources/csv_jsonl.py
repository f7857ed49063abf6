"""A list of images with their labels: CSV with a header line, or JSON lines.

``path`` (or url) and ``label`` are needed, ``split`` if the list has one. Paths are relative to the list; absolute
ones and URLs are taken as they are. Files that are not there are strays, as are lines that say no path or label.
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
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xxhash

from stoker.dataset.prepare.entries import Entry, Listing
from stoker.dataset.prepare.plan import Options
from stoker.dataset.prepare.sources.base import Source, split_name
from stoker.dataset.prepare.sources.columns import CLASS_WORDS, class_names, the_column
from stoker.dataset.prepare.sources.files import Listed, files_in, stamp_of
from stoker.errors import DatasetError, StorageError
from stoker.storage import Location, locate
from stoker.storage.range_file import RangeFile
from stoker.storage.retry import call_with_retries

__all__ = ["LIST_SUFFIXES", "ListedFileReader", "open_listing"]

LIST_SUFFIXES = (".csv", ".jsonl", ".ndjson")
_PATH_WORDS = ("path", "file", "filename", "file_name", "image", "image_path", "url", "image_url")
_LISTERS = 16
_TYPICAL_BYTES = 100_000
"""of an image on a web server that does not say"""

_Found = tuple["array[int]", "array[int]", "array[int]"]


@dataclass(frozen=True)
class ListedFileReader:
    """Reads files whose paths are relative to ``folder``, absolute or URLs."""

    folder: Location

    def with_timeout(self, timeout_s: float) -> ListedFileReader:
        return replace(self, folder=self.folder.with_timeout(timeout_s))

    def read(self, entry: Entry) -> bytes:
        where = _place(self.folder, entry.path)
        try:
            return where.read()
        except FileNotFoundError:
            raise DatasetError(
                f"{where}: seen a moment ago but not there now; where several machines prepare, all must see the "
                "files of the list (or give --local)"
            ) from None


def open_listing(location: Location, options: Options) -> Source:
    """Read the list and look for each file.

    Raises:
        DatasetError: no such list, it lacks a column, or no line of it names an image that is there.
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
        raise DatasetError(f"no images at {location}: no line of the list names a file that is there{first}")
    classes, number_of = class_names(labels)
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
    return Source(location.url, classes, splits, ListedFileReader(rows.folder), tuple(strays))


class _Rows:
    """(line, path, label, split) of each good line; read from the start at each iteration, so never in memory.

    ``strays`` are the other lines, known after an iteration.
    """

    def __init__(self, location: Location, options: Options) -> None:
        self.location = location
        self.folder = replace(location, url=location.url.rpartition("/")[0])
        self.strays: list[tuple[str, str]] = []
        try:
            self._size = location.size()
        except FileNotFoundError:
            raise DatasetError(f"no list at {location}: no such file; check the path or URL") from None
        first = next(self._dicts(), None)
        if first is None or not isinstance(first[1], dict):
            raise DatasetError(
                f"{location} is no list: it has no line with columns; see docs/how-to/prepare-sources.md for its form"
            )
        columns = [str(name) for name in first[1] if name is not None]
        self._path = the_column(
            columns,
            options.image_column,
            _PATH_WORDS,
            option="--image-column",
            purpose="names files",
            where=location.url,
        )
        self._label = the_column(
            columns,
            options.label_column,
            CLASS_WORDS,
            option="--label-column",
            purpose="holds labels",
            where=location.url,
        )

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
        path, label = row.get(self._path), row.get(self._label)
        if not isinstance(path, str) or not path.strip():
            return None, f"no {self._path}"
        if isinstance(label, (dict, list, bool, float)) or label is None or not str(label).strip():
            return None, f"no {self._label} that is a number or a name"
        said = row.get("split") or "train"
        split = split_name(str(said))
        if split is None:
            return None, f"split {said!r} is none of train, validation, test"
        return (_clean(path.strip()), str(label).strip(), split), ""

    def _dicts(self) -> Iterator[tuple[int, object]]:
        raw = io.BufferedReader(RangeFile(self.location, self._size), 1 << 20)
        with io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as text:
            try:
                yield from _csv(text) if self.location.url.lower().endswith(".csv") else _json_lines(text)
            except (UnicodeDecodeError, csv.Error) as error:
                raise DatasetError(f"{self.location} cannot be read as a list in UTF-8: {error}; store it so") from None


def _csv(text: Iterable[str]) -> Iterator[tuple[int, object]]:
    reader = csv.DictReader(text, skipinitialspace=True)
    for row in reader:
        yield reader.line_num, row


def _json_lines(text: Iterable[str]) -> Iterator[tuple[int, object]]:
    for number, line in enumerate(text, start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except ValueError:
                yield number, None


class _Files:
    """Which of the named files are there: each folder is listed once; web servers are asked for each file.

    24 bytes a file are kept: hashes of its path and stamp, and its size.
    """

    def __init__(self, folder: Location) -> None:
        self._folder = folder
        self._hashes = np.empty(0, np.uint64)
        self._sizes = np.empty(0, np.int64)
        self._stamps = np.empty(0, np.uint64)

    def look(self, rows: _Rows) -> None:
        folders: set[str] = set()
        asked: set[str] = set()
        for _, path, _, _ in rows:
            if _place(self._folder, path).url.startswith(("http://", "https://")):
                asked.add(path)
            else:
                folders.add(path[: path.rfind("/") + 1])
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
        """(bytes, stamp) of the file, or None if it is not there."""
        wanted = np.uint64(_hash(path))
        row = int(np.searchsorted(self._hashes, wanted))
        if row == len(self._hashes) or self._hashes[row] != wanted:
            return None
        return int(self._sizes[row]), str(self._stamps[row])

    def _list(self, folder: str) -> _Found:
        where = _place(self._folder, folder.rstrip("/") or "/") if folder else self._folder
        return _found({f"{folder}{name}": at for name, at in files_in(where)[0].items()})

    def _ask(self, path: str) -> _Found:
        where = _place(self._folder, path)

        def once() -> dict[str, Any]:
            return dict(where.filesystem.info(where.path))

        try:
            info = call_with_retries(once, what="look at", url=where.url, timeout_s=where.timeout_s)
        except FileNotFoundError:
            return _found({})
        return _found({path: (int(info.get("size") or _TYPICAL_BYTES), stamp_of(info))})


def _found(files: Listed) -> _Found:
    """Hashes of the paths, sizes in bytes, hashes of the stamps."""
    hashes = array("Q", (_hash(path) for path in files))
    return hashes, array("q", (size for size, _ in files.values())), array("Q", (_hash(s) for _, s in files.values()))


def _hash(text: str) -> int:
    return xxhash.xxh3_64_intdigest(text.encode(errors="surrogateescape"))


def _clean(path: str) -> str:
    if "://" in path:
        return path
    return posixpath.normpath(path)


def _place(folder: Location, path: str) -> Location:
    if "://" in path or path.startswith("/"):
        return locate(path, timeout_s=folder.timeout_s)
    if path.startswith("..") and "://" not in folder.url:
        return replace(folder, url=posixpath.normpath(f"{folder.url}/{path}"))
    while path.startswith("../"):
        path, folder = path[3:], replace(folder, url=folder.url.rpartition("/")[0])
        if folder.url.endswith(("/", ":")):
            raise StorageError(f"{path}: leads out of the bucket of the list", url=folder.url)
    return folder / path
