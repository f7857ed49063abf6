"""torch.compile of a run's model: a static graph for each size of micro-batch that the recipe has.

By default torch compiles one graph for all sizes once it has seen two. A run that is resumed after its images have
grown has only seen one, so it would compute with other kernels, and round otherwise, than the run that went on; and
kernels for any size are slower. Here every size has a graph of its own, whichever came before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import torch
from torch import nn

from stoker.recipe import Recipe

__all__ = ["compiled", "graphs_of", "watched_compilation"]

_OTHER_REASONS = 8
"""torch's own limit of recompilations, kept for what is not a size"""
_LENGTHS_WITH_PADDING = 3
"""a full micro-batch, one with the epoch's last samples, and the two images of a rank that has none"""


def compiled(model: nn.Module, recipe: Recipe) -> nn.Module:
    """``model``, compiled when it is called; beyond its limit of graphs torch would run it uncompiled."""
    limit = graphs_of(recipe) + _OTHER_REASONS
    return torch.compile(model, dynamic=False, recompile_limit=limit, isolate_recompiles=True)  # type: ignore[call-overload]


def graphs_of(recipe: Recipe) -> int:
    """The most graphs that a run of ``recipe`` needs: sizes of images times lengths of micro-batches."""
    sizes = {recipe.data.image_size_at(epoch) for epoch in range(recipe.schedule.epochs)}
    return len(sizes) * (1 if recipe.data.last_batch == "drop" else _LENGTHS_WITH_PADDING)


@contextmanager
def watched_compilation(begins: Callable[[], None], ends: Callable[[], None]) -> Iterator[None]:
    """Inside the block, call ``begins`` before torch compiles anything in this process, and ``ends`` afterwards.

    Importing torch._dynamo takes seconds: only a run that compiles should enter.
    """
    from torch._dynamo.callback import CallbackArgs, callback_handler

    def on_start(_: CallbackArgs) -> None:
        begins()

    def on_end(_: CallbackArgs) -> None:
        ends()

    callback_handler.register_start_callback(on_start)
    callback_handler.register_end_callback(on_end)
    try:
        yield
    finally:
        with suppress(ValueError):  # torch._dynamo.reset() forgets them
            callback_handler.remove_start_callback(on_start)
            callback_handler.remove_end_callback(on_end)
