"""The law of the random crop is torchvision's, and the middle of thin images is all that evaluation resizes."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from torchvision.transforms import RandomResizedCrop

from stoker.dataset.decode import crop
from stoker.dataset.decode.evaluation import evaluation_image
from stoker.dataset.decode.image import resample
from stoker.recipe import Augment

DRAWS = 20_000


def ours(width: int, height: int) -> np.ndarray:
    draws = np.random.default_rng(1).random((DRAWS, crop.CROP_DRAWS))
    return np.array([crop.random_resized_crop(row, width, height, Augment()) for row in draws.tolist()])


def torchvisions(width: int, height: int) -> np.ndarray:
    torch.manual_seed(1)
    image, augment = torch.empty((1, height, width)), Augment()
    found = [RandomResizedCrop.get_params(image, list(augment.scale), list(augment.ratio)) for _ in range(DRAWS)]
    return np.array([(left, top, w, h) for top, left, h, w in found])


@pytest.mark.parametrize(("width", "height"), [(500, 375), (300, 300), (40, 200)])
def test_boxes_are_distributed_as_torchvisions(width: int, height: int) -> None:
    """Two samples of one law: by Kolmogorov and Smirnov, each distance stays below 2 / sqrt(n / 2) (p < 0.001)."""
    mine, theirs = ours(width, height), torchvisions(width, height)
    bound = 2 / np.sqrt(DRAWS / 2)
    features = {
        "left": lambda box: box[:, 0] / np.maximum(1, width - box[:, 2]),
        "top": lambda box: box[:, 1] / np.maximum(1, height - box[:, 3]),
        "area": lambda box: box[:, 2] * box[:, 3],
        "aspect": lambda box: box[:, 2] / box[:, 3],
    }
    for name, feature in features.items():
        one, other = np.sort(feature(mine)), np.sort(feature(theirs))
        at = np.concatenate([one, other])
        distance = np.abs(np.searchsorted(one, at, "right") - np.searchsorted(other, at, "right")).max() / DRAWS
        assert distance < bound, name


def test_a_crop_reaches_every_edge_and_never_passes_it() -> None:
    width, height, most = 12, 9, 1 - 2**-53
    shape = [0.5, 0.5] * 10
    for x, y in ((0.0, 0.0), (most, most)):
        left, top, w, h = crop.random_resized_crop([*shape, x, y], width, height, Augment())
        assert (left, top) == ((0, 0) if x == 0 else (width - w, height - h))
    boxes = ours(width, height)
    assert set(boxes[:, 0] + boxes[:, 2]) >= set(range(6, width + 1))
    assert set(boxes[:, 1] + boxes[:, 3]) >= set(range(5, height + 1))


def test_an_image_whose_shape_no_attempt_fits_is_cropped_in_the_middle_as_torchvision_does() -> None:
    for width, height in ((2000, 3), (3, 2000), (1, 1), (60_000, 1)):
        draws = [1 - 2**-53, 0.5] * 10 + [0.0, 0.0]
        box = crop.random_resized_crop(draws, width, height, Augment(scale=(0.99, 1.0)))
        (left, top, w, h), (_, _, tw, th) = box, torchvisions(width, height)[0]
        assert (left, top) == ((width - w) // 2, (height - h) // 2)
        if width * height > 1:
            assert (w, h) == (tw, th)


@pytest.mark.parametrize(("size", "resize"), [(96, 110), (224, 256), (64, 64), (96, 64)])
@pytest.mark.parametrize("shape", [(100, 800), (800, 100), (37, 296), (333, 501), (1, 8), (8, 1)])
def test_an_image_of_up_to_eight_widths_is_resized_whole(shape: tuple[int, int], size: int, resize: int) -> None:
    from stoker.dataset.decode.evaluation import _not_longer

    image = torch.zeros(3, *shape, dtype=torch.uint8)
    assert _not_longer(image, max(8, 2 * -(-size // resize))) is image


@pytest.mark.parametrize("shape", [(10, 101), (101, 10), (10, 102), (7, 1000)])
def test_of_a_longer_one_the_middle_is_kept(shape: tuple[int, int]) -> None:
    from stoker.dataset.decode.evaluation import _not_longer

    pixels = torch.arange(max(shape)).remainder(251).to(torch.uint8)
    image = (pixels if shape[1] > shape[0] else pixels[:, None]).expand(3, *shape)
    kept = _not_longer(image, 8)
    assert min(kept.shape[1:]) == min(shape)
    assert 8 * min(shape) <= max(kept.shape[1:]) <= 8 * min(shape) + 1
    line = kept[0].flatten(1)[0] if shape[1] > shape[0] else kept[0, :, 0]
    over = (max(shape) - len(line)) // 2
    assert 2 * over + len(line) == max(shape), "as much is cut off at both ends"
    assert torch.equal(line, pixels[over : over + len(line)])


def test_its_pixels_are_nearly_those_of_the_whole() -> None:
    image = torch.randint(0, 255, (3, 20, 400), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    whole = resample(image, 64, 64 * 20)[:, 4:60, 612:668]
    from stoker.dataset.decode.evaluation import _not_longer

    middle = resample(_not_longer(image, 8), 64, 64 * 8)[:, 4:60, 228:284]
    assert (whole.int() - middle.int()).abs().max() <= 1


THIN = """
import io, resource, sys
from PIL import Image
from stoker.dataset.decode.evaluation import evaluation_image
import torch
for size in ((2000, 1), (1, 2000), (60000, 1), (1, 60000)):
    file = io.BytesIO()
    Image.new("RGB", size, (1, 2, 3)).save(file, "PNG")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seen = evaluation_image(file.getvalue(), image_size=224, resize=256)
    assert seen.shape == (3, 224, 224) and seen[:, 0, 0].tolist() == [1, 2, 3]
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_a_line_of_pixels_takes_megabytes_and_not_gigabytes() -> None:
    ran = subprocess.run([sys.executable, "-c", THIN], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-800:]
    assert max(map(int, ran.stdout.split())) < 64 * 1024, ran.stdout


def test_evaluation_and_serving_share_that_function() -> None:
    assert evaluation_image.__module__ == "stoker.dataset.decode.evaluation"
