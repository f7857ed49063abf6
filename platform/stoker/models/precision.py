"""Precision of a forward pass: full float32 in evaluation and prediction, and autocast where a recipe asks for it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["AUTOCAST", "autocast", "full_float32"]

AUTOCAST: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
"""dtype of the forward pass by a recipe's ``precision``; ``torch.float32`` means no autocast"""

_lock = threading.Lock()
_inside = 0
_before: tuple[bool, tuple[str, ...]]


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The autocast of a forward pass on ``device`` by a recipe's ``precision``; for float32 it does nothing.

    Raises:
        KeyError: ``precision`` is unknown.
    """
    dtype = AUTOCAST[precision]
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


@contextmanager
def full_float32() -> Iterator[None]:
    """Compute float32 in full inside the block, without TF32, and by kernels that do not depend on timings.

    cuDNN computes float32 convolutions in TF32 by default, with 10 bits, which moved ResNet-50's probabilities by
    1.1e-3 (emulated). The switches are those of the whole process, which training sets for itself: they are restored
    when the last of the threads that are inside leaves. cuDNN's autotuning is off inside, because it takes the kernel
    that was fastest at that moment: equal weights would not give equal numbers.
    """
    global _inside, _before  # noqa: PLW0603
    with _lock:
        if not _inside:
            _before = torch.backends.cudnn.benchmark, tuple(place.fp32_precision for place in _places())
            _set(False, ("ieee",) * len(_places()))
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                _set(*_before)


def _places() -> tuple[Any, ...]:
    """Where torch keeps the precision of float32: by these, unlike by the older switches, any setting can be read."""
    backends: Any = torch.backends
    return backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul, backends.mkldnn.matmul, backends.mkldnn.conv


def _set(benchmark: bool, precisions: tuple[str, ...]) -> None:
    torch.backends.cudnn.benchmark = benchmark
    for place, precision in zip(_places(), precisions, strict=True):
        place.fp32_precision = precision
