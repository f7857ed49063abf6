"""How far the probabilities of a GPU are from those of a CPU, in full float32 and with TF32.

They are what the tolerances of parity allow for (``stoker.predict.parity``). The model's weights are fresh; its logits
are scaled to what a trained model has, or all probabilities would be near 1/1000 and hardly differ.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from bench.train.ours import make_model, recipe_for, synthetic
from bench.train.place import Place
from stoker.models.normalize import Normalize
from stoker.models.precision import full_float32

__all__ = ["measure"]

_LOGITS_STD = 4.0


@torch.inference_mode()
def measure(place: Place, *, device: Literal["cuda", "cpu"], model: str, side: int, micro: int) -> dict[str, float]:
    """Return the largest differences of a probability: ``parity_full`` and, on a GPU, ``parity_tf32``."""
    del place
    recipe = recipe_for(model=model, side=side, micro=micro, micro_batches=1, world_size=1)
    (batch,) = synthetic(recipe, 0, 1)
    made, normalize = make_model(recipe).eval(), Normalize(recipe.data.mean, recipe.data.std)
    with full_float32():
        logits = made(normalize(batch.images))
        scale = _LOGITS_STD / float(logits.std())
        expected = (scale * logits).softmax(dim=1)
        found = _probabilities(made.to(device), normalize.to(device), batch.images.to(device)[:-1], scale)
    differences = {"parity_full": float((found - expected[:-1]).abs().max())}
    if device == "cuda":
        torch.backends.cudnn.allow_tf32 = True
        found = _probabilities(made, normalize, batch.images.to(device), scale)
        differences["parity_tf32"] = float((found - expected).abs().max())
    return differences


def _probabilities(model: nn.Module, normalize: Normalize, images: Tensor, scale: float) -> Tensor:
    return (scale * model(normalize(images))).softmax(dim=1).cpu()
