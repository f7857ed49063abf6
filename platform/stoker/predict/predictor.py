"""Predict with a published model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stoker import recipe as recipes
from stoker.dataset.decode import evaluation_image
from stoker.errors import ModelError
from stoker.models import build_model, load_weights, model_options
from stoker.models.normalize import Normalize
from stoker.predict.engines import Engine, Network
from stoker.registry import ModelCard, Registry
from stoker.storage import Location, locate

__all__ = ["Predictor", "Weighted"]


class Weighted(Protocol):
    """A model version, published or about to be: its card, and its weights by name."""

    @property
    def reference(self) -> str: ...
    @property
    def card(self) -> ModelCard: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    def weights(self) -> dict[str, Tensor]: ...


class Predictor:
    """Run one model version on one device. Thread-safe."""

    def __init__(self, version: Weighted, device: str | torch.device | None = None) -> None:
        """
        Raises:
            ModelError: the weights do not fit the version's architecture.
        """
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.reference = version.reference
        self.classes = version.classes
        self.card = version.card
        chosen = recipes.stored_model(self.card.recipe.get("model", {"name": self.card.architecture}))
        options = model_options(chosen, self.card.preprocessing.image_size)
        model = build_model(self.card.architecture, classes=len(self.classes), **options)
        try:
            load_weights(model, version.weights())
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise ModelError(
                f"{self.reference}: its weights do not fit a {version.card.architecture} ({reason}); "
                "publish the run again"
            ) from None
        normalize = Normalize(self.card.preprocessing.mean, self.card.preprocessing.std)
        self.network = Network(model.requires_grad_(False), normalize).to(self.device)
        self._engine = Engine("eager", "float32", self.network)
        self._pool = ThreadPoolExecutor(max(1, min(8, os.cpu_count() or 1)), thread_name_prefix="stoker-predict")

    @classmethod
    def load(
        cls, reference: str, *, storage: str | Path | Location, device: str | torch.device | None = None
    ) -> Predictor:
        """Load the version that ``reference`` names (``digits@3``, ``digits@production``, ``digits``) from ``storage``.

        Raises:
            ModelError: the model, version or alias does not exist.
            StorageError: the store cannot be read.
        """
        place = storage if isinstance(storage, Location) else locate(storage)
        return cls(Registry(place).resolve(reference), device)

    @property
    def engine(self) -> Engine:
        """What computes the forward pass: eager float32, until :meth:`use` names another."""
        return self._engine

    def use(self, engine: Engine) -> None:
        """Compute by ``engine``, which was built of :attr:`network`, from now on."""
        self._engine = engine

    def preprocess(self, data: bytes | memoryview) -> Tensor:
        """Decode, resize and crop one encoded image (JPEG, PNG, WebP) for the model: uint8 [3, S, S].

        Raises:
            UndecodableImage: ``data`` is not a valid image.
        """
        how = self.card.preprocessing
        return evaluation_image(data, image_size=how.image_size, resize=how.resize)

    def predict_images(self, images: Tensor) -> NDArray[np.float32]:
        """Class probabilities of preprocessed images (uint8 [n, 3, S, S]): float32 [n, classes], rows sum to 1.

        In the precision of :attr:`engine`; float32 is in full, without TF32.
        """
        probabilities: NDArray[np.float32] = self._probabilities(images).cpu().numpy()
        return probabilities

    def top_classes(self, images: Tensor, count: int) -> list[tuple[list[int], list[float]]]:
        """(class numbers, probabilities) of the ``count`` most probable classes of each image, in descending order.

        ``images`` is as in :meth:`predict_images`. Only these leave the device: a model may have 21,841 classes.
        """
        probabilities = self._probabilities(images)
        values, numbers = probabilities.topk(min(count, probabilities.shape[1]), dim=1)
        return list(zip(numbers.tolist(), values.tolist(), strict=True))

    def _probabilities(self, images: Tensor) -> Tensor:
        return self._engine(images.to(self.device, memory_format=torch.channels_last, non_blocking=True))

    def predict(self, images: Sequence[bytes]) -> NDArray[np.float32]:
        """Class probabilities of encoded images: float32 [n, classes], in the order of ``images``.

        Raises:
            UndecodableImage: one of them is not a valid image.
        """
        if not images:
            return np.empty((0, len(self.classes)), dtype=np.float32)
        return self.predict_images(torch.stack(list(self._pool.map(self.preprocess, images))))

    def top(self, probabilities: NDArray[np.float32], count: int = 5) -> list[list[tuple[str, float]]]:
        """The ``count`` most probable (class, probability) of each row, in descending order of probability."""
        order = np.argsort(-probabilities, axis=1, kind="stable")[:, :count]
        return [
            [(self.classes[c], float(row[c])) for c in best] for row, best in zip(probabilities, order, strict=True)
        ]
