"""Wrap a loader as an IterableDataset of PyTorch, for frameworks that require one.

The loader makes whole batches on its own threads, so a DataLoader around it must add neither batching nor worker
processes: ``DataLoader(LoaderDataset(loader), batch_size=None, num_workers=0)``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from stoker.dataset.batch import Batch
from stoker.dataset.loader import Loader

__all__ = ["LoaderDataset"]


class LoaderDataset(IterableDataset[tuple[Tensor, Tensor] | Batch]):
    """Iterates over the loader's micro-batches until the end of the epoch: pairs (inputs, labels), or with
    ``as_pairs=False`` each :class:`Batch`.

    Pairs hold no padding: where an epoch's last global batch is padded (``data.last_batch``, evaluation), the last pair
    may be shorter, and pairs without a sample are left out. The length is that of a whole epoch, in micro-batches of
    this rank, such empty ones included. Position and resume are the loader's (``state_dict``, by
    the convention of torchdata's StatefulDataLoader); the loader's rank and world size already
    shard the data, so nothing around it may shard it again.

    Raises:
        ValueError: iterated in a worker process of a DataLoader. The loader would be copied there, and neither the
            position nor the next epoch would come back from the copy.
    """

    def __init__(self, loader: Loader, *, as_pairs: bool = True) -> None:
        self._loader, self._as_pairs = loader, as_pairs

    def __len__(self) -> int:
        return self._loader.steps * len(self._loader.micro_batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor] | Batch]:
        worker = get_worker_info()
        if worker is not None:
            raise ValueError(
                f"the loader has its own threads, but a DataLoader runs it in worker process {worker.id} of "
                f"num_workers={worker.num_workers}; set num_workers=0 and batch_size=None"
            )
        for batch in self._loader:
            if not self._as_pairs:
                yield batch
            elif batch.size:
                yield batch.inputs[: batch.size], batch.labels[: batch.size]

    def state_dict(self) -> dict[str, Any]:
        """The loader's position."""
        return self._loader.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Move the loader to a position; the next iteration begins there."""
        self._loader.load_state_dict(state)
