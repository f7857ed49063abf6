"""What has to be set in a process so that the same micro-batch gives the same bits again."""

from __future__ import annotations

import os

import torch

__all__ = ["make_deterministic"]


def make_deterministic() -> None:
    """Choose kernels that give the same bits each time, for the whole process.

    On GPUs cuDNN's kernels are chosen by rule, not by a race of timings. An operation without such a kernel still runs,
    and torch's warning in the log names it. The number of CPU threads is not set here, but changes the sums inside a
    convolution: it has to stay what it was.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
