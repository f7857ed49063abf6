"""Report a finished preparation: lines for people, and a last line of JSON for programs."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator

from stoker.dataset.prepare.build import Prepared
from stoker.dataset.prepare.contents import Duplicate
from stoker.dataset.prepare.destination import BAD_FILES, DUPLICATES
from stoker.dataset.prepare.shards import BadFile

__all__ = ["report"]

_EXAMPLES = 3
_REASONS = 12


def report(prepared: Prepared) -> str:
    """Describe the data set, what was left out and why; the last line is JSON."""
    manifest, counts = prepared.manifest, prepared.verified.class_samples
    lines = []
    if prepared.was_there:
        lines.append(f"already prepared: {prepared.root} was made from these images with these options")
    elif prepared.shards_kept:
        lines.append(f"resumed an interrupted preparation: {prepared.shards_kept} shards were done")
    lines += prepared.notes
    if prepared.bad:
        lines.append(f"left out {_files(len(prepared.bad))}, listed in {prepared.root / BAD_FILES}:")
        lines += _by_reason(prepared.bad)
    for why, count in sorted(prepared.kept.items()):
        lines.append(f"stored {_files(count)} unchanged, without restart markers: {why}")
    if prepared.transparent:
        lines.append(_about_transparency(prepared.transparent, prepared.background))
    if prepared.duplicates:
        lines.append(
            f"left out {_files(len(prepared.duplicates))} with the same bytes as another, listed in "
            f"{prepared.root / DUPLICATES}:"
        )
        lines += _by_place(prepared.duplicates)
    if prepared.verified.shared_images:
        lines.append(
            f"warning: {prepared.verified.shared_images} images are in more than one split, byte for byte; "
            "the validation accuracy will be too high (--deduplicate leaves them out of train)"
        )
    splits = {}
    for name, split in manifest.splits.items():
        size = sum(shard.bytes for shard in split.shards)
        lines.append(
            f"{name:>12}  {split.samples:>10,} samples  {len(split.shards):>6,} shards  {size / 1e6:>10,.1f} MB  "
            f"{min(counts[name]):,} to {max(counts[name]):,} a class"
        )
        splits[name] = {"samples": split.samples, "shards": len(split.shards), "bytes": size}
    lines.append(f"{'classes':>12}  {len(manifest.classes):>10,}")
    lines.append(f"{'fingerprint':>12}  {manifest.fingerprint}")
    summary = {
        "dataset": prepared.root.url,
        "fingerprint": manifest.fingerprint,
        "classes": len(manifest.classes),
        "splits": splits,
        "left_out": len(prepared.bad),
        "duplicates": len(prepared.duplicates),
        **({} if prepared.was_there else {"transparent": prepared.transparent}),
        "was_there": prepared.was_there,
        "shards_kept": prepared.shards_kept,
        "seconds": round(prepared.seconds, 1),
        "images_per_s": round(prepared.images_per_s, 1),
    }
    return "\n".join([*lines, json.dumps(summary)])


def _about_transparency(count: int, background: str | None) -> str:
    if background:
        return f"composited {_images(count)} with transparent pixels onto {background}"
    return (
        f"{_images(count)} with transparent pixels: models see the colours that are stored beneath "
        "(--background COLOUR composites them onto one)"
    )


def _by_reason(bad: Iterable[BadFile]) -> Iterator[str]:
    """A line for each reason, the most frequent first, with its first files; numbers in reasons are ignored."""
    groups: dict[str, list[BadFile]] = defaultdict(list)
    for one in bad:
        groups[re.sub(r"\d+", "0", one.reason)].append(one)
    yield from _lines([(found[0].reason, [one.path for one in found]) for found in groups.values()])


def _by_place(duplicates: Iterable[Duplicate]) -> Iterator[str]:
    groups: dict[str, list[str]] = defaultdict(list)
    for one in duplicates:
        where = (
            f"in {one.split}"
            if one.split == one.same_as_split
            else f"in {one.split}, as the same is in {one.same_as_split}"
        )
        also = "" if one.label == one.same_as_label else ", of another class (one of the two labels is wrong)"
        groups[where + also].append(f"{one.path} = {one.same_as}")
    yield from _lines(list(groups.items()))


def _lines(groups: list[tuple[str, list[str]]]) -> Iterator[str]:
    groups.sort(key=lambda group: (-len(group[1]), group[0]))
    for reason, paths in groups[:_REASONS]:
        examples = ", ".join(paths[:_EXAMPLES])
        yield f"  {len(paths):>7,}  {reason}: {examples}{', ...' if len(paths) > _EXAMPLES else ''}"
    if len(groups) > _REASONS:
        rest = sum(len(paths) for _, paths in groups[_REASONS:])
        yield f"  {rest:>7,}  for {len(groups) - _REASONS} other reasons"


def _images(count: int) -> str:
    return f"{count:,} image{'' if count == 1 else 's'}"


def _files(count: int) -> str:
    return f"{count:,} file{'' if count == 1 else 's'}"
