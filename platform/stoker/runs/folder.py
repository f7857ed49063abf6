"""The folder of a run: ``<storage>/runs/<name>/``, and what may be asked of it."""

from __future__ import annotations

import json
from collections.abc import Iterable

from pydantic import ValidationError

from stoker.errors import RunError
from stoker.recipe import Recipe, as_yaml, changed_keys, parse_recipe
from stoker.runs.checkpoints import Checkpoint, latest_checkpoint
from stoker.runs.records import History, Result
from stoker.storage import Location

__all__ = ["RunFolder"]


class RunFolder:
    """The run ``name`` below ``storage``: recipe, history, checkpoints, result, report."""

    def __init__(self, storage: Location, name: str) -> None:
        self.location = storage / "runs" / name
        self.name = name

    @property
    def checkpoints(self) -> Location:
        return self.location / "checkpoints"

    def recipe(self) -> Recipe:
        """The resolved recipe that the run was started with.

        Raises:
            RunError: there is no such run.
        """
        try:
            text = (self.location / "recipe.yaml").read()
        except FileNotFoundError:
            raise RunError(f"no run at {self.location}; train it first with jobs/train.py") from None
        return parse_recipe(text.decode(), f"{self.location}/recipe.yaml")

    def begin(self, recipe: Recipe) -> None:
        """Store the recipe of a new run, or see that it continues the run that is there.

        Raises:
            RunError: the run that is there was started with another recipe; the message names the keys.
        """
        try:
            before = self.recipe()
        except RunError:
            (self.location / "recipe.yaml").create(as_yaml(recipe).encode())
            return
        if keys := changed_keys(before, recipe):
            raise RunError(
                f"run {self.name!r} exists with another recipe ({', '.join(keys)} differ); "
                "continue it with the same values, or choose another name"
            )

    def latest_checkpoint(self) -> Checkpoint | None:
        """The newest committed checkpoint, or None."""
        return latest_checkpoint(self.checkpoints)

    @property
    def lease(self) -> Location:
        """Where the run's driver says that it lives."""
        return self.location / "lease.json"

    def skipped_steps(self) -> tuple[int, ...]:
        """Steps of the run, from 0, that are left out because their loss was no number; ascending."""
        try:
            return tuple(json.loads((self.location / "skipped.json").read())["steps"])
        except FileNotFoundError:
            return ()

    def write_skipped_steps(self, steps: Iterable[int]) -> None:
        (self.location / "skipped.json").write(json.dumps({"steps": sorted(steps)}).encode())

    def history(self) -> History:
        """One record an epoch; empty before the first epoch has ended."""
        try:
            return History.model_validate_json((self.location / "history.json").read())
        except FileNotFoundError:
            return History()

    def write_history(self, history: History) -> None:
        (self.location / "history.json").write(history.model_dump_json(indent=1).encode())

    def result(self) -> Result | None:
        """What the finished run reached; None while it is not finished.

        Raises:
            RunError: the result is damaged.
        """
        where = self.location / "result.json"
        try:
            return Result.model_validate_json(where.read())
        except FileNotFoundError:
            return None
        except ValidationError as error:
            raise RunError(f"{where}: damaged ({error.error_count()} fields wrong)") from None

    def write_result(self, result: Result) -> None:
        """Mark the run finished."""
        (self.location / "result.json").write(result.model_dump_json(indent=1).encode())
