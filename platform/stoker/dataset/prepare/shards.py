"""Build one shard: read its images, check them, write the tar and its index. Tasks are independent and run anywhere.

When both objects are written, a record ``build/<split>/<number>.json`` confirms it, from which an interrupted
preparation resumes. Nothing else reads these records; they are deleted when the data set is published.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace

from stoker.dataset.format.index import IndexRow, ShardIndex
from stoker.dataset.format.manifest import Shard, checksum
from stoker.dataset.format.pages import pack_index
from stoker.dataset.prepare.checked import checked_image
from stoker.dataset.prepare.contents import ReadsSamples, SummedReader
from stoker.dataset.prepare.images import StoredImage
from stoker.dataset.prepare.markers import program_version
from stoker.dataset.prepare.plan import Entry, Options, ShardPlan, digest
from stoker.dataset.undecodable import UndecodableImage
from stoker.storage import Location

__all__ = ["BUILD", "BadFile", "Built", "ShardTask", "build_shard", "record", "recorded"]

BUILD = "build"
_READERS = 4
_RECORD_VERSION = 4
_COPIED = ("split", "number", "source_bytes", "images", "source_sum", "kept", "rewriter", "transparent")
"""fields of a record that are read as they are"""


@dataclass(frozen=True)
class BadFile:
    """A file that cannot be a sample, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Built:
    """A shard that is on the store; ``shard`` is None if none of its images is valid."""

    split: str
    number: int
    shard: Shard | None
    bad: tuple[BadFile, ...]
    source_bytes: int
    images: int
    labels: dict[int, int]
    """label to samples"""
    source_sum: int
    """of the source's bytes, bad files included (stoker.dataset.prepare.contents)"""
    kept: dict[str, int]
    """why JPEGs that were to be rewritten are stored unchanged, and how many"""
    rewriter: str
    """version of the program that rewrote JPEGs, or empty"""
    transparent: int
    """images with transparent pixels, as far as they were decoded"""
    was_there: bool = False


@dataclass(frozen=True)
class ShardTask:
    """Everything needed to build one shard, on any machine."""

    source: ReadsSamples
    root: Location
    plan: ShardPlan
    options: Options
    classes: tuple[str, ...] = ()
    """their names, if labels are yet to be read from the source (.tars)"""

    @property
    def digest(self) -> str:
        return digest(_RECORD_VERSION, self.options.image_choices, self.plan, self.classes)

    @property
    def record(self) -> Location:
        return self.root / BUILD / f"{self.plan.name}.json"


def build_shard(task: ShardTask) -> Built:
    """Write the shard, unless an earlier attempt at the same plan has.

    Raises:
        DatasetError: a file of the source no longer exists. (Invalid images are in the result.)
        StorageError: the source or the destination failed for longer than its timeout.
    """
    found = recorded(task)
    if found is not None:
        return found
    source = SummedReader(task.source)
    tar, rows, bad, kept, kinds = io.BytesIO(), list[IndexRow](), list[BadFile](), Counter[str](), set[str]()
    transparent = 0
    with tarfile.open(fileobj=tar, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for entry, image in _images(replace(task, source=source)):
            if isinstance(image, BadFile):
                bad.append(image)
                continue
            offset = _add(archive, tar, f"{entry.key}.{image.kind}", image.data)
            _add(archive, tar, f"{entry.key}.cls", str(entry.label).encode())
            rows.append(image.row(entry.key, entry.label, offset))
            kept.update([image.kept] if image.kept else [])
            kinds.add(image.kind)
            transparent += image.is_transparent
    shard = _write(task, tar.getvalue(), ShardIndex.of(rows)) if rows else None
    built = Built(
        split=task.plan.split,
        number=task.plan.number,
        shard=shard,
        bad=tuple(bad),
        source_bytes=sum(entry.bytes for entry in task.plan.entries),
        images=len(task.plan.entries),
        labels=dict(Counter(row.label for row in rows)),
        source_sum=source.total,
        kept=dict(kept),
        rewriter=program_version() if task.options.jpeg == "marked" and "jpg" in kinds else "",
        transparent=transparent,
    )
    record(task, built)
    return built


def _images(task: ShardTask) -> Iterator[tuple[Entry, StoredImage | BadFile]]:
    """Each entry in order with its stored image, or why it is invalid."""

    def read(entry: Entry) -> tuple[Entry, StoredImage | BadFile]:
        try:
            return entry, checked_image(task.source.read(entry), task.options)
        except UndecodableImage as error:
            return entry, BadFile(entry.shown_path, str(error))

    with ThreadPoolExecutor(_READERS, thread_name_prefix="stoker-source") as pool:
        try:
            yield from pool.map(read, task.plan.entries)
        finally:
            pool.shutdown(cancel_futures=True)


def _add(archive: tarfile.TarFile, file: io.BytesIO, name: str, data: bytes) -> int:
    """Append a member whose header is independent of machine and time; returns the offset of its bytes."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))
    padded = -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    return file.tell() - padded


def _write(task: ShardTask, tar: bytes, index: ShardIndex) -> Shard:
    packed = pack_index(index)
    shard = Shard(
        path=f"{task.plan.name}.tar",
        bytes=len(tar),
        samples=len(index),
        checksum=checksum(tar),
        index_path=f"{task.plan.name}.idx",
        index_bytes=packed.index_bytes,
        index_checksum=packed.index_checksum,
        page_bytes=packed.page_bytes,
    )
    (task.root / shard.path).write(tar)
    (task.root / shard.index_path).write(packed.data)
    return shard


def record(task: ShardTask, built: Built) -> None:
    """Record that the shard is completely written."""
    task.record.write(json.dumps({"digest": task.digest, "built": asdict(built)}).encode())


def recorded(task: ShardTask) -> Built | None:
    """The record of an earlier attempt, if it had the same plan and its objects are complete."""
    try:
        content = json.loads(task.record.read())
        if content["digest"] != task.digest:
            return None
        built = content["built"]
        shard = Shard(**built["shard"]) if built["shard"] else None
        if shard is not None and (
            shard.tar(task.root).size() != shard.bytes
            or (task.root / shard.index_path).size() != shard.index_object_bytes
        ):
            return None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return Built(
        **{k: built[k] for k in _COPIED},
        shard=shard,
        bad=tuple(BadFile(**bad) for bad in built["bad"]),
        labels={int(label): count for label, count in built["labels"].items()},
        was_there=True,
    )
