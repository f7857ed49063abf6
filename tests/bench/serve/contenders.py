"""Requests/s of several endpoints of one model, asked in turns, so that what changes on the machine meets them all."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

from bench.report import Measures
from bench.serve.clusters import DIGITS, RESNET50, Stoker, configuration, stock, wait_for_answer
from bench.serve.place import CHECKOUT, CaseFailed, bodies, child_environment, photograph, process, python, run
from bench.serve.wrk import Target, ask
from stoker.embedded.ports import free_ports
from stoker.embedded.processes import program
from stoker.errors import StokerError

__all__ = ["Row", "digits", "empty", "resnet50"]

Row = tuple[str, Measures]
"""contender and connections, as ``"LitServe, 16"``, and what one turn of it measured"""
LITSERVE = CHECKOUT / "tests" / "bench" / "requirements-serve.txt"
_WARM_UP_S = 2.0
_Contenders = Mapping[str, AbstractContextManager[Target]]


def digits(place: Stoker, rounds: int, seconds: float, *, with_others: bool = True) -> Iterator[Row]:
    """digitsnet at 32 pixels: stoker, FastAPI and uvicorn, LitServe, and Serve's default proxy with two deployments."""
    raw, wrapped = bodies(place.folder)
    place.publish(DIGITS)
    place.deploy(configuration())
    contenders: _Contenders = {"stoker": contextlib.nullcontext(place.target("digits", raw))}
    others: _Contenders = {
        "FastAPI": _plain(place, "digits", raw),
        "LitServe": _litserve(place, "digits", wrapped),
        "default proxy": _two(place, raw),
    }
    yield from _in_turns({**contenders, **(others if with_others else {})}, (1, 16, 64), rounds, seconds)


def empty(place: Stoker, rounds: int, seconds: float, *, with_others: bool = True) -> Iterator[Row]:
    """A handler that answers at once: what is around it costs."""
    raw, wrapped = bodies(place.folder)
    place.publish(DIGITS)
    place.deploy(configuration(empty="empty"))
    contenders: _Contenders = {"stoker": contextlib.nullcontext(Target(f"{place.instance.serve_url}/empty", raw))}
    others: _Contenders = {"LitServe": _litserve(place, "empty", wrapped), "default proxy": _empty(place, raw)}
    yield from _in_turns({**contenders, **(others if with_others else {})}, (1, 16, 64), rounds, seconds)


def resnet50(place: Stoker, rounds: int, seconds: float) -> Iterator[Row]:
    """ResNet-50 at 224 pixels, random weights: stoker with its fastest engine, and eager float32 behind FastAPI."""
    body = photograph(place.folder)
    place.publish(RESNET50)
    fastest = {"precision": "bfloat16"}  # the fastest engine that reproduces the golden predictions
    place.deploy(configuration(models=["resnet50"], limits={"queue_s": 10, "answer_s": 60}, settings=fastest))
    contenders: _Contenders = {
        "stoker": contextlib.nullcontext(place.target("resnet50", body)),
        "FastAPI": _plain(place, "resnet50", body),
    }
    yield from _in_turns(contenders, (1, 8), rounds, 3 * seconds)  # some ten answers a second


def _in_turns(contenders: _Contenders, connections: Sequence[int], rounds: int, seconds: float) -> Iterator[Row]:
    """Start all, then ask one after the other; one that fails is left out, and fails the case at its end."""
    failed: dict[str, str] = {}
    with ExitStack() as stack:
        targets = {}
        for name, contender in contenders.items():
            try:
                targets[name] = stack.enter_context(contender)
                wait_for_answer(targets[name], 60)
                ask(targets[name], min(connections), _WARM_UP_S)
            except (CaseFailed, StokerError) as error:
                failed[name] = str(error)
        for number in range(rounds):
            order = list(targets) if number % 2 == 0 else list(reversed(targets))
            for count in connections:
                for name in (name for name in order if name not in failed):
                    load = os.getloadavg()[0]
                    try:
                        yield f"{name}, {count}", {**ask(targets[name], count, seconds), "load": load}
                    except CaseFailed as error:
                        failed[name] = str(error)
    if failed:
        raise CaseFailed("; ".join(f"{name}: {why}" for name, why in failed.items()))


@contextlib.contextmanager
def _plain(place: Stoker, model: str, body: Path) -> Iterator[Target]:
    port = free_ports(1)[0]
    command = python("-m", "bench.serve.apps.plain", f"{model}@production", place.storage, str(port))
    with _server(place, command, place.environment, Target(f"http://127.0.0.1:{port}/predict", body)) as target:
        yield target


@contextlib.contextmanager
def _litserve(place: Stoker, model: str, body: Path) -> Iterator[Target]:
    packages = place.folder / "litserve"
    _install(packages)
    port = free_ports(1)[0]
    reference = model if model == "empty" else f"{model}@production"
    command = python("-m", "bench.serve.apps.lit", reference, place.storage, str(port))
    variables = child_environment(place.environment, path=[packages])
    target = Target(f"http://127.0.0.1:{port}/predict", body, "application/json")
    with _server(place, command, variables, target) as target:
        yield target


@contextlib.contextmanager
def _server(place: Stoker, command: list[str], variables: Mapping[str, str], target: Target) -> Iterator[Target]:
    log = place.folder / "logs" / f"{command[2].rpartition('.')[2]}.log"
    with process(command, variables, log):
        try:
            wait_for_answer(target, 90)
        except CaseFailed as error:
            raise CaseFailed(f"{error}; see {log}") from None
        yield target


@contextlib.contextmanager
def _two(place: Stoker, body: Path) -> Iterator[Target]:
    arguments = {"model": "digits@production", "storage": place.storage}
    application = {"name": "two", "route_prefix": "/", "import_path": "bench.serve.apps.two:app", "args": arguments}
    with stock(place.folder, place.instance.store.environment()) as other:
        other.deploy([application], ["/predict"], body)
        yield other.target("/predict", body)


@contextlib.contextmanager
def _empty(place: Stoker, body: Path) -> Iterator[Target]:
    application = {"name": "empty", "route_prefix": "/", "import_path": "bench.serve.apps.empty:app", "args": {}}
    with stock(place.folder, place.instance.store.environment()) as other:
        other.deploy([application], ["/"], body)
        yield other.target("/", body)


def _install(folder: Path) -> None:
    """LitServe and what it needs into a folder of its own, which only its process has on its path."""
    mark, wanted = folder / "installed.txt", LITSERVE.read_text()
    if mark.exists() and mark.read_text() == wanted:
        return
    command = [program("uv"), "pip", "install", "--quiet", "--python", sys.executable]
    run([*command, "--target", str(folder), "-r", str(LITSERVE)], dict(os.environ), timeout_s=180)
    mark.write_text(wanted)
