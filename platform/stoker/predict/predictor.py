"""A published model, ready to be asked."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stoker import recipe as recipes
from stoker.dataset.decode import evaluation_image
from stoker.errors import ModelError
from stoker.models import build_model, load_weights, model_options
from stoker.models.normalize import Normalize
from stoker.registry import ModelVersion, Registry
from stoker.storage import Location, locate

__all__ = ["Predictor"]


class Predictor:
    """Holds one version's weights on one device. Safe to call from several threads."""

    def __init__(self, version: ModelVersion, device: str | torch.device | None = None) -> None:
        """
        Raises:
            ModelError: the weights do not fit the architecture that the version names.
        """
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.reference = version.reference
        self.classes = version.classes
        self.card = version.card
        chosen = recipes.Model.model_validate(self.card.recipe.get("model", {"name": self.card.architecture}))
        options = model_options(chosen, self.card.preprocessing.image_size)
        model = build_model(self.card.architecture, classes=len(self.classes), **options)
        try:
            load_weights(model, version.weights())
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise ModelError(
                f"{self.reference}: its weights are not those of a {version.card.architecture} ({reason})"
            ) from None
        self._model = model.eval().requires_grad_(False).to(self.device).to(memory_format=torch.channels_last)
        self._normalize = Normalize(self.card.preprocessing.mean, self.card.preprocessing.std).to(self.device)
        self._pool = ThreadPoolExecutor(max(1, min(8, os.cpu_count() or 1)), thread_name_prefix="stoker-predict")

    @classmethod
    def load(
        cls, reference: str, *, storage: str | Path | Location, device: str | torch.device | None = None
    ) -> Predictor:
        """The predictor of ``reference`` (``digits@3``, ``digits@production``, ``digits``) below ``storage``.

        Raises:
            ModelError: there is no such model, version or alias.
            StorageError: the store cannot be read.
        """
        place = storage if isinstance(storage, Location) else locate(storage)
        return cls(Registry(place).resolve(reference), device)

    def preprocess(self, data: bytes | memoryview) -> Tensor:
        """One encoded image (JPEG, PNG, WebP) as the model takes it: uint8 [3, S, S].

        Raises:
            UndecodableImage: ``data`` is not an image, or damaged.
        """
        how = self.card.preprocessing
        return evaluation_image(data, image_size=how.image_size, resize=how.resize)

    @torch.inference_mode()
    def predict_images(self, images: Tensor) -> NDArray[np.float32]:
        """Probabilities of preprocessed images (uint8 [n, 3, S, S]): float32 [n, classes], rows sum to 1."""
        moved = images.to(self.device, memory_format=torch.channels_last, non_blocking=True)
        probabilities: NDArray[np.float32] = self._model(self._normalize(moved)).float().softmax(dim=1).cpu().numpy()
        return probabilities

    def predict(self, images: Sequence[bytes]) -> NDArray[np.float32]:
        """Probabilities of encoded images: float32 [n, classes], in their order.

        Raises:
            UndecodableImage: one of them is not an image.
        """
        if not images:
            return np.empty((0, len(self.classes)), dtype=np.float32)
        return self.predict_images(torch.stack(list(self._pool.map(self.preprocess, images))))

    def top(self, probabilities: NDArray[np.float32], count: int = 5) -> list[list[tuple[str, float]]]:
        """For each row of ``probabilities`` the ``count`` most probable classes, the most probable first."""
        order = np.argsort(-probabilities, axis=1, kind="stable")[:, :count]
        return [
            [(self.classes[c], float(row[c])) for c in best] for row, best in zip(probabilities, order, strict=True)
        ]
