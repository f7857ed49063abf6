"""Write checkpoints in the background: the step loop waits for a copy to the host and for the previous checkpoint.

One copy of the tensors is held, in buffers that are reused (pinned if the tensors are on a GPU), and one part of an
upload. What a killed writer left behind, folders without a manifest and unfinished uploads, is removed by its
successor.
"""

from __future__ import annotations

import contextlib
import json
import logging
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from stoker.errors import StorageError
from stoker.runs.checkpoints import STATE, Checkpoint, list_checkpoints, open_checkpoint
from stoker.runs.fence import Fence
from stoker.runs.tensor_file import tensor_pieces
from stoker.storage import Location
from stoker.storage.uploads import abort_uploads, unfinished_uploads, write_pieces

__all__ = ["CheckpointWriter"]

logger = logging.getLogger(__name__)

Tensors = dict[str, dict[str, Tensor]]  # file name to name to tensor


class CheckpointWriter:
    """Writes checkpoints of one run, one at a time; keeps the last ``keep`` and, with ``keeps_best``, the best one.

    ``fence``, if it is given, commits: it refuses once a newer attempt at the run has begun. Without it this must be
    the only writer.
    """

    def __init__(self, folder: Location, keep: int, *, keeps_best: bool = True, fence: Fence | None = None) -> None:
        self._folder, self._keep, self._keeps_best, self._fence = folder, keep, keeps_best, fence
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="stoker-checkpoint")
        self._pending: Future[None] | None = None
        self._host: Tensors = {}
        self.stalled_s = 0.0
        """seconds that the step loop waited for checkpoints: copies to the host, and the previous checkpoint"""

    def save(self, step: int, tensors: Tensors, state: dict[str, Any], accuracy: float | None = None) -> float:
        """Copy ``tensors`` to the host and write them in the background; returns the seconds that the call took.

        First waits for the previous checkpoint, so at most one copy is held. ``accuracy`` is that of the validation
        split at this step, 0 to 1, if it is known: the best is kept.

        Raises:
            StorageError: the previous checkpoint could not be written.
        """
        began = time.monotonic()
        self.wait()
        self._copy_to_host({file: named for file, named in tensors.items() if named})
        self._pending = self._pool.submit(self._write, step, self._host, state, accuracy)
        took = time.monotonic() - began
        self.stalled_s += took
        return took

    def wait(self) -> None:
        """Wait until the current checkpoint is committed; raises what went wrong with it."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def close(self) -> None:
        """Wait, and stop the thread."""
        try:
            self.wait()
        finally:
            self._pool.shutdown()

    def clean(self) -> None:
        """Remove what earlier writers left unfinished. Call it only before the first ``save``, and after the fence is
        claimed.

        Raises:
            RunError: a newer attempt has begun.
        """
        self._prune()

    # -- inside ----------------------------------------------------------------------------------------------------

    def _copy_to_host(self, tensors: Tensors) -> None:
        held, self._host = self._host, {}
        for file, named in tensors.items():
            buffers = self._host[file] = {}
            for name, tensor in named.items():
                buffer = held.get(file, {}).get(name)
                if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
                    buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
                buffers[name] = buffer.copy_(tensor.detach(), non_blocking=True)
        if any(tensor.is_cuda for named in tensors.values() for tensor in named.values()):
            torch.cuda.current_stream().synchronize()

    def _write(self, step: int, tensors: Tensors, state: dict[str, Any], accuracy: float | None) -> None:
        if step in list_checkpoints(self._folder):
            return
        name = f"{step:08d}-{secrets.token_hex(4)}"
        files = {}
        for file, pieces in self._files(tensors, state):
            written = write_pieces(self._folder / name / file, pieces)
            files[file] = {"bytes": written.bytes, "sha256": written.sha256}
        manifest = {"format": "stoker-checkpoint", "version": [1, 0], "step": step, "folder": name, "files": files}
        if accuracy is not None:
            manifest["accuracy"] = accuracy
        file, data = f"{step:08d}.json", json.dumps(manifest, indent=1).encode()
        if self._fence is None:
            (self._folder / file).write(data)
        else:
            self._fence.commit(file, data)
        self._prune()

    @staticmethod
    def _files(
        tensors: Tensors, state: dict[str, Any]
    ) -> Iterator[tuple[str, Callable[[], Iterable[bytes | memoryview]]]]:
        for file, named in tensors.items():
            yield file, lambda named=named: tensor_pieces(named)  # type: ignore[misc]
        text = json.dumps(state, indent=1).encode()
        yield STATE, lambda: [text]

    def _prune(self) -> None:
        """Delete the manifests of older checkpoints first, then every folder up to the newest that none names.

        Nothing is deleted that was not there before the fence was last checked: it may be a newer attempt's.
        """
        steps = list_checkpoints(self._folder)
        found = self._open(steps)
        kept = set(steps[-self._keep :]) | ({best} if (best := self._best(found)) is not None else set())
        folders = {found[step].location.name for step in kept if step in found}
        unnamed = [name for name in self._folder.children() if _is_left(name, folders, max(steps, default=0))]
        uploads = self._unfinished_uploads()
        if self._fence is not None:
            self._fence.check()
        for step in steps:
            if step not in kept:
                (self._folder / f"{step:08d}.json").delete()
        for name in unnamed:
            (self._folder / name).delete()
        if uploads:
            self._abort(uploads)

    def _open(self, steps: list[int]) -> dict[int, Checkpoint]:
        found = {}
        for step in steps:
            with contextlib.suppress(FileNotFoundError):  # deleted in between, by an attempt that is not the newest
                found[step] = open_checkpoint(self._folder, step)
        return found

    def _unfinished_uploads(self) -> list[dict[str, Any]]:
        try:
            return unfinished_uploads(self._folder)
        except StorageError as error:  # a permission of its own on S3; what is left costs space, not correctness
            logger.warning("cannot list unfinished uploads: %s", error)
            return []

    def _abort(self, uploads: list[dict[str, Any]]) -> None:
        try:
            abort_uploads(self._folder, uploads)
        except StorageError as error:
            logger.warning("cannot abort unfinished uploads: %s", error)
        else:
            logger.info("%s: aborted %d unfinished uploads of an earlier writer", self._folder, len(uploads))

    def _best(self, found: dict[int, Checkpoint]) -> int | None:
        """The step of the most accurate checkpoint, the earliest among equals."""
        measured = [
            (checkpoint.accuracy, -step) for step, checkpoint in found.items() if checkpoint.accuracy is not None
        ]
        return -max(measured)[1] if measured and self._keeps_best else None


def _is_left(name: str, folders: set[str], newest: int) -> bool:
    """Whether ``name`` is a checkpoint's folder that no manifest names, at or before step ``newest``."""
    number = name.partition("-")[0]
    return "-" in name and name not in folders and number.isdigit() and int(number) <= newest
