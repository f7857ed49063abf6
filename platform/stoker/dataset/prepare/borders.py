"""The border to a parser: whatever it raises becomes one line that names the file.

Parsers of other people's files (tarfile, pyarrow, json, csv, ...) raise more than their documentation says:
RecursionError of nested JSON, zlib.error of a torn archive, OverflowError, MemoryError of a made-up length. A list of
exceptions picked by hand misses the next one, so at these borders every exception counts as "cannot be parsed". The
border of the image decoders is ``checked``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from stoker.errors import DatasetError, StokerError

__all__ = ["one_line", "parsing"]

_LONGEST_REASON = 200


def one_line(error: BaseException) -> str:
    """What an exception says, in one line of at most 200 characters; its type where it says nothing."""
    return " ".join(str(error).split())[:_LONGEST_REASON] or type(error).__name__


@contextlib.contextmanager
def parsing(where: object, problem: str, advice: str) -> Iterator[None]:
    """Around a parser: any exception that is not an error of ours becomes ``WHERE: PROBLEM (reason); ADVICE``.

    Raises:
        DatasetError: the parser raised something.
    """
    try:
        yield
    except StokerError:
        raise
    except Exception as error:
        raise DatasetError(f"{where}: {problem} ({one_line(error)}); {advice}") from None
