"""The process group over all workers of an attempt, as Ray Train's ``TorchConfig`` makes it, but leaner.

Neither the driver nor the controller has to import torch for it (4 to 9 s of CPU time each, measured), and workers that
are replaced are killed, not shut down gracefully: a frozen one would delay the restart for half a minute.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import psutil
import ray
from ray.train._internal.utils import get_address_and_port
from ray.train.backend import Backend, BackendConfig

from stoker.training.fault_tolerance.circumstances import NodeError, annotating

__all__ = ["GROUP_NUMBER", "ProcessGroup", "interface_of"]

GROUP_NUMBER = "STOKER_WORKER_GROUP"
"""environment variable of a worker: which group of workers of its controller it belongs to, from 1"""


@dataclass
class ProcessGroup(BackendConfig):  # type: ignore[misc]
    """A process group over all workers: NCCL with GPUs, else gloo; ``timeout_s`` bounds a collective."""

    timeout_s: float = 300.0

    @property
    def backend_cls(self) -> type[Backend]:
        return _Backend


class _Backend(Backend):  # type: ignore[misc]
    share_cuda_visible_devices = True
    _groups = 0  # started by this controller, which keeps one backend for all of them

    def on_start(self, worker_group: Any, backend_config: ProcessGroup) -> None:
        self._groups += 1
        address, port = worker_group.execute_single(0, get_address_and_port)
        rendezvous = _Rendezvous(
            backend="nccl" if worker_group.get_resources_per_worker().get("GPU", 0) else "gloo",
            address=address,
            port=port,
            world_size=len(worker_group),
            timeout_s=backend_config.timeout_s,
            number=self._groups,
        )
        ray.get([worker_group.execute_single_async(rank, _join, rank, rendezvous) for rank in range(len(worker_group))])


@dataclass(frozen=True)
class _Rendezvous:
    backend: str
    address: str
    port: int
    world_size: int
    timeout_s: float
    number: int


def _join(rank: int, rendezvous: _Rendezvous) -> None:
    """Set what torchrun sets, then join the process group; runs in the worker.

    Raises:
        NodeError: Ray gave this worker a GPU that torch cannot use.
    """
    import torch
    import torch.distributed as dist

    context = ray.train.get_context()
    os.environ |= {
        "MASTER_ADDR": rendezvous.address,
        "MASTER_PORT": str(rendezvous.port),
        "RANK": str(rank),
        "WORLD_SIZE": str(rendezvous.world_size),
        "LOCAL_RANK": str(context.get_local_rank()),
        "LOCAL_WORLD_SIZE": str(context.get_local_world_size()),
        "NODE_RANK": str(context.get_node_rank()),
        GROUP_NUMBER: str(rendezvous.number),
    }
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")  # a failed collective ends the process
    if interface := interface_of(ray.util.get_node_ip_address()):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    with annotating():
        if rendezvous.backend == "nccl" and not torch.cuda.is_available():
            raise NodeError("torch finds no usable GPU, although Ray counts one (nvidia-smi says more)")
        timeout = timedelta(seconds=rendezvous.timeout_s)
        dist.init_process_group(rendezvous.backend, rank=rank, world_size=rendezvous.world_size, timeout=timeout)


def interface_of(address: str) -> str | None:
    """The network interface with this address; None if this machine has none with it.

    gloo would take that of the host's name, which Debian maps to 127.0.1.1: no other node reaches it there.
    """
    found = psutil.net_if_addrs().items()
    return next((name for name, given in found if any(one.address == address for one in given)), None)
