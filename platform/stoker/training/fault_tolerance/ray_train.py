"""Ray Train 2.60 as stoker uses it: which of its parts are replaced, and why.

- :class:`ProcessGroup` (``process_group``) joins the workers, without torch in the driver or the controller.
- No helper actor watches for preemption or for a dead controller, shards Ray Data sets (there are none), or implements
  ``ray.train.report``'s barrier (which does not work here: checkpoints and metrics are stoker's own). Each would cost
  the imports of a process while the workers do theirs. The workers poll for drained nodes themselves (``agreement``),
  and the driver frees what a dead controller held (``attempts``).
- ``scaling`` decides how many workers there are, and no autoscaling coordinator is asked.
- Controller and workers get their settings as arguments and not as a runtime environment of their own, so that they
  start in the idle processes that Ray keeps, where Python and Ray are imported already.
- :class:`RunFailurePolicy` decides what follows a failure.

``tests/contracts/test_ray_train.py`` pins every internal of Ray that is overridden or called here.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray.train import RunConfig, ScalingConfig
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.constants import get_env_vars_to_propagate
from ray.train.v2._internal.execution.callback import WorkerCallback
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.worker_group import WorkerGroup
from ray.train.v2._internal.execution.worker_group import state as states
from ray.train.v2._internal.execution.worker_group import worker_group as worker_groups
from ray.train.v2._internal.execution.worker_group.placement_group_handle import DefaultPlacementGroupHandle
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.util.placement_group import get_placement_group, placement_group, placement_group_table, remove_placement_group

from stoker.deferred import importing
from stoker.training.fault_tolerance.capacity import nearest_node, nodes_and_types, silent_nodes
from stoker.training.fault_tolerance.failure_policy import RunFailurePolicy
from stoker.training.fault_tolerance.left_out import LeftOutNodes, left_out_nodes, run_key
from stoker.training.fault_tolerance.process_group import ProcessGroup
from stoker.training.fault_tolerance.scaling import Elastic, Fixed

__all__ = ["TIMEOUTS", "Trainer", "build_trainer", "free_placement_groups"]

# Ray's own values are 2, 600 and 60 seconds; the environment takes precedence over these.
TIMEOUTS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # must exceed the longest pause in which a worker holds the interpreter's lock
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "30",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}


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
    reaches_stores: Callable[[str], bool],
    run_config: RunConfig,
) -> Trainer:
    """A trainer that runs ``function(config)`` on ``workers`` (min, max) ranks; :meth:`Trainer.fit` starts it.

    Of a number of workers between these, as many are used as shorten a step of ``micro_batches``. The name of
    ``run_config`` is ``<key of the run>.<number>``; ``reaches_stores`` is called in the controller.
    """
    least, most = workers
    return Trainer(
        function,
        max_failures=max_failures,
        micro_batches=micro_batches,
        reaches_stores=reaches_stores,
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

    def __init__(
        self,
        function: Any,
        *,
        max_failures: int,
        micro_batches: int,
        reaches_stores: Callable[[str], bool],
        **options: Any,
    ) -> None:
        super().__init__(function, **options)
        self._max_failures, self._micro_batches, self._reaches_stores = max_failures, micro_batches, reaches_stores
        self._controller: Any = None

    def abandon(self) -> None:
        """Kill the controller, and with it the workers; call it from another thread than :meth:`fit`."""
        if self._controller is not None:
            ray.kill(self._controller)

    def _create_default_callbacks(self) -> list[Any]:
        made = super()._create_default_callbacks()
        helpers = (DatasetsCallback, PlacementGroupCleanerCallback)
        return [callback for callback in made if not isinstance(callback, helpers)] + [_RestartOnSigterm()]

    def _failure_policy(self) -> RunFailurePolicy:
        config, name = self.scaling_config, self.run_config.name
        per_worker = config._resources_per_worker_not_none
        least = config.min_workers if config.elasticity_enabled else config.num_workers
        return RunFailurePolicy(
            self._max_failures,
            name,
            leave_out=LeftOutNodes(name, per_worker, least).add,
            reaches_stores=self._reaches_stores,
            no_room=lambda: _no_room(per_worker, run_key(name)),
        )

    def _initialize_and_run_controller(self, **parts: Any) -> Any:
        is_elastic, config = self.scaling_config.elasticity_enabled, self.scaling_config
        parts |= {
            "scaling_policy": Elastic(config, self._micro_batches) if is_elastic else Fixed(config),
            "failure_policy": self._failure_policy(),
        }
        here = ray.get_runtime_context().get_node_id()
        self._controller = controller = ray.remote(
            num_cpus=0,
            label_selector={ray._raylet.RAY_NODE_ID_KEY: here},
        )(_Controller).remote({"RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0", **get_env_vars_to_propagate()}, **parts)
        ray.get(controller.run.remote())
        return ray.get(controller.get_result.remote())


def _no_room(per_worker: Mapping[str, float], key: str) -> str:
    """Says which node comes nearest to a worker, where none has all that it asks for, and how many are left out."""
    said = []
    if (nearest := nearest_node(per_worker, nodes_and_types())) is not None:
        wanted, found = (" and ".join(f"{amount:g} {n}" for n, amount in r.items()) for r in (per_worker, nearest))
        said.append(
            f"a worker asks for {wanted}, and the node that comes nearest has {found}; unless the autoscaler brings a "
            "larger one, lower workers.cpus or add such nodes"
        )
    if left_out := left_out_nodes(key):
        said.append(f"{len(left_out)} nodes are left out of this run; submit it again to use them")
    return "; ".join(said)


class _RestartOnSigterm(WorkerCallback):  # type: ignore[misc]
    def after_init_train_context(self) -> None:
        with importing():  # torch, in the end
            from stoker.training.fault_tolerance.agreement import listen_for_sigterm

        listen_for_sigterm()


class _Group(WorkerGroup):  # type: ignore[misc]
    """Workers whose placement group is named after the run, so that it can be found when their controller is dead.

    It excludes the nodes that the run leaves out, and unreachable ones, which the head may still take for alive.
    """

    @staticmethod
    def _get_worker_runtime_env(custom_runtime_env: Any) -> Any:
        return dict(custom_runtime_env)

    def _create_placement_group(self, scaling_config: ScalingConfig, context: Any) -> DefaultPlacementGroupHandle:
        name = self._train_run_context.run_config.name
        excluded = silent_nodes() | left_out_nodes(run_key(name))
        return DefaultPlacementGroupHandle(
            placement_group(
                bundles=[context.resources_per_worker] * context.num_workers,
                strategy=context.placement_strategy,
                bundle_label_selector=_excluding(context.label_selector, context.num_workers, excluded),
                name=f"{name}/{uuid.uuid4().hex[:8]}",
            )
        )


def _excluding(selectors: Any, workers: int, nodes: set[str]) -> list[dict[str, str]] | None:
    """The label ``selectors`` of the workers' bundles, with those in ``nodes`` excluded."""
    if not nodes:
        return selectors or None
    excluded = {ray._raylet.RAY_NODE_ID_KEY: f"!in({','.join(sorted(nodes))})"}
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
