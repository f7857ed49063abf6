"""How far predictions of one version may be apart, wherever they are compared."""

from __future__ import annotations

__all__ = ["TOLERANCES"]

TOLERANCES = {
    ("cpu", "float32"): 1e-4,
    ("cuda", "float32"): 3e-4,
    ("cpu", "bfloat16"): 2e-2,
    ("cuda", "bfloat16"): 2e-2,
    ("cpu", "float16"): 2e-2,
    ("cuda", "float16"): 2e-2,
}
"""Largest difference of a probability between trainer and version, by device and by the trainer's precision.

The device is cuda if either of them computes there. Both compute in full float32, so what differs is how samples are
batched, and on a GPU the algorithms of convolutions; TF32 differs by 1.1e-3 (ResNet-50, emulated). The other precisions
are those of runs that were stored before parity was always in float32.
"""
