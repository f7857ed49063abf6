"""Read Parquet with a column of images, as model hubs store data sets.

One file, a folder (also with files below it), or a pattern (``data/train-*.parquet``). A file's split is the one that
its name begins with (``train-00000-of-00005.parquet``) or that a folder above it is called; without any it is train.
An image is a value of bytes, or a struct of ``bytes`` and ``path``. Class names come from the ``huggingface`` metadata
of the schema where it has a ClassLabel.
"""

from __future__ import annotations

import contextlib
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

import pyarrow as pa
import pyarrow.parquet as pq

from stoker.dataset.prepare.borders import parsing
from stoker.dataset.prepare.entries import Entry, Listing
from stoker.dataset.prepare.plan import Options
from stoker.dataset.prepare.sources.base import Source, run_of, split_name
from stoker.dataset.prepare.sources.columns import LABEL_COLUMNS, choose_column
from stoker.dataset.prepare.sources.files import FileStats, files_below, files_in
from stoker.dataset.prepare.sources.parquet_labels import Labels, classes_of, may_hold_bytes
from stoker.dataset.prepare.sources.readers import missing
from stoker.errors import DatasetError
from stoker.storage import Location
from stoker.storage.range_file import RangeFile

__all__ = ["ParquetReader", "holds_parquet", "is_parquet", "open_parquet"]

_SUFFIX = ".parquet"
_IMAGES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif"})
_LEVELS = 4
_FOLDERS_LOOKED_AT = 8
"""on each level, to tell a mirror of a hub from folders of classes"""
_LISTERS = 8
_FOOTER_AHEAD = 1 << 16
_BATCH_BYTES, _BATCH_ROWS = 8 << 20, 64
"""of images that are decoded from Parquet at once, at most"""
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
        path, group = run_of(entries[0])
        file, first = _group(self, path, group)
        wanted = iter(entries)
        entry = next(wanted, None)
        for images in _batches(self, file, path, group):
            while entry is not None and (row := int(entry.path.rpartition("/")[2]) - first) < len(images):
                yield _bytes(images, row)
                entry = next(wanted, None)
            first += len(images)


def is_parquet(url: str) -> bool:
    """Whether the name is that of a Parquet file or of a pattern of them."""
    return url.endswith(_SUFFIX)


def holds_parquet(location: Location, files: FileStats, folders: list[str]) -> bool:
    """Whether the folder holds Parquet files, by itself or some folders further down, and no images beside them."""
    level = [(location, files, folders)]
    for depth in range(_LEVELS):
        for _, names, _ in level:
            kinds = {posixpath.splitext(name.lower())[1] for name in names}
            if _SUFFIX in kinds:
                return not kinds & _IMAGES
        below = [place / name for place, _, inner in level for name in inner][:_FOLDERS_LOOKED_AT]
        if depth + 1 < _LEVELS:
            level = [(place, *files_in(place)) for place in below]
    return False


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
    with _parsing(folder / paths[0]):
        schema = _opened(folder / paths[0], listed[paths[0]][0]).schema_arrow
        features = _hub_features(schema)
    image = _image_column(schema, features, options, folder / paths[0])
    label = _label_column(schema, features, options, image, folder / paths[0])
    with ThreadPoolExecutor(_LISTERS, thread_name_prefix="stoker-list") as pool:
        tables = list(pool.map(lambda path: _labels(folder / path, listed[path][0], image, label), paths))
    classes, numbers = classes_of(tables, features.get(label, {}).get("names"), folder / paths[0], label)
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
    _refuse_paths(tables, folder, paths, image)
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
    except Exception:  # what others wrote there is theirs
        return {}


def _holds_images(kind: Any) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _holds_images(kind.field("bytes").type)
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


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
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    if not (is_number or any(is_(kind) for is_ in _TEXTS)):
        raise DatasetError(
            f"{where}: the column {column} holds {kind}, not numbers or names; choose with --label-column: it has "
            f"{', '.join(schema.names)}"
        )
    return column


_TEXTS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)


# -- labels ------------------------------------------------------------------------------------------------------------


def _labels(where: Location, size: int, image: str, label: str) -> Labels:
    with _parsing(where):
        return _read_labels(where, _opened(where, size), image, label)


def _read_labels(where: Location, file: Any, image: str, label: str) -> Labels:
    missing = [name for name in (image, label) if name not in file.schema_arrow.names]
    if missing:
        raise DatasetError(f"{where} has no column {missing[0]}, which other files have; exclude it by a pattern")
    groups, has_bytes = [], file.num_row_groups == 0
    for number in range(file.num_row_groups):
        group = file.metadata.row_group(number)
        groups.append(_size(group, image))
        of_images = _columns(group, image)
        has_bytes |= any(may_hold_bytes(c) for c in of_images if c.path_in_schema in {image, f"{image}.bytes"})
    values = file.read([label]).column(label)
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    return Labels(values, tuple(groups), has_bytes)


def _columns(group: Any, image: str) -> list[Any]:
    columns = (group.column(number) for number in range(group.num_columns))
    return [column for column in columns if column.path_in_schema.split(".")[0] == image]


def _size(group: Any, image: str) -> tuple[int, int]:
    """(rows, bytes of images as they are stored) of a row group."""
    return group.num_rows, sum(column.total_compressed_size for column in _columns(group, image))


def _refuse_paths(tables: list[Labels], folder: Location, paths: list[str], image: str) -> None:
    for path, table in zip(paths, tables, strict=True):
        if not table.has_bytes and len(table.values):
            raise DatasetError(
                f"{folder / path}: {image} holds paths, not bytes: no row has an image; embed them "
                "(datasets: embed_external_files), or give a list of the files"
            )


# -- reading -----------------------------------------------------------------------------------------------------------


def _opened(where: Location, size: int | None = None) -> Any:
    with _parsing(where):
        try:
            source = RangeFile(where, where.size() if size is None else size, ahead=_FOOTER_AHEAD)
            return pq.ParquetFile(pa.PythonFile(source, mode="r"), page_checksum_verification=True)
        except FileNotFoundError:
            raise missing(where, "the source") from None


def _parsing(where: Location) -> contextlib.AbstractContextManager[None]:
    return parsing(where, "cannot be read as Parquet", "get it again")


def _read_group(reader: ParquetReader, path: str, group: int) -> tuple[int, Any]:
    """(the number in the file of the row group's first row, its images as a chunked array)."""
    file, first = _group(reader, path, group)
    return first, pa.chunked_array(list(_batches(reader, file, path, group)))


def _group(reader: ParquetReader, path: str, group: int) -> tuple[Any, int]:
    """(the file, opened, the number in it of the row group's first row)."""
    file = _opened(reader.folder / path)
    with _parsing(reader.folder / path):
        return file, sum(file.metadata.row_group(number).num_rows for number in range(group))


def _batches(reader: ParquetReader, file: Any, path: str, group: int) -> Iterator[Any]:
    """The images of a row group, some rows at a time: Arrow cannot hold a nested column above 2 GB whole."""
    with _parsing(reader.folder / path):
        rows, size = _size(file.metadata.row_group(group), reader.image_column)
        count = max(1, min(_BATCH_ROWS, _BATCH_BYTES * rows // max(1, size)))
        for batch in file.iter_batches(count, row_groups=[group], columns=[reader.image_column]):
            yield batch.column(0)
            rows -= len(batch)
        if rows:
            raise ValueError(f"its row group {group} is {rows} rows short")


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
