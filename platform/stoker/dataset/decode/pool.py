"""The thread pool for decoding."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import torch

__all__ = ["decode_pool"]

_lock = threading.Lock()


def decode_pool(threads: int) -> ThreadPoolExecutor:
    """Create a pool of ``threads`` threads in which PyTorch's operators are single-threaded.

    Otherwise each would wake as many threads as the training loop has (OMP_NUM_THREADS), for 0.1 ms of work.
    """
    return ThreadPoolExecutor(threads, thread_name_prefix="stoker-decode", initializer=_work_alone)


def _work_alone() -> None:
    """Limit OpenMP to one thread for calls from this thread, without changing the rest of the process.

    ``torch.set_num_threads`` sets two things: OpenMP's number, which is per thread, and the number that threads
    inherit when they first call an operator. A helper thread restores the second.
    """
    with _lock:
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        back = threading.Thread(target=torch.set_num_threads, args=(before,), name="stoker-threads")
        back.start()
        back.join()
