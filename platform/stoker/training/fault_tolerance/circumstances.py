"""What a rank knows of its own failure, attached to the exception: the step, the node, and whose fault it is.

The types and codes of torch's exceptions are known where they are raised, and the controller, which judges them
(``failure_policy``), does not import torch. Plain values in an exception's ``__dict__`` survive pickling.
"""

from __future__ import annotations

import contextlib
import errno
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import ray

from stoker.errors import StokerError

__all__ = ["Circumstances", "NodeError", "annotate", "annotating", "circumstances_of"]

# cudaError_t of CUDA 13 (driver_types.h). 700, 710 and 714 to 719 are missing: a kernel's own mistake gives them too.
_CUDA_ERRORS: dict[int | None, str] = {
    3: "the driver cannot be initialised",
    35: "the driver is too old",
    46: "the device is busy or unavailable",
    100: "no device",
    101: "no such device",
    127: "the CUDA runtime cannot be started",
    214: "an ECC error that cannot be corrected",
    220: "an NVLink error that cannot be corrected",
    226: "a contained memory error",
    304: "an error of the operating system",
    802: "the system is not ready (fabric manager)",
    803: "driver and library do not fit together",
    804: "the device does not support this driver",
    805: "the MPS server cannot be reached",
    806: "the MPS server failed",
    807: "the MPS server is not ready",
    810: "the MPS server ended this client",
    999: "an error that CUDA does not know",
}
_DISK_ERRORS = {errno.EIO, errno.ENOSPC, errno.EROFS, errno.ENXIO, errno.ENODEV, errno.EDQUOT} | {
    getattr(errno, name) for name in ("EUCLEAN", "EREMOTEIO") if hasattr(errno, name)
}
_KEY = "stoker_circumstances"


class NodeError(Exception):
    """Something of this node does not work: another node may well do what this one cannot."""


@dataclass(frozen=True)
class Circumstances:
    """Of an exception; plain values."""

    step: int | None = None
    """of the run, from 0; None before the first"""
    node: str = ""
    """Ray's id of the node on which it was raised"""
    host: str = ""
    """the node's address, for people"""
    of_node: str = ""
    """what of the node failed, its device or its disk; empty if another node would not help"""
    is_echo: bool = False
    """whether it says no more than that another rank is gone"""


def annotate(error: BaseException, step: int | None = None, *, where: Circumstances | None = None) -> None:
    """Attach the circumstances of this process to ``error``, once: what is attached already stays, but a step is added.

    ``where`` are those of another process, whose error this one repeats.
    """
    if (attached := error.__dict__.get(_KEY)) is not None:
        if attached["step"] is None:
            attached["step"] = step
        return
    node, host = _here()
    is_echo = _is_of_torch(error, "distributed.DistError")
    error.__dict__[_KEY] = asdict(where or Circumstances(step, node, host, _of_node(error), is_echo))


@contextlib.contextmanager
def annotating() -> Iterator[None]:
    """Attach the circumstances to every exception that leaves the block."""
    try:
        yield
    except Exception as error:
        annotate(error)
        raise


def circumstances_of(error: BaseException) -> Circumstances | None:
    """What was attached to ``error``; None for a worker that said nothing, because it was killed or lost."""
    attached: dict[str, Any] | None = getattr(error, "__dict__", {}).get(_KEY)
    return Circumstances(**attached) if attached else None


def _of_node(error: BaseException | None) -> str:
    """What of the node failed, from the types and codes of ``error`` and of what it was raised from.

    A full or failing disk that a :class:`StokerError` was raised from is the store's, not the node's.
    """
    is_ours = isinstance(error, StokerError)
    while error is not None:
        if isinstance(error, NodeError):
            return str(error)
        code = getattr(error, "error_code", None)  # of torch.AcceleratorError
        if _is_of_torch(error, "AcceleratorError") and code in _CUDA_ERRORS:
            return f"CUDA error {code}, {_CUDA_ERRORS[code]}"
        if isinstance(error, OSError) and error.errno in _DISK_ERRORS and not is_ours:
            where = f" ({error.filename})" if error.filename else ""
            return f"{error.strerror or f'error {error.errno}'}{where}"
        error = error.__cause__
    return ""


def _is_of_torch(error: BaseException, path: str) -> bool:
    """Whether ``error`` is an instance of ``torch.<path>``, in a process that has imported torch."""
    found: Any = sys.modules.get("torch")
    for name in path.split("."):
        found = getattr(found, name, None)
    return isinstance(found, type) and isinstance(error, found)


def _here() -> tuple[str, str]:
    """Ray's id of this node and its address; empty outside of Ray."""
    if not ray.is_initialized():
        return "", ""
    return ray.get_runtime_context().get_node_id(), ray.util.get_node_ip_address()
