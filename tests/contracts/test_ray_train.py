"""Every internal of Ray Train that stoker overrides or calls, as it is in the Ray that stoker is written for.

A failure here names the part that has changed and the file of ours that relies on it; the public API of Ray is not
listed. A new override belongs in this table: a test compares it with the imports of the code.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.train.v2._internal.callbacks.backend_setup import BackendSetupCallback

from contracts.signatures import must_equal, must_have, resolve
from stoker.training.fault_tolerance import ray_train
from stoker.training.fault_tolerance.process_group import ProcessGroup

ROOM = Path(inspect.getfile(ray_train)).parent
FOLDER = "platform/stoker/training/fault_tolerance"

RAY_TRAIN: dict[str, str | None] = {
    "ray.train.v2.api.data_parallel_trainer.DataParallelTrainer.__init__": (
        "(self, train_loop_per_worker, *, train_loop_config=None, backend_config=None, "
        "scaling_config=None, run_config=None, datasets=None, dataset_config=None, "
        "resume_from_checkpoint=None, metadata=None, validation_config=None)"
    ),
    "ray.train.v2.api.data_parallel_trainer.DataParallelTrainer.fit": "(self)",
    "ray.train.v2.api.data_parallel_trainer.DataParallelTrainer._create_default_callbacks": "(self)",
    "ray.train.v2.api.data_parallel_trainer.DataParallelTrainer._initialize_and_run_controller": (
        "(self, **controller_init_kwargs)"
    ),
    "ray.train.v2._internal.callbacks.DatasetsCallback": "(train_run_context, datasets)",
    "ray.train.v2._internal.callbacks.placement_group_callback.PlacementGroupCleanerCallback": (
        "(check_interval_s=1.0, get_actor_timeout_s=10, stop_timeout=None)"
    ),
    "ray.train.v2._internal.constants.get_env_vars_to_propagate": "()",
    "ray.train.v2._internal.execution.callback.WorkerCallback.after_init_train_context": "(self)",
    "ray.train.v2._internal.execution.controller.TrainController.__init__": (
        "(self, train_fn_ref, train_run_context, scaling_policy, failure_policy, callbacks=None, "
        "validation_config=None)"
    ),
    "ray.train.v2._internal.execution.controller.TrainController.worker_group_cls": (
        "(train_run_context, worker_group_context, callbacks=None)"
    ),
    "ray.train.v2._internal.execution.controller.TrainController.run": "(self)",
    "ray.train.v2._internal.execution.controller.TrainController.get_result": "(self)",
    "ray.train.v2._internal.execution.worker_group.WorkerGroup._get_worker_runtime_env": "(custom_runtime_env)",
    "ray.train.v2._internal.execution.worker_group.WorkerGroup._create_placement_group": (
        "(self, scaling_config, worker_group_context)"
    ),
    "ray.train.v2._internal.execution.worker_group.state._shutdown_sync_actor": "(sync_actor)",
    "ray.train.v2._internal.execution.worker_group.state.WorkerGroupState": (
        "(start_time, placement_group_handle, workers, sync_actor)"
    ),
    "ray.train.v2._internal.execution.worker_group.worker_group.SynchronizationActor": None,
    "ray.train.v2._internal.execution.worker_group.worker_group.WorkerGroupContext": (
        "(run_attempt_id, train_fn_ref, num_workers, resources_per_worker, placement_strategy='PACK', "
        "label_selector=None, num_slices=1)"
    ),
    "ray.train.v2._internal.execution.worker_group.placement_group_handle.DefaultPlacementGroupHandle": "(pg)",
    "ray.train.v2.api.config.ScalingConfig": (
        "(trainer_resources=None, num_workers=1, use_gpu=False, resources_per_worker=None, "
        "placement_strategy='PACK', accelerator_type=None, label_selector=None, use_tpu=False, "
        "topology=None, elastic_resize_monitor_interval_s=60.0)"
    ),
    "ray.train.v2.api.config.ScalingConfig._resources_per_worker_not_none": None,
    "ray.train.v2.api.config.ScalingConfig.elasticity_enabled": None,
    "ray.train.v2.api.config.ScalingConfig.min_workers": None,
    "ray.train.v2.api.config.ScalingConfig.max_workers": None,
    "ray.util.placement_group.placement_group": (
        "(bundles, strategy=None, name='', lifetime=None, _soft_target_node_id=None, "
        "bundle_label_selector=None, topology_strategy=None)"
    ),
    "ray.util.placement_group.placement_group_table": "(placement_group=None)",
    "ray.util.placement_group.get_placement_group": "(placement_group_name)",
}
SCALING: dict[str, str | None] = {
    "ray.train.v2._internal.execution.scaling_policy.FixedScalingPolicy.after_controller_start": (
        "(self, train_run_context)"
    ),
    "ray.train.v2._internal.execution.scaling_policy.FixedScalingPolicy._maybe_send_resource_request": "(self)",
    "ray.train.v2._internal.execution.scaling_policy.ElasticScalingPolicy.__init__": "(self, scaling_config)",
    "ray.train.v2._internal.execution.scaling_policy.ElasticScalingPolicy.after_controller_start": (
        "(self, train_run_context)"
    ),
    "ray.train.v2._internal.execution.scaling_policy.ElasticScalingPolicy.make_decision_for_non_running_worker_group": (
        "(self)"
    ),
    "ray.train.v2._internal.execution.scaling_policy.ElasticScalingPolicy.make_decision_for_running_worker_group": (
        "(self, worker_group_state, worker_group_status)"
    ),
    "ray.train.v2._internal.execution.scaling_policy.ElasticScalingPolicy._maybe_send_resource_request": "(self)",
    "ray.train.v2._internal.execution.scaling_policy.ElasticScalingPolicy._get_resize_decision": (
        "(self, num_workers)"
    ),
    "ray.train.v2._internal.execution.scaling_policy.ElasticScalingPolicy._get_reserved_resources": "(self)",
    "ray.train.v2._internal.execution.scaling_policy.ElasticScalingPolicy._get_num_workers_for_resource_request": (
        "(self)"
    ),
    "ray.train.v2._internal.execution.scaling_policy.ElasticScalingPolicy._count_possible_workers": (
        "(self, reserved_resources)"
    ),
    "ray.train.v2._internal.execution.scaling_policy.NoopDecision": "()",
    "ray.train.v2._internal.execution.scaling_policy.ResizeDecision": "(num_workers, resources_per_worker)",
    "ray.train.v2._internal.execution.worker_group.worker.Worker.execute_async": "(self, fn, *fn_args, **fn_kwargs)",
}
PROCESS_GROUP: dict[str, str | None] = {
    "ray.train._internal.utils.get_address_and_port": "()",
    "ray.train.backend.Backend.on_start": "(self, worker_group, backend_config)",
    "ray.train.backend.BackendConfig": "()",
    "ray.train.v2._internal.callbacks.backend_setup.BackendSetupCallback": "(backend_config)",
    "ray.train.v2._internal.execution.worker_group.WorkerGroup.execute_single": (
        "(self, rank, fn, *fn_args, **fn_kwargs)"
    ),
    "ray.train.v2._internal.execution.worker_group.WorkerGroup.execute_single_async": (
        "(self, rank, fn, *fn_args, **fn_kwargs)"
    ),
    "ray.train.v2._internal.execution.worker_group.WorkerGroup.get_resources_per_worker": "(self)",
    "ray.train.v2._internal.execution.worker_group.WorkerGroup.__len__": "(self)",
}
FAILURE_POLICY: dict[str, str | None] = {
    "ray.train.v2._internal.exceptions.InsufficientClusterResourcesError": None,
    "ray.train.v2._internal.exceptions.WorkerGroupStartupFailedError": None,
    "ray.train.v2._internal.exceptions.WorkerGroupStartupTimeoutError": "(num_workers)",
    "ray.train.v2._internal.exceptions.UserExceptionWithTraceback": "(exc, traceback_str)",
    "ray.train.v2._internal.execution.failure_handling.FailurePolicy.__init__": "(self, failure_config)",
    "ray.train.v2._internal.execution.failure_handling.FailurePolicy.make_decision": "(self, training_failed_error)",
    "ray.train.v2._internal.execution.failure_handling.FailureDecision": None,
    "ray.train.v2.api.exceptions.ControllerError": "(controller_failure)",
    "ray.train.v2.api.exceptions.PreemptionError": "(preemption_info, drain_timed_out=False)",
    "ray.train.v2.api.exceptions.WorkerGroupError": "(error_message, worker_failures)",
}
CAPACITY: dict[str, str | None] = {
    "ray._private.state.available_resources_per_node": "()",
    "ray._private.state.GlobalState.get_draining_nodes": "(self)",
    "ray._private.state.GlobalState.get_cluster_config": "(self)",
}
HEAD: dict[str, str | None] = {
    "ray.experimental.internal_kv._internal_kv_get": "(key, *, namespace=None)",
    "ray.experimental.internal_kv._internal_kv_put": "(key, value, overwrite=True, *, namespace=None)",
    "ray.experimental.internal_kv._internal_kv_del": "(key, *, del_by_prefix=False, namespace=None)",
}
USERS = {
    "ray_train.py": RAY_TRAIN,
    "process_group.py": PROCESS_GROUP,
    "scaling.py": SCALING,
    "failure_policy.py": FAILURE_POLICY,
    "capacity.py": CAPACITY,
    "head.py": HEAD,
}
ROWS = [(path, signature, f"{FOLDER}/{user}") for user, table in USERS.items() for path, signature in table.items()]


@pytest.mark.parametrize(("path", "signature", "user"), ROWS, ids=[path.removeprefix("ray.") for path, _, _ in ROWS])
def test_an_internal_of_ray_is_as_stoker_relies_on(path: str, signature: str | None, user: str) -> None:
    must_have(path, signature, user)


def test_each_internal_that_is_imported_is_listed() -> None:
    listed = [path for path, _, _ in ROWS]
    missing = []
    for file in sorted(ROOM.glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and _is_internal(node.module):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
                missing += [name for name in names if not any(path.startswith(name) for path in listed)]
    assert missing == []


def test_the_timeouts_that_are_set_are_variables_that_ray_reads() -> None:
    constants = vars(__import__("ray.train.v2._internal.constants", fromlist=["constants"]))
    known = {value for value in constants.values() if isinstance(value, str)}
    assert set(ray_train.TIMEOUTS) - known == set()


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (
            "ray.train.v2._internal.execution.worker_group.state.WorkerGroupState",
            {"start_time", "workers"},
        ),
        (
            "ray.train.v2._internal.execution.worker_group.worker_group.WorkerGroupContext",
            {"num_workers", "resources_per_worker", "placement_strategy", "label_selector"},
        ),
    ],
)
def test_the_fields_that_are_read_exist(path: str, fields: set[str]) -> None:
    found = resolve(path, f"{FOLDER}/ray_train.py")
    assert dataclasses.is_dataclass(found)
    assert fields - {field.name for field in dataclasses.fields(found)} == set()


def test_one_backend_serves_all_groups_of_workers_of_a_controller(monkeypatch: pytest.MonkeyPatch) -> None:
    """The workers' number, by which a later attempt fences an earlier one off, is counted in it."""
    monkeypatch.setattr(ray, "get", lambda found: found)
    callback = BackendSetupCallback(ProcessGroup())
    groups = [_FakeGroup() for _ in range(2)]
    for group in groups:
        callback.after_execution_group_start(group)
    assert [group.rendezvous.number for group in groups] == [1, 2]


class _FakeGroup:
    """A group of no workers but one, which is asked for nothing but its address."""

    def __len__(self) -> int:
        return 1

    def execute_single(self, _: int, function: Any) -> Any:
        return function()

    def execute_single_async(self, _: int, __: Any, ___: int, rendezvous: Any) -> list[Any]:
        self.rendezvous = rendezvous
        return []

    def get_resources_per_worker(self) -> dict[str, float]:
        return {}


def test_a_node_is_selected_by_the_label_that_ray_gives_it() -> None:
    must_equal("ray._raylet.RAY_NODE_ID_KEY", "ray.io/node-id", f"{FOLDER}/ray_train.py")


def _is_internal(module: str) -> bool:
    return module.startswith("ray.") and ("._" in module or ".internal_kv" in module)
