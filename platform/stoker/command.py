"""The frame of every command-line program of stoker: one line for an error, status 2, ``--debug`` for the traceback."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable

from stoker.errors import StokerError

__all__ = ["quiet_libraries", "run_command"]


def quiet_libraries() -> None:
    """Let the libraries below us speak up only for warnings: for programs and workers, not for somebody's notebook."""
    for name in ("aiobotocore", "asyncio", "botocore", "fsspec", "httpx", "s3fs", "urllib3"):
        logging.getLogger(name).setLevel(logging.WARNING)


def run_command(main: Callable[[list[str]], None], arguments: list[str] | None = None) -> None:
    """Call ``main`` with the command line's arguments and exit as a program should.

    A :class:`StokerError` becomes one line on standard error and exit status 2; with ``--debug`` anywhere among the
    arguments its traceback is shown too. Ctrl-C exits with 130. Anything else is a defect and keeps its traceback.
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
