"""Read Parquet with a column of images, as model hubs store data sets.

One file, a folder (also with files below it), or a pattern (``data/train-*.parquet``). A file's split is the one that
its name begins with (``train-00000-of-00005.parquet``) or that a folder above it is called; without any it is train.
An image is a value of bytes, or a struct of ``bytes`` and ``path``. Class names come from the ``huggingface`` metadata
of the schema where it has a ClassLabel.
"""

from __future__ import annotations

import fnmatch
import functools
import json
import posixpath
import re
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stoker.dataset.prepare.entries import Entry, Listing
from stoker.dataset.prepare.plan import Options
from stoker.dataset.prepare.sources.base import Source, run_of, split_name
from stoker.dataset.prepare.sources.columns import LABEL_COLUMNS, choose_column, class_names
from stoker.dataset.prepare.sources.files import FileStats, files_below, files_in
from stoker.dataset.prepare.sources.readers import missing
from stoker.errors import DatasetError
from stoker.storage import Location
from stoker.storage.range_file import RangeFile

__all__ = ["ParquetReader", "holds_parquet", "is_parquet", "open_parquet"]

_SUFFIX = ".parquet"
_LISTERS = 8
_FOOTER_AHEAD = 1 << 16
_GROUPS_HELD = 2
"""decoded row groups that a process caches for reads of single samples in order"""


@dataclass(frozen=True)
class ParquetReader:
    """Reads samples ``<file>/<row>`` of the row group that is the entry's offset, below ``folder``."""

    folder: Location
    image_column: str

    def with_timeout(self, timeout_s: float) -> ParquetReader:
        return replace(self, folder=self.folder.with_timeout(timeout_s))

    def read(self, entry: Entry) -> bytes:
        first, images = _held_group(self, *run_of(entry))
        return _bytes(images, int(entry.path.rpartition("/")[2]) - first)

    def read_run(self, entries: Sequence[Entry]) -> Iterator[bytes]:
        first, images = _read_group(self, *run_of(entries[0]))
        for entry in entries:
            yield _bytes(images, int(entry.path.rpartition("/")[2]) - first)


def is_parquet(url: str) -> bool:
    """Whether the name is that of a Parquet file or of a pattern of them."""
    return url.endswith(_SUFFIX)


def holds_parquet(location: Location, files: FileStats, folders: list[str]) -> bool:
    """Whether the folder holds Parquet files, by itself or in ``data`` or folders named after splits."""
    if any(name.endswith(_SUFFIX) for name in files):
        return True
    likely = [name for name in folders if name == "data" or split_name(name)]
    return any(name.endswith(_SUFFIX) for folder in likely for name in files_in(location / folder)[0])


def open_parquet(location: Location, options: Options) -> Source:
    """Read the footers and the label column.

    Raises:
        DatasetError: there are no Parquet files, the column of images or labels is ambiguous, or a file is damaged.
        StorageError: the place cannot be read.
    """
    folder, listed = _files(location)
    split_of = {path: _split(path) for path in listed}
    named = sorted({split for split in split_of.values() if split})
    unnamed = next((path for path, split in split_of.items() if split is None), None)
    if named and unnamed:
        raise DatasetError(
            f"{folder / unnamed}: its name has no split, while others have {', '.join(named)}; rename it to begin with "
            "one, or exclude it by a pattern"
        )
    paths = sorted(listed)
    schema = _opened(folder / paths[0], listed[paths[0]][0]).schema_arrow
    features = _hub_features(schema)
    image = _image_column(schema, features, options, folder / paths[0])
    label = _label_column(schema, features, options, image, folder / paths[0])
    with ThreadPoolExecutor(_LISTERS, thread_name_prefix="stoker-list") as pool:
        tables = list(pool.map(lambda path: _labels(folder / path, listed[path][0], image, label), paths))
    classes, numbers = _classes(tables, features.get(label, {}).get("names"), folder / paths[0], label)
    listings: dict[str, Listing] = defaultdict(Listing)
    strays: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for path, table, numbered in zip(paths, tables, numbers, strict=True):
        split = split_of[path] or "train"
        row = 0
        for group, (rows, size) in enumerate(table.groups):
            for number in numbered[row : row + rows].tolist():
                if number < 0:
                    strays[split].append((f"{path}/{row}", f"no class: {label} is null or negative"))
                else:
                    listings[split].add(f"{path}/{row}", number, size // max(1, rows), listed[path][1], group)
                row += 1
    without = [split for split in strays if split not in listings]
    return Source(
        url=location.url,
        classes=classes,
        splits={name: listings[name].entries() for name in ("train", "validation", "test") if name in listings},
        reader=ParquetReader(folder, image),
        strays=tuple(stray for split, found in strays.items() if split not in without for stray in found),
        has_runs=True,
        notes=tuple(
            f"left out the split {split}: none of its {len(strays[split]):,} rows has a class" for split in without
        ),
    )


def _files(location: Location) -> tuple[Location, FileStats]:
    """(folder, Parquet files below it by relative path) of a folder, a file or a pattern."""
    url = location.url
    if any(sign in url for sign in "*?["):
        base = url[: next(i for i, sign in enumerate(url) if sign in "*?[")].rpartition("/")[0]
        folder = replace(location, url=base)
        pattern = url[len(base) + 1 :]
        found = {p: at for p, at in files_below(folder).items() if fnmatch.fnmatchcase(p, pattern)}
    elif url.lower().endswith(_SUFFIX) and location.exists():
        folder, name = replace(location, url=url.rpartition("/")[0]), location.name
        return folder, {name: files_in(folder)[0][name]}
    else:
        folder = location
        found = files_below(folder)
    listed = {path: at for path, at in found.items() if path.lower().endswith(_SUFFIX)}
    if not listed:
        raise DatasetError(f"no Parquet files at {location}; check the path, URL or pattern")
    return folder, listed


def _split(path: str) -> str | None:
    for word in (re.split(r"[-_.]", posixpath.basename(path))[0], *reversed(posixpath.dirname(path).split("/"))):
        if (split := split_name(word)) is not None:
            return split
    return None


# -- columns -----------------------------------------------------------------------------------------------------------


def _hub_features(schema: Any) -> dict[str, Any]:
    """The ``huggingface`` entry of the schema's metadata for each column; empty if there is none."""
    try:
        described = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: feature for name, feature in described.items() if isinstance(feature, dict)}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


def _holds_images(kind: Any) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _holds_images(kind.field("bytes").type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _image_column(schema: Any, features: dict[str, Any], options: Options, where: Location) -> str:
    fitting = [field.name for field in schema if _holds_images(field.type)]
    given = options.image_column
    if given is not None and given in schema.names and given not in fitting:
        raise DatasetError(
            f"--image-column {given}: in {where} it holds {schema.field(given).type}, not bytes; "
            f"{', '.join(fitting) or 'no column'} does"
        )
    marked = [name for name in fitting if features.get(name, {}).get("_type") == "Image"]
    words = marked if len(marked) == 1 else fitting if len(fitting) == 1 else ()
    return choose_column(
        schema.names,
        given or (words[0] if words else None),
        [name.lower() for name in marked or fitting],
        option="--image-column",
        purpose="holds images (bytes, or a struct with bytes)",
        where=str(where),
    )


def _label_column(schema: Any, features: dict[str, Any], options: Options, image: str, where: Location) -> str:
    marked = [name for name in schema.names if features.get(name, {}).get("_type") == "ClassLabel" and name != image]
    column = choose_column(
        schema.names,
        options.label_column or (marked[0] if len(marked) == 1 else None),
        [name.lower() for name in marked] or LABEL_COLUMNS,
        option="--label-column",
        purpose="holds labels",
        where=str(where),
    )
    kind = schema.field(column).type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if not (pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise DatasetError(
            f"{where}: the column {column} holds {kind}, not integers or names; choose with --label-column: it has "
            f"{', '.join(schema.names)}"
        )
    return column


# -- labels ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Labels:
    """The label column of one file, and for each row group (rows, bytes of images as they are stored)."""

    values: Any
    groups: tuple[tuple[int, int], ...]


def _labels(where: Location, size: int, image: str, label: str) -> _Labels:
    file = _opened(where, size)
    missing = [name for name in (image, label) if name not in file.schema_arrow.names]
    if missing:
        raise DatasetError(f"{where} has no column {missing[0]}, which other files have; exclude it by a pattern")
    groups = []
    for number in range(file.num_row_groups):
        group = file.metadata.row_group(number)
        columns = (group.column(n) for n in range(group.num_columns))
        groups.append(
            (
                group.num_rows,
                sum(c.total_compressed_size for c in columns if c.path_in_schema.split(".")[0] == image),
            )
        )
    try:
        values = file.read([label]).column(label)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(where, error) from None
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    return _Labels(values, tuple(groups))


def _classes(
    tables: list[_Labels], names: object, where: Location, label: str
) -> tuple[tuple[str, ...], list[NDArray[np.int64]]]:
    """(class names, the number of each row by file, -1 where it has none)."""
    if all(pa.types.is_integer(table.values.type) for table in tables):
        numbers = [table.values.fill_null(-1).to_numpy().astype(np.int64) for table in tables]
        most = max((int(found.max()) for found in numbers if found.size), default=-1)
        if isinstance(names, list) and names:
            if most >= len(names):
                raise DatasetError(f"{where}: {label} goes up to {most}, but its metadata names {len(names)} classes")
            return tuple(str(name) for name in names), numbers
        return tuple(str(number) for number in range(most + 1)), numbers
    distinct = {str(value) for table in tables for value in table.values.unique().to_pylist() if value is not None}
    classes, number_of = class_names(distinct)
    return classes, [
        np.array([-1 if v is None else number_of[str(v)] for v in table.values.to_pylist()], np.int64)
        for table in tables
    ]


# -- reading -----------------------------------------------------------------------------------------------------------


def _opened(where: Location, size: int | None = None) -> Any:
    try:
        source = RangeFile(where, where.size() if size is None else size, ahead=_FOOTER_AHEAD)
        return pq.ParquetFile(pa.PythonFile(source, mode="r"), page_checksum_verification=True)
    except FileNotFoundError:
        raise missing(where, "the source") from None
    except (pa.ArrowException, OSError) as error:
        raise _damaged(where, error) from None


def _damaged(where: Location, error: BaseException) -> DatasetError:
    return DatasetError(f"{where} cannot be read as Parquet ({' '.join(str(error).split())[:200]}); get it again")


def _read_group(reader: ParquetReader, path: str, group: int) -> tuple[int, Any]:
    """(the number in the file of the row group's first row, its images as a chunked array)."""
    where = reader.folder / path
    file = _opened(where)
    try:
        table = file.read_row_group(group, columns=[reader.image_column])
    except (pa.ArrowException, OSError) as error:
        raise _damaged(where, error) from None
    first = sum(file.metadata.row_group(number).num_rows for number in range(group))
    return first, table.column(reader.image_column)


def _bytes(images: Any, row: int) -> bytes:
    """The image in this row; empty, which is not a valid image, if the value is null."""
    value = images[row].as_py()
    if isinstance(value, dict):
        value = value.get("bytes")
    return value or b""


_one_at_a_time = threading.Lock()


def _held_group(reader: ParquetReader, path: str, group: int) -> tuple[int, Any]:
    with _one_at_a_time:  # neighbours need the same row group
        return _cached_group(reader, path, group)


_cached_group = functools.lru_cache(_GROUPS_HELD)(_read_group)
