"""stoker's loader in the frame of the resume case: its samples' identities are their numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from bench.data.ours import loader
from bench.data.place import Place

__all__ = ["load"]


class _Loader:
    def __init__(self, place: Place, source: str) -> None:
        torch.set_num_threads(1)
        self._loader = loader(place, source)

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        for batch in self._loader:
            yield batch.images, batch.numbers[batch.numbers >= 0]

    def state_dict(self) -> Any:
        return self._loader.state_dict()

    def load_state_dict(self, state: Any) -> None:
        self._loader.load_state_dict(state)


def load(place: Place, decoder: str, source: str, *, identifies: bool = False) -> _Loader:
    """Batches of one epoch."""
    return _Loader(place, source)
