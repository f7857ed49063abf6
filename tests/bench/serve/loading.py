"""A replica's parts in a process of their own: python -m bench.serve.loading STORAGE prints when they are ready.

``ready`` is the machine's monotonic clock, which all its processes share.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

from stoker.predict.contained import Decoders
from stoker_serve.replica import LoadedVersion, find_version
from stoker_serve.settings import ModelSettings


async def _main(storage: str) -> None:
    settings = ModelSettings(model="digits@production", storage=storage)
    loop = asyncio.get_running_loop()
    found = await loop.run_in_executor(None, find_version, settings)
    how = found.card.preprocessing
    decoders = Decoders(image_size=how.image_size, resize=how.resize)
    await asyncio.gather(decoders.start(), loop.run_in_executor(None, LoadedVersion, settings, found, 1))
    print(json.dumps({"ready": time.monotonic()}))
    decoders.close()


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1]))
