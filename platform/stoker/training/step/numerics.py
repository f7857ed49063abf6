"""Every switch of a process that changes the numbers which kernels compute: TF32, autotuning, determinism, threads."""

from __future__ import annotations

import os

import torch

from stoker.recipe import Recipe
from stoker.training.step.determinism import record_nondeterministic_operations

__all__ = ["configure_numerics", "set_cpu_threads"]


def configure_numerics(recipe: Recipe) -> None:
    """Set the numerics of this process as ``recipe`` asks, for the whole process.

    ==========================  ==============================  ===================================
    switch                      default                         ``reproducible: true``
    ==========================  ==============================  ===================================
    float32 matrix products     full precision, no TF32         the same
    float32 convolutions        TF32 where cuDNN has it         the same
    cuDNN autotuning            on                              off: it takes what was fastest
    deterministic algorithms    off                             on; an operation that has none runs
                                                                and is recorded (``determinism``)
    ==========================  ==============================  ===================================

    Evaluation and prediction compute in full float32 whatever is set here (``stoker.models.precision``). The number of
    CPU threads changes the sums inside a convolution too (:func:`set_cpu_threads`).
    """
    if "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE" not in os.environ:  # by which torch lets an operator choose TF32
        torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = not recipe.reproducible
    if recipe.reproducible:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
        torch.use_deterministic_algorithms(True, warn_only=True)
        record_nondeterministic_operations()
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.backends.cudnn.deterministic = True


def set_cpu_threads(threads: int) -> None:
    """Compute with ``threads`` CPU threads in this process, at least 1."""
    torch.set_num_threads(max(1, threads))
