"""The whole preparation: look at the destination, build what is missing, publish the manifest, verify.

    build/plan.json          written first: what is under way here, and the proof that the destination can be written
    build/hashes/<n>.json    checksums of a part of the source, where duplicates are left out (.contents)
    build/spill/<n>.bin      a part of the source sorted by shard, where it is only cheap to read in its order (.spill)
    build/<split>/<n>.json   one a finished shard (.shards) or tar that was indexed where it lies (.tars)
    prepared.json            what the data set was made from; only prepare reads it
    dataset.json             the manifest, last; build/ is removed after it

Nothing that prepare did not make is ever deleted, and nothing is overwritten unless asked.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from stoker.dataset.format.manifest import MANIFEST, Manifest, Shard, Split, read_manifest, write_manifest
from stoker.dataset.prepare.contents import Duplicate, find_duplicates, hash_contents, sum_contents
from stoker.dataset.prepare.images import check_tools
from stoker.dataset.prepare.plan import Options, ShardPlan, SplitPlan, digest, plan_split
from stoker.dataset.prepare.progress import Progress
from stoker.dataset.prepare.select import select
from stoker.dataset.prepare.shards import BUILD, BadFile, Built, ShardTask, build_shard
from stoker.dataset.prepare.sources import Source
from stoker.dataset.prepare.spill import spill
from stoker.dataset.prepare.tars import INDEXES, index_tar
from stoker.dataset.prepare.verify import Verified, verify
from stoker.dataset.prepare.workers import Map, on_threads
from stoker.errors import DatasetError, StorageError
from stoker.storage import Location

__all__ = ["BAD_FILES", "DUPLICATES", "Prepared", "prepare"]

PREPARED = "prepared.json"
BAD_FILES = "bad.jsonl"
DUPLICATES = "duplicates.jsonl"
_CHECK_TIMEOUT_S = 5.0
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
    kept: dict[str, int]
    """why JPEGs that were to be rewritten are stored as they were, and how many"""
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
    if not source.is_indexed:
        check_tools((entry.path for entries in source.splits.values() for entry in entries), options)
        if f"{root.url}/".startswith(f"{source.url.rstrip('/')}/"):
            raise DatasetError(f"{root} lies inside the source {source.url}; choose a destination outside of it")
        source = select(source, options)
    identity = _Identity.of(source, options)
    door = Location(root.url, min(_CHECK_TIMEOUT_S, root.timeout_s))
    if _look(door, source, identity, options, map_, replaces=replaces):
        verified = verify(root, is_full=verifies_all)
        return Prepared(root, verified, (), (), {}, source.notes, True, 0, 0.0, 0.0)
    _begin(door, source, identity)
    unique, duplicates, source_sum = _without_duplicates(source, root, options, map_)
    if source.is_indexed:
        progress, shards = Progress(None, "indexed"), map_(index_tar, _tar_tasks(source, root, options))
    else:
        plans = [plan_split(split, entries, options) for split, entries in unique.splits.items()]
        progress = Progress(sum(len(plan.entries) for plan in plans))
        shards = map_(build_shard, _tasks(unique, plans, root, options, map_))
    built: list[Built] = []
    for shard in shards:
        built.append(shard)
        progress.advance(shard.images, shard.source_bytes, is_fresh=not shard.was_there)
    progress.close()
    if source_sum is None:
        source_sum = sum(shard.source_sum for shard in built) % 2**64
    bad = _bad_files(root, source, built, options)
    manifest = _manifest(root, source, built)
    _remove_strangers(root, source, manifest)
    told = asdict(identity) | {"bad_files": len(bad), "duplicates": len(duplicates), "source_sum": source_sum}
    told["rewriters"] = sorted({shard.rewriter for shard in built if shard.rewriter})
    (root / PREPARED).write(json.dumps(told, indent=1).encode())
    write_manifest(root, manifest)
    (root / BUILD).delete()
    return Prepared(
        root,
        verify(root, is_full=verifies_all),
        bad,
        duplicates,
        dict(sum((Counter(shard.kept) for shard in built), Counter())),
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
    is_indexed: bool

    @classmethod
    def of(cls, source: Source, options: Options) -> _Identity:
        listed = {split: entries.content_digest() for split, entries in source.splits.items()}
        stamps = [entries.stamps_digest() for entries in source.splits.values()]
        choices = options.checks if source.is_indexed else options.choices
        return cls(
            source.url, digest(source.classes, listed, source.strays, choices), digest(stamps), source.is_indexed
        )


def _look(root: Location, source: Source, identity: _Identity, options: Options, map_: Map, *, replaces: bool) -> bool:
    """Whether the data set is there already; refuses a destination that must not be written."""
    _refuse_to_overwrite_tars(root, source)
    if (root / MANIFEST).exists():
        told = _read_json(root / PREPARED)
        is_same = told.get("content") == identity.content and not (told.get("bad_files") and options.on_bad == "fail")
        if is_same and told.get("stamps") != identity.stamps:
            is_same = _holds(root) if source.is_indexed else sum_contents(source, map_) == told.get("source_sum")
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
    elif not replaces and "plan.json" not in (root / BUILD).children() and root.url != source.url:
        there = root.children()
        if there and any(True for _ in root.walk()):  # some stores list prefixes whose objects are gone
            raise DatasetError(
                f"{root} is not empty ({', '.join(there[:3])}{', ...' if len(there) > 3 else ''}) and holds no data "
                "set; choose another destination, or --replace what is in the way"
            )
    return False


def _refuse_to_overwrite_tars(root: Location, source: Source) -> None:
    """Shards of ours could have the names of tars that stoker has only indexed there."""
    told = _read_json(root / PREPARED) or _read_json(root / BUILD / "plan.json")
    is_inside = f"{told.get('source')}/".startswith(f"{root.url}/")
    if told.get("is_indexed") and is_inside and not source.is_indexed:
        raise DatasetError(f"{root} holds tars that stoker did not write but indexed; choose another destination")


def _holds(root: Location) -> bool:
    """Whether every tar of the data set at ``root`` is still what it was when it was indexed."""
    try:
        verify(root, is_full=True)
    except (DatasetError, StorageError):
        return False
    return True


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


def _tar_tasks(source: Source, root: Location, options: Options) -> Iterator[ShardTask]:
    for split, entries in source.splits.items():
        for number, entry in enumerate(entries):
            yield ShardTask(source.reader, root, ShardPlan(split, number, (entry,)), options, source.classes)


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
            if _is_written(shard):
                (root / shard.path).delete()
            (root / shard.index_path).delete()


def _is_written(shard: Shard) -> bool:
    """Whether the tar is one that stoker wrote: only then its index stands beside it."""
    return shard.path.removesuffix(".tar") == shard.index_path.removesuffix(".idx")


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


def _manifest(root: Location, source: Source, built: list[Built]) -> Manifest:
    shards: dict[str, list[Built]] = defaultdict(list)
    for shard in sorted(built, key=lambda b: b.number):
        if shard.shard is not None:
            shards[shard.split].append(shard)
    for split in source.splits:
        if not shards[split]:
            raise DatasetError(f"{source.url}: no good image is left for split {split!r}; see {root / BAD_FILES}")
    listed = set() if source.is_indexed else set(np.unique(source.splits["train"].label).tolist())
    for label in sorted(listed - {label for shard in shards["train"] for label in shard.labels}):
        raise DatasetError(
            f"{source.url}: no good image is left of class {source.classes[label]!r} in train; see {root / BAD_FILES}"
        )
    # tars of others may say numbers alone; a hub's list of classes may name more than there are
    classes = source.classes or tuple(str(n) for n in range(1 + max(n for shard in built for n in shard.labels)))
    splits = {}
    for split in source.splits:
        parts = tuple(b.shard for b in shards[split] if b.shard is not None)
        splits[split] = Split(sum(part.samples for part in parts), parts)
    return Manifest(classes, splits)


def _remove_strangers(root: Location, source: Source, manifest: Manifest) -> None:
    """Delete what an abandoned attempt with another plan left where our shards or indexes lie."""
    ours = {path for split in manifest.splits.values() for s in split.shards for path in (s.path, s.index_path)}
    prefix, kinds = (f"{INDEXES}/", "idx") if source.is_indexed else ("", "tar|idx")
    for split in manifest.splits:
        for name in (root / f"{prefix}{split}").children():
            if re.fullmatch(rf"\d{{6,}}\.({kinds})", name) and f"{prefix}{split}/{name}" not in ours:
                (root / f"{prefix}{split}" / name).delete()


def _read_json(where: Location) -> dict[str, Any]:
    try:
        return dict(json.loads(where.read()))
    except (FileNotFoundError, ValueError, TypeError):
        return {}
