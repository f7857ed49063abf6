"""A replica of one model: it holds the weights and answers HTTP itself, so that a request meets one process."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

import ray

from stoker.dataset.undecodable import UndecodableImage
from stoker.deferred import defer_compiler, importing
from stoker.predict.contained import Decoders

from .hop import Forwarded, call_app
from .keys import Keys
from .model_app import ModelApp
from .pipeline import Pipeline, Row
from .recording import Recorder
from .settings import ModelSettings
from .telemetry import AccessLog, Metrics, access_log_path

if TYPE_CHECKING:
    from stoker.predict import Predictor
    from stoker.registry import ModelVersion

__all__ = ["LoadedVersion", "Replica", "find_version"]

logger = logging.getLogger(__name__)

_WARM_UP_S = 2.0
_PROBE_S = 30.0
"""a small decode and a forward pass behind those that run: what takes longer is stuck"""


def find_version(settings: ModelSettings) -> ModelVersion:
    """The version that ``settings`` name.

    Raises:
        ModelError, StorageError: it is unknown, or the registry cannot be read.
    """
    from stoker.registry import Registry
    from stoker.storage import locate

    return Registry(locate(settings.storage, timeout_s=20)).resolve(settings.version or settings.model)


class LoadedVersion:
    """A version in memory: its engine chosen, checked against its golden predictions, warm, answering lists of images.

    Blocking, for a thread or a process of its own.
    """

    def __init__(self, settings: ModelSettings, version: ModelVersion, threads: int) -> None:
        """``threads`` is how many torch uses.

        Raises:
            ModelError, StorageError: the version cannot be loaded, has no such engine, or does not predict its golden
                predictions.
        """
        defer_compiler()  # two thirds of what the imports would take; an engine that compiles imports it then
        with importing():  # here, so that only replicas import torch, not the deploying process
            import numpy as np
            import torch

            from stoker.predict import Predictor
            from stoker.predict.engine_choice import choose_engine
            from stoker.predict.golden import GOLDEN, check_golden

        torch.set_num_threads(threads)
        self._torch, self._stack = torch, np.stack
        self.predictor: Predictor = Predictor(version)
        batch = settings.batching.images
        engine = choose_engine(
            self.predictor,
            name=settings.engine,
            precision=settings.precision,
            batch=batch,
            seconds=settings.engine_s,
            log=logger,
        )
        self.predictor.use(engine)
        if GOLDEN in version.files:
            check_golden(version, self.predictor)
        self.reference = self.predictor.reference
        self.classes = self.predictor.classes
        self._name, self._given = settings.name, settings.model
        self._warm_up(batch)

    @property
    def image_size(self) -> int:
        """pixels"""
        return self.predictor.card.preprocessing.image_size

    def describe(self) -> dict[str, Any]:
        """The entry of ``/v1/models``."""
        from .directory import model_entry

        return model_entry(self._name, self._given, self.reference, self.predictor.card, self.classes)

    def forward(self, pixels: list[Any], top: int) -> Sequence[Row]:
        """The ``top`` most probable classes of each image (uint8 [S, S, 3])."""
        stacked = self._torch.from_numpy(self._stack(pixels)).permute(0, 3, 1, 2)  # channels_last as it is
        return self.predictor.top_classes(stacked, top)

    def probe(self) -> None:
        """A forward pass of one black image."""
        size = self.image_size
        self.predictor.predict_images(self._torch.zeros(1, 3, size, size, dtype=self._torch.uint8))

    def _warm_up(self, largest: int) -> None:
        """Run the batch sizes that will occur: memory is taken and kernels are chosen at the first pass of each."""
        size = self.image_size
        until = time.monotonic() + _WARM_UP_S
        count = 1
        while True:
            self.predictor.predict_images(self._torch.zeros(count, 3, size, size, dtype=self._torch.uint8))
            if count >= largest or time.monotonic() > until:
                break
            count = min(largest, 2 * count)


class Replica:
    """The ingress deployment of a model's application."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = ModelSettings.model_validate(settings)

    async def __serve_build_asgi_app__(self) -> Callable[..., Awaitable[None]]:
        began = time.monotonic()
        settings = self._settings
        cpus = ray.get_runtime_context().get_assigned_resources().get("CPU", 1.0)
        threads = max(1, int(cpus))
        loop = asyncio.get_running_loop()
        self._keys = Keys.load(os.environ) if settings.authentication == "keys" else None
        found = await loop.run_in_executor(None, find_version, settings)
        how = found.card.preprocessing
        self._decoders = Decoders(image_size=how.image_size, resize=how.resize, workers=threads)
        _, version = await asyncio.gather(  # both import torch, which takes seconds: at the same time
            self._decoders.start(), loop.run_in_executor(None, LoadedVersion, settings, found, threads)
        )
        metrics = Metrics(settings.name, version.reference)
        self._recorder = Recorder(version.reference, metrics, AccessLog(access_log_path()))
        self._version = version
        self._pipeline = Pipeline(
            version.forward,
            self._decoders,
            settings.batching,
            settings.limits,
            undecodable=UndecodableImage,
            on_batch=self._recorder.batch,
        )
        if self._keys is not None:
            self._keys.watch()
        logger.info("%s is ready after %.1f s", version.reference, time.monotonic() - began)
        self._app = ModelApp(settings, version, self._pipeline, self._keys, self._recorder, tells_request_id=False)
        return self._app

    async def answer(self, request: Forwarded) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        """Answer a request that came by another process: (status, headers, body)."""
        return await call_app(self._app, request)

    async def check_health(self) -> None:
        """Serve asks this at intervals, and replaces the replica if it raises.

        Raises:
            TimeoutError: a decoder or the model does not answer.
        """
        async with asyncio.timeout(_PROBE_S):
            await asyncio.gather(self._decoders.probe(), self._pipeline.run(self._version.probe))

    def __del__(self) -> None:
        for part in ("_pipeline", "_decoders", "_recorder", "_keys"):
            if (held := getattr(self, part, None)) is not None:
                held.close()
