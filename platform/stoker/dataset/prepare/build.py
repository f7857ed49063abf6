"""The whole preparation: look at the destination, build what is missing, publish the manifest, verify.

    build/plan.json          written first: what is under way here, and the proof that the destination can be written
    build/<split>/<n>.json   one a finished shard (stoker.dataset.prepare.shards)
    prepared.json            what the data set was made from; only prepare reads it
    dataset.json             the manifest, last; build/ is removed after it

Nothing that prepare did not make is ever deleted, and nothing is overwritten unless asked.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from stoker.dataset.index import payload_checksum, read_index
from stoker.dataset.manifest import MANIFEST, Manifest, Split, read_manifest, write_manifest
from stoker.dataset.prepare.folder import ImageFolder, is_inside
from stoker.dataset.prepare.plan import Entry, Options, cut_shards, digest
from stoker.dataset.prepare.progress import Progress
from stoker.dataset.prepare.shards import BUILD, BadFile, Built, ShardTask, build_shard
from stoker.dataset.prepare.verify import Verified, verify
from stoker.dataset.prepare.workers import Map, on_threads
from stoker.errors import DatasetError, StorageError
from stoker.storage import Location

__all__ = ["BAD_FILES", "Prepared", "prepare"]

PREPARED = "prepared.json"
BAD_FILES = "bad.jsonl"
_DOOR_PATIENCE_S = 5.0
_READERS = 16


@dataclass(frozen=True)
class Prepared:
    """A data set that is there and verified."""

    root: Location
    verified: Verified
    bad: tuple[BadFile, ...]
    """files that were left out"""
    was_there: bool
    """an earlier preparation had made it from the same source with the same options"""
    shards_kept: int
    """shards that an interrupted attempt had finished"""
    seconds: float
    images_per_s: float

    @property
    def manifest(self) -> Manifest:
        return self.verified.manifest


def prepare(
    source: ImageFolder,
    root: Location,
    options: Options | None = None,
    *,
    map: Map | None = None,  # noqa: A002 - it is what it does
    replaces: bool = False,
    verifies_all: bool = False,
) -> Prepared:
    """Write the data set of ``source`` to ``root``, or finish what an interrupted attempt left.

    The same source, seed and options give the same bytes and fingerprint. ``map`` says where shards are built,
    default threads of this process; ``replaces`` allows to write over another data set, which disappears first;
    ``verifies_all`` reads every byte again at the end.

    Raises:
        DatasetError: bad files (with ``on_bad`` fail), a destination that holds something else, or damage found at
            the end.
        StorageError: source or destination cannot be read or written.
    """
    options = options or Options()
    if is_inside(root, source.location):
        raise DatasetError(f"{root} lies inside the source {source.url}; choose a destination outside of it")
    identity = _Identity.of(source, options)
    door = Location(root.url, min(_DOOR_PATIENCE_S, root.patience_s))
    if _look(door, source, identity, options, replaces=replaces):
        return Prepared(root, verify(root, is_full=verifies_all), (), True, 0, 0.0, 0.0)
    _begin(door, source, identity)
    plans = [plan for split, entries in source.splits.items() for plan in cut_shards(split, entries, options)]
    tasks = [ShardTask(source.reader(), root, plan, options) for plan in plans]
    progress = Progress(sum(len(plan.entries) for plan in plans))
    built: list[Built] = []
    for shard in (map or on_threads())(build_shard, tasks):
        built.append(shard)
        progress.advance(shard.images, shard.source_bytes, is_fresh=not shard.was_there)
    progress.close()
    bad = _bad_files(root, source, built, options)
    manifest = _manifest(source, built)
    _remove_strangers(root, manifest)
    (root / PREPARED).write(json.dumps(asdict(identity) | {"bad_files": len(bad)}, indent=1).encode())
    write_manifest(root, manifest)
    (root / BUILD).delete()
    return Prepared(
        root,
        verify(root, is_full=verifies_all),
        bad,
        was_there=False,
        shards_kept=sum(shard.was_there for shard in built),
        seconds=progress.seconds,
        images_per_s=progress.images_per_s,
    )


@dataclass(frozen=True)
class _Identity:
    """What a data set was made from; ``content``: names, labels, sizes and options, ``stamps``: the files' times."""

    source: str
    content: str
    stamps: str

    @classmethod
    def of(cls, source: ImageFolder, options: Options) -> _Identity:
        listed = {
            split: [(e.key, e.label, e.path, e.bytes) for e in entries] for split, entries in source.splits.items()
        }
        stamps = [entry.stamp for entries in source.splits.values() for entry in entries]
        shape = (options.seed, options.shard_mb, options.shard_samples, options.image_choices)
        return cls(source.url, digest(source.classes, listed, source.strays, shape), digest(stamps))


def _look(root: Location, source: ImageFolder, identity: _Identity, options: Options, *, replaces: bool) -> bool:
    """Whether the data set is there already; refuses a destination that must not be written."""
    if (root / MANIFEST).exists():
        told = _read_json(root / PREPARED)
        is_same = told.get("content") == identity.content and not (told.get("bad_files") and options.on_bad == "fail")
        if is_same and told.get("stamps") != identity.stamps:
            is_same = _holds_the_same_bytes(root, source)
            if is_same:
                (root / PREPARED).write(json.dumps(told | asdict(identity), indent=1).encode())
        if is_same:
            (root / BUILD).delete()
            return True
        if not replaces:
            origin = f"prepared from {told['source']} " if "source" in told else ""
            raise DatasetError(
                f"{root} holds another data set already ({origin}with other images or options); "
                "choose another destination, or --replace it"
            )
    elif not replaces and "plan.json" not in (root / BUILD).children():
        there = root.children()
        if there and any(True for _ in root.walk()):  # some stores list prefixes whose objects are gone
            raise DatasetError(
                f"{root} is not empty ({', '.join(there[:3])}{', ...' if len(there) > 3 else ''}) and holds no data "
                "set; choose another destination, or --replace what is in the way"
            )
    return False


def _holds_the_same_bytes(root: Location, source: ImageFolder) -> bool:
    """Compare every image of the source with the checksum in the indexes; files that were left out do not count."""
    manifest = read_manifest(root)
    for name, entries in source.splits.items():
        known: dict[str, int] = {}
        for shard in manifest.split(name).shards if name in manifest.splits else ():
            index = read_index(root, shard)
            known |= dict(zip(index.keys, index.checksum.tolist(), strict=True))

        def is_same(entry: Entry, known: dict[str, int] = known) -> bool:
            return entry.key not in known or payload_checksum(source.read(entry)) == known[entry.key]

        with ThreadPoolExecutor(_READERS, thread_name_prefix="stoker-source") as pool:
            if not all(pool.map(is_same, entries)):
                return False
    return True


def _begin(root: Location, source: ImageFolder, identity: _Identity) -> None:
    """Mark the destination as ours, which shows that it can be written, and take an old data set away."""
    try:
        (root / BUILD / "plan.json").write(json.dumps(asdict(identity)).encode())
    except FileNotFoundError as error:
        raise StorageError(
            f"cannot write {root}: its bucket or parent does not exist ({error}); create it first", url=root.url
        ) from None
    if not (root / MANIFEST).exists():
        return
    old = read_manifest(root)
    (root / MANIFEST).delete()
    for split in old.splits.values():
        for shard in split.shards:
            (root / shard.path).delete()
            (root / shard.index_path).delete()


def _bad_files(root: Location, source: ImageFolder, built: Iterable[Built], options: Options) -> tuple[BadFile, ...]:
    found = [BadFile(path, reason) for path, reason in source.strays]
    found += [bad for shard in built for bad in shard.bad]
    found.sort(key=lambda bad: bad.path)
    report = root / BAD_FILES
    if not found:
        report.delete()
        return ()
    report.write("".join(json.dumps(asdict(bad), ensure_ascii=False) + "\n" for bad in found).encode())
    if options.on_bad == "fail":
        first, more = found[0], len(found) - 1
        others = f" and {more} more" if more else ""
        raise DatasetError(
            f"{source.url}/{first.path}{others} cannot be a sample: {first.reason}; all are listed in {report}: mend "
            "or remove them, or leave them out with --on-bad skip"
        )
    return tuple(found)


def _manifest(source: ImageFolder, built: Iterable[Built]) -> Manifest:
    shards: dict[str, list[Built]] = defaultdict(list)
    for shard in sorted(built, key=lambda b: b.number):
        if shard.shard is not None:
            shards[shard.split].append(shard)
    for split in source.splits:
        if not shards[split]:
            raise DatasetError(f"{source.url}: no good image is left for split {split!r}; see {BAD_FILES}")
    left = {label for shard in shards["train"] for label in shard.labels}
    for label, name in enumerate(source.classes):
        if label not in left:
            raise DatasetError(f"{source.url}: no good image is left of class {name!r} in train; see {BAD_FILES}")
    splits = {}
    for split in source.splits:
        parts = tuple(b.shard for b in shards[split] if b.shard is not None)
        splits[split] = Split(sum(part.samples for part in parts), parts)
    return Manifest(source.classes, splits)


def _remove_strangers(root: Location, manifest: Manifest) -> None:
    """Delete what an abandoned attempt with another plan left where our shards lie."""
    ours = {path for split in manifest.splits.values() for s in split.shards for path in (s.path, s.index_path)}
    for split in manifest.splits:
        for name in (root / split).children():
            if re.fullmatch(r"\d{6,}\.(tar|idx)", name) and f"{split}/{name}" not in ours:
                (root / split / name).delete()


def _read_json(where: Location) -> dict[str, Any]:
    try:
        return dict(json.loads(where.read()))
    except (FileNotFoundError, ValueError, TypeError):
        return {}
