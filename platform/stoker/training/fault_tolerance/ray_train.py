"""Ray Train 2.60 as stoker uses it: which of its parts are replaced, and why.

- :class:`ProcessGroup` joins the workers into a process group as ``TorchConfig`` does, but neither the driver nor the
  controller has to import torch for it (4 to 9 s of CPU time each, measured), and workers being replaced are killed,
  not shut down gracefully: a frozen one would delay the restart for half a minute.
- No helper actor watches for preemption or for a dead controller, shards Ray Data sets (there are none), or implements
  ``ray.train.report``'s barrier (which does not work here: checkpoints and metrics are stoker's own). Each would cost
  the imports of a process while the workers do theirs. The workers poll for drained nodes themselves (``agreement``),
  and the driver frees what a dead controller held (``attempts``).
- :class:`_Fixed` asks no autoscaling coordinator; a pending placement group is demand enough.
- :class:`_Elastic` reads the capacity from the head (``capacity``), where Ray's own policy relies on what the
  coordinator knew 20 seconds ago and waits for a node that is gone; the coordinator only passes the demand on to the
  autoscaler. Before it resizes, it lets the workers store a checkpoint.
- Controller and workers get their settings as arguments and not as a runtime environment of their own, so that they
  start in the idle processes that Ray keeps, where Python and Ray are imported already.
- :class:`RunFailurePolicy` decides what follows a failure.

``tests/contracts/test_ray_train.py`` pins every internal of Ray that is overridden or called here.
"""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import psutil
import ray
from ray.train import RunConfig, ScalingConfig
from ray.train._internal.utils import get_address_and_port
from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.constants import get_env_vars_to_propagate
from ray.train.v2._internal.execution.callback import WorkerCallback
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy import (
    ElasticScalingPolicy,
    FixedScalingPolicy,
    NoopDecision,
    ResizeDecision,
)
from ray.train.v2._internal.execution.worker_group import WorkerGroup
from ray.train.v2._internal.execution.worker_group import state as states
from ray.train.v2._internal.execution.worker_group import worker_group as worker_groups
from ray.train.v2._internal.execution.worker_group.placement_group_handle import DefaultPlacementGroupHandle
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.util.placement_group import get_placement_group, placement_group, placement_group_table, remove_placement_group

from stoker.training.fault_tolerance.capacity import Capacity, capacity_for, silent_nodes, useful_workers
from stoker.training.fault_tolerance.failure_policy import RunFailurePolicy

__all__ = ["TIMEOUTS", "Trainer", "build_trainer", "free_placement_groups", "interface_of"]

# Ray's own values are 2, 600 and 60 seconds; the environment takes precedence over these.
TIMEOUTS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # must exceed the longest pause in which a worker holds the interpreter's lock
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "30",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}
_RELEASE_TIMEOUT_S = 3.0
logger = logging.getLogger(__name__)


def build_trainer(
    function: Any,
    config: dict[str, Any],
    *,
    workers: tuple[int, int],
    micro_batches: int,
    resources: Mapping[str, float],
    max_failures: int,
    resize_every_s: float,
    timeout_s: float,
    run_config: RunConfig,
) -> Trainer:
    """A trainer that runs ``function(config)`` on ``workers`` (min, max) ranks; :meth:`Trainer.fit` starts it.

    Of a number of workers between these, as many are used as shorten a step of ``micro_batches``.
    """
    least, most = workers
    return Trainer(
        function,
        max_failures=max_failures,
        micro_batches=micro_batches,
        train_loop_config=config,
        backend_config=ProcessGroup(timeout_s),
        scaling_config=ScalingConfig(
            num_workers=least if least == most else (least, most),
            use_gpu=bool(resources.get("GPU")),
            resources_per_worker=dict(resources),
            elastic_resize_monitor_interval_s=resize_every_s,
        ),
        run_config=run_config,
    )


class Trainer(DataParallelTrainer):  # type: ignore[misc]
    """Ray Train's trainer with this module's controller, policies and callbacks."""

    def __init__(self, function: Any, *, max_failures: int, micro_batches: int, **options: Any) -> None:
        super().__init__(function, **options)
        self._max_failures, self._micro_batches = max_failures, micro_batches
        self._controller: Any = None

    def abandon(self) -> None:
        """Kill the controller, and with it the workers; call it from another thread than :meth:`fit`."""
        if self._controller is not None:
            ray.kill(self._controller)

    def _create_default_callbacks(self) -> list[Any]:
        made = super()._create_default_callbacks()
        helpers = (DatasetsCallback, PlacementGroupCleanerCallback)
        return [callback for callback in made if not isinstance(callback, helpers)] + [_RestartOnSigterm()]

    def _initialize_and_run_controller(self, **parts: Any) -> Any:
        is_elastic, config = self.scaling_config.elasticity_enabled, self.scaling_config
        parts |= {
            "scaling_policy": _Elastic(config, self._micro_batches) if is_elastic else _Fixed(config),
            "failure_policy": RunFailurePolicy(self._max_failures, self.run_config.name),
        }
        here = ray.get_runtime_context().get_node_id()
        self._controller = controller = ray.remote(
            num_cpus=0,
            label_selector={ray._raylet.RAY_NODE_ID_KEY: here},
        )(_Controller).remote({"RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0", **get_env_vars_to_propagate()}, **parts)
        ray.get(controller.run.remote())
        return ray.get(controller.get_result.remote())


def _request_restart() -> None:
    from stoker.training.fault_tolerance.agreement import request_restart

    request_restart()


class _RestartOnSigterm(WorkerCallback):  # type: ignore[misc]
    def after_init_train_context(self) -> None:
        from stoker.training.fault_tolerance.agreement import listen_for_sigterm

        listen_for_sigterm()


class _Group(WorkerGroup):  # type: ignore[misc]
    """Workers whose placement group is named after the run, so that it can be found when their controller is dead.

    It excludes unreachable nodes, which the head may still take for alive.
    """

    @staticmethod
    def _get_worker_runtime_env(custom_runtime_env: Any) -> Any:
        return dict(custom_runtime_env)

    def _create_placement_group(self, scaling_config: ScalingConfig, context: Any) -> DefaultPlacementGroupHandle:
        return DefaultPlacementGroupHandle(
            placement_group(
                bundles=[context.resources_per_worker] * context.num_workers,
                strategy=context.placement_strategy,
                bundle_label_selector=_excluding(context.label_selector, context.num_workers, silent_nodes()),
                name=f"{self._train_run_context.run_config.name}/{uuid.uuid4().hex[:8]}",
            )
        )


def _excluding(selectors: Any, workers: int, silent: set[str]) -> list[dict[str, str]] | None:
    """The label ``selectors`` of the workers' bundles, with the nodes in ``silent`` excluded."""
    if not silent:
        return selectors or None
    excluded = {ray._raylet.RAY_NODE_ID_KEY: f"!in({','.join(sorted(silent))})"}
    return [{**selector, **excluded} for selector in selectors or [{}] * workers]


class _NoBarrier:
    """Replaces the actor behind ``ray.train.report`` and Ray's collectives, neither of which is used here."""

    @classmethod
    def options(cls, **_: Any) -> type[_NoBarrier]:
        return cls

    @classmethod
    def remote(cls, **_: Any) -> _NoBarrier:
        return cls()


class _Controller(TrainController):  # type: ignore[misc]
    worker_group_cls = _Group

    def __init__(self, environment: Mapping[str, str], **parts: Any) -> None:
        os.environ.update(environment)
        worker_groups.SynchronizationActor = _NoBarrier
        states._shutdown_sync_actor = lambda _: None
        super().__init__(**parts)


class _Fixed(FixedScalingPolicy):  # type: ignore[misc]
    def after_controller_start(self, train_run_context: Any) -> None:
        pass

    def _maybe_send_resource_request(self) -> None:
        pass


class _Elastic(ElasticScalingPolicy):  # type: ignore[misc]
    """Of the workers that fit, as many as make a step shorter: others would idle, and a restart for them costs time."""

    def __init__(self, scaling_config: ScalingConfig, micro_batches: int) -> None:
        super().__init__(scaling_config)
        self._micro_batches = micro_batches
        self._said: tuple[int, int] | None = None
        self._run_name = ""
        self._requested: float | None = None
        self._waiting_since: float | None = None

    def after_controller_start(self, train_run_context: Any) -> None:
        super().after_controller_start(train_run_context)
        self._run_name = train_run_context.run_config.name

    def make_decision_for_non_running_worker_group(self) -> Any:
        """As many workers as fit; waits some seconds for what the previous workers held to be released."""
        self._maybe_send_resource_request()
        capacity, config = self._capacity(), self.scaling_config
        self._waiting_since = self._waiting_since or time.monotonic()
        may_wait = time.monotonic() - self._waiting_since < _RELEASE_TIMEOUT_S
        useful = self._useful(capacity.now)
        if capacity.now < config.min_workers or (may_wait and useful < self._useful(capacity.total)):
            return NoopDecision()
        self._waiting_since = None
        return self._get_resize_decision(useful)

    def make_decision_for_running_worker_group(self, worker_group_state: Any, worker_group_status: Any) -> Any:
        """Ray's decision, but the workers are first asked to checkpoint and exit; those that have not by the next
        decision are killed."""
        decision = super().make_decision_for_running_worker_group(worker_group_state, worker_group_status)
        if not isinstance(decision, ResizeDecision) or self._requested == worker_group_state.start_time:
            return decision
        self._requested = worker_group_state.start_time
        worker_group_state.workers[0].execute_async(_request_restart)
        return NoopDecision()

    def _get_reserved_resources(self) -> dict[str, Any]:
        return {}

    def _count_possible_workers(self, reserved_resources: Mapping[str, Any]) -> int:
        return self._useful(self._capacity().now)

    def _useful(self, fit: int) -> int:
        """The workers to use where ``fit`` find room; says so once where these are fewer."""
        fit = min(fit, self.scaling_config.max_workers)
        useful = max(useful_workers(fit, self._micro_batches), min(fit, self.scaling_config.min_workers))
        if useful < fit and self._said != (useful, fit):
            self._said = useful, fit
            logger.info(
                "%d workers are as fast as %d: a step has %d micro-batches; using %d",
                useful, fit, self._micro_batches, useful,
            )  # fmt: skip
        return useful

    def _capacity(self) -> Capacity:
        return capacity_for(self._run_name, self.scaling_config._resources_per_worker_not_none)


def free_placement_groups(run_name: str) -> int:
    """Free what a dead controller of ``run_name`` held; returns the number of placement groups."""
    held = [
        entry["name"]
        for entry in placement_group_table().values()
        if entry["name"].startswith(f"{run_name}/") and entry["state"] != "REMOVED"
    ]
    for name in held:
        remove_placement_group(get_placement_group(name))
    return len(held)


@dataclass
class ProcessGroup(BackendConfig):  # type: ignore[misc]
    """A process group over all workers: NCCL with GPUs, else gloo; ``timeout_s`` bounds a collective."""

    timeout_s: float = 300.0

    @property
    def backend_cls(self) -> type[Backend]:
        return _Backend


class _Backend(Backend):  # type: ignore[misc]
    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: ProcessGroup) -> None:
        address, port = worker_group.execute_single(0, get_address_and_port)
        rendezvous = _Rendezvous(
            backend="nccl" if worker_group.get_resources_per_worker().get("GPU", 0) else "gloo",
            address=address,
            port=port,
            world_size=len(worker_group),
            timeout_s=backend_config.timeout_s,
        )
        ray.get([worker_group.execute_single_async(rank, _join, rank, rendezvous) for rank in range(len(worker_group))])


@dataclass(frozen=True)
class _Rendezvous:
    backend: str
    address: str
    port: int
    world_size: int
    timeout_s: float


def _join(rank: int, rendezvous: _Rendezvous) -> None:
    """Set what torchrun sets, then join the process group; runs in the worker."""
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
    }
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")  # a failed collective ends the process
    if interface := interface_of(ray.util.get_node_ip_address()):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    dist.init_process_group(
        rendezvous.backend, rank=rank, world_size=rendezvous.world_size, timeout=timedelta(seconds=rendezvous.timeout_s)
    )


def interface_of(address: str) -> str | None:
    """The network interface with this address; None if this machine has none with it.

    gloo would take that of the host's name, which Debian maps to 127.0.1.1: no other node reaches it there.
    """
    found = psutil.net_if_addrs().items()
    return next((name for name, given in found if any(one.address == address for one in given)), None)
