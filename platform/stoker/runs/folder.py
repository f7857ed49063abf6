"""The folder of a run in storage: ``<storage>/runs/<name>/``."""

from __future__ import annotations

import json
from collections.abc import Iterable

from pydantic import TypeAdapter, ValidationError

from stoker.errors import RunError
from stoker.recipe import Recipe, as_yaml, changed_keys, parse_recipe
from stoker.recipe.section import Name
from stoker.runs.checkpoints import Checkpoint, latest_checkpoint
from stoker.runs.records import History, Result
from stoker.storage import Location

__all__ = ["RunFolder"]

_NAME: TypeAdapter[str] = TypeAdapter(Name)


class RunFolder:
    """The folder of the run ``name`` below ``storage``: recipe, history, checkpoints, result, report.

    Raises:
        RunError: ``name`` cannot be that of a run, such as one that leads out of ``runs/``.
    """

    def __init__(self, storage: Location, name: str) -> None:
        try:
            _NAME.validate_python(name)
        except ValidationError:
            raise RunError(
                f"run name {name!r} is not valid; use letters, digits, dots, dashes and underscores, at most 100, the "
                "first a letter or digit"
            ) from None
        self.location = storage / "runs" / name
        self.name = name

    @property
    def checkpoints(self) -> Location:
        return self.location / "checkpoints"

    def recipe(self) -> Recipe:
        """Read the resolved recipe that the run was started with.

        Raises:
            RunError: the run does not exist.
        """
        try:
            text = (self.location / "recipe.yaml").read()
        except FileNotFoundError:
            raise RunError(
                f"run {self.name!r} not found at {self.location}; train it first with stoker train"
            ) from None
        return parse_recipe(text.decode(), f"{self.location}/recipe.yaml")

    def begin(self, recipe: Recipe) -> None:
        """Store the recipe of a new run, or check that ``recipe`` resumes the existing one.

        Raises:
            RunError: the existing run was started with another recipe; the message names the keys.
        """
        try:
            before = self.recipe()
        except RunError:
            (self.location / "recipe.yaml").create(as_yaml(recipe).encode())
            return
        if keys := changed_keys(before, recipe):
            raise RunError(
                f"run {self.name!r} exists with another recipe ({', '.join(keys)} differ); "
                "resume it with the same values, or choose another name"
            )

    def latest_checkpoint(self) -> Checkpoint | None:
        """Return the newest committed checkpoint, or None."""
        return latest_checkpoint(self.checkpoints)

    @property
    def lease(self) -> Location:
        """The file that the run's driver renews while it is alive (``training.fault_tolerance.lease``)."""
        return self.location / "lease.json"

    @property
    def attempt(self) -> Location:
        """The file that names the run's newest attempt (``runs.fence``)."""
        return self.location / "attempt.json"

    def skipped_steps(self) -> tuple[int, ...]:
        """Read the steps of the run, from 0, that are skipped because their loss was not finite; ascending."""
        try:
            return tuple(json.loads((self.location / "skipped.json").read())["steps"])
        except FileNotFoundError:
            return ()

    def write_skipped_steps(self, steps: Iterable[int]) -> None:
        (self.location / "skipped.json").write(json.dumps({"steps": sorted(steps)}).encode())

    def history(self) -> History:
        """Read the records of the epochs; empty before the first epoch has ended."""
        try:
            return History.model_validate_json((self.location / "history.json").read())
        except FileNotFoundError:
            return History()

    def write_history(self, history: History) -> None:
        (self.location / "history.json").write(history.model_dump_json(indent=1).encode())

    def result(self) -> Result | None:
        """Read the result of a finished run; None while it is not finished.

        Raises:
            RunError: the result is damaged.
        """
        where = self.location / "result.json"
        try:
            return Result.model_validate_json(where.read())
        except FileNotFoundError:
            return None
        except ValidationError as error:
            raise RunError(
                f"{where}: damaged ({error.error_count()} invalid fields); delete it and submit the run again"
            ) from None

    def write_result(self, result: Result) -> None:
        """Write the result, which marks the run as finished."""
        (self.location / "result.json").write(result.model_dump_json(indent=1).encode())
