"""Index a foreign WebDataset tar in place: one pass over its bytes, checking each image.

    tar ─ read on, 8 MB at a time, into the checksum ─ samples (members with the same key) ─ threads ─▶ index rows

Only ``index/<split>/<number>.idx`` is written, below the data set; the tar is neither copied nor changed.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import NamedTuple

import xxhash

from stoker.dataset.format.index import IndexRow, ShardIndex, payload_checksum
from stoker.dataset.format.manifest import Shard
from stoker.dataset.format.pages import pack_index
from stoker.dataset.prepare.checked import checked_image
from stoker.dataset.prepare.plan import Options
from stoker.dataset.prepare.shards import BadFile, Built, ShardTask, record, recorded
from stoker.dataset.prepare.sources.readers import ArchiveReader, missing
from stoker.dataset.prepare.sources.tar_samples import AUDIO, Member, cut_of, is_used, reading, samples_of
from stoker.dataset.prepare.sources.webdataset import BadSample, pick
from stoker.dataset.prepare.tar_file import open_tar
from stoker.dataset.undecodable import UndecodableImage
from stoker.storage import Location

__all__ = ["INDEXES", "index_tar"]

INDEXES = "index"
"""folder of a data set for the indexes of tars that stoker did not write"""
_CHUNK_BYTES = 8 * 2**20
_BUFFER_BYTES = 2**20
_READERS = 4
_IN_FLIGHT = 4 * _READERS


def index_tar(task: ShardTask) -> Built:
    """Index the task's tar, unless an earlier attempt has.

    Raises:
        DatasetError: it is not a valid tar, or no longer exists.
        StorageError: source or destination failed for longer than their timeout.
    """
    found = recorded(task)
    if found is not None:
        return found
    reader, (entry,) = task.source, task.plan.entries
    assert isinstance(reader, ArchiveReader)
    stream = _Stream(reader.location / entry.path, entry.bytes)
    rows, bad, transparent = list[IndexRow](), list[BadFile](), 0
    for result in _checked(stream, task.classes, replace(task.options, jpeg="original", longest_side=None)):
        if isinstance(result, _Indexed):
            rows.append(result.row)
            transparent += result.is_transparent
        else:
            bad.append(BadFile(f"{entry.path}#{result.path}" if result.path else entry.path, result.reason))
    stream.drain()
    packed = pack_index(ShardIndex.of(rows))
    shard = Shard(
        path=_path(task.root, stream.where),
        bytes=entry.bytes,
        samples=len(rows),
        checksum=f"xxh3_128:{stream.hasher.hexdigest()}",
        index_path=f"{INDEXES}/{task.plan.name}.idx",
        index_bytes=packed.index_bytes,
        index_checksum=packed.index_checksum,
        page_bytes=packed.page_bytes,
    )
    if rows:
        (task.root / shard.index_path).write(packed.data)
    built = Built(
        split=task.plan.split,
        number=task.plan.number,
        shard=shard if rows else None,
        bad=tuple(bad),
        source_bytes=entry.bytes,
        images=len(rows) + len(bad),
        labels=dict(Counter(row.label for row in rows)),
        source_sum=0,
        kept={},
        rewriter="",
        transparent=transparent,
    )
    record(task, built)
    return built


class _Indexed(NamedTuple):
    row: IndexRow
    is_transparent: bool = False


class _Stream:
    """The bytes of an object in order, each read once and added to a checksum."""

    def __init__(self, where: Location, size: int) -> None:
        self.where, self.hasher = where, xxhash.xxh3_128()
        self.size, self._at = size, 0
        self._held, self._used = memoryview(b""), 0

    def read(self, size: int) -> bytes:
        """At most ``size`` of the next bytes; none at the end."""
        if self._used == len(self._held) and self._at < self.size:
            stop = min(self.size, self._at + _CHUNK_BYTES)
            try:
                self._held = memoryview(self.where.read_range(self._at, stop))
            except FileNotFoundError:
                raise missing(self.where, "the tars") from None
            self.hasher.update(self._held)
            self._at, self._used = stop, 0
        part = self._held[self._used : self._used + size]
        self._used += len(part)
        return bytes(part)

    def drain(self) -> None:
        """Read what follows the end of the archive, for the checksum."""
        while self.read(_CHUNK_BYTES):
            pass


def _checked(stream: _Stream, classes: tuple[str, ...], options: Options) -> Iterator[_Indexed | BadFile]:
    """The row of each sample, or why it is invalid, in the order of the tar; then why the tar itself may be cut."""
    waiting: deque[Future[_Indexed | BadFile]] = deque()
    with reading(stream.where):
        opened = open_tar(stream, is_stream=True, buffer_bytes=_BUFFER_BYTES)
    with ThreadPoolExecutor(_READERS, thread_name_prefix="stoker-source") as pool, opened as archive:
        try:
            for key, members in samples_of(archive, stream.where, stream.size, is_used):
                waiting.append(pool.submit(_row, key, members, classes, options))
                if len(waiting) >= _IN_FLIGHT:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
            cut = cut_of(archive, stream.where)
            if cut:
                yield BadFile("", cut)
        finally:
            pool.shutdown(cancel_futures=True)


def _row(key: str, members: list[Member], classes: tuple[str, ...], options: Options) -> _Indexed | BadFile:
    try:
        payload, label = pick(members, classes)
        if payload.data is None:
            raise BadSample(f"its {payload.extension} member has {payload.size:,} bytes, more than an image may have")
        if payload.extension in AUDIO:
            return _Indexed(_sound(key, payload.data, label, payload.offset))
        image = checked_image(payload.data, options)
        return _Indexed(image.row(key, label, payload.offset), image.is_transparent)
    except (BadSample, UndecodableImage) as error:
        return BadFile(key, str(error))


def _sound(key: str, data: bytes, label: int, offset: int) -> IndexRow:
    if not (data.startswith(b"fLaC") or (data.startswith((b"RIFF", b"RF64")) and data[8:12] == b"WAVE")):
        raise BadSample("a sound that begins as neither WAV nor FLAC does" if data else "the sound is empty (0 bytes)")
    return IndexRow(offset, len(data), label, 0, 0, payload_checksum(data), key)


def _path(root: Location, tar: Location) -> str:
    """Relative to the data set if the tar is inside it, else absolute."""
    return tar.url.removeprefix(f"{root.url.rstrip('/')}/")
