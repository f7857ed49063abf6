"""The whole preparation, step by step: from the entries of a source to a published and verified data set.

    source ─ select ─▶ Destination ─ published already? ───────────────────────────────▶ verify ─▶ Prepared
                            │ no                                                            ▲
                          claim ─▶ drop duplicates ─▶ build shards ─▶ bad files ─▶ manifest ─ publish

What the destination holds at each of these steps is in ``destination``; tasks run on threads or on Ray (``workers``).
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from stoker.dataset.format.manifest import Manifest, Shard, Split
from stoker.dataset.prepare.contents import Duplicate, find_duplicates, hash_contents
from stoker.dataset.prepare.destination import BAD_FILES, OWNER, Destination
from stoker.dataset.prepare.images import check_tools
from stoker.dataset.prepare.overlap import refuse_overlap
from stoker.dataset.prepare.ownership import Ownership
from stoker.dataset.prepare.plan import Options, ShardPlan, plan_split
from stoker.dataset.prepare.progress import Progress
from stoker.dataset.prepare.select import select
from stoker.dataset.prepare.shards import BadFile, Built, ShardTask, build_shard
from stoker.dataset.prepare.sources import Source
from stoker.dataset.prepare.spill import spill
from stoker.dataset.prepare.tars import index_tar
from stoker.dataset.prepare.verify import Verified, verify
from stoker.dataset.prepare.workers import Map, on_threads
from stoker.errors import DatasetError
from stoker.storage import Location

__all__ = ["Prepared", "prepare"]

_SPILL_SHARDS = 2
"""size of a spill in shards: a task briefly holds it twice, and larger ones mean fewer reads"""


@dataclass(frozen=True)
class Prepared:
    """A data set that is published and verified."""

    root: Location
    verified: Verified
    bad: tuple[BadFile, ...] = ()
    """files that were left out because they are not valid images"""
    duplicates: tuple[Duplicate, ...] = ()
    """files that were left out because another holds the same bytes"""
    kept: dict[str, int] = field(default_factory=dict)
    """why JPEGs that were to be rewritten are stored unchanged, and how many"""
    transparent: int = 0
    """images with transparent pixels, as far as they were decoded"""
    background: str | None = None
    """#rrggbb that these were composited onto"""
    notes: tuple[str, ...] = ()
    """notes of the source, for people"""
    was_there: bool = False
    """an earlier preparation had made it from the same source with the same options"""
    shards_kept: int = 0
    """shards that an interrupted attempt had finished"""
    seconds: float = 0.0
    images_per_s: float = 0.0

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

    The same source, seed and options give the same bytes and fingerprint. ``map`` runs the tasks, by default on
    threads of this process; ``replaces`` allows overwriting another data set, which is deleted first;
    ``verifies_all`` reads every byte again when the data set is published.

    Raises:
        DatasetError: bad files (with ``on_bad`` fail), a destination that holds something else, options that do not
            fit the source, or damage found by the verification.
        StorageError: source or destination cannot be read or written.
    """
    options, map_ = options or Options(), map or on_threads()
    source = _selected(source, root, options)
    destination = Destination(root, source, options)
    is_there = destination.holds_dataset(map_, replaces=replaces)
    if is_there and not destination.has_staged():
        return Prepared(root, verify(root, is_full=verifies_all), notes=source.notes, was_there=True)
    with Ownership(destination.build / OWNER, root) as owner:
        if destination.has_changed():  # by another one, while this one waited for it
            is_there = destination.holds_dataset(map_, replaces=replaces)
        if is_there:
            destination.clean(owner)
            return Prepared(root, verify(root, is_full=verifies_all), notes=source.notes, was_there=True)
        destination.claim(replaces=replaces)
        unique, duplicates, source_sum = _without_duplicates(source, destination, options, map_)
        built, progress = _build(unique, destination, options, map_, owner)
        bad = _bad_files(source, built)
        destination.report_bad_files(bad)
        manifest = _manifest(source, built, destination)
        source_sums = sum(shard.source_sum for shard in built) % 2**64 if source_sum is None else source_sum
        facts = {
            "bad_files": len(bad),
            "duplicates": len(duplicates),
            "source_sum": source_sums,
            "rewriters": sorted({shard.rewriter for shard in built if shard.rewriter}),
            "background": options.background,
        }
        destination.publish(manifest, facts, owner)
    return Prepared(
        root,
        verify(root, is_full=verifies_all),
        bad,
        duplicates,
        dict(sum((Counter(shard.kept) for shard in built), Counter())),
        sum(shard.transparent for shard in built),
        options.background,
        source.notes,
        shards_kept=sum(shard.was_there for shard in built),
        seconds=progress.seconds,
        images_per_s=progress.images_per_s,
    )


def _selected(source: Source, root: Location, options: Options) -> Source:
    """The samples that are wanted; fails before any work where they cannot be written to ``root``."""
    refuse_overlap(source, root)
    if source.is_indexed:
        return source
    check_tools((entry.path for entries in source.splits.values() for entry in entries), options)
    return select(source, options)


def _without_duplicates(
    source: Source, destination: Destination, options: Options, map_: Map
) -> tuple[Source, tuple[Duplicate, ...], int | None]:
    """(the source without duplicates, the duplicates, the sum of all contents or None where nothing was read)."""
    if not options.deduplicates:
        destination.report_duplicates(())
        return source, (), None
    sums, total = hash_contents(source, map_, destination.build, "compared")
    stays, duplicates = find_duplicates(source, sums)
    for split, mask in stays.items():
        if not mask.any():
            raise DatasetError(
                f"{source.url}: every image of split {split!r} is in another split too; check how it was split"
            )
    destination.report_duplicates(duplicates)
    if duplicates:
        source = source.with_splits({split: entries.take(stays[split]) for split, entries in source.splits.items()})
    return source, tuple(duplicates), total


def _build(
    source: Source, destination: Destination, options: Options, map_: Map, owner: Ownership
) -> tuple[list[Built], Progress]:
    """Write all shards, or index all tars; no more of them once another preparation owns the destination."""
    if source.is_indexed:
        progress, shards = Progress(None, "indexed"), map_(index_tar, _tar_tasks(source, destination.root, options))
    else:
        progress = Progress(sum(map(len, source.splits.values())))
        shards = map_(build_shard, _shard_tasks(source, destination, options, map_))
    built: list[Built] = []
    for shard in shards:
        owner.check()
        built.append(shard)
        progress.advance(shard.images, shard.source_bytes, is_fresh=not shard.was_there)
    progress.close()
    return built, progress


def _shard_tasks(source: Source, destination: Destination, options: Options, map_: Map) -> Iterator[ShardTask]:
    root = destination.root
    plans = [plan_split(split, entries, options) for split, entries in source.splits.items()]
    shards = itertools.chain.from_iterable(plan.shards() for plan in plans)
    if source.has_runs and options.shuffles:
        spill_bytes = int(_SPILL_SHARDS * options.shard_mb * 1e6)
        spills = spill(source, plans, destination.build / "spill", map_, spill_bytes)
        return (ShardTask(spills.reader(plan), root, plan, options) for plan in shards)
    return (ShardTask(source.reader, root, plan, options) for plan in shards)


def _tar_tasks(source: Source, root: Location, options: Options) -> Iterator[ShardTask]:
    for split, entries in source.splits.items():
        for number, entry in enumerate(entries):
            yield ShardTask(source.reader, root, ShardPlan(split, number, (entry,)), options, source.classes)


def _bad_files(source: Source, built: list[Built]) -> tuple[BadFile, ...]:
    """What cannot be a sample, sorted by path: things in the source that are not, and images that are not valid."""
    bad = [BadFile(path, reason) for path, reason in source.strays]
    bad += [file for shard in built for file in shard.bad]
    return tuple(sorted(bad, key=lambda file: file.path))


def _manifest(source: Source, built: list[Built], destination: Destination) -> Manifest:
    shards: dict[str, list[Shard]] = defaultdict(list)
    for one in sorted(built, key=lambda b: b.number):
        if one.shard is not None:
            shards[one.split].append(one.shard)
    report = destination.root / BAD_FILES
    for split in source.splits:
        if not shards[split]:
            raise DatasetError(f"{source.url}: no valid image is left for split {split!r}; see {report}")
    if not source.is_indexed:
        left = {label for one in built if one.split == "train" for label in one.labels}
        for label in sorted(set(np.unique(source.splits["train"].label).tolist()) - left):
            raise DatasetError(
                f"{source.url}: no valid image is left of class {source.classes[label]!r} in train; see {report}"
            )
    # foreign tars may hold numbers alone; a hub's list of classes may name more than occur
    classes = source.classes or tuple(str(n) for n in range(1 + max(n for one in built for n in one.labels)))
    splits = {name: Split(sum(s.samples for s in shards[name]), tuple(shards[name])) for name in source.splits}
    return Manifest(classes, splits)
