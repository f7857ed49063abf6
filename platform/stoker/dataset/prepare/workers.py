"""Run tasks on threads of this process, or as Ray tasks on the nodes of a cluster."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, Protocol, TypeVar

from stoker.errors import ClusterError, DatasetError, StokerError

__all__ = ["Map", "on_ray", "on_threads"]

Task = TypeVar("Task")
Result = TypeVar("Result")


class Map(Protocol):
    """Runs ``build`` on each task and yields results as they complete, with a bounded number of tasks in flight.

    Stops at the first error.
    """

    def __call__(self, build: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]: ...


def on_threads(count: int | None = None) -> Map:
    """Map over ``count`` threads, by default one for each CPU that this process may use."""
    threads = count or len(os.sched_getaffinity(0))

    def run(build: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
        pool = ThreadPoolExecutor(threads, thread_name_prefix="stoker-shard")
        waiting: set[Future[Result]] = set()
        try:
            for task in tasks:
                waiting.add(pool.submit(build, task))
                if len(waiting) >= threads:
                    done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            while waiting:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        finally:
            pool.shutdown(cancel_futures=True)

    return run


def on_ray() -> Map:
    """Map over Ray tasks of one CPU each on the current cluster (``ray.init(address="auto")`` if not connected).

    Ray retries a task whose node dies: the shard's bytes are the same wherever they are written.

    Raises:
        ClusterError: there is no cluster, or its tasks cannot run.
    """
    import ray

    if not ray.is_initialized():
        try:
            ray.init(address="auto", log_to_driver=False, logging_level="warning")
        except (ConnectionError, RuntimeError) as error:
            first = str(error).splitlines()[0]
            raise ClusterError(f"no Ray cluster to prepare on ({first}); start one, or use --local") from None

    def run(build: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
        remote = ray.remote(num_cpus=1, max_retries=3)(build)
        bound = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
        waiting: list[Any] = []

        def one() -> Any:
            nonlocal waiting
            done, waiting = ray.wait(waiting, num_returns=1)
            try:
                return ray.get(done[0])
            except ray.exceptions.RayError as error:
                raise _reason(error) from None

        try:
            for task in tasks:
                waiting.append(remote.remote(task))
                if len(waiting) >= bound:
                    yield one()
            while waiting:
                yield one()
        finally:
            for reference in waiting:
                ray.cancel(reference)

    return run


def _reason(error: BaseException) -> StokerError:
    cause = getattr(error, "cause", None)
    if isinstance(cause, StokerError):
        return cause
    return DatasetError(f"a task failed on the cluster ({' '.join(str(error).split())[-300:]}); run it again")
