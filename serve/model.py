"""A replica of one model: decodes the images of each request and predicts those of several requests in one batch."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import ray
from ray import serve

from .answers import Answer, Description, Refusal
from .settings import Batching

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["Model", "Replica"]

Row = list[tuple[str, float]]


class Model:
    """The model version ``reference`` from the registry below ``storage``, as :class:`stoker_serve.answers.Served`."""

    def __init__(self, reference: str, storage: str, threads: int) -> None:
        """``threads`` is the number of threads that decode, and of those that torch uses.

        Raises:
            ModelError, StorageError: the version cannot be loaded, or does not predict its golden predictions.
        """
        import torch  # here, so that only replicas import it, not the deploying process

        from stoker.dataset import UndecodableImage
        from stoker.predict import Predictor
        from stoker.predict.golden import GOLDEN, check_golden
        from stoker.registry import Registry
        from stoker.storage import locate

        torch.set_num_threads(threads)
        self._undecodable = UndecodableImage
        self._stack = torch.stack
        self._decoders = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._forward = ThreadPoolExecutor(1, thread_name_prefix="forward")
        version = Registry(locate(storage, timeout_s=20)).resolve(reference)
        self._predictor = Predictor(version)
        if GOLDEN in version.files:
            check_golden(version, self._predictor)
        size = self._predictor.card.preprocessing.image_size
        self._predictor.predict_images(torch.zeros(1, 3, size, size, dtype=torch.uint8))  # the first pass is slow

    async def predict(self, images: list[bytes], top: int) -> Answer | Refusal:
        """Predict ``images``; returns a refusal with status 422 if one of them cannot be decoded."""
        loop = asyncio.get_running_loop()
        decoding = [loop.run_in_executor(self._decoders, self._predictor.preprocess, data) for data in images]
        decoded = await asyncio.gather(*decoding, return_exceptions=True)
        pixels: list[Tensor] = []
        for number, image in enumerate(decoded, 1):
            if isinstance(image, self._undecodable):
                where = f"image {number} of {len(images)}: " if len(images) > 1 else ""
                return Refusal(422, "undecodable_image", f"{where}{image}")
            if isinstance(image, BaseException):
                raise image
            pixels.append(image)
        rows = await asyncio.gather(*(self._row(image) for image in pixels))
        return Answer(self._predictor.reference, tuple(tuple(row[:top]) for row in rows))

    async def describe(self) -> Description:
        card = self._predictor.card
        return Description(
            model=self._predictor.reference,
            architecture=card.architecture,
            classes=card.classes,
            image_size=card.preprocessing.image_size,
            accuracy=card.metrics.accuracy if card.metrics else None,
            published=card.published,
        )

    async def _row(self, image: Any) -> Any:
        """(label, probability) of every class for ``image`` (uint8 [3, S, S]), the most probable first."""
        return (await self._rows([image]))[0]

    async def _rows(self, images: Sequence[Tensor]) -> list[Row]:
        return await asyncio.get_running_loop().run_in_executor(self._forward, self._forward_pass, images)

    def _forward_pass(self, images: Sequence[Tensor]) -> list[Row]:
        probabilities: NDArray[np.float32] = self._predictor.predict_images(self._stack(list(images)))
        return self._predictor.top(probabilities, len(self._predictor.classes))


class Replica(Model):
    """A model inside Serve: images of concurrent requests are predicted in one batch."""

    def __init__(self, reference: str, storage: str, batching: Batching) -> None:
        cpus = ray.get_runtime_context().get_assigned_resources().get("CPU", 1.0)
        super().__init__(reference, storage, max(1, int(cpus)))
        self._row.set_max_batch_size(batching.images)
        self._row.set_batch_wait_timeout_s(batching.wait_ms / 1000)

    @serve.batch  # type: ignore[untyped-decorator]
    async def _row(self, images: Any) -> Any:
        return await self._rows(images)
