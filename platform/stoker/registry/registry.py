"""The model registry: publish and look up versions, move aliases.

    <storage>/models/<name>/<version>/claim.json       written first: the number is taken
    <storage>/models/<name>/<version>/…                the files
    <storage>/models/<name>/<version>/model.json       written last: the version exists from now on and never changes
    <storage>/models/<name>/<version>/deleted.json     the version was deleted; its number is not used again
    <storage>/models/<name>/aliases/<alias>.json       a pointer with its history (``alias``)

A number whose publisher was killed has a claim and no ``model.json``: it is not a version, and the next publisher takes
the next number.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import re
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stoker.errors import ModelError, StokerError, StorageError
from stoker.registry.alias import AliasFile, now
from stoker.registry.card import ModelCard, StoredFile, card_text, parse_card
from stoker.registry.copying import SourceFile, store_file
from stoker.registry.listing import Contents, contents_of
from stoker.storage import Conflict, Location
from stoker.storage.retry import BadBody
from stoker.storage.uploads import abandon_uploads

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["WEIGHTS", "ModelVersion", "Registry", "version_number"]

WEIGHTS = "model.safetensors"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_MOST_DIGITS = 18
_KEPT = frozenset({"claim.json", "deleted.json"})
"""what stays of a deleted version"""


@dataclass(frozen=True)
class ModelVersion:
    """One published version: immutable."""

    name: str
    version: int
    location: Location
    card: ModelCard
    files: dict[str, StoredFile]

    @property
    def reference(self) -> str:
        """Name of this version: ``digits@3``."""
        return f"{self.name}@{self.version}"

    @property
    def classes(self) -> tuple[str, ...]:
        return self.card.classes

    def read(self, file: str) -> bytes:
        """Read one of the version's files and verify its checksum.

        Raises:
            ModelError: unknown file, or it is missing.
            StorageError: it cannot be read, or its checksum is wrong.
        """
        entry = self.files.get(file)
        if entry is None:
            raise ModelError(f"{self.reference} has no file {file!r}; its files: {', '.join(sorted(self.files))}")

        def check(data: bytes) -> None:
            if len(data) != entry.bytes or hashlib.sha256(data).hexdigest() != entry.sha256:
                raise BadBody(f"{len(data)} bytes were read that are not what {self.reference} was published with")

        try:
            return (self.location / file).read(check)
        except FileNotFoundError:
            raise ModelError(
                f"{self.location / file}: missing, although {self.reference} names it; publish the run again"
            ) from None

    def weights(self) -> dict[str, Tensor]:
        """The state dict, on the CPU."""
        import safetensors.torch  # here, as it imports torch: looking a version up must not take seconds

        return safetensors.torch.load(self.read(WEIGHTS))


class Registry:
    """The models below ``storage``."""

    def __init__(self, storage: Location) -> None:
        self.location = storage / "models"

    def models(self) -> list[str]:
        """Names that have at least one version, sorted."""
        return list(self.contents())

    def contents(self) -> dict[str, Contents]:
        """The versions and aliases of each model that has a version, by name, sorted; one request to list the store."""
        return {name: found for name, found in contents_of(self.location).items() if _NAME.fullmatch(name)}

    def versions(self, name: str) -> list[int]:
        """The published versions of ``name``, ascending; empty for an unknown model."""
        found = contents_of(self.location, _checked("model", name)).get(name)
        return list(found.versions) if found else []

    def resolve(self, reference: str) -> ModelVersion:
        """The version that ``reference`` names: ``digits@3``, ``digits@production`` (an alias), ``digits`` (newest).

        Raises:
            ModelError: the model, version or alias is unknown (the message lists those that exist), or damaged.
        """
        name, at, which = reference.partition("@")
        if at and not which:
            raise ModelError(f"model reference {reference!r}: expected a version or an alias after @, as in digits@3")
        if _is_number(which):
            version = version_number(which, name)
        elif which:
            version = self._alias(name, _checked("alias", which), reference)
        else:
            version = max(self._existing_versions(name, reference))
        return self._open(name, version, reference)

    def aliases(self, name: str) -> dict[str, int]:
        """The aliases of ``name`` and the versions that they name."""
        folder = self.location / _checked("model", name) / "aliases"
        names = [child.removesuffix(".json") for child in folder.children() if child.endswith(".json")]
        return {alias: int(self.alias_history(name, alias)[-1]["version"]) for alias in names}

    def check_name(self, name: str) -> None:
        """Refuse what cannot be the name of a model.

        Raises:
            ModelError: characters that a name may not have, or more than 100.
        """
        _checked("model", name)

    def check_alias_name(self, name: str, alias: str) -> None:
        """Refuse what cannot be an alias of ``name``.

        Raises:
            ModelError: a number, or characters that a name may not have.
        """
        self._alias_file(name, alias)

    def alias_history(self, name: str, alias: str) -> list[dict[str, Any]]:
        """Each move of ``alias``, oldest first: ``{"version", "moved", "is_rollback"?}``; ``moved`` is ISO 8601 in UTC.

        Empty if the alias does not exist.
        """
        return self._alias_file(name, alias).history()

    def set_alias(self, name: str, alias: str, version: int) -> None:
        """Point ``name@alias`` at ``version``. Concurrent moves are all recorded in the history.

        Raises:
            ModelError: unknown version, or the alias is a number.
        """
        card = self._open(name, version, f"{name}@{version}").location / "model.json"
        self._alias_file(name, alias).move(version, card.exists)

    def roll_back_alias(self, name: str, alias: str) -> int:
        """Point ``name@alias`` at the version before, as its history tells, and return that version.

        A rollback undoes the last move: after 1, 2, 3 a first rollback leads to 2 and a second one to 1, not to 3
        again. Versions that were deleted since are passed over.

        Raises:
            ModelError: the alias does not exist, or has no earlier version.
        """
        self._alias(name, alias, f"{name}@{alias}")
        return self._alias_file(name, alias).roll_back(set(self.versions(name)))

    def publish(
        self,
        name: str,
        card: ModelCard,
        files: Mapping[str, bytes | SourceFile],
        verify: Callable[[ModelVersion], Mapping[str, bytes] | None] | None = None,
        *,
        alias: str | None = None,
    ) -> ModelVersion:
        """Publish a new version, point ``alias`` at it, and return it.

        ``verify`` is called with the staged version. It may raise to cancel, and return more files of the version.

        Raises:
            ModelError: a name is invalid or ``verify`` rejected the version, and nothing is published; or the alias
                could not be moved to the published version.
            StorageError: the store cannot be written.
        """
        if alias is not None:
            self.check_alias_name(name, alias)
        version, folder = self._claim(_checked("model", name))
        try:
            stored = {file: store_file(content, folder / file) for file, content in files.items()}
            staged = ModelVersion(name, version, folder, card, stored)
            more = verify(staged) if verify is not None else None
            for file, content in (more or {}).items():
                stored[file] = store_file(content, folder / file)
        except BaseException:
            with contextlib.suppress(StorageError):  # what stays is not a version, and costs space only
                _discard(folder)
            raise
        (folder / "model.json").create(card_text(name, version, card, stored))
        if alias is not None:
            try:
                self.set_alias(name, alias, version)
            except StokerError as error:
                raise ModelError(
                    f"{staged.reference} is published, but {name}@{alias} was not moved ({error}); repeat that alone: "
                    f"stoker models alias {staged.reference} {alias}"
                ) from error
        return staged

    def delete(self, name: str, version: int) -> None:
        """Delete a version that no alias names. Its number is never used again.

        ``deleted.json`` is written first and stays with ``claim.json``, then ``model.json`` goes: an interrupted
        deletion leaves no visible version, and the same call finishes it.

        Raises:
            ModelError: the version does not exist, or an alias names it.
        """
        folder = self.location / _checked("model", name) / str(version)
        mark = folder / "deleted.json"
        leftovers = any(path not in _KEPT for path, _ in folder.walk())
        if not (folder / "model.json").exists() and not (mark.exists() and leftovers):
            self._open(name, version, f"{name}@{version}")  # raises: there is no such version
        if (folder / "model.json").exists():  # one that is damaged may be deleted too
            self._refuse_named(name, version)
            card = (folder / "model.json").read()
            mark.write(json.dumps({"at": now()}).encode())
            (folder / "model.json").delete()
            try:
                self._refuse_named(name, version)
            except ModelError:  # an alias was moved here in between
                (folder / "model.json").create(card)
                mark.delete()
                raise
        for path, _ in list(folder.walk()):
            if path not in _KEPT:
                (folder / path).delete()

    def _refuse_named(self, name: str, version: int) -> None:
        naming = sorted(alias for alias, named in self.aliases(name).items() if named == version)
        if naming:
            raise ModelError(
                f"{name}@{version}: cannot be deleted, {' and '.join(f'{name}@{alias}' for alias in naming)} "
                f"{'names' if len(naming) == 1 else 'name'} it; move the alias to another version first"
            )

    # -- inside ----------------------------------------------------------------------------------------------------

    def _claim(self, name: str) -> tuple[int, Location]:
        taken = [int(child) for child in (self.location / name).children() if _is_number(child)]
        number = max(taken, default=0) + 1
        while True:
            folder = self.location / name / str(number)
            try:
                (folder / "claim.json").create(json.dumps({"publisher": uuid.uuid4().hex, "at": now()}).encode())
            except Conflict:
                number += 1
                continue
            return number, folder

    def _existing_versions(self, name: str, reference: str) -> list[int]:
        versions = self.versions(name)
        if versions:
            return versions
        known = self.models()
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known models: {', '.join(known) or 'none yet'}"
        raise ModelError(f"model {reference!r}: unknown model {name!r} in {self.location}; {hint}")

    def _alias_file(self, name: str, alias: str) -> AliasFile:
        if _is_number(alias):
            raise ModelError(f"alias {alias!r}: a number names a version; give the alias a letter")
        place = self.location / _checked("model", name) / "aliases" / f"{_checked('alias', alias)}.json"
        return AliasFile(place, f"{name}@{alias}")

    def _alias(self, name: str, alias: str, reference: str) -> int:
        history = self.alias_history(name, alias)
        if not history:
            self._existing_versions(name, reference)
            known = ", ".join(f"{name}@{a}" for a in contents_of(self.location, name)[name].aliases) or "none yet"
            raise ModelError(f"model {reference!r}: {name} has no alias {alias!r}; its aliases: {known}")
        return int(history[-1]["version"])

    def _open(self, name: str, version: int, reference: str) -> ModelVersion:
        folder = self.location / _checked("model", name) / str(version)
        where = folder / "model.json"
        try:
            card, files = parse_card(where.read(), where, name, version)
        except FileNotFoundError:
            known = ", ".join(str(v) for v in self._existing_versions(name, reference))
            raise ModelError(f"model {reference!r}: {name} has no version {version}; its versions: {known}") from None
        return ModelVersion(name, version, folder, card, files)


def version_number(digits: str, name: str) -> int:
    """The number of a version of ``name`` that a person wrote in decimal ``digits``.

    Raises:
        ModelError: more digits than a number of a version has; from 4,300 on int() would refuse them with a ValueError.
    """
    if len(digits) > _MOST_DIGITS:
        raise ModelError(
            f"{name[:100]}@{digits[:_MOST_DIGITS]}…: a version's number has at most {_MOST_DIGITS} digits, not "
            f"{len(digits)}; stoker models lists the versions"
        )
    return int(digits)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal()


def _discard(folder: Location) -> None:
    """Remove what a failed publication wrote, its claim last: the number is free again."""
    abandon_uploads(folder)
    for path, _ in list(folder.walk()):
        if path != "claim.json":
            (folder / path).delete()
    (folder / "claim.json").delete()
    if folder.is_local:
        with contextlib.suppress(OSError):  # somebody claims it again
            Path(folder.path).rmdir()


def _checked(what: str, name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ModelError(
            f"{what} name {name!r} is not valid; use letters, digits, dots, dashes and underscores, at most 100"
        )
    return name
