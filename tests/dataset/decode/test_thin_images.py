"""Evaluation of images of every shape: today's pixels for ordinary ones, bounded memory for long thin ones."""

import io
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as transform

from stoker.dataset.decode import TrainingImages, evaluation_image, work
from stoker.dataset.decode.crop import random_resized_crop
from stoker.dataset.prepare import Options
from stoker.dataset.prepare.images import store_image
from stoker.recipe import Augment


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def saved(image: Image.Image, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def whole(image: Image.Image, image_size: int, resize: int) -> Tensor:
    """Torchvision's own resize of everything, then its centre crop."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
    resized = transform.resize_image(pixels, [resize], antialias=True)
    return transform.center_crop_image(resized, [image_size, image_size])


@settings(max_examples=150, deadline=None)
@given(width=st.integers(1, 400), height=st.integers(1, 400), resize=st.integers(8, 120), fraction=st.floats(0.3, 1.0))
def test_an_ordinary_image_has_the_pixels_of_the_whole_resize_and_the_centre_crop(
    width: int, height: int, resize: int, fraction: float
) -> None:
    image_size, image = max(1, int(resize * fraction)), picture(width, height)
    assert torch.equal(
        evaluation_image(saved(image), image_size=image_size, resize=resize), whole(image, image_size, resize)
    )


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (448, 56), (56, 448), (1600, 200), (1, 1), (1600, 100)])
def test_images_of_usual_sizes_have_the_pixels_of_the_whole_resize_at_usual_settings(size: tuple[int, int]) -> None:
    image = picture(*size)
    for image_size, resize in ((224, 256), (288, 329), (32, 37), (518, 592)):
        seen = evaluation_image(saved(image), image_size=image_size, resize=resize)
        assert torch.equal(seen, whole(image, image_size, resize))


@pytest.mark.parametrize("size", [(700, 3), (3, 700), (2000, 9), (1500, 1), (1, 1501), (3001, 7)])
def test_a_long_thin_image_is_its_middle_to_within_rounding(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stoker.dataset.decode.work._WHOLE_PIXELS", 0)
    image = picture(*size)
    for image_size, resize in ((56, 64), (48, 48), (33, 64)):
        seen = evaluation_image(saved(image), image_size=image_size, resize=resize)
        expected = whole(image, image_size, resize)
        assert seen.shape == expected.shape
        assert int((seen.int() - expected.int()).abs().max()) <= 1


def test_a_crop_that_is_larger_than_the_resized_image_is_padded_as_ever() -> None:
    image = picture(3000, 2)
    assert torch.equal(evaluation_image(saved(image), image_size=64, resize=48), whole(image, 64, 48))


MEASURE = """
import resource, sys
from stoker.dataset.decode import TrainingImages, evaluation_image
from stoker.dataset import Sample
from stoker.recipe import Augment
import numpy as np, torch
torch.set_num_threads(1)
files = [bytes.fromhex(line) for line in sys.stdin.read().split()]
def see(data):
    assert tuple(evaluation_image(data, image_size=224, resize=256).shape) == (3, 224, 224)
    decoder = TrainingImages(224, Augment())
    out = decoder.empty(1)
    assert not decoder.decode([Sample(0, "k", 0, memoryview(data), "s", 0)], np.full((1, decoder.draws), 0.5), out)
see(files[0])
for data in files[1:]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    see(data)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_a_small_file_never_takes_more_than_a_hundred_megabytes() -> None:
    sizes = [(500, 375), (2000, 1), (60_000, 1), (1, 60_000), (60_000, 40), (1_000_000, 1), (1, 900_000), (3, 300_000)]
    files = " ".join(saved(Image.new("RGB", size, (9, 99, 200))).hex() for size in sizes)

    ran = subprocess.run([sys.executable, "-c", MEASURE], input=files, capture_output=True, text=True, check=False)

    assert ran.returncode == 0, ran.stderr[-500:]
    grown = [int(line) for line in ran.stdout.split()]
    assert len(grown) == len(sizes) - 1
    assert max(grown) < 100, dict(zip(sizes[1:], grown, strict=True))


@pytest.mark.parametrize("size", [(2000, 1), (1, 2000), (65_000, 3), (3, 65_000)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_what_prepare_takes_evaluation_can_see(size: tuple[int, int], kind: str) -> None:
    stored = store_image(saved(Image.new("RGB", size, (9, 99, 200)), kind), Options())
    assert (stored.width, stored.height) == size
    seen = evaluation_image(stored.data, image_size=224, resize=256)
    assert int((seen.int() - torch.tensor([9, 99, 200])[:, None, None]).abs().max()) <= 3


@pytest.mark.parametrize("ratio", [(0.1, 0.2), (5.0, 9.0)])
def test_a_crop_of_an_extreme_shape_has_a_pixel_at_least(ratio: tuple[float, float]) -> None:
    draws = np.random.default_rng(0).random((50, TrainingImages.draws))
    for size in ((3000, 1), (1, 3000), (1, 1), (2, 1)):
        for own in draws.tolist():
            left, top, width, height = random_resized_crop(own[1:], *size, Augment(ratio=ratio))
            assert min(left, top) >= 0
            assert min(width, height) >= 1
            assert (left + width, top + height) <= size


@pytest.mark.parametrize(
    ("longer", "resize", "most", "is_whole"),
    [
        (8 * 64, 64, 0, True),  # eight times as long as wide: whole, whatever the size
        (8 * 64 + 1, 64, 0, False),
        (128 * 256, 256, 2**23, True),  # 2**23 pixels
        (128 * 256 + 1, 256, 2**23, False),
        (8 * 1100, 1100, 2**23, True),  # more pixels, but eight times
        (8 * 1100 + 1, 1100, 2**23, False),
    ],
)
@pytest.mark.parametrize("is_wide", [True, False])
def test_which_images_are_resized_whole(
    longer: int, resize: int, most: int, is_whole: bool, is_wide: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stoker.dataset.decode import evaluation

    if not most:
        monkeypatch.setattr(work, "_WHOLE_PIXELS", most)

    def look(_: Tensor, height: int, width: int, *__: int) -> Tensor:
        return torch.zeros((3, min(height, 300), min(width, 300)), dtype=torch.uint8)

    whole_sizes: list[tuple[int, ...]] = []
    monkeypatch.setattr(evaluation, "_middle_columns", look)
    monkeypatch.setattr(evaluation, "resample", lambda image, *size: whole_sizes.append(size) or look(image, *size))
    # the image itself is not decoded: its size alone decides
    shape = (3, resize, longer) if is_wide else (3, longer, resize)
    monkeypatch.setattr(evaluation, "decode", lambda _: torch.zeros(1, dtype=torch.uint8).expand(shape))
    evaluation.evaluation_image(b"", image_size=8, resize=resize)
    assert bool(whole_sizes) == is_whole
