"""Where tasks run: threads of this process, or Ray tasks on whatever nodes there are."""

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
    """Runs ``build`` on each task and yields the results as they come, holding a bounded number of tasks at once.

    The first error ends it.
    """

    def __call__(self, build: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]: ...


def on_threads(count: int | None = None) -> Map:
    """A map over ``count`` threads, by default one a CPU that this process may use."""
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
    """A map over tasks of one CPU each on the Ray cluster at hand (``ray.init(address="auto")`` if need be).

    A task whose node dies is run again by Ray: the shard's bytes are the same whoever writes them.

    Raises:
        ClusterError: there is no cluster, or its tasks cannot run.
    """
    import ray

    if not ray.is_initialized():
        try:
            ray.init(address="auto", log_to_driver=False, logging_level="warning")
        except (ConnectionError, RuntimeError) as error:
            first = str(error).splitlines()[0]
            raise ClusterError(f"no Ray cluster to prepare on ({first}); start one, or give --local") from None

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
