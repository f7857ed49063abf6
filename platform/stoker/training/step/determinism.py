"""Which operations of this process have no deterministic algorithm, as torch's warnings name them.

With ``reproducible`` such an operation runs nevertheless (``numerics``), and equal weights are no longer certain: a run
records the names with its result. What is known to be of that kind is refused before a run starts.
"""

from __future__ import annotations

import re
import warnings
from typing import Any

__all__ = ["nondeterministic_operations", "record_nondeterministic_operations"]

_WARNING = re.compile(
    r"^(\S+) does not have a deterministic implementation|^(.*\battention) defaults to a non-deterministic algorithm",
    re.IGNORECASE,
)
"""the usual words, and those of Flash, memory-efficient and cuDNN attention"""

_found: set[str] = set()
_is_recording = False


def nondeterministic_operations() -> tuple[str, ...]:
    """Names of the operations so far, sorted, for example ``adaptive_avg_pool2d_backward_cuda``."""
    return tuple(sorted(_found))


def record_nondeterministic_operations() -> None:
    """Record from now on, in the whole process. Warnings are shown as before; torch warns where it runs one."""
    global _is_recording  # noqa: PLW0603
    if _is_recording:
        return
    _is_recording = True
    show = warnings.showwarning

    def noting(message: Warning | str, *others: Any, **more: Any) -> None:
        if found := _WARNING.match(str(message)):
            _found.add(found[1] or found[2])
        show(message, *others, **more)

    warnings.showwarning = noting
