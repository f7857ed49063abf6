"""One case in a process of its own: python -m bench.data.child MODULE PLACE ARGUMENTS (both JSON); prints the result.

The last line is ``{"measures": …}``, or ``{"absent": why}`` when the peer is not installed here or this stoker lacks
what the case is about.
"""

from __future__ import annotations

import importlib
import json
import os
import sys

from bench.data.place import Absent, Place


def main(module: str, place: str, arguments: str) -> None:
    """Import ``bench.data.<module>`` and print what its ``measure`` finds."""
    try:
        measure = importlib.import_module(f"bench.data.{module}").measure
        result = {"measures": measure(Place.from_json(place), **json.loads(arguments))}
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in {"bench", "stoker"}:
            raise
        result = {"absent": f"{error.name} is not installed"}
    except Absent as error:
        result = {"absent": str(error)}
    print(json.dumps(result), flush=True)
    os._exit(0)  # some peers leave threads and processes behind that never end


if __name__ == "__main__":
    main(*sys.argv[1:])
