"""The whole preparation: look at the destination, build what is missing, publish the manifest, verify.

    build/plan.json          written first: what is under way here, and the proof that the destination can be written
    build/hashes/<n>.json    checksums of a part of the source, where duplicates are left out (.contents)
    build/spill/<n>.bin      a part of the source sorted by shard, where it is only cheap to read in its order (.spill)
    build/<split>/<n>.json   one a finished shard (.shards)
    prepared.json            what the data set was made from; only prepare reads it
    dataset.json             the manifest, last; build/ is removed after it

Nothing that prepare did not make is ever deleted, and nothing is overwritten unless asked.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from stoker.dataset.manifest import MANIFEST, Manifest, Split, read_manifest, write_manifest
from stoker.dataset.prepare.contents import Duplicate, find_duplicates, hash_contents, sum_contents
from stoker.dataset.prepare.plan import Options, ShardPlan, SplitPlan, digest, plan_split
from stoker.dataset.prepare.progress import Progress
from stoker.dataset.prepare.select import select
from stoker.dataset.prepare.shards import BUILD, BadFile, Built, ShardTask, build_shard
from stoker.dataset.prepare.sources import Source
from stoker.dataset.prepare.spill import spill
from stoker.dataset.prepare.verify import Verified, verify
from stoker.dataset.prepare.workers import Map, on_threads
from stoker.errors import DatasetError, StorageError
from stoker.storage import Location

__all__ = ["BAD_FILES", "DUPLICATES", "Prepared", "prepare"]

PREPARED = "prepared.json"
BAD_FILES = "bad.jsonl"
DUPLICATES = "duplicates.jsonl"
_DOOR_PATIENCE_S = 5.0
_SPILL_SHARDS = 2
"""shards that a spill is as large as: a task holds it twice for a moment, and larger ones mean fewer reads"""


@dataclass(frozen=True)
class Prepared:
    """A data set that is there and verified."""

    root: Location
    verified: Verified
    bad: tuple[BadFile, ...]
    """files that were left out because they are no good image"""
    duplicates: tuple[Duplicate, ...]
    """files that were left out because another holds the same bytes"""
    notes: tuple[str, ...]
    """what the source has to say, for people"""
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
    source: Source,
    root: Location,
    options: Options | None = None,
    *,
    map: Map | None = None,  # noqa: A002 - it is what it does
    replaces: bool = False,
    verifies_all: bool = False,
) -> Prepared:
    """Write the data set of ``source`` to ``root``, or finish what an interrupted attempt left.

    The same source, seed and options give the same bytes and fingerprint. ``map`` says where tasks run, default
    threads of this process; ``replaces`` allows to write over another data set, which disappears first;
    ``verifies_all`` reads every byte again at the end.

    Raises:
        DatasetError: bad files (with ``on_bad`` fail), a destination that holds something else, options that do not
            fit the source, or damage found at the end.
        StorageError: source or destination cannot be read or written.
    """
    options, map_ = options or Options(), map or on_threads()
    if f"{root.url}/".startswith(f"{source.url.rstrip('/')}/"):
        raise DatasetError(f"{root} lies inside the source {source.url}; choose a destination outside of it")
    source = select(source, options)
    identity = _Identity.of(source, options)
    door = Location(root.url, min(_DOOR_PATIENCE_S, root.patience_s))
    if _look(door, source, identity, options, map_, replaces=replaces):
        verified = verify(root, is_full=verifies_all)
        return Prepared(root, verified, (), (), source.notes, True, 0, 0.0, 0.0)
    _begin(door, source, identity)
    unique, duplicates, source_sum = _without_duplicates(source, root, options, map_)
    plans = [plan_split(split, entries, options) for split, entries in unique.splits.items()]
    tasks = _tasks(unique, plans, root, options, map_)
    progress = Progress(sum(len(plan.entries) for plan in plans))
    built: list[Built] = []
    for shard in map_(build_shard, tasks):
        built.append(shard)
        progress.advance(shard.images, shard.source_bytes, is_fresh=not shard.was_there)
    progress.close()
    if source_sum is None:
        source_sum = sum(shard.source_sum for shard in built) % 2**64
    bad = _bad_files(root, source, built, options)
    manifest = _manifest(root, source, built)
    _remove_strangers(root, manifest)
    told = asdict(identity) | {"bad_files": len(bad), "duplicates": len(duplicates), "source_sum": source_sum}
    (root / PREPARED).write(json.dumps(told, indent=1).encode())
    write_manifest(root, manifest)
    (root / BUILD).delete()
    return Prepared(
        root,
        verify(root, is_full=verifies_all),
        bad,
        duplicates,
        source.notes,
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
    def of(cls, source: Source, options: Options) -> _Identity:
        listed = {split: entries.content_digest() for split, entries in source.splits.items()}
        stamps = [entries.stamps_digest() for entries in source.splits.values()]
        return cls(source.url, digest(source.classes, listed, source.strays, options.choices), digest(stamps))


def _look(root: Location, source: Source, identity: _Identity, options: Options, map_: Map, *, replaces: bool) -> bool:
    """Whether the data set is there already; refuses a destination that must not be written."""
    if (root / MANIFEST).exists():
        told = _read_json(root / PREPARED)
        is_same = told.get("content") == identity.content and not (told.get("bad_files") and options.on_bad == "fail")
        if is_same and told.get("stamps") != identity.stamps:
            is_same = sum_contents(source, map_) == told.get("source_sum")
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


def _without_duplicates(
    source: Source, root: Location, options: Options, map_: Map
) -> tuple[Source, tuple[Duplicate, ...], int | None]:
    """(the source without images that stand there twice, those, the sum of its contents), if that is wanted."""
    report = root / DUPLICATES
    if not options.deduplicates:
        report.delete()
        return source, (), None
    sums, total = hash_contents(source, map_, root / BUILD, "compared")
    stays, duplicates = find_duplicates(source, sums)
    for split, mask in stays.items():
        if not mask.any():
            raise DatasetError(f"{source.url}: every image of split {split!r} stands in another split too")
    if not duplicates:
        report.delete()
        return source, (), total
    lines = (json.dumps(_told(duplicate, source.classes), ensure_ascii=False) + "\n" for duplicate in duplicates)
    report.write("".join(lines).encode())
    left = {split: entries.take(stays[split]) for split, entries in source.splits.items()}
    return source.with_splits(left), tuple(duplicates), total


def _told(duplicate: Duplicate, classes: tuple[str, ...]) -> dict[str, str]:
    return {
        "path": duplicate.path,
        "split": duplicate.split,
        "class": classes[duplicate.label],
        "same_as": duplicate.same_as,
        "same_as_split": duplicate.same_as_split,
        "same_as_class": classes[duplicate.same_as_label],
    }


def _tasks(source: Source, plans: list[SplitPlan], root: Location, options: Options, map_: Map) -> Iterator[ShardTask]:
    def plans_of_shards() -> Iterator[ShardPlan]:
        return itertools.chain.from_iterable(plan.shards() for plan in plans)

    if source.has_runs and options.shuffles:
        spills = spill(source, plans, root / BUILD / "spill", map_, int(_SPILL_SHARDS * options.shard_mb * 1e6))
        return (ShardTask(spills.reader(plan), root, plan, options) for plan in plans_of_shards())
    return (ShardTask(source.reader, root, plan, options) for plan in plans_of_shards())


def _begin(root: Location, source: Source, identity: _Identity) -> None:
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


def _bad_files(root: Location, source: Source, built: Iterable[Built], options: Options) -> tuple[BadFile, ...]:
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
            f"{source.url}: {first.path}{others} cannot be a sample: {first.reason}; all are listed in {report}: mend "
            "or remove them, or leave them out with --on-bad skip"
        )
    return tuple(found)


def _manifest(root: Location, source: Source, built: Iterable[Built]) -> Manifest:
    shards: dict[str, list[Built]] = defaultdict(list)
    for shard in sorted(built, key=lambda b: b.number):
        if shard.shard is not None:
            shards[shard.split].append(shard)
    for split in source.splits:
        if not shards[split]:
            raise DatasetError(f"{source.url}: no good image is left for split {split!r}; see {root / BAD_FILES}")
    left = {label for shard in shards["train"] for label in shard.labels}
    for label in np.unique(source.splits["train"].label).tolist():  # a hub's list of classes may name more
        if label not in left:
            name = source.classes[label]
            raise DatasetError(
                f"{source.url}: no good image is left of class {name!r} in train; see {root / BAD_FILES}"
            )
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
