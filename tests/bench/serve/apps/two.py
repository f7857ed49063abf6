"""A model as Serve's own documentation builds it: an HTTP deployment, and a handle to one that batches.

``import_path: bench.serve.apps.two:app``. This was the shape of stoker's endpoint before its replicas answered HTTP.
Serve reads annotations, so they are not postponed in this module.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fastapi import FastAPI, Request
from ray import serve
from ray.serve.handle import DeploymentHandle

_web = FastAPI()


@serve.deployment(ray_actor_options={"num_cpus": 1}, max_ongoing_requests=64)
class Model:
    """The replica: decoding on a thread, the forward pass on another, torch on one."""

    def __init__(self, model: str, storage: str) -> None:
        import torch

        from stoker.predict import Predictor

        torch.set_num_threads(1)
        self._stack = torch.stack
        self._predictor = Predictor.load(model, storage=storage)
        self._decoding, self._forward = ThreadPoolExecutor(1), ThreadPoolExecutor(1)

    async def predict(self, data: bytes) -> Any:
        image = await asyncio.get_running_loop().run_in_executor(self._decoding, self._predictor.preprocess, data)
        row = await self._rows(image)
        return {"model": self._predictor.reference, "predictions": [row]}

    @serve.batch(max_batch_size=32, batch_wait_timeout_s=0.004)  # type: ignore[untyped-decorator]
    async def _rows(self, images: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._forward, self._pass, images)

    def _pass(self, images: list[Any]) -> list[list[dict[str, Any]]]:
        rows = self._predictor.top(self._predictor.predict_images(self._stack(images)), 5)
        return [[{"label": label, "probability": p} for label, p in row] for row in rows]


@serve.deployment(ray_actor_options={"num_cpus": 0.5}, max_ongoing_requests=128)
@serve.ingress(_web)
class Http:
    """The door."""

    def __init__(self, model: DeploymentHandle) -> None:
        self._model = model

    @_web.post("/predict")
    async def predict(self, request: Request) -> Any:
        return await self._model.predict.remote(await request.body())


def app(args: dict[str, str]) -> serve.Application:
    """Build it for ``args``: model, storage."""
    return Http.bind(Model.bind(args["model"], args["storage"]))  # type: ignore[attr-defined]
