"""Engines: ways to run one network's forward pass, which differ in speed and in the last digits.

A row of :data:`ENGINES` is one engine. :mod:`stoker.predict.engine_choice` measures them and takes one.
"""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stoker.models.normalize import Normalize
from stoker.models.precision import AUTOCAST, full_float32

__all__ = ["ENGINES", "Engine", "EngineKind", "Forward", "Network", "build_engine"]

Forward = Callable[[Tensor], Tensor]
"""uint8 [n, 3, S, S] on the network's device to float32 [n, classes], rows sum to 1"""


class Network(nn.Module):
    """Normalization, model and softmax: uint8 [n, 3, S, S] to float32 [n, classes].

    The model computes in ``dtype``; normalization and softmax are in float32.
    """

    def __init__(self, model: nn.Module, normalize: Normalize, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.model = model.to(dtype).to(memory_format=torch.channels_last)
        self.normalize = normalize
        self._dtype = dtype
        self.eval()

    @property
    def device(self) -> torch.device:
        return self.normalize.scale.device

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(self.normalize(images).to(self._dtype))
        return logits.float().softmax(dim=1)

    def in_dtype(self, dtype: torch.dtype) -> Network:
        """This network in ``dtype``; a copy, unless it is in that already.

        Batch norms stay in float32: rounded before they are folded into convolutions, they doubled the differences.
        """
        if dtype == self._dtype:
            return self
        changed = Network(copy.deepcopy(self.model), self.normalize, dtype)
        for ours, given in zip(changed.model.modules(), self.model.modules(), strict=True):
            if isinstance(given, nn.modules.batchnorm._BatchNorm):
                ours.float().load_state_dict(given.state_dict())
        return changed


@dataclass(frozen=True)
class EngineKind:
    """One row: how an engine is built, and what is known of it before it is."""

    build: Callable[[Network, Sequence[int]], Forward]
    """from a network in the engine's dtype, and the square uint8 [n, 3, S, S] of the largest batch"""
    precision: str = "float32"
    """float32, or bfloat16: about 3 significant digits"""
    devices: tuple[str, ...] = ("cpu", "cuda")
    build_s: float = 0.5
    """seconds that building takes a ResNet-50 on 2 CPU cores, in round numbers"""


@dataclass(frozen=True)
class Engine:
    """An engine of one network, ready to run."""

    name: str
    precision: str
    forward: Forward

    def __call__(self, images: Tensor) -> Tensor:
        """Class probabilities float32 [n, classes] of uint8 [n, 3, S, S], channels_last, on the network's device.

        A float32 engine computes in full float32, without TF32.
        """
        with torch.inference_mode(), full_float32() if self.precision == "float32" else nullcontext():
            return self.forward(images)


def _eager(network: Network, _: Sequence[int]) -> Forward:
    return network


def _traced(network: Network, shape: Sequence[int]) -> Forward:
    """A TorchScript graph with its weights as constants: batch norms become part of the convolutions before them."""
    # Of two images: a batch of one would be broadcast where a graph has written a size down.
    example = torch.zeros(2, *shape[1:], dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    script: Any = torch.jit
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch.jit is deprecated; what replaces it has to compile
        return script.freeze(script.trace(network, example, check_trace=False))


def _compiled(network: Network, _: Sequence[int]) -> Forward:
    # A batch of one is compiled apart from all others.
    return torch.compile(network, dynamic=True, options={"freezing": True})


class _Graphs:
    """CUDA graphs of the batch sizes 1, 2, 4, …: a pass is one launch. Smaller batches are padded. Thread-safe."""

    def __init__(self, network: Network, shape: Sequence[int]) -> None:
        cuda: Any = torch.cuda
        self._lock = threading.Lock()
        self._captured: dict[int, tuple[Any, Tensor, Tensor]] = {}
        count = 1
        while True:
            images = torch.zeros(count, *shape[1:], dtype=torch.uint8, device=network.device)
            images = images.contiguous(memory_format=torch.channels_last)
            stream = cuda.Stream(network.device)
            stream.wait_stream(cuda.current_stream(network.device))
            with cuda.stream(stream):  # libraries choose kernels and take memory before the capture
                for _ in range(3):
                    network(images)
            cuda.current_stream(network.device).wait_stream(stream)
            graph = cuda.CUDAGraph()
            with cuda.graph(graph, capture_error_mode="thread_local"):
                probabilities = network(images)
            self._captured[count] = graph, images, probabilities
            if count >= shape[0]:
                break
            count *= 2
        self._network = network

    def __call__(self, images: Tensor) -> Tensor:
        count = len(images)
        size = 1 << (count - 1).bit_length()
        if size not in self._captured:
            return self._network(images)
        graph, given, probabilities = self._captured[size]
        with self._lock:
            given[:count].copy_(images)
            graph.replay()
            return probabilities[:count].clone()


ENGINES: Mapping[str, EngineKind] = {
    "eager": EngineKind(_eager),
    "traced": EngineKind(_traced, devices=("cpu",)),
    "traced-bfloat16": EngineKind(_traced, "bfloat16", devices=("cpu",)),
    "compiled": EngineKind(_compiled, build_s=60),
    "compiled-bfloat16": EngineKind(_compiled, "bfloat16", build_s=40),
    "eager-bfloat16": EngineKind(_eager, "bfloat16", devices=("cuda",)),
    "graphs-bfloat16": EngineKind(_Graphs, "bfloat16", devices=("cuda",), build_s=2),
}
"""Every engine by its name. All others are compared with eager."""


def build_engine(network: Network, name: str, kind: EngineKind, shape: Sequence[int]) -> Engine:
    """Build an engine of ``network``, and send a batch of one and one of ``shape`` (uint8 [n, 3, S, S]) through it.

    Raises:
        RuntimeError and others: the engine cannot run this network here.
    """
    device = network.device
    with torch.inference_mode(), full_float32():
        engine = Engine(name, kind.precision, kind.build(network.in_dtype(AUTOCAST[kind.precision]), shape))
    for count in (1, shape[0]):
        images = torch.zeros(count, *shape[1:], dtype=torch.uint8, device=device)
        for _ in range(2):  # a traced graph is optimised after its first pass
            engine(images.contiguous(memory_format=torch.channels_last))
    return engine
