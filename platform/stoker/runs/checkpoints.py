"""Read checkpoints: safetensors and JSON in object storage, visible as a whole or not at all.

    <run>/checkpoints/00000120-<token>/{model,optimizer,step,ema}.safetensors, state.json
    <run>/checkpoints/00000120.json      written last: names the folder and the size and sha256 of each file

A folder that no manifest names is not a checkpoint; it is removed when a later one is committed. The token keeps a
writer that was presumed dead from touching what its successor writes. ``checkpoint_writer`` is the other half.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stoker.errors import RunError
from stoker.storage import Location
from stoker.storage.retry import BadBody

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Checkpoint", "latest_checkpoint", "list_checkpoints", "open_checkpoint"]

MODEL, OPTIMIZER, STEP, EMA = "model.safetensors", "optimizer.safetensors", "step.safetensors", "ema.safetensors"
STATE = "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint after ``step`` steps of the run."""

    step: int
    location: Location
    files: dict[str, dict[str, Any]]
    accuracy: float | None = None
    """on the validation split, 0 to 1, if it was measured at this step"""

    def weights_file(self) -> str:
        """Name of the file whose weights are evaluated and published: the moving average if the run keeps one."""
        return EMA if EMA in self.files else MODEL

    def weights(self) -> dict[str, Tensor]:
        """The tensors of :meth:`weights_file`, on the CPU.

        Raises:
            StorageError: they cannot be read, or differ from what was written.
        """
        return self.tensors(self.weights_file())

    def tensors(self, file: str) -> dict[str, Tensor]:
        """The tensors of one of the safetensors files, on the CPU."""
        import safetensors.torch  # here, so that a driver that only lists checkpoints does not load torch

        return safetensors.torch.load(self._read(file))

    def state(self) -> dict[str, Any]:
        """``state.json``: position, history, recipe, fingerprint, versions."""
        return dict(json.loads(self._read(STATE)))

    def _read(self, file: str) -> bytes:
        entry = self.files[file]

        def check(data: bytes) -> None:
            if len(data) != entry["bytes"] or hashlib.sha256(data).hexdigest() != entry["sha256"]:
                raise BadBody(f"the {len(data)} bytes received do not match the checkpoint's manifest")

        try:
            return (self.location / file).read(check)
        except FileNotFoundError:
            raise RunError(
                f"{self.location / file}: missing, although the checkpoint's manifest names it; delete the "
                f"manifest {self.step:08d}.json to resume from the previous checkpoint"
            ) from None


def list_checkpoints(folder: Location) -> list[int]:
    """Steps of the committed checkpoints in ``folder``, ascending."""
    return sorted(int(name[:-5]) for name in folder.children() if name.endswith(".json") and name[:-5].isdigit())


def open_checkpoint(folder: Location, step: int) -> Checkpoint:
    """The committed checkpoint at ``step``.

    Raises:
        RunError: its manifest is damaged.
    """
    where = folder / f"{step:08d}.json"
    try:
        manifest = json.loads(where.read())
        return Checkpoint(step, folder / manifest["folder"], dict(manifest["files"]), manifest.get("accuracy"))
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{where}: damaged ({error}); delete it to resume from another checkpoint") from None


def latest_checkpoint(folder: Location) -> Checkpoint | None:
    """The newest committed checkpoint in ``folder``, or None."""
    steps = list_checkpoints(folder)
    return open_checkpoint(folder, steps[-1]) if steps else None
