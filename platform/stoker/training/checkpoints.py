"""Checkpoints: safetensors and JSON in object storage, seen whole or not at all.

    <run>/checkpoints/00000120-<token>/model.safetensors, optimizer.safetensors, ema.safetensors, state.json
    <run>/checkpoints/00000120.json      written last: names the folder and the size and sha256 of each file

A folder that no manifest names is not a checkpoint; it is removed when a later one is committed. The token keeps a
writer that was thought dead from touching what its successor writes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from stoker.errors import RunError
from stoker.storage import Location
from stoker.storage.retry import BadBody

__all__ = ["Checkpoint", "CheckpointWriter", "latest_checkpoint", "list_checkpoints"]

logger = logging.getLogger(__name__)

MODEL, OPTIMIZER, EMA, STATE = "model.safetensors", "optimizer.safetensors", "ema.safetensors", "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint at ``step`` steps since the run's beginning."""

    step: int
    location: Location
    files: dict[str, dict[str, Any]]

    def weights(self) -> dict[str, Tensor]:
        """The weights that are evaluated and published: the moving average where the run keeps one.

        Raises:
            StorageError: they cannot be read, or not as they were written.
        """
        return self.tensors(EMA if EMA in self.files else MODEL)

    def tensors(self, file: str) -> dict[str, Tensor]:
        """The tensors of one of the safetensors files, on the CPU."""
        return safetensors.torch.load(self._read(file))

    def state(self) -> dict[str, Any]:
        """``state.json``: position, history, recipe, fingerprint, versions."""
        return dict(json.loads(self._read(STATE)))

    def _read(self, file: str) -> bytes:
        entry = self.files[file]

        def check(data: bytes) -> None:
            if len(data) != entry["bytes"] or hashlib.sha256(data).hexdigest() != entry["sha256"]:
                raise BadBody(f"{len(data)} bytes came that are not what the checkpoint's manifest says")

        try:
            return (self.location / file).read(check)
        except FileNotFoundError:
            raise RunError(
                f"{self.location / file}: missing, although the checkpoint's manifest names it; delete the "
                f"manifest {self.step:08d}.json to continue from the one before"
            ) from None


def list_checkpoints(folder: Location) -> list[int]:
    """Steps of the committed checkpoints in ``folder``, ascending."""
    return sorted(int(name[:-5]) for name in folder.children() if name.endswith(".json") and name[:-5].isdigit())


def open_checkpoint(folder: Location, step: int) -> Checkpoint:
    """The committed checkpoint at ``step``."""
    manifest = json.loads((folder / f"{step:08d}.json").read())
    return Checkpoint(step, folder / manifest["folder"], manifest["files"])


def latest_checkpoint(folder: Location) -> Checkpoint | None:
    """The newest committed checkpoint in ``folder``, or None."""
    steps = list_checkpoints(folder)
    return open_checkpoint(folder, steps[-1]) if steps else None


class CheckpointWriter:
    """Writes checkpoints of one run beside the step loop, one at a time, and keeps the last ``keep``."""

    def __init__(self, folder: Location, keep: int) -> None:
        self._folder, self._keep = folder, keep
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="stoker-checkpoint")
        self._pending: Future[None] | None = None

    def save(self, step: int, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
        """Copy ``tensors`` (file name to tensors) to the host and write them in the background.

        Waits first for the checkpoint before, so at most one copy is held.

        Raises:
            StorageError: the checkpoint before could not be written.
        """
        self.wait()
        copies = {file: {k: _on_host(v) for k, v in named.items()} for file, named in tensors.items()}
        self._pending = self._pool.submit(self._write, step, copies, state)

    def wait(self) -> None:
        """Until the checkpoint under way is committed; raises what went wrong with it."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def close(self) -> None:
        """Wait, and end the thread."""
        try:
            self.wait()
        finally:
            self._pool.shutdown()

    def _write(self, step: int, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
        if step in list_checkpoints(self._folder):
            return
        name = f"{step:08d}-{secrets.token_hex(4)}"
        files = {file: safetensors.torch.save(named) for file, named in tensors.items() if named}
        files[STATE] = json.dumps(state, indent=1).encode()
        for file, data in files.items():
            (self._folder / name / file).write(data)
        told = {f: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for f, data in files.items()}
        manifest = {"format": "stoker-checkpoint", "version": [1, 0], "step": step, "folder": name, "files": told}
        (self._folder / f"{step:08d}.json").write(json.dumps(manifest, indent=1).encode())
        self._prune()

    def _prune(self) -> None:
        """Delete the manifests of older checkpoints first, then every folder up to the newest that none names."""
        steps = list_checkpoints(self._folder)
        for step in steps[: -self._keep]:
            (self._folder / f"{step:08d}.json").delete()
        kept = {open_checkpoint(self._folder, step).location.name for step in steps[-self._keep :]}
        for name in self._folder.children():
            number = name.partition("-")[0]
            if "-" in name and name not in kept and number.isdigit() and int(number) <= steps[-1]:
                (self._folder / name).delete()


def _on_host(tensor: Tensor) -> Tensor:
    copy = torch.empty_like(tensor, device="cpu", memory_format=torch.contiguous_format)
    return copy.copy_(tensor.detach())
