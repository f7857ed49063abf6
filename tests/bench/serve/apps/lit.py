"""LitServe with the same model and its own batching: python -m bench.serve.apps.lit MODEL STORAGE PORT

MODEL ``empty`` answers at once. LitServe reads JSON or forms, so an image comes as base64 in JSON; its worker decodes.
"""

from __future__ import annotations

import base64
import sys
from typing import Any

import litserve  # type: ignore[import-not-found]


class Empty(litserve.LitAPI):  # type: ignore[misc]
    """Only what LitServe itself costs."""

    def setup(self, device: str) -> None:
        pass

    def decode_request(self, request: dict[str, str]) -> Any:
        return request

    def predict(self, x: Any) -> str:
        return "ok"

    def encode_response(self, output: str) -> dict[str, str]:
        return {"status": output}


class Model(litserve.LitAPI):  # type: ignore[misc]
    """Images of up to 32 requests in one forward pass, torch on one thread."""

    def __init__(self, model: str, storage: str) -> None:
        super().__init__(max_batch_size=32, batch_timeout=0.005)
        self._where = model, storage

    def setup(self, device: str) -> None:
        import torch

        from stoker.predict import Predictor

        torch.set_num_threads(1)
        self._torch = torch
        self._predictor = Predictor.load(self._where[0], storage=self._where[1])

    def decode_request(self, request: dict[str, str]) -> Any:
        return self._predictor.preprocess(base64.b64decode(request["image"]))

    def batch(self, inputs: list[Any]) -> Any:
        return self._torch.stack(inputs)

    def predict(self, x: Any) -> Any:
        return self._predictor.top(self._predictor.predict_images(x), 5)

    def unbatch(self, output: Any) -> Any:
        return output

    def encode_response(self, output: Any) -> dict[str, Any]:
        predictions = [[{"label": label, "probability": p} for label, p in output]]
        return {"model": self._predictor.reference, "predictions": predictions}


def _main(model: str, storage: str, port: int) -> None:
    api = Empty() if model == "empty" else Model(model, storage)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=port, num_api_servers=1, log_level="warning", generate_client_file=False)


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
