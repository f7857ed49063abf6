"""A labelled JPEG data set that costs a loader about what ImageNet costs.

What decides that cost is imitated: the sizes in pixels (most files are 500 by 375 or near it), the bytes (about 108 kB
in the mean, which is what entropy decoding takes its time for), spectra as of photographs (shapes with sharp edges
over noise that falls as 1/f), mostly 4:2:0 with some 4:4:4 and a little grey. An image is a function of (seed, number).
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

__all__ = ["image_paths", "jpeg", "write_images"]

_USUAL = ((500, 375), (375, 500), (500, 333), (333, 500), (500, 400), (400, 300))
_USUAL_SHARES = (0.44, 0.12, 0.14, 0.05, 0.04, 0.03)
_SIDES = (120, 1600)
_BITS_PER_PIXEL, _BITS_SPREAD = 4.95, 0.38
_NEAR_ENOUGH = 0.05
_ENCODINGS = 5


def write_images(folder: Path, count: int, classes: int, seed: int, processes: int) -> None:
    """``count`` images in ``classes`` folders below ``folder``."""
    for label in range(classes):
        (folder / _class_name(label)).mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(processes) as pool:
        for _ in pool.map(_write, *zip(*((folder, seed, n, classes) for n in range(count)), strict=True), chunksize=16):
            pass


def image_paths(folder: Path) -> list[tuple[Path, int]]:
    """The images below ``folder`` with their labels, in one shuffled order, as every sharded format asks for."""
    names = sorted(path.name for path in folder.iterdir())
    found = sorted((path, names.index(path.parent.name)) for path in folder.glob("*/*.JPEG"))
    return [found[i] for i in np.random.default_rng(0).permutation(len(found))]


def _class_name(label: int) -> str:
    return f"class{label:04d}"


def _write(folder: Path, seed: int, number: int, classes: int) -> None:
    label = number % classes
    (folder / _class_name(label) / f"{number:06d}.JPEG").write_bytes(jpeg(seed, number, label))


def jpeg(seed: int, number: int, label: int) -> bytes:
    """Image ``number`` of class ``label``: a baseline JPEG whose bytes were drawn first and are met within 5 %."""
    rng = np.random.default_rng([seed, number])
    palette = np.random.default_rng([seed, 10**9 + label]).uniform(25, 230, (6, 3))
    width, height = _size(rng)
    wanted = width * height / 8 * _BITS_PER_PIXEL * math.exp(rng.normal(-(_BITS_SPREAD**2) / 2, _BITS_SPREAD))
    quality, is_grey, is_halved = int(rng.integers(90, 97)), rng.random() < 0.01, rng.random() < 0.8
    scene = _shapes(rng, width, height, palette) + 18 * _noise(rng, height, width, 1.5)[..., None]
    grain = _grain(rng, height, width)

    def encoded(gain: float) -> bytes:
        picture = Image.fromarray((scene + gain * grain).clip(0, 255).astype(np.uint8))
        body = io.BytesIO()
        if is_grey:
            picture.convert("L").save(body, "JPEG", quality=quality)
        else:
            picture.save(body, "JPEG", quality=quality, subsampling=2 if is_halved else 0)
        return body.getvalue()

    return _of_size(encoded, wanted)


def _of_size(encoded: Callable[[float], bytes], wanted: float) -> bytes:
    """Find the gain of the grain whose file has the wanted size, which grows with the gain: false position in logs."""
    gain, bounds = 20.0, [1.0, 120.0]
    for _ in range(_ENCODINGS):
        data = encoded(gain)
        share = wanted / len(data)
        if abs(share - 1) < _NEAR_ENOUGH:
            break
        bounds[0 if share > 1 else 1] = gain
        guess = gain * share**1.5
        gain = guess if bounds[0] < guess < bounds[1] else math.sqrt(bounds[0] * bounds[1])
    return data


def _size(rng: np.random.Generator) -> tuple[int, int]:
    choice = rng.choice(len(_USUAL) + 1, p=[*_USUAL_SHARES, 1 - sum(_USUAL_SHARES)])
    if choice < len(_USUAL):
        return _USUAL[choice]
    area, aspect = math.exp(rng.normal(math.log(153_000), 0.75)), math.exp(rng.normal(0.18, 0.3))
    width, height = np.clip([math.sqrt(area * aspect), math.sqrt(area / aspect)], *_SIDES).round()
    return int(width), int(height)


def _noise(rng: np.random.Generator, height: int, width: int, slope: float) -> NDArray[np.float32]:
    """Noise of mean 0 and variance 1 whose amplitudes fall as 1/f**slope: float32 [height, width]."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.standard_normal((height, width), dtype=np.float32))
    field = np.fft.irfft2(spectrum * frequency**-slope, s=(height, width))
    return (field / field.std()).astype(np.float32)


def _grain(rng: np.random.Generator, height: int, width: int) -> NDArray[np.float32]:
    """Texture, finer in brightness than in colour, and a sensor's noise: float32 [height, width, 3]."""
    slope = rng.uniform(0.95, 1.25)
    light, warm, green = (_noise(rng, height, width, s) for s in (slope, slope + 0.25, slope + 0.25))
    sensor = 0.12 * rng.standard_normal((height, width), dtype=np.float32)
    channels = (light + 0.35 * warm, light - 0.2 * (warm + green), light + 0.35 * green)
    return np.stack([channel + sensor for channel in channels], axis=2)


def _shapes(rng: np.random.Generator, width: int, height: int, palette: NDArray[np.float64]) -> NDArray[np.float32]:
    """Shapes that hide one another, their sizes by a power law (the dead leaves model): float32 [height, width, 3]."""
    canvas = Image.new("RGB", (width, height), tuple(palette[0].astype(int).tolist()))
    draw = ImageDraw.Draw(canvas)
    for _ in range(rng.integers(25, 90)):
        colour = (palette[rng.integers(len(palette))] + rng.normal(0, 20, 3)).clip(0, 255)
        fill = tuple(colour.astype(int).tolist())
        x, y, radius = rng.uniform(0, width), rng.uniform(0, height), 0.03 * min(width, height) / rng.uniform(0.06, 1)
        sides = int(rng.integers(3, 9))
        if sides > 6:
            draw.ellipse((x - radius, y - 0.7 * radius, x + radius, y + 0.7 * radius), fill=fill)
        else:
            draw.regular_polygon((x, y, radius), sides, rotation=rng.uniform(0, 360), fill=fill)
    return np.asarray(canvas, dtype=np.float32)
