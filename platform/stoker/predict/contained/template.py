"""The parent's side of the template process: start it, have it fork and kill children, and notice when it is gone."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress

from stoker.errors import StokerError
from stoker.predict.contained.frames import FORK, KILL, ORDER, PID

__all__ = ["DecodersGone", "Template"]

_LOG = logging.getLogger(__name__)
_START_S = 120.0
"""until the template has imported PyTorch: some 5 s, more on a busy machine with a cold disk"""
_FORK_S = 30.0
_BUFFER = 2**20
"""bytes on the way, of which Linux grants net.core.wmem_max: a child need not wait to go on with its next image"""
_KEPT = ("HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PATH", "TMPDIR")
"""of the environment: whoever takes a decoder over finds no credentials in it"""
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
"""a fork has no other threads than the one that forks, so the template must not start any"""


class DecodersGone(StokerError):
    """The processes that decode images cannot be started."""


class Template:
    """A process that has imported the decoders, and forks children from itself; started again when it has ended."""

    def __init__(self, *, image_size: int, resize: int, most_memory_mb: int) -> None:
        self._arguments = (image_size, resize, most_memory_mb)
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._lock = asyncio.Lock()
        self.starts = 0
        """how often the process was started, or was tried to be"""

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def has_ended(self) -> bool:
        """Whether the process has ended: its end of the socket is closed before its children are killed."""
        if self._control is None:
            return True
        try:
            return not self._control.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True

    async def start(self) -> None:
        """Start the process, if it is not there, and wait until it can fork.

        Raises:
            DecodersGone: it ended, or did not answer within two minutes.
        """
        async with self._lock:
            await self._started()

    async def fork(self, niceness: int) -> tuple[socket.socket, int]:
        """A new child: the socket to it, non-blocking, and its process id.

        Raises:
            DecodersGone: the template cannot be started, or does not fork.
        """
        async with self._lock:
            reason = ""
            for _ in range(2):
                control = await self._started()
                ours, theirs = _pair()
                try:
                    with theirs:
                        for end in (ours, theirs):
                            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
                        socket.send_fds(control, [ORDER.pack(FORK, niceness)], [theirs.fileno()])
                    pid = await self._number(control, _FORK_S)
                except BaseException as error:
                    ours.close()
                    self._end()  # an answer that comes late would be taken for that of the next order
                    if not isinstance(error, OSError | DecodersGone):
                        raise
                    reason = str(error)
                    continue
                ours.setblocking(False)
                return ours, pid
        raise DecodersGone(f"the process that decodes images forks no other (tried twice): {reason}")

    def kill(self, pid: int) -> None:
        """Kill a child, unless it has ended; if the template has, so have its children."""
        if self._control is not None:
            with suppress(OSError):
                self._control.sendall(ORDER.pack(KILL, pid))

    def close(self) -> None:
        """End the process, and its children with it."""
        self._end()

    async def _started(self) -> socket.socket:
        if self._control is not None:
            if not self.has_ended:
                return self._control
            _LOG.warning("the process that decodes images has ended; it is started again")
        self._end()
        self.starts += 1
        ours, theirs = _pair()
        ours.setblocking(False)
        self._control = ours
        environment = {name: os.environ[name] for name in _KEPT if name in os.environ} | _ONE_THREAD
        environment |= {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "CUDA_VISIBLE_DEVICES": ""}
        try:
            with theirs:
                self._process = subprocess.Popen(
                    [
                        sys.executable, "-P", "-m", "stoker.predict.contained.process",
                        *map(str, (theirs.fileno(), *self._arguments)),
                    ],
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                )  # fmt: skip
        except OSError as error:
            self._end()
            raise _not_started(error) from None
        try:
            await self._number(ours, _START_S)
        except BaseException:
            self._end()
            raise
        return ours

    async def _number(self, control: socket.socket, timeout_s: float) -> int:
        received = bytearray()
        try:
            async with asyncio.timeout(timeout_s):
                while len(received) < PID.size:
                    got = await asyncio.get_running_loop().sock_recv(control, PID.size - len(received))
                    if not got:
                        raise DecodersGone("the process that decodes images has ended; look at the log above")
                    received += got
        except TimeoutError:
            raise DecodersGone(
                f"the process that decodes images does not answer within {timeout_s:g} s; is the machine overloaded?"
            ) from None
        return int(PID.unpack(received)[0])

    def _end(self) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGKILL)  # its children are killed with it
            self._process.wait()
        if self._control is not None:
            self._control.close()
        self._process = self._control = None


def _pair() -> tuple[socket.socket, socket.socket]:
    try:
        return socket.socketpair()
    except OSError as error:
        raise _not_started(error) from None


def _not_started(error: OSError) -> DecodersGone:
    return DecodersGone(
        f"a process that decodes images cannot be started: {error.strerror or error}; "
        "look at the limits of open files (ulimit -n) and processes (ulimit -u), and at the memory that is left"
    )
