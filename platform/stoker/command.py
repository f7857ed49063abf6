"""The frame of every command-line program of stoker: errors in one line, exit status 2, ``--debug`` for a traceback."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from stoker.errors import StokerError

__all__ = ["Parser", "quiet_libraries", "run_command"]


class Parser(argparse.ArgumentParser):
    """An argument parser that reports a usage error as stoker reports every other: in one line, with exit status 2."""

    def error(self, message: str) -> NoReturn:
        raise StokerError(f"{self.prog}: {message}; see {self.prog} --help")


def quiet_libraries() -> None:
    """Limit the libraries that we use to warnings; for programs and workers, not for interactive sessions."""
    for name in ("aiobotocore", "asyncio", "botocore", "fsspec", "httpx", "s3fs", "urllib3"):
        logging.getLogger(name).setLevel(logging.WARNING)


def run_command(main: Callable[[list[str]], None], arguments: list[str] | None = None) -> None:
    """Call ``main`` with the command line's arguments and turn its errors into exit statuses.

    A :class:`StokerError` is printed as one line on standard error, with exit status 2; with ``--debug`` anywhere among
    the arguments its traceback is printed instead. Ctrl-C exits with 130. Any other exception is a defect and keeps its
    traceback.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    if debug:
        given.remove("--debug")
    logging.basicConfig(
        level=logging.DEBUG if debug else os.environ.get("STOKER_LOG_LEVEL", "INFO").upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    quiet_libraries()
    try:
        main(given)
    except StokerError as error:
        if debug:
            raise
        sys.stdout.flush()
        print(f"error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
