"""The program of the template and its children: ``python -m stoker.predict.contained.process FD SIZE RESIZE MB``.

The template imports the decoders, decodes an image of each kind, and then forks a child whenever its parent asks for
one. It has one thread, so that a fork has whatever it had. It ends, and its children with it, when its parent does.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import sys

from stoker.deferred import defer_compiler, importing
from stoker.predict.contained.frames import FORK, ORDER, PID
from stoker.predict.contained.limits import bound, bound_memory, die_with_parent

__all__ = ["main"]

_SOCKET = 3
"""a child's descriptor of the socket to its parent"""
_LOOKS_S = 1.0
"""between two looks whether the parent is still there: a process that it forked may hold the socket's other end"""


def main(descriptor: int, *how: int) -> None:
    """Fork children as the parent at the other end of the socket ``descriptor`` asks, until it is gone.

    ``how``: image_size, resize and most_memory_mb.
    """
    parent, template = os.getppid(), os.getpid()
    control = socket.socket(fileno=descriptor)
    defer_compiler()
    with importing():
        from stoker.predict.contained.answers import How, answer, warm_up
    settings = How(*how)
    warm_up(settings)
    gc.collect()
    gc.freeze()  # a collection in a child would else write to, and so copy, every page with an object
    children = set[int]()
    wake, waker = socket.socketpair()
    waker.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: the parent decides
    signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
    control.sendall(PID.pack(template))
    while os.getppid() == parent:
        ready, _, _ = select.select([control, wake], [], [], _LOOKS_S)
        if wake in ready:
            wake.recv(4096)
        children -= {child for child in children if os.waitpid(child, os.WNOHANG)[0]}
        if control not in ready:
            continue
        order, given, _, _ = socket.recv_fds(control, ORDER.size, 1)
        if len(order) < ORDER.size:
            break
        what, number = ORDER.unpack(order)
        if what == FORK:
            forked = os.fork()
            if forked == 0:
                try:
                    _be_child(given[0], number, template, settings.most_memory_mb)
                    answer(socket.socket(fileno=_SOCKET), settings)
                finally:
                    os._exit(1)
            os.close(given[0])
            children.add(forked)
            control.sendall(PID.pack(forked))
        elif number in children:  # one that is not reaped: no other process can have its number
            os.kill(number, signal.SIGKILL)
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _be_child(given: int, niceness: int, template: int, most_memory_mb: int) -> None:
    die_with_parent(template)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.nice(niceness)
    bound_memory(most_memory_mb)
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):  # decoders write about every damaged image
        os.dup2(nothing, standard)
    os.dup2(given, _SOCKET)
    bound(_SOCKET)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
