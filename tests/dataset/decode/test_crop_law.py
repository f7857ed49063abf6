"""Random crops follow the law of torchvision's RandomResizedCrop, shown by draws of both."""

from collections import Counter

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torchvision.transforms import RandomResizedCrop

from stoker.dataset.decode import random_resized_crop
from stoker.dataset.decode.crop import CROP_DRAWS
from stoker.recipe import Augment

DRAWS = 15_000


def ours(width: int, height: int, augment: Augment) -> NDArray[np.int64]:
    """int64 [n, 4]: left, top, width, height of each crop."""
    draws = np.random.default_rng(7).random((DRAWS, CROP_DRAWS)).tolist()
    return np.array([random_resized_crop(own, width, height, augment) for own in draws])


def torchvisions(width: int, height: int, augment: Augment) -> NDArray[np.int64]:
    image = torch.empty(3, height, width)
    scale, ratio = list(augment.scale), list(augment.ratio)
    with torch.random.fork_rng():
        torch.manual_seed(11)
        boxes = [RandomResizedCrop.get_params(image, scale, ratio) for _ in range(DRAWS)]
    return np.array([(left, top, w, h) for top, left, h, w in boxes])


def distance(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Kolmogorov and Smirnov's statistic of two samples: how far apart their distribution functions are."""
    places = np.union1d(one, other)
    return float(np.abs(_below(one, places) - _below(other, places)).max())


def _below(values: NDArray[np.float64], places: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.searchsorted(np.sort(values), places, side="right") / len(values)


ALIKE = 1.95 * (2 / DRAWS) ** 0.5
"""two samples of one law are further apart once in a thousand times; the draws here are the same each time"""


@pytest.mark.parametrize("size", [(500, 375), (300, 301), (90, 400)])
@pytest.mark.parametrize("augment", [Augment(), Augment(scale=(0.35, 0.7), ratio=(0.5, 1.2))])
def test_area_shape_and_place_of_crops_are_distributed_as_torchvisions(size: tuple[int, int], augment: Augment) -> None:
    measured = []
    for left, top, w, h in (ours(*size, augment).T, torchvisions(*size, augment).T):
        room = np.maximum(1, size[0] - w), np.maximum(1, size[1] - h)
        measured.append((w * h, w / h, left, top, size[0] - left - w, size[1] - top - h, left / room[0], top / room[1]))
    for one, other in zip(*measured, strict=True):
        assert distance(one.astype(float), other.astype(float)) < ALIKE


@pytest.mark.parametrize("size", [(5, 4), (4, 7), (12, 2), (1, 9), (3, 3)])
def test_each_box_of_a_small_image_is_as_likely_as_by_torchvision(size: tuple[int, int]) -> None:
    """A two-sample chi-square test over all boxes, so also of those that touch the last column and row."""
    one, other = (Counter(map(tuple, draw(*size, Augment()).tolist())) for draw in (ours, torchvisions))
    boxes = {box for box in one | other if one[box] + other[box] >= 10}
    statistic = sum((one[box] - other[box]) ** 2 / (one[box] + other[box]) for box in boxes)
    freedom = max(1, len(boxes) - 1)
    assert statistic < freedom + 4 * (2 * freedom) ** 0.5
    rare = {box for box in one | other if box not in boxes}
    assert sum(one[box] + other[box] for box in rare) < 0.01 * DRAWS


@pytest.mark.parametrize("size", [(30, 20), (20, 30), (64, 64)])
def test_crops_reach_every_column_and_row_from_the_first_to_the_last(size: tuple[int, int]) -> None:
    for scale in ((0.08, 1.0), (0.2, 0.3)):
        left, top, w, h = ours(*size, Augment(scale=scale)).T
        assert (left.min(), top.min()) == (0, 0)
        assert ((left + w).max(), (top + h).max()) == size
        narrow = w == np.bincount(w).argmax()
        assert set(left[narrow]) == set(range(size[0] - int(np.bincount(w).argmax()) + 1))


def test_the_position_reaches_the_last_place_exactly_where_the_draw_says_so() -> None:
    """With u in [0, 1) each of the n + 1 places of a side with n pixels of room has an equal part of it."""
    draws = [0.3, 0.5, *[0.0] * (CROP_DRAWS - 4)]
    *_, width, height = random_resized_crop([*draws, 0.0, 0.0], 100, 80, Augment())
    for side, span, place in ((0, 100 - width, -2), (1, 80 - height, -1)):
        for k in range(span + 1):
            for u in (k / (span + 1) + 1e-9, (k + 1) / (span + 1) - 1e-9):
                own = [*draws, 0.0, 0.0]
                own[place] = u
                assert random_resized_crop(own, 100, 80, Augment())[side] == k
