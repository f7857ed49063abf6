"""The frame of every command-line program of stoker: errors in one line, exit status 2, ``--debug`` for a traceback."""

from __future__ import annotations

import argparse
import logging
import math
import os
import select
import sys
from collections.abc import Callable
from typing import NoReturn

from stoker.errors import StokerError

__all__ = ["Parser", "not_negative", "positive", "positive_int", "quiet_libraries", "run_command"]


class Parser(argparse.ArgumentParser):
    """An argument parser that reports a usage error as stoker reports every other: in one line, with exit status 2."""

    def error(self, message: str) -> NoReturn:
        raise StokerError(f"{self.prog}: {message}; see {self.prog} --help")


def positive_int(text: str) -> int:
    """The type of an option that counts something: a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def positive(text: str) -> float:
    """The type of an option that measures something: a finite number above 0."""
    value = not_negative(text)
    if value == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def not_negative(text: str) -> float:
    """The type of an option for a finite number of at least 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number of at least 0")
    return value


def quiet_libraries() -> None:
    """Limit the libraries that we use to warnings; for programs and workers, not for interactive sessions."""
    for name in ("aiobotocore", "asyncio", "botocore", "fsspec", "httpx", "s3fs", "urllib3"):
        logging.getLogger(name).setLevel(logging.WARNING)


def run_command(main: Callable[[list[str]], None], arguments: list[str] | None = None) -> None:
    """Call ``main`` with the command line's arguments and turn its errors into exit statuses.

    A :class:`StokerError` is printed as one line on standard error, with exit status 2; with ``--debug`` anywhere among
    the arguments its traceback is printed instead. Ctrl-C exits with 130, and output that nobody reads any more, as
    after ``| head -1``, with 141, both without a word. Any other exception is a defect and keeps its traceback.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    if debug:
        given.remove("--debug")
    try:
        logging.basicConfig(
            level=logging.DEBUG if debug else _log_level(),
            format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        )
        quiet_libraries()
        try:
            main(given)
        finally:
            sys.stdout.flush()
    except StokerError as error:
        if debug:
            raise
        _exit_with(error)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except BrokenPipeError:
        if not _is_output_closed():
            raise
        raise SystemExit(141) from None
    except FileNotFoundError:
        if debug or _has_folder():
            raise
        _exit_with("the current folder was removed; change to one that exists")


def _exit_with(error: StokerError | str) -> NoReturn:
    print(f"error: {error}", file=sys.stderr, flush=True)
    raise SystemExit(2) from None


def _log_level() -> str:
    level = os.environ.get("STOKER_LOG_LEVEL", "INFO").upper()
    known = logging.getLevelNamesMapping()
    if level not in known:
        names = ", ".join(sorted(set(known) - {"NOTSET"}))
        raise StokerError(f"STOKER_LOG_LEVEL={level!r} is not a log level; set one of {names}")
    return level


def _is_output_closed() -> bool:
    """Whether nobody reads our output any more; if so, what is left of it is dropped, so that exiting does not fail."""
    output = sys.stdout.fileno()
    poll = select.poll()
    poll.register(output, 0)
    if not any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    return True


def _has_folder() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return False
    return True
