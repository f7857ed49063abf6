"""What the kernel refuses to a process that decodes images from anybody (Linux).

These bound what an image can cost. They are no sandbox for a decoder that was taken over: the process is the same user,
and can still make system calls.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal

__all__ = ["bound", "bound_memory", "die_with_parent"]

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_KILLED_FIRST = b"1000"


def die_with_parent(parent: int) -> None:
    """Be killed when the process ``parent``, which forked this one, ends; ends at once if it has ended already."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def bound(descriptor: int) -> None:
    """Keep ``descriptor`` and what is below it, and open, write or gain nothing more: no files, no dumps, no rights."""
    os.closerange(descriptor + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    for kind, most in (
        (resource.RLIMIT_NOFILE, descriptor + 1),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
    ):
        resource.setrlimit(kind, (most, most))
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def bound_memory(most_mb: int) -> None:
    """Take ``most_mb`` MB more than now at most, and be the first that the kernel kills when the machine has no more.

    RLIMIT_DATA (Linux 4.7) counts private memory that can be written; libraries, of which a build of PyTorch for GPUs
    maps many gigabytes, are not in it.
    """
    with open("/proc/self/status", "rb") as status:
        now_kb = next(int(line.split()[1]) for line in status if line.startswith(b"VmData:"))
    most = (now_kb + most_mb * 1000) * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    try:
        with open("/proc/self/oom_score_adj", "wb") as score:
            score.write(_KILLED_FIRST)
    except OSError:  # a container without it
        return


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option})")
