"""A thread pool that runs the most urgent read first."""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, InvalidStateError
from contextlib import suppress
from typing import Generic, TypeVar

__all__ = ["ReadPool"]

T = TypeVar("T")


class ReadPool(Generic[T]):
    """Up to ``threads`` threads that run submitted reads by lowest ``urgency``, then in the order of submission.

    Nothing is read before :meth:`begin`, so that the most urgent read runs first whenever it was submitted. Then at
    most one read that is less urgent than ``first`` runs at a time until :meth:`open`: the reads of the first step have
    the processor and the network nearly to themselves. The threads are daemons: a read that hangs does not keep the
    process from exiting.
    """

    def __init__(self, threads: int, first: int) -> None:
        self._most = threads
        self._first = first
        self._later = 0
        """running reads that are less urgent than the first"""
        self._is_open = False
        self._threads = 0
        self._idle = 0
        self._change = threading.Condition()
        self._waiting: list[tuple[int, int, Future[T], Callable[[], T]]] = []
        self._running: set[Future[T]] = set()
        self._count = itertools.count()
        self._has_begun = False
        self._is_closed = False

    def submit(self, urgency: int, read: Callable[[], T]) -> Future[T]:
        """Schedule ``read()``; returns its future, which is cancelled if the pool is closed."""
        future: Future[T] = Future()
        with self._change:
            if self._is_closed:
                future.cancel()
                return future
            heapq.heappush(self._waiting, (urgency, next(self._count), future, read))
            if self._has_begun:
                self._wake(1)
        return future

    def begin(self) -> None:
        """Start reading."""
        with self._change:
            if not self._has_begun and not self._is_closed:
                self._has_begun = True
                self._wake(len(self._waiting))

    def open(self) -> None:
        """Use all threads from now on."""
        if self._is_open:
            return
        with self._change:
            self._is_open = True
            self._change.notify_all()

    def _wake(self, reads: int) -> None:
        self._change.notify(reads)
        # a thread that was notified is idle, and its read waiting, until it runs
        for _ in range(min(reads, len(self._waiting) - self._idle, self._most - self._threads)):
            self._threads += 1
            threading.Thread(target=self._work, name=f"stoker-read-{self._threads}", daemon=True).start()

    def close(self) -> None:
        """Start no further read, and wake whoever waits for one: every future is done afterwards.

        Waiting reads are cancelled; those that run are given up with CancelledError, and finish by themselves.
        """
        with self._change:
            self._is_closed = True
            given_up = [future for _, _, future, _ in self._waiting]
            self._waiting.clear()
            running = list(self._running)
            self._change.notify_all()
        for future in given_up:
            future.cancel()
        for future in running:
            with suppress(InvalidStateError):  # it has just finished
                future.set_exception(CancelledError())

    def _work(self) -> None:
        while True:
            with self._change:
                self._idle += 1
                while not self._may_take() and not self._is_closed:
                    self._change.wait()
                self._idle -= 1
                if self._is_closed:
                    return
                urgency, _, future, read = heapq.heappop(self._waiting)
                is_later = urgency > self._first
                self._later += is_later
                is_wanted = future.set_running_or_notify_cancel()
                if is_wanted:
                    self._running.add(future)
            if is_wanted:
                self._run(future, read)
            with self._change:
                self._running.discard(future)
                self._later -= is_later
                if not self._is_open and self._waiting:
                    self._change.notify()
            del future, read  # an idle thread holds no block

    @staticmethod
    def _run(future: Future[T], read: Callable[[], T]) -> None:
        try:
            result = read()
        except BaseException as error:
            with suppress(InvalidStateError):  # given up meanwhile
                future.set_exception(error)
        else:
            with suppress(InvalidStateError):
                future.set_result(result)

    def _may_take(self) -> bool:
        if not self._waiting:
            return False
        return self._is_open or self._waiting[0][0] <= self._first or not self._later
