"""Prefetch results: keep a few ready ahead of their consumer."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterator
from typing import TypeVar

__all__ = ["ahead"]

T = TypeVar("T")

_LOOK_EVERY_S = 0.1


def ahead(
    source: Iterator[Callable[[], T]], most: int, release: Callable[[], object] = lambda: None
) -> Generator[T, None, None]:
    """Yield what the callables of ``source`` return, in order; a thread advances ``source`` up to ``most`` ahead.

    ``source`` starts work and yields callables that wait for it. An exception in it is raised where its result would
    be. Close the generator to stop the thread; so does an exception. ``release`` then ends whatever ``source`` may be
    waiting for.
    """
    ready: queue.Queue[Callable[[], T] | None] = queue.Queue(most)
    is_closed = threading.Event()

    def put(value: Callable[[], T] | None) -> bool:
        while not is_closed.is_set():
            try:
                ready.put(value, timeout=_LOOK_EVERY_S)
                return True
            except queue.Full:
                continue
        return False

    def advance() -> None:
        try:
            for pending in source:
                if not put(pending):
                    return
            put(None)
        except BaseException as error:
            failure = error

            def fail() -> T:
                raise failure

            put(fail)

    thread = threading.Thread(target=advance, name="stoker-ahead", daemon=True)
    thread.start()
    try:
        while (take := ready.get()) is not None:
            yield take()
    finally:
        is_closed.set()
        release()
        if thread is not threading.current_thread():  # the garbage collector may close it in any thread
            thread.join()
