"""A place in the order of a split: what names the order, and which positions are in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from stoker.dataset.order import EpochOrder, key_of

__all__ = ["SplitOrder"]


@dataclass(frozen=True)
class SplitOrder:
    """The orders of a split's epochs: all that they depend on. ``fingerprint`` is the data set's."""

    fingerprint: str
    split: str
    seed: int
    samples: int
    global_batch: int
    block_samples: int
    window_blocks: int
    last_batch: Literal["drop", "pad"]
    shuffled: bool

    def of(self, epoch: int) -> EpochOrder:
        """The order of ``epoch``.

        Raises:
            ValueError: see :class:`EpochOrder`.
        """
        return EpochOrder(
            samples=self.samples,
            global_batch=self.global_batch,
            key=key_of(self.fingerprint, self.split, self.seed, epoch),
            block=self.block_samples,
            window=self.window_blocks,
            last_batch=self.last_batch,
            shuffled=self.shuffled,
        )

    def position_in(self, state: Mapping[str, Any]) -> tuple[int, int]:
        """(epoch, step) of a loader's ``state``, if it is a position in this order.

        Raises:
            ValueError: it is none; the message names the field.
        """
        if not isinstance(state, Mapping):
            raise ValueError(f"a position is a mapping, not {state!r}; load what state_dict() returned")
        epoch, step = (_whole_number(state, name) for name in ("epoch", "step"))
        order, steps = state.get("order", {}), self.of(0).steps
        if not isinstance(order, Mapping):
            raise ValueError(f"order: a position's order is a mapping, not {order!r}; load what state_dict() returned")
        if missing := {field.name for field in fields(self)} - set(order) if "order" in state else set():
            raise ValueError(f"order: a position's order lacks {min(missing)}; load what state_dict() returned")
        for field in fields(self):
            own, given = getattr(self, field.name), order.get(field.name)
            if field.name in order and given != own:
                raise ValueError(
                    f"{field.name}: the position is of an order with {given!r}, this loader has {own!r}, so samples "
                    "would be repeated or left out; make the loader as it was, or begin an epoch anew"
                )
        if step >= steps:
            raise ValueError(
                f"step: {step} is not in an epoch of {steps} steps (0 to {steps - 1}); the position is of another "
                "data set or batch size"
            )
        return epoch, step


def _whole_number(state: Mapping[str, Any], name: str) -> int:
    value = state.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{name}: a position's {name} is a whole number from 0 on, not {value!r}")
    return value
