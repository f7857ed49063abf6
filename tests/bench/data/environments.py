"""The Pythons of the benchmark: ours, and virtual environments of their own for the peers."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from bench.data.cases import Environment

__all__ = ["CHECKOUT", "Environments", "child_environment"]

logger = logging.getLogger(__name__)

CHECKOUT = Path(__file__).resolve().parents[3]
_REQUIREMENTS = {"peers": "requirements-peers.txt", "ffcv": "requirements-ffcv.txt"}
_FOLDERS = {"peers": ".venv-peers", "ffcv": ".venv-peers-ffcv"}


@dataclass(frozen=True)
class Environments:
    """``python`` by environment; ``refused`` are the requirements that did not install, with the installer's reason."""

    python: dict[Environment, str]
    refused: dict[str, str]

    @classmethod
    def found(cls, wanted: set[Environment], *, installs: bool) -> Environments:
        """Return those of ``wanted`` that exist; with ``installs``, create them and install changed requirements."""
        python: dict[Environment, str] = {"own": sys.executable}
        refused: dict[str, str] = {}
        for name in sorted(wanted - {"own"}):
            folder = CHECKOUT / _FOLDERS[name]
            if installs:
                refused |= _install(folder, CHECKOUT / "tests" / "bench" / _REQUIREMENTS[name])
            if (folder / "bin" / "python").exists():
                python[name] = str(folder / "bin" / "python")
        return cls(python, refused)


def _install(folder: Path, requirements: Path) -> dict[str, str]:
    """Install all at once, or, where that fails, one by one, so that one peer does not take the others with it."""
    wanted, mark = requirements.read_text(), folder / "installed.txt"
    if mark.exists() and mark.read_text() == wanted:
        return {}
    python = folder / "bin" / "python"
    if not python.exists() and (failure := _uv("venv", "--python", sys.executable, str(folder))):
        return {requirements.name: failure}
    logger.info("installing %s into %s", requirements.name, folder.name)
    install = ("pip", "install", "--python", str(python))
    refused = {}
    if _uv(*install, "-r", str(requirements)):
        for line in (line.strip() for line in wanted.splitlines()):
            if line and not line.startswith("#") and (failure := _uv(*install, line)):
                refused[line] = failure
    if not refused:
        mark.write_text(wanted)
    return refused


def _uv(*arguments: str) -> str:
    """Run uv; what it complained of in its last line, nothing if it succeeded."""
    program = Path(sys.executable).with_name("uv")
    command = [str(program) if program.exists() else "uv", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "uv is not here; make install brings it"
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return "" if done.returncode == 0 else (lines or ["failed without a word"])[-1]


def child_environment(store: dict[str, str]) -> dict[str, str]:
    """The variables of a case's process: the store, one thread a library, and usage reporting switched off."""
    return {
        **os.environ,
        **store,
        "PYTHONPATH": os.pathsep.join([str(CHECKOUT / "tests"), str(CHECKOUT / "platform")]),
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "OPENCV_FOR_THREADS_NUM": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "LITDATA_DISABLE_VERSION_CHECK": "1",
        "DO_NOT_TRACK": "1",
    }
