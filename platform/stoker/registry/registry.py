"""The model registry: publish and look up versions, move aliases.

    <storage>/models/<name>/<version>/claim.json       written first: the number is taken
    <storage>/models/<name>/<version>/…                the files
    <storage>/models/<name>/<version>/model.json       written last: the version exists from now on and never changes
    <storage>/models/<name>/aliases/<alias>.json       a pointer with its history, moved by compare-and-swap

A number whose publisher died has a claim and no ``model.json``: it is not a version, and the next publisher takes the
next number.
"""

from __future__ import annotations

import datetime
import difflib
import hashlib
import json
import re
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from stoker.errors import ModelError
from stoker.registry.card import FORMAT, FORMAT_VERSION, ModelCard, StoredFile
from stoker.registry.copying import SourceFile, store_file
from stoker.storage import Conflict, Location
from stoker.storage.retry import BadBody

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["WEIGHTS", "ModelVersion", "Registry"]

WEIGHTS = "model.safetensors"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_SWAPS = 20


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
        return [name for name in self.location.children() if _NAME.fullmatch(name) and self.versions(name)]

    def versions(self, name: str) -> list[int]:
        """The published versions of ``name``, ascending; empty for an unknown model."""
        folder = self.location / _checked("model", name)
        numbers = sorted(int(child) for child in folder.children() if child.isdigit())
        return [number for number in numbers if (folder / str(number) / "model.json").exists()]

    def resolve(self, reference: str) -> ModelVersion:
        """The version that ``reference`` names: ``digits@3``, ``digits@production`` (an alias), ``digits`` (newest).

        Raises:
            ModelError: the model, version or alias is unknown (the message lists those that exist), or damaged.
        """
        name, at, which = reference.partition("@")
        if at and not which:
            raise ModelError(f"model reference {reference!r}: expected a version or an alias after @, as in digits@3")
        if which.isdigit():
            version = int(which)
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

    def alias_history(self, name: str, alias: str) -> list[dict[str, Any]]:
        """Each move of ``alias``, oldest first: ``{"version", "moved"}`` (ISO 8601, UTC); empty if there is none."""
        try:
            content = json.loads(self._alias_place(name, alias).read())
            return [dict(entry) for entry in content["history"]]
        except FileNotFoundError:
            return []
        except (ValueError, KeyError, TypeError):
            raise ModelError(f"{self._alias_place(name, alias)}: damaged; set the alias again") from None

    def set_alias(self, name: str, alias: str, version: int) -> None:
        """Point ``name@alias`` at ``version``. Concurrent moves are all recorded in the history.

        Raises:
            ModelError: unknown version, or the alias is a number.
        """
        self._open(name, version, f"{name}@{version}")
        where = self._alias_place(name, alias)
        for _ in range(_SWAPS):
            found = where.version()
            history = self.alias_history(name, alias) if found else []
            history.append({"version": version, "moved": _now()})
            content = json.dumps({"version": version, "history": history}, indent=1).encode()
            try:
                where.swap(content, found[1] if found else None)
            except Conflict:
                continue
            return
        raise ModelError(f"alias {name}@{alias}: others keep moving it; try again")

    def publish(
        self,
        name: str,
        card: ModelCard,
        files: Mapping[str, bytes | SourceFile],
        verify: Callable[[ModelVersion], None] | None = None,
    ) -> ModelVersion:
        """Publish a new version and return it; ``verify`` is called with the staged version and may raise to cancel.

        Raises:
            ModelError: the name is invalid, or ``verify`` rejected the version.
            StorageError: the store cannot be written.
        """
        version, folder = self._claim(_checked("model", name))
        stored = {file: store_file(content, folder / file) for file, content in files.items()}
        staged = ModelVersion(name, version, folder, card, stored)
        if verify is not None:
            verify(staged)
        content = {
            "format": FORMAT,
            "version": list(FORMAT_VERSION),
            "name": name,
            "number": version,
            **card.model_dump(mode="json"),
            "files": {file: entry.model_dump() for file, entry in stored.items()},
        }
        (folder / "model.json").create(json.dumps(content, indent=1).encode())
        return staged

    def roll_back_alias(self, name: str, alias: str) -> int:
        """Point ``name@alias`` at the version before, as its history tells, and return that version.

        A move back undoes the move before it: after 1, 2, 3 a first rollback leads to 2 and a second one to 1, not to
        3 again. Versions that were deleted since are passed over.

        Raises:
            ModelError: the alias does not exist, or nothing is left before its version.
        """
        where = self._alias_place(name, alias)
        for _ in range(_SWAPS):
            current = self._alias(name, alias, f"{name}@{alias}")
            found = where.version()
            history = self.alias_history(name, alias)
            if found is None or history[-1]["version"] != current:
                continue  # moved in between
            existing = set(self.versions(name))
            before = [version for version in _undo_stack(history)[:-1] if version in existing]
            if not before:
                raise ModelError(f"alias {name}@{alias}: no version before {current} in its history; set it instead")
            history.append({"version": before[-1], "moved": _now()})
            content = json.dumps({"version": before[-1], "history": history}, indent=1).encode()
            try:
                where.swap(content, found[1])
            except Conflict:
                continue
            return before[-1]
        raise ModelError(f"alias {name}@{alias}: others keep moving it; try again")

    def delete(self, name: str, version: int) -> None:
        """Delete a version that no alias names. Its number is never used again.

        ``model.json`` goes first, so that an interrupted deletion leaves no visible version; ``claim.json`` stays.

        Raises:
            ModelError: the version does not exist, or an alias names it.
        """
        reference = f"{name}@{version}"
        folder = self._open(name, version, reference).location
        self._refuse_named(name, version)
        card = (folder / "model.json").read()
        (folder / "model.json").delete()
        try:
            self._refuse_named(name, version)
        except ModelError:  # an alias was moved here in between
            (folder / "model.json").create(card)
            raise
        for path, _ in list(folder.walk()):
            if path != "claim.json":
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
        taken = [int(child) for child in (self.location / name).children() if child.isdigit()]
        number = max(taken, default=0) + 1
        while True:
            folder = self.location / name / str(number)
            try:
                (folder / "claim.json").create(json.dumps({"publisher": uuid.uuid4().hex, "at": _now()}).encode())
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

    def _alias_place(self, name: str, alias: str) -> Location:
        if alias.isdigit():
            raise ModelError(f"alias {alias!r}: a number names a version; give the alias a letter")
        return self.location / _checked("model", name) / "aliases" / f"{_checked('alias', alias)}.json"

    def _alias(self, name: str, alias: str, reference: str) -> int:
        self._existing_versions(name, reference)
        history = self.alias_history(name, alias)
        if not history:
            known = ", ".join(f"{name}@{a}" for a in self.aliases(name)) or "none yet"
            raise ModelError(f"model {reference!r}: {name} has no alias {alias!r}; its aliases: {known}")
        return int(history[-1]["version"])

    def _open(self, name: str, version: int, reference: str) -> ModelVersion:
        folder = self.location / _checked("model", name) / str(version)
        where = folder / "model.json"
        try:
            content = json.loads(where.read())
        except FileNotFoundError:
            known = ", ".join(str(v) for v in self._existing_versions(name, reference))
            raise ModelError(f"model {reference!r}: {name} has no version {version}; its versions: {known}") from None
        except ValueError:
            raise ModelError(f"{where}: damaged, not valid JSON; publish the run again") from None
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise ModelError(f"{where}: not a stoker model; check the storage URL")
        if content["version"][0] > FORMAT_VERSION[0]:
            raise ModelError(
                f"{where}: format version {content['version']} is newer than this stoker reads; upgrade stoker"
            )
        try:
            card = ModelCard.model_validate(content)
            files = {file: StoredFile.model_validate(entry) for file, entry in content["files"].items()}
        except (ValidationError, KeyError, AttributeError) as error:
            raise ModelError(f"{where}: damaged ({type(error).__name__}); publish the run again") from None
        return ModelVersion(name, version, folder, card, files)


def _undo_stack(history: list[dict[str, Any]]) -> list[int]:
    """The versions that rollbacks lead through, the current one last: a move to the one before undoes a move."""
    stack: list[int] = []
    for entry in history:
        version = int(entry["version"])
        if len(stack) > 1 and version == stack[-2]:
            stack.pop()
        elif not stack or version != stack[-1]:
            stack.append(version)
    return stack


def _checked(what: str, name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ModelError(
            f"{what} name {name!r} is not valid; use letters, digits, dots, dashes and underscores, at most 100"
        )
    return name


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
