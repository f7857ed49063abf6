"""Seconds from nothing to an answer, of this checkout and of the commit before its replicas answered HTTP themselves.

Each has a state folder with a published model, and stops in between. ``up`` is ``stoker up`` and a request behind it;
``deploy`` is ``stoker deploy`` of its shipped YAML on that cluster, with no application running, and a request.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from bench.serve.clusters import DIGITS, post, publish
from bench.serve.contenders import Row
from bench.serve.place import CHECKOUT, CaseFailed, bodies, child_environment, python, run
from bench.serve.wrk import Target

__all__ = ["BEFORE", "starts", "starts_before"]

BEFORE = "aed0f2894533384c63127c7e8fbc3d8efef9773d"
"""the last commit with an HTTP deployment and a model's deployment behind it"""


def starts(folder: Path) -> Iterator[Row]:
    """This checkout's; and of one model in a fresh process, from its start to its first forward pass."""
    yield from _starts(CHECKOUT, child_environment(), folder, loads=True)


def starts_before(folder: Path) -> Iterator[Row]:
    """The same of the commit :data:`BEFORE`, in a work tree of its own."""
    with tempfile.TemporaryDirectory(prefix="stoker-before-") as temporary:
        tree = Path(temporary) / "tree"
        git = ("git", "-C", str(CHECKOUT), "worktree")
        run([*git, "add", "--detach", str(tree), BEFORE], os.environ)
        try:
            (Path(temporary) / "stoker_serve").symlink_to(tree / "serve")
            (Path(temporary) / "stoker_recipes").symlink_to(tree / "jobs" / "recipes")
            (Path(temporary) / "stoker_cluster").symlink_to(tree / "cluster")
            yield from _starts(tree, child_environment(path=[temporary, tree / "platform"]), folder, loads=False)
        finally:
            run([*git, "remove", "--force", str(tree)], os.environ)


def _starts(tree: Path, environment: Mapping[str, str], folder: Path, *, loads: bool) -> Iterator[Row]:
    raw, _ = bodies(folder)
    with tempfile.TemporaryDirectory(prefix="stoker-bench-") as temporary:
        state = ("--folder", f"{temporary}/state")

        def stoker(*command: str, **extra: str) -> str:
            return run(python("-m", "stoker", *command), {**environment, **extra}, folder=tree)

        try:
            stoker("up", *state)
            variables = _variables(stoker("environment", *state))
            publish({**environment, **variables}, variables["STOKER_STORAGE"], DIGITS)
            if loads:
                yield "a model", {"seconds": _load({**environment, **variables}), "load": os.getloadavg()[0]}
            stoker("down", *state)
            began = time.monotonic()
            stoker("up", *state)
            took_s = time.monotonic() - began
            variables = _variables(stoker("environment", *state))
            key = Path(temporary, "state", "api-key").read_text().strip()
            target = Target(f"{variables['STOKER_SERVE_URL']}/v1/models/digits/predict", raw, key=key)
            yield "up", {"seconds": took_s + _answered(target), "load": os.getloadavg()[0]}
            stoker("deploy", "--delete", **variables)
            port = variables["STOKER_SERVE_URL"].rpartition(":")[2]
            began = time.monotonic()
            stoker("deploy", str(tree / "serve" / "digits.yaml"), "--port", port, **variables)
            _answered(target)
            yield "deploy", {"seconds": time.monotonic() - began, "load": os.getloadavg()[0]}
        finally:
            with contextlib.suppress(CaseFailed):
                stoker("down", *state)


def _answered(target: Target) -> float:
    """Seconds to the first answer of what is deployed."""
    began = time.monotonic()
    if (status := post(target)) != 200:
        raise CaseFailed(f"{target.url} answered {status} right after it was deployed")
    return time.monotonic() - began


def _load(environment: Mapping[str, str]) -> float:
    began = time.monotonic()
    output = run(python("-m", "bench.serve.loading", environment["STOKER_STORAGE"]), environment)
    return float(json.loads(output.splitlines()[-1])["ready"]) - began


def _variables(text: str) -> dict[str, str]:
    """What ``stoker environment`` exports."""
    words = [word for line in text.splitlines() for word in shlex.split(line, comments=True)]
    return {name: value for name, _, value in (word.partition("=") for word in words) if value and name.isupper()}
