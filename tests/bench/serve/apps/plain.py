"""The endpoint that anybody would write first: FastAPI and uvicorn, one process, one image a forward pass.

python -m bench.serve.apps.plain MODEL STORAGE PORT; decoding and the forward pass are on a thread, torch has one.
"""

from __future__ import annotations

import sys
from typing import Any

import anyio.to_thread
import torch
import uvicorn
from fastapi import FastAPI, Request

from stoker.predict import Predictor


def _main(model: str, storage: str, port: int) -> None:
    torch.set_num_threads(1)
    predictor = Predictor.load(model, storage=storage)
    app = FastAPI()

    def rows(data: bytes) -> list[list[tuple[str, float]]]:
        return predictor.top(predictor.predict([data]), 5)

    async def predict(request: Request) -> dict[str, Any]:
        found = await anyio.to_thread.run_sync(rows, await request.body())
        predictions = [[{"label": label, "probability": p} for label, p in row] for row in found]
        return {"model": predictor.reference, "predictions": predictions}

    app.add_api_route("/predict", predict, methods=["POST"])
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", access_log=False)


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
