"""The ends of the random crop: its edges, and images that no crop fits."""

from __future__ import annotations

import numpy as np
import torch
from torchvision.transforms import RandomResizedCrop

from stoker.dataset.decode import crop
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
