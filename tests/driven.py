"""The project's commands as a user gives them, and a few scans of digits to give them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

from stoker.embedded.digits import digit_files

__all__ = ["run", "submit", "write_digits"]

CHECKOUT = Path(__file__).parents[1]
PER_CLASS = {"train": 24, "validation": 8}


def run(*command: str) -> list[str]:
    """The lines that a command printed; it must succeed."""
    programs = str(Path(sys.executable).parent)
    environment = os.environ | {"PATH": programs + os.pathsep + os.environ["PATH"]}
    done = subprocess.run(
        command, check=False, cwd=CHECKOUT, env=environment, text=True, capture_output=True, timeout=500
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout.strip().splitlines()


def submit(*entrypoint: str) -> list[str]:
    """The lines that a job printed, submitted to the cluster; it must succeed."""
    return run("ray", "job", "submit", "--working-dir", ".", "--", "python", *entrypoint)


def write_digits(folder: Path, classes: Collection[str] = "0123456789") -> Path:
    """A few scans of each of ``classes``, as files below ``folder``."""
    taken: dict[str, int] = {}
    for path, data in sorted(digit_files().items()):
        split, _, rest = path.partition("/")
        digit = rest.partition("/")[0]
        if digit not in classes:
            continue
        place = f"{split}/{digit}"
        taken[place] = taken.get(place, 0) + 1
        if taken[place] <= PER_CLASS[split]:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(data)
    return folder
