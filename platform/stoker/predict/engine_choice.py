"""Choose the engine of a predictor: the fastest here of those that predict the same, by measurement.

1. Each engine of the device that can be built within the time is built.
2. One whose probabilities differ from eager float32's by more than the tolerance of its precision is left out.
3. The rest take turns at a batch of one and at a large batch. The smallest time of each counts, because whatever else
   the machine does only ever adds to it.
4. The fastest by the mean of both rates, relative to eager's, is taken.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stoker.errors import ModelError
from stoker.predict.engines import ENGINES, Engine, EngineKind, build_engine
from stoker.predict.golden import golden_pictures
from stoker.predict.tolerances import TOLERANCES

if TYPE_CHECKING:
    from stoker.predict.predictor import Predictor

__all__ = ["AUTO", "choose_engine", "engine_names"]

logger = logging.getLogger(__name__)

AUTO = "auto"
_REFERENCE = "eager"
_ROUNDS = 5
_PASSES = 4
"""of the large batch that each engine should have within the time: two to warm up, one to compare, one to time"""


def engine_names(device: torch.device, kinds: Mapping[str, EngineKind] | None = None) -> list[str]:
    """Names of the engines for ``device``."""
    kinds = ENGINES if kinds is None else kinds
    return [name for name, kind in kinds.items() if device.type in kind.devices]


def choose_engine(
    predictor: Predictor,
    *,
    name: str = AUTO,
    precision: str = "float32",
    batch: int = 32,
    seconds: float = 3.0,
    log: logging.Logger = logger,
    kinds: Mapping[str, EngineKind] | None = None,
    time_pass: Callable[[Engine, Tensor], float] | None = None,
) -> Engine:
    """The engine that ``name`` names, or for ``auto`` the fastest that predicts what eager float32 does.

    Probabilities of the golden pictures and of noise may differ from eager's by what golden predictions may, less half
    of float32's tolerance: that is left for eager itself, which may differ from where the version was published. By
    bfloat16's 0.02 the most probable class stays the same wherever it leads by more than 0.04. Engines of bfloat16 are
    measured only if ``precision`` is that: replicas of one model would otherwise answer different probabilities, each
    by what was faster on its node.

    ``batch`` is the largest batch that will occur, ``seconds`` what the choice should take: engines that take longer to
    build are not tried, and a large model is measured at a smaller batch. ``time_pass`` gives the seconds of one pass.

    Raises:
        ModelError: there is no such engine for the predictor's device, or it cannot be built.
    """
    until = time.monotonic() + seconds
    kinds = ENGINES if kinds is None else kinds
    names = engine_names(predictor.device, kinds)
    if name not in (AUTO, *names):
        raise ModelError(
            f"{predictor.reference}: there is no engine {name!r} on {predictor.device.type}; "
            f"set engine to one of {', '.join((AUTO, *names))}"
        )
    time_pass = time_pass or _seconds_of
    images = _images(predictor, batch)
    if name != AUTO:
        try:
            return build_engine(predictor.network, name, kinds[name], images.shape)
        except Exception as error:
            raise ModelError(
                f"{predictor.reference}: engine {name!r} cannot run it here ({_reason(error)}); set engine: {AUTO}"
            ) from error
    eager = build_engine(predictor.network, _REFERENCE, kinds[_REFERENCE], images[:1].shape)
    one = min(time_pass(eager, images[:1]) for _ in range(2))
    large = _large(batch, seconds / (_PASSES * len(names) * one))
    images = images[:large].contiguous(memory_format=torch.channels_last)
    usable, left_out = {_REFERENCE: eager}, {}
    for other in names:
        if other == _REFERENCE:
            continue
        if precision == "float32" != kinds[other].precision:
            left_out[other] = f"it computes in {kinds[other].precision}"
            continue
        if time.monotonic() + kinds[other].build_s > until:
            left_out[other] = f"takes some {kinds[other].build_s:g} s to build"
            continue
        try:
            engine = build_engine(predictor.network, other, kinds[other], images.shape)
            difference = max(_difference(engine, eager, images[:1]), _difference(engine, eager, images))
        except Exception as error:  # of torch or of a compiler: the others are there
            left_out[other] = _reason(error)
            continue
        allowed = _allowed(predictor.device.type, engine.precision)
        if difference <= allowed:
            usable[other] = engine
        else:
            left_out[other] = f"a probability differs by {difference:.1e} (allowed: {allowed:.2g})"
    rates = _rates(usable, images, time_pass, until)
    best = max(usable, key=lambda found: sum(rates[found][n] / rates[_REFERENCE][n] for n in rates[found]))
    told = "; ".join(f"{found} {' / '.join(f'{r:.0f}' for r in rates[found].values())}" for found in usable)
    out = "".join(f"; {other} left out: {why}" for other, why in left_out.items())
    sizes = " / ".join(str(count) for count in rates[best])
    log.info("%s: engine %s of images/s at batch %s: %s%s", predictor.reference, best, sizes, told, out)
    return usable[best]


def _allowed(device: str, precision: str) -> float:
    return TOLERANCES[device, precision] - TOLERANCES[device, "float32"] / 2


def _large(batch: int, affordable: float) -> int:
    """The largest power of two of images that is affordable, but at least 2 and at most ``batch``."""
    count = 2
    while 2 * count <= affordable:
        count *= 2
    return min(batch, count)


def _images(predictor: Predictor, batch: int) -> Tensor:
    """The golden pictures, and noise for the rest of ``batch``."""
    golden = torch.stack([predictor.preprocess(picture) for picture in golden_pictures()])
    noise = torch.randint(
        0, 256, (batch, *golden.shape[1:]), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    images = torch.cat([golden, noise])[:batch].to(predictor.device)
    return images.contiguous(memory_format=torch.channels_last)


def _difference(engine: Engine, eager: Engine, images: Tensor) -> float:
    ours, expected = engine(images), eager(images)
    if ours.shape != expected.shape:
        raise ValueError(f"it gives {tuple(ours.shape)}, not {tuple(expected.shape)}")
    difference = (ours - expected).abs().max()
    return float(difference.nan_to_num(float("inf")))


def _rates(
    engines: Mapping[str, Engine], images: Tensor, time_pass: Callable[[Engine, Tensor], float], until: float
) -> dict[str, dict[int, float]]:
    """Images/s of each engine by the size of a batch. The engines take turns, so that a busy moment hits all."""
    batches = {len(given): given for given in (images[:1], images)}
    smallest = {name: dict.fromkeys(batches, float("inf")) for name in engines}
    for _ in range(_ROUNDS):
        for count, given in batches.items():
            for name, engine in engines.items():
                smallest[name][count] = min(smallest[name][count], time_pass(engine, given))
        if time.monotonic() > until:
            break
    return {name: {count: count / took for count, took in times.items()} for name, times in smallest.items()}


def _seconds_of(engine: Engine, images: Tensor) -> float:
    began = time.perf_counter()
    engine(images).cpu()  # waits for the device
    return time.perf_counter() - began


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
