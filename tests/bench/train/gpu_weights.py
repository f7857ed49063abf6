"""The hash of the weights of a reproducible run whose images grow: straight through, or resumed after they have.

The two phases are cases of their own, each in a fresh process: the second continues what the first left half-way.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

import torch

from bench.train.ours import compile_quickly, make_model, recipe_for, synthetic
from bench.train.place import Place
from stoker.recipe import Recipe
from stoker.training.optim.optimizers import load_optimizer_tensors, optimizer_tensors
from stoker.training.step.stepper import Stepper

__all__ = ["measure"]

_STEPS = 6
"""half of them with small images"""
_CLASSES = 1000


def measure(
    place: Place,
    *,
    device: Literal["cuda", "cpu"],
    model: str,
    side: int,
    micro: int,
    compiles: bool,
    phase: Literal["through", "resumed"],
) -> dict[str, float]:
    """Return ``hash``: the first 48 bits of the SHA-256 of all weights and buffers."""
    if device == "cpu":
        compile_quickly()
    recipe = recipe_for(
        model=model,
        side=side,
        micro=micro,
        micro_batches=2,
        world_size=1,
        reproducible=True,
        compile=compiles,
        precision="bfloat16",
        workers={"min": 1, "max": 1, "gpus": int(device == "cuda"), "cpus": 1},
    )
    stepper = Stepper(recipe, make_model(recipe), torch.device(device, 0), _STEPS)
    left = Path(place.folder) / f"half-way-{'compiled' if compiles else 'eager'}.pt"
    if phase == "resumed":
        _load(stepper, left)
    for step in range(_STEPS // 2 if phase == "resumed" else 0, _STEPS):
        if phase == "through" and step == _STEPS // 2:
            _save(stepper, left)
        small = recipe.data.model_copy(update={"image_size": side // 4 * 3})
        sized = recipe.model_copy(update={"data": small}) if step < _STEPS // 2 else recipe
        _step(stepper, sized, step)
    digest = hashlib.sha256()
    for name, value in stepper.model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.cpu().contiguous().numpy().tobytes())
    return {"hash": float(int(digest.hexdigest()[:12], 16))}


def _step(stepper: Stepper, recipe: Recipe, step: int) -> None:
    """One step; the last one of the run is padded to a half-filled micro-batch."""
    first, second = synthetic(recipe, 0, 1)
    if step == _STEPS - 1:
        kept = recipe.batch.micro // 2
        second.numbers[kept:] = -1
        second.labels[kept:] = -1
    stepper.run([first, second], step, first.size + second.size)


def _save(stepper: Stepper, place: Path) -> None:
    state = {
        "model": stepper.model.state_dict(),
        "optimizer": optimizer_tensors(stepper.optimizer, stepper.model),
        "more": stepper.state_tensors(),
    }
    torch.save(state, place)


def _load(stepper: Stepper, place: Path) -> None:
    state = torch.load(place, weights_only=True, map_location="cpu")
    stepper.model.load_state_dict(state["model"])
    load_optimizer_tensors(stepper.optimizer, stepper.model, state["optimizer"])
    stepper.load_state_tensors(state["more"])
