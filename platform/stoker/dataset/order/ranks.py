"""Assign a step's micro-batches to ranks."""

__all__ = ["micro_batches_of"]


def micro_batches_of(rank: int, world_size: int, micro_batches: int) -> range:
    """The micro-batches of a step that ``rank`` computes: contiguous, and distributed as evenly as possible.

    Eight micro-batches on three ranks are split 3, 3 and 2.

    Raises:
        ValueError: ``rank`` is not in ``range(world_size)``, or there are fewer micro-batches than ranks.
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be in range({world_size}), not {rank}")
    if micro_batches < world_size:
        raise ValueError(f"{micro_batches} micro-batches cannot be shared by {world_size} ranks; use fewer ranks")
    each, more = divmod(micro_batches, world_size)
    first = rank * each + min(rank, more)
    return range(first, first + each + (rank < more))
