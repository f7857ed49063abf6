"""A case on gloo ranks, each a fresh process with one thread: python -m bench.train.ranks MODULE PLACE ARGUMENTS."""

from __future__ import annotations

import importlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from bench.report import Measures
from bench.train.place import CHECKOUT, Place

__all__ = ["CaseFailed", "child_environment", "run_ranks"]

_TIMEOUT_S = 1200.0


class CaseFailed(Exception):
    """A case exited without its measures; the message has the cause and the log's path."""


def child_environment() -> dict[str, str]:
    """This process's variables (the store's among them), this checkout first, one thread a library."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(CHECKOUT / "platform"), str(CHECKOUT / "tests")]),
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def run_ranks(
    module: str,
    place: Place,
    arguments: dict[str, object],
    ranks: int,
    log: Path,
    *,
    timeout_s: float = _TIMEOUT_S,
) -> Measures:
    """Call ``bench.train.<module>.measure(place, **arguments)`` on ``ranks`` ranks; what rank 0 found.

    Raises:
        CaseFailed: a rank failed, or they took longer than ``timeout_s``.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "bench.train.ranks", module, place.to_json(), json.dumps(arguments)]
    log.parent.mkdir(parents=True, exist_ok=True)
    rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks)}
    with log.open("w") as file:
        children = [
            subprocess.Popen(
                command,
                env={**child_environment(), **rendezvous, "RANK": str(rank)},
                stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
                stderr=file,
                text=True,
            )
            for rank in range(ranks)
        ]
        try:
            out, _ = children[0].communicate(timeout=timeout_s)
            statuses = [child.wait(timeout=60) for child in children]
        except subprocess.TimeoutExpired:
            raise CaseFailed(f"took longer than {timeout_s:.0f} s; see {log}") from None
        finally:
            for child in children:
                child.kill()
    lines = out.splitlines()
    if any(statuses) or not lines:
        said = [line for line in log.read_text().splitlines() if line.strip()]
        raise CaseFailed(f"exit status {max(statuses)} ({(said or ['no output'])[-1][:200]}); see {log}")
    try:
        return {name: float(value) for name, value in json.loads(lines[-1]).items()}
    except (ValueError, AttributeError):
        raise CaseFailed(f"its last line is no figures: {lines[-1][:200]}; see {log}") from None


def _main(module: str, place: str, arguments: str) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    given = json.loads(arguments)
    dist.init_process_group("nccl" if given.get("device") == "cuda" else "gloo")
    measure = importlib.import_module(f"bench.train.{module}").measure
    found = measure(Place.from_json(place), **given)
    dist.barrier()
    if dist.get_rank() == 0:
        print(json.dumps(found), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    _main(*sys.argv[1:])
