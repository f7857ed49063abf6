"""Where the cases of bench-serve run: the folder, the variables of their processes, and what a case may raise."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench.data.images import jpeg
from stoker.embedded.digits import digit_files

__all__ = ["CHECKOUT", "CaseFailed", "bodies", "child_environment", "photograph", "process", "program", "python", "run"]

CHECKOUT = Path(__file__).resolve().parents[3]
_OURS = ("RAY_", "AWS_", "STOKER_")


class CaseFailed(Exception):
    """A case ended without its measures; the message has the cause, and the log's path where there is one."""


def child_environment(extra: Mapping[str, str] = {}, *, path: Sequence[str | Path] = ()) -> dict[str, str]:
    """Variables for a process of this checkout: no cluster, store or key of the caller's, then ``extra``.

    ``path`` comes before this checkout's packages.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
    before = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    own = [str(CHECKOUT / "tests"), str(CHECKOUT / "platform")]
    return {
        **kept,
        "NO_PROXY": "127.0.0.1,localhost",
        "OMP_NUM_THREADS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        **{f"STOKER_PORT_{name}": "0" for name in ("S3", "GCS", "DASHBOARD", "SERVE")},
        **extra,
        "PYTHONPATH": os.pathsep.join([*map(str, path), *before, *(p for p in own if p not in before)]),
    }


def run(
    command: Sequence[str], environment: Mapping[str, str], *, timeout_s: float = 300, folder: Path = CHECKOUT
) -> str:
    """Run a program to its end; returns what it printed.

    Raises:
        CaseFailed: it failed, or took longer than ``timeout_s`` seconds.
    """
    try:
        done = subprocess.run(
            command, env=dict(environment), cwd=folder, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        raise CaseFailed(f"{_shown(command)} took longer than {timeout_s:.0f} s") from None
    except FileNotFoundError:
        raise CaseFailed(f"the program {command[0]} is not installed") from None
    if done.returncode:
        said = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise CaseFailed(f"{_shown(command)} ended with status {done.returncode}: {(said or ['no output'])[-1][:300]}")
    return done.stdout


@contextmanager
def process(command: Sequence[str], environment: Mapping[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A program in a session of its own, ended with its children when the block is left."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        child = subprocess.Popen(
            command,
            env=dict(environment),
            cwd=log.parent,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield child
    finally:
        _end(child)


def bodies(folder: Path) -> tuple[Path, Path]:
    """The posted image of a digit (32 by 32 pixels, 900 bytes) as a file, and as base64 in JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    files = digit_files()
    image = files[min(path for path in files if path.startswith("validation/7/"))]
    raw, wrapped = folder / "digit.jpg", folder / "digit.json"
    raw.write_bytes(image)
    wrapped.write_text(json.dumps({"image": base64.b64encode(image).decode()}))
    return raw, wrapped


def photograph(folder: Path) -> Path:
    """A JPEG of the size, bytes and spectrum of a photograph in ImageNet."""
    file = folder / "photograph.jpg"
    file.write_bytes(jpeg(0, 0, 0))
    return file


def python(*arguments: str) -> list[str]:
    """The command of this Python."""
    return [sys.executable, *arguments]


def _end(child: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(child.pid, number)
        except ProcessLookupError:
            break
        try:
            child.wait(timeout=5)
        except subprocess.TimeoutExpired:
            continue
    child.wait()


def _shown(command: Sequence[str]) -> str:
    return " ".join(Path(word).name if number == 0 else word for number, word in enumerate(command))[:120]


def program(name: str) -> str:
    """A program that a user has to install.

    Raises:
        CaseFailed: it is not here.
    """
    found = shutil.which(name)
    if found is None:
        raise CaseFailed(f"{name} is not installed; on Debian: sudo apt install {name}")
    return found
