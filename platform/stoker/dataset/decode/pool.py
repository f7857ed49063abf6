"""The threads that decode."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import torch

__all__ = ["decode_pool"]

_lock = threading.Lock()


def decode_pool(threads: int) -> ThreadPoolExecutor:
    """A pool of ``threads`` threads in which PyTorch's operators do not use further threads.

    Otherwise each would wake as many as the training loop has (OMP_NUM_THREADS), for a tenth of a millisecond's work.
    """
    return ThreadPoolExecutor(threads, thread_name_prefix="stoker-decode", initializer=_work_alone)


def _work_alone() -> None:
    """Let OpenMP use one thread for what this thread calls, and leave the rest of the process as it is.

    ``torch.set_num_threads`` sets two things: OpenMP's number, which is a thread's own, and the number that threads
    take over when they first call an operator. The second is put back by a thread made for it.
    """
    with _lock:
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        back = threading.Thread(target=torch.set_num_threads, args=(before,), name="stoker-threads")
        back.start()
        back.join()
