"""A server of one model: real HTTP, a real model and decoding processes behind it, no cluster."""

from __future__ import annotations

import asyncio
import io
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import uvicorn
from PIL import Image

from stoker.api_keys import Key, hash_of
from stoker.dataset import UndecodableImage
from stoker.predict.contained import Decoders
from stoker_serve.keys import Keys
from stoker_serve.model_app import ModelApp
from stoker_serve.pipeline import Pipeline
from stoker_serve.recording import Recorder
from stoker_serve.replica import LoadedVersion, find_version
from stoker_serve.settings import Limits, ModelSettings
from stoker_serve.telemetry import Metrics

KEY = "correct horse battery staple"
LIMITS = Limits(
    body_bytes=200_000, pixels=1_000_000, images=3, queue_images=16, held_bytes=2_000_000, queue_s=20, read_s=2
)


@contextmanager
def serving(settings: ModelSettings) -> Iterator[str]:
    """The URL of a server of its own, with the model that ``settings`` name."""
    version = LoadedVersion(settings, find_version(settings), 1)
    how = version.predictor.card.preprocessing
    ready, ended = threading.Event(), threading.Event()
    keys = Keys([Key("people", hash_of(KEY)), Key("letters", hash_of("other"), models=frozenset({"letters"}))])
    recorder = Recorder(version.reference, Metrics("digits", "digits@1"), None)

    async def serve(listener: socket.socket) -> None:
        decoders = Decoders(image_size=how.image_size, resize=how.resize)
        await decoders.start()
        pipeline = Pipeline(version.forward, decoders, settings.batching, settings.limits, undecodable=UndecodableImage)
        app = ModelApp(settings, version, pipeline, keys, recorder)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
        task = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:
            await asyncio.sleep(0.01)
        ready.set()
        await asyncio.to_thread(ended.wait)
        server.should_exit = True
        await task
        decoders.close()
        pipeline.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=lambda: asyncio.run(serve(listener)))
        thread.start()
        try:
            assert ready.wait(120)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            ended.set()
            thread.join()
            recorder.close()


def encoded(form: str = "JPEG", size: tuple[int, int] = (40, 40)) -> bytes:
    data = io.BytesIO()
    Image.effect_noise(size, 60).convert("RGB").save(data, form)
    return data.getvalue()


def post(client: httpx.Client, content: bytes, kind: str = "image/jpeg", name: str = "digits") -> httpx.Response:
    """``name`` as it arrives behind HAProxy: digits, or digits/@1."""
    return client.post(f"/v1/models/{name}/predict", content=content, headers={"Content-Type": kind})
