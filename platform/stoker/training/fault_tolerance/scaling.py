"""How many workers a run has: a fixed number, or as many as there is room for and make a step shorter.

- :class:`Fixed` asks no autoscaling coordinator; a pending placement group is demand enough.
- :class:`Elastic` reads the capacity from the head (``capacity``), where Ray's own policy relies on what the
  coordinator knew 20 seconds ago and waits for a node that is gone; the coordinator only passes the demand on to the
  autoscaler. Before it resizes, it lets the workers store a checkpoint.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

from ray.train import ScalingConfig
from ray.train.v2._internal.execution.scaling_policy import (
    ElasticScalingPolicy,
    FixedScalingPolicy,
    NoopDecision,
    ResizeDecision,
)

from stoker.training.fault_tolerance.capacity import Capacity, capacity_for, useful_workers
from stoker.training.fault_tolerance.left_out import left_out_nodes, run_key

__all__ = ["Elastic", "Fixed"]

_RELEASE_TIMEOUT_S = 3.0
logger = logging.getLogger(__name__)


def _request_restart() -> None:
    from stoker.training.fault_tolerance.agreement import request_restart

    request_restart()


class Fixed(FixedScalingPolicy):  # type: ignore[misc]
    def after_controller_start(self, train_run_context: Any) -> None:
        pass

    def _maybe_send_resource_request(self) -> None:
        pass


class Elastic(ElasticScalingPolicy):  # type: ignore[misc]
    """Of the workers that fit, as many as make a step shorter: others would idle, and a restart for them costs time."""

    def __init__(self, scaling_config: ScalingConfig, micro_batches: int) -> None:
        super().__init__(scaling_config)
        self._micro_batches = micro_batches
        self._said: set[tuple[int, int]] = set()
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

    def _get_num_workers_for_resource_request(self) -> int:
        return self._useful(self.scaling_config.max_workers)

    def _get_reserved_resources(self) -> dict[str, Any]:
        return {}

    def _count_possible_workers(self, reserved_resources: Mapping[str, Any]) -> int:
        return self._useful(self._capacity().now)

    def _useful(self, fit: int) -> int:
        """The workers to use where ``fit`` find room; says so once where these are fewer."""
        fit = min(fit, self.scaling_config.max_workers)
        useful = max(useful_workers(fit, self._micro_batches), min(fit, self.scaling_config.min_workers))
        if useful < fit and (useful, fit) not in self._said:
            self._said.add((useful, fit))
            logger.info(
                "%d workers are as fast as %d: a step has %d micro-batches; using %d",
                useful, fit, self._micro_batches, useful,
            )  # fmt: skip
        return useful

    def _capacity(self) -> Capacity:
        per_worker = self.scaling_config._resources_per_worker_not_none
        return capacity_for(self._run_name, per_worker, left_out_nodes(run_key(self._run_name)))
