"""The rate of a replica's pipeline with decoding contained in processes, and with decoding on threads beside the model.

python -m bench.serve.decoding STORAGE ROUNDS SECONDS prints a line of JSON a turn; no HTTP, 16 requests at a time.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench.serve.place import bodies, photograph, python, run

if __name__ != "__main__":
    from bench.serve.clusters import DIGITS, Stoker
    from bench.serve.contenders import Row

__all__ = ["decoding"]

_AT_A_TIME = 16


def decoding(place: Stoker, rounds: int, seconds: float) -> Iterator[Row]:
    """Images/s of a digit (32 by 32 pixels) and of a photograph (500 by 375), each decoded in both ways."""
    place.publish(DIGITS)
    bodies(place.folder)
    command = python("-m", "bench.serve.decoding", place.storage, str(rounds), str(seconds), str(place.folder))
    for line in run(command, place.environment, timeout_s=60 + 8 * rounds * seconds).splitlines():
        if line.startswith("{"):
            found = json.loads(line)
            yield found.pop("row"), found


class _Threads:
    """Decoding on a thread of the replica, without a deadline or a bound of memory."""

    workers = 1

    def __init__(self, image_size: int, resize: int) -> None:
        from stoker.dataset.decode import evaluation_image

        self._decoded = evaluation_image
        self._how = {"image_size": image_size, "resize": resize}
        self._pool = ThreadPoolExecutor(self.workers)

    def is_cheap(self, header: Any, length: int) -> bool:
        return True

    async def decode(self, images: Sequence[bytes], headers: Sequence[Any]) -> list[Any]:
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._all, images)

    def _all(self, images: Sequence[bytes]) -> list[Any]:
        return [self._decoded(data, **self._how).permute(1, 2, 0).numpy() for data in images]


async def _rate(pipeline: Any, image: bytes, header: Any, seconds: float) -> float:
    until, count = time.perf_counter() + seconds, 0

    async def ask() -> None:
        nonlocal count
        while time.perf_counter() < until:
            await pipeline.predict([image], [header], 5)
            count += 1

    began = time.perf_counter()
    await asyncio.gather(*(ask() for _ in range(_AT_A_TIME)))
    return count / (time.perf_counter() - began)


async def _main(storage: str, rounds: int, seconds: float, folder: str) -> None:
    from stoker.dataset import UndecodableImage
    from stoker.dataset.format.image_header import read_header
    from stoker.predict.contained import Decoders
    from stoker_serve.pipeline import Pipeline
    from stoker_serve.replica import LoadedVersion, find_version
    from stoker_serve.settings import Batching, Limits, ModelSettings

    images = {"a digit": Path(folder, "digit.jpg").read_bytes(), "a photograph": photograph(Path(folder)).read_bytes()}
    settings = ModelSettings(model="digits@production", storage=storage)
    found = find_version(settings)
    version, how = LoadedVersion(settings, found, 1), found.card.preprocessing
    decoders = Decoders(image_size=how.image_size, resize=how.resize)
    await decoders.start()
    limits = Limits(queue_s=20)
    contained = Pipeline(version.forward, decoders, Batching(), limits, undecodable=UndecodableImage)
    threads = _Threads(how.image_size, how.resize)
    beside = Pipeline(version.forward, threads, Batching(), limits, undecodable=UndecodableImage)
    for number in range(rounds):
        for what, image in images.items():
            header = read_header(image)
            pair = {"in processes": contained, "on a thread": beside}
            for name in list(pair) if number % 2 == 0 else list(reversed(pair)):
                await _rate(pair[name], image, header, 0.3)
                row = {"images_per_s": await _rate(pair[name], image, header, seconds), "load": os.getloadavg()[0]}
                print(json.dumps({"row": f"{what}, {name}", **row}), flush=True)
    for pipeline in (contained, beside):
        pipeline.close()
    decoders.close()


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4]))
