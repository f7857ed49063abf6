"""The place that a data set is written to: what it holds, whether it may be written, staging, publication, cleanup.

    holds_dataset ─ the same images and options are published there? ──▶ yes: nothing to do
          │ no      (a different data set, or files that prepare did not write: refused, unless they may be replaced)
      Ownership ─ build/owner.json; where another one was waited for, holds_dataset looks again
          │
        claim ─ build/plan.json: this preparation is running here; a replaced data set is deleted, its manifest first
          │      the tasks write shards, indexes and their records below build/
        report_duplicates, report_bad_files ─ duplicates.jsonl, bad.jsonl: what was left out
          │
       publish ─ leftovers of abandoned attempts are deleted; prepared.json; dataset.json last; build/ is deleted

The objects, next to the shards and indexes of the splits:

    build/owner.json         renewed by the preparation that is running (.ownership)
    build/plan.json          written first: what is being prepared, into which folders, by this and by earlier attempts
    build/hashes/<n>.json    checksums of a part of the source, where duplicates are left out (.contents)
    build/spill/<n>.bin      a part of the source sorted by shard, where it is only cheap to read in its order (.spill)
    build/<split>/<n>.json   one for each finished shard (.shards) or tar that was indexed in place (.tars)
    prepared.json            what the data set was made from; only prepare reads it
    dataset.json             the manifest, last; build/ is deleted after it

Nothing that prepare did not write is ever deleted, and nothing is overwritten unless asked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from stoker.dataset.format.manifest import MANIFEST, Manifest, Shard, read_manifest, write_manifest
from stoker.dataset.prepare.contents import Duplicate, sum_contents
from stoker.dataset.prepare.foreign import delete_staged, refuse_foreign_tars
from stoker.dataset.prepare.ownership import Ownership
from stoker.dataset.prepare.plan import Options, digest
from stoker.dataset.prepare.shards import BUILD, BadFile
from stoker.dataset.prepare.sources import Source
from stoker.dataset.prepare.tars import INDEXES
from stoker.dataset.prepare.verify import verify
from stoker.dataset.prepare.workers import Map
from stoker.errors import DatasetError, StorageError
from stoker.storage import Location

__all__ = ["BAD_FILES", "DUPLICATES", "OWNER", "Destination", "is_written_by_stoker"]

BAD_FILES = "bad.jsonl"
DUPLICATES = "duplicates.jsonl"
_PREPARED = "prepared.json"
_PLAN = "plan.json"
OWNER = "owner.json"
_NAMED = 100
"""objects looked at to say what is in the way: a destination may hold a billion"""
_CHECK_TIMEOUT_S = 5.0
"""a store that cannot be reached is reported after this long, before any work is done"""


@dataclass(frozen=True)
class _Identity:
    """What a data set is made from; ``content``: names, labels, sizes and options, ``stamps``: the files' times."""

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


class Destination:
    """The prefix ``root`` as the destination of ``source``, prepared with ``options``."""

    def __init__(self, root: Location, source: Source, options: Options) -> None:
        self.root = root
        self._checked = Location(root.url, min(_CHECK_TIMEOUT_S, root.timeout_s))
        self._source = source
        self._options = options
        self._identity = _Identity.of(source, options)
        self._seen: str | None = None
        self._folders = {f"{INDEXES}/{split}" if source.is_indexed else split for split in source.splits}

    @property
    def build(self) -> Location:
        """Where tasks stage their records; deleted by :meth:`publish`."""
        return self.root / BUILD

    # -- before anything is written --------------------------------------------------------------------------------

    def holds_dataset(self, map_: Map, *, replaces: bool) -> bool:
        """Whether the data set of this source and these options is published here already.

        Where only the files' times differ, the source's contents are read and compared (on ``map_``).

        Raises:
            DatasetError: something else is here, and ``replaces`` is False; or it must never be replaced.
        """
        root = self._checked
        self._seen = self._published()
        if self._seen is not None or replaces or self._is_begun():  # else it has to be empty
            self._refuse_to_overwrite_tars()
        if self._seen is not None:
            prepared = _read_json(root / _PREPARED)
            if self._is_same(prepared, map_):
                return True
            if not replaces:
                origin = f"prepared from {prepared['source']} " if "source" in prepared else ""
                raise DatasetError(
                    f"{root} holds another data set already ({origin}with other images or options); "
                    "choose another destination, or --replace it"
                )
        elif not replaces and not self._is_begun():
            self._refuse_reports()
            if root.url == self._source.url:
                return False
            names = sorted({path.partition("/")[0] for path in root.some(_NAMED)})
            if names:
                raise DatasetError(
                    f"{root} is not empty ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''}) and holds no "
                    "data set; choose another destination, or --replace what is in the way"
                )
        return False

    def has_staged(self) -> bool:
        """Whether anything is below ``build/``: of a preparation that is running, or was interrupted."""
        return bool((self._checked / BUILD).some(1))

    def _refuse_reports(self) -> None:
        """Files of these names would be overwritten, or deleted where there is nothing to report."""
        for name in (BAD_FILES, DUPLICATES, _PREPARED):
            if (self._checked / name).exists():
                raise DatasetError(
                    f"{self._checked / name} is in the way: prepare writes a file of this name, and did not write this "
                    "one; move it, or --replace it"
                )

    def _is_begun(self) -> bool:
        return any((self._checked / BUILD / name).exists() for name in (_PLAN, OWNER))

    def has_changed(self) -> bool:
        """Whether another data set, or none, is published here since :meth:`holds_dataset` looked."""
        return self._published() != self._seen

    def _published(self) -> str | None:
        found = (self._checked / MANIFEST).version()
        return found[1] if found else None

    def _refuse_to_overwrite_tars(self) -> None:
        """Shards of ours could have the names of tars that stoker has only indexed here."""
        root = self._checked
        prepared, plan = _read_json(root / _PREPARED), _read_json(root / BUILD / _PLAN)
        earlier = prepared or plan
        is_inside = f"{earlier.get('source')}/".startswith(f"{root.url}/")
        if earlier.get("is_indexed") and is_inside and not self._source.is_indexed:
            raise DatasetError(f"{root} holds tars that stoker did not write but indexed; choose another destination")
        if not self._source.is_indexed:
            refuse_foreign_tars(root, self._source.splits, prepared, plan)

    def _is_same(self, prepared: dict[str, Any], map_: Map) -> bool:
        """Whether the published data set, described by its ``prepared.json``, is the one to be prepared."""
        if prepared.get("content") != self._identity.content:
            return False
        if prepared.get("bad_files") and self._options.on_bad == "fail":
            return False
        if prepared.get("stamps") != self._identity.stamps:
            if self._source.is_indexed:
                if not self._tars_are_unchanged():
                    return False
            elif sum_contents(self._source, map_) != prepared.get("source_sum"):
                return False
            (self._checked / _PREPARED).write(json.dumps(prepared | asdict(self._identity), indent=1).encode())
        return True

    def _tars_are_unchanged(self) -> bool:
        """Whether every tar of the published data set is still what it was when it was indexed."""
        try:
            verify(self._checked, is_full=True)
        except (DatasetError, StorageError):
            return False
        return True

    # -- while it is built -----------------------------------------------------------------------------------------

    def claim(self, *, replaces: bool = False) -> None:
        """Write the plan file, which shows that the destination is writable, and delete a data set to be replaced.

        An earlier plan stays in force: an unfinished preparation is continued, with the same options. Its source may
        have changed meanwhile (files mended or removed).

        Raises:
            DatasetError: an unfinished preparation with other options is here, and ``replaces`` is False.
            StorageError: the destination cannot be written.
        """
        root, options = self._checked, _options(self._options)
        earlier = _read_json(root / BUILD / _PLAN)
        before = earlier.get("options")
        if isinstance(before, dict) and not replaces:
            for name in (name for name, value in options.items() if before.get(name, value) != value):
                raise DatasetError(
                    f"{root} holds an unfinished preparation of {earlier.get('source')} with another {name} "
                    f"({before[name]!r}, now {options[name]!r}); finish it with the same options, or --replace it"
                )
        old = read_manifest(root) if (root / MANIFEST).exists() else None
        self._folders |= {name for name in (*_folders(old), *_list(earlier.get("folders"))) if _is_below(name)}
        plan = asdict(self._identity) | {"options": options, "folders": sorted(self._folders)}
        (root / BUILD / _PLAN).write(json.dumps(plan).encode())
        if old is None:
            return
        was_indexed = bool(_read_json(root / _PREPARED).get("is_indexed"))
        (root / MANIFEST).delete()
        for split in old.splits.values():
            for shard in split.shards:
                if not was_indexed and is_written_by_stoker(shard):
                    (root / shard.path).delete()
                (root / shard.index_path).delete()

    def report_duplicates(self, duplicates: Sequence[Duplicate]) -> None:
        """Write ``duplicates.jsonl``; delete an earlier one where there are none."""
        classes = self._source.classes
        _write_lines(
            self.root / DUPLICATES,
            [
                {
                    "path": duplicate.path,
                    "split": duplicate.split,
                    "class": classes[duplicate.label],
                    "same_as": duplicate.same_as,
                    "same_as_split": duplicate.same_as_split,
                    "same_as_class": classes[duplicate.same_as_label],
                }
                for duplicate in duplicates
            ],
        )

    def report_bad_files(self, bad: Sequence[BadFile]) -> None:
        """Write ``bad.jsonl``; delete an earlier one where there are none.

        Raises:
            DatasetError: there are bad files, and the options say that these fail the preparation.
        """
        report = self.root / BAD_FILES
        _write_lines(report, [asdict(file) for file in bad])
        if bad and self._options.on_bad == "fail":
            first, more = bad[0], len(bad) - 1
            others = f" and {more} more" if more else ""
            raise DatasetError(
                f"{self._source.url}: {first.path}{others} cannot be a sample: {first.reason}; all are listed in "
                f"{report}: fix or remove them, or leave them out with --on-bad skip"
            )

    # -- when all shards are written -------------------------------------------------------------------------------

    def publish(self, manifest: Manifest, facts: dict[str, Any], owner: Ownership) -> None:
        """Make the data set visible: clean up, write ``prepared.json`` with ``facts``, then the manifest.

        Raises:
            DatasetError: another preparation owns the destination.
        """
        owner.check()
        self._delete_leftovers(manifest)
        (self.root / _PREPARED).write(json.dumps(asdict(self._identity) | facts, indent=1).encode())
        owner.check()
        write_manifest(self.root, manifest)
        self.clean(owner)

    def clean(self, owner: Ownership) -> None:
        """Delete what was staged; ``owner``, whose file is there too, ends first.

        Raises:
            DatasetError: another preparation owns the destination, and what is staged there.
        """
        owner.end()
        delete_staged(self.build)

    def _delete_leftovers(self, manifest: Manifest) -> None:
        """Delete shards and indexes of the data set that was here, and of abandoned attempts with another plan."""
        ours = {path for split in manifest.splits.values() for s in split.shards for path in (s.path, s.index_path)}
        for folder in sorted(self._folders):
            kinds = "idx" if folder.startswith(f"{INDEXES}/") else "tar|idx"
            for name in (self.root / folder).children():
                if re.fullmatch(rf"\d{{6,}}\.({kinds})", name) and f"{folder}/{name}" not in ours:
                    (self.root / folder / name).delete()


def _folders(manifest: Manifest | None) -> set[str]:
    """Where the shards that stoker wrote are, or the indexes of tars that it did not, relative to the destination."""
    splits = manifest.splits.values() if manifest else ()
    return {shard.index_path.rpartition("/")[0] for split in splits for shard in split.shards}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _is_below(name: object) -> bool:
    """Whether it is a relative path that leads nowhere else: shards are deleted there."""
    return isinstance(name, str) and ":" not in name and not set(name.split("/")) & {"", ".", ".."}


def _options(options: Options) -> dict[str, Any]:
    """The options that decide which bytes are written, as they are in JSON; what to do with bad files is not one."""
    return json.loads(json.dumps({name: value for name, value in asdict(options).items() if name != "on_bad"}))


def is_written_by_stoker(shard: Shard) -> bool:
    """Whether stoker wrote the tar: only then its index is next to it."""
    return shard.path.removesuffix(".tar") == shard.index_path.removesuffix(".idx")


def _write_lines(where: Location, records: Sequence[dict[str, Any]]) -> None:
    if records:
        where.write("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode())
    else:
        where.delete()


def _read_json(where: Location) -> dict[str, Any]:
    try:
        return dict(json.loads(where.read()))
    except (FileNotFoundError, ValueError, TypeError, RecursionError):
        return {}
