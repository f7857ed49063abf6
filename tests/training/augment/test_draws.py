"""What augmentation draws for a sample, one draw after the other: an unfinished run must continue with the same."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import RandAugment, TrivialAugmentWide

from stoker import recipe as recipes
from stoker.dataset import Batch
from stoker.dataset.order import key_of, uniform
from stoker.recipe import parse_recipe
from stoker.training.augment import augmentation as module
from stoker.training.augment.augmentation import Augmentation
from stoker.training.augment.mixing import Mix, choose_mix, erase, erased_boxes
from stoker.training.augment.operations import OPERATIONS, POLICIES, apply_operations

RECIPE = """
name: drawn
seed: 3
storage: /tmp/none
data: {url: /tmp/none}
model: {name: resnet18}
batch: {total: 8, micro: 8}
optimizer: {lr: 0.1}
schedule: {epochs: 1}
workers: {gpus: 0, cpus: 1}
"""
HEIGHT, WIDTH = 24, 20
NUMBERS = [0, 1, 2, 77, 10**9]
NAMES = [operation.name for operation in OPERATIONS]
Draws = NDArray[np.float64]


def augmentation(*overrides: str) -> Augmentation:
    return Augmentation(parse_recipe(RECIPE, "drawn", [f"augmentation.{o}" for o in overrides]), 5)


def batch_of(numbers: list[int]) -> Batch:
    images = torch.zeros(len(numbers), 3, HEIGHT, WIDTH, dtype=torch.uint8)
    return Batch(images, torch.zeros(len(numbers), dtype=torch.int64), torch.tensor(numbers), 4, 9, 2)


@pytest.fixture
def applied(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], list[float]]]:
    """(operation, strength) of each sample, a list for each round of operations."""
    found: list[tuple[list[str], list[float]]] = []

    def seen(images: Tensor, kinds: NDArray[np.int64], strengths: Draws) -> Tensor:
        found.append(([NAMES[kind] for kind in kinds.tolist()], strengths.tolist()))
        return images

    monkeypatch.setattr(module, "apply_operations", seen)
    return found


def by_torchvision(name: str, draws: list[float], *, is_wide: bool, magnitude: int) -> float:
    """The strength that torchvision's table has for an operation, with the sign that the third draw chooses."""
    policy = TrivialAugmentWide() if is_wide else RandAugment()
    table, is_signed = policy._AUGMENTATION_SPACE["".join(word.capitalize() for word in name.split("_"))]
    values = table(31, HEIGHT, WIDTH)
    if values is None:
        return 0.0
    value = float(values[int(31 * draws[1]) if is_wide else magnitude] if values.ndim else values)
    return -value if is_signed and draws[2] < 0.5 else value


@pytest.mark.parametrize(("policy", "rounds"), [("rand_augment", 3), ("trivial_augment_wide", 1)])
def test_a_samples_operations_are_drawn_from_its_number_the_epoch_and_the_seed(
    applied: list[tuple[list[str], list[float]]], policy: str, rounds: int
) -> None:
    batch, is_wide = batch_of(NUMBERS * 40), policy == "trivial_augment_wide"
    batch.numbers[5:] = torch.arange(5, 200)
    augmentation(f"policy={policy}", "operations=3", "magnitude=11").pixels(batch.images, batch)
    draws = uniform(key_of("operations", 3, 4), batch.numbers.numpy(), 3 * rounds)
    assert len(applied) == rounds
    for number, (names, strengths) in enumerate(applied):
        of_round = draws[:, 3 * number : 3 * number + 3].tolist()
        assert names == [POLICIES[policy][int(14 * row[0])] for row in of_round]
        expected = [
            by_torchvision(n, row, is_wide=is_wide, magnitude=11) for n, row in zip(names, of_round, strict=True)
        ]
        assert strengths == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("draw", "sign"), [(0.0, -1), (0.49, -1), (0.5, 1), (0.51, 1), (0.99, 1)])
def test_half_of_the_signs_are_negative_and_unsigned_operations_have_none(
    applied: list[tuple[list[str], list[float]]], monkeypatch: pytest.MonkeyPatch, draw: float, sign: int
) -> None:
    drawn = [[(NAMES.index(name) + 0.5) / 14, 0.5, draw] for name in ("brightness", "solarize")]
    monkeypatch.setattr(module, "uniform", lambda *_: np.array(drawn))
    batch = batch_of([0, 1])
    augmentation("policy=rand_augment", "operations=1", "magnitude=30").pixels(batch.images, batch)
    assert applied == [(["brightness", "solarize"], pytest.approx([sign * 0.9, 0.0]))]


def test_padding_draws_what_the_first_sample_draws() -> None:
    varied = augmentation("policy=trivial_augment_wide", "erase=0.5")
    assert varied._numbers(torch.zeros(3, 3, 4, 4), batch_of([-1, 0, 7, 9])).tolist() == [0, 0, 7]


def test_erasing_draws_from_the_samples_number_the_epoch_and_the_seed() -> None:
    batch, images = batch_of(list(range(64))), torch.rand(64, 3, HEIGHT, WIDTH)
    boxes = erased_boxes(key_of("erase", 3, 4), np.arange(64), 0.5, HEIGHT, WIDTH)
    found, labels = augmentation("erase=0.5").mix(images, batch.labels, batch)
    assert torch.equal(found, erase(images, boxes))
    assert not torch.equal(found, images)
    assert labels is batch.labels


def test_a_mixture_draws_from_the_micro_batch_the_step_the_epoch_and_the_seed() -> None:
    varied, key = augmentation("mixup=0.4", "cutmix=1.0"), key_of("mix", 3, 4, 9, 2)
    assert varied._mix_of(batch_of([1]), HEIGHT, WIDTH) == choose_mix(varied._chosen, key, HEIGHT, WIDTH)


# -- mixing ------------------------------------------------------------------------------------------------------------


def cut_by_hand(key: int, mixup: float, cutmix: float) -> Mix:
    """As torchvision's CutMix, from the draws of ``key``."""
    generator = np.random.Generator(np.random.Philox(key))
    choice, x, y = generator.random(3).tolist()
    cuts = not mixup or (bool(cutmix) and choice < 0.5)
    lam = float(generator.beta(cutmix if cuts else mixup, cutmix if cuts else mixup))
    if not cuts:
        return Mix(lam)
    r_x, r_y, r = int(x * WIDTH), int(y * HEIGHT), 0.5 * math.sqrt(1 - lam)
    x1, x2 = np.clip([r_x - int(r * WIDTH), r_x + int(r * WIDTH)], 0, WIDTH).tolist()
    y1, y2 = np.clip([r_y - int(r * HEIGHT), r_y + int(r * HEIGHT)], 0, HEIGHT).tolist()
    return Mix(1.0 - (x2 - x1) * (y2 - y1) / (WIDTH * HEIGHT), (x1, y1, x2, y2))


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.4, 0.0), (0.0, 0.7), (0.0, 1.0), (0.2, 1.0), (3.0, 0.5)])
def test_a_mixture_and_its_box_are_those_of_the_papers(mixup: float, cutmix: float) -> None:
    chosen = recipes.Augmentation(mixup=mixup, cutmix=cutmix)
    found = [choose_mix(chosen, key, HEIGHT, WIDTH) for key in range(300)]
    for key, mix in enumerate(found):
        expected = cut_by_hand(key, mixup, cutmix)
        assert mix is not None
        assert (mix.lam, mix.box) == (pytest.approx(expected.lam), expected.box)
    assert len({mix.box is None for mix in found if mix}) == 1 + (mixup > 0 and cutmix > 0)


def test_nothing_is_mixed_where_neither_is_asked_for() -> None:
    assert choose_mix(recipes.Augmentation(), 1, HEIGHT, WIDTH) is None


def box_by_hand(draws: list[float], probability: float, height: int, width: int) -> tuple[int, int, int, int]:
    """As torchvision's RandomErasing, from the draws of one sample."""
    if draws[0] >= probability:
        return 0, 0, 0, 0
    for first in range(1, 41, 4):
        size, shape, y, x = draws[first : first + 4]
        area = height * width * (0.02 + 0.31 * size)
        ratio = math.exp(math.log(0.3) + (math.log(3.3) - math.log(0.3)) * shape)
        h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if h < height and w < width:
            top, left = int(y * (height - h + 1)), int(x * (width - w + 1))
            return left, top, left + w, top + h
    return 0, 0, 0, 0


@pytest.mark.parametrize(("height", "width"), [(24, 20), (64, 64), (3, 60), (60, 3)])
def test_an_erased_rectangle_is_the_first_of_ten_that_fits(height: int, width: int) -> None:
    numbers = np.arange(1500)
    boxes = erased_boxes(8, numbers, 0.6, height, width)
    draws = uniform(8, numbers, 41).tolist()
    assert boxes.tolist() == [list(box_by_hand(row, 0.6, height, width)) for row in draws]
    assert (boxes.any(axis=1)).sum() > 50


def test_a_sample_whose_draw_is_the_probability_itself_is_not_erased() -> None:
    draw = float(uniform(8, [0], 41)[0, 0])
    assert not erased_boxes(8, np.array([0]), draw, 24, 20).any()
    assert erased_boxes(8, np.array([0]), np.nextafter(draw, 1), 24, 20).any()


def test_bright_pixels_stop_at_white() -> None:
    """Above 255 a byte begins at 0 again."""
    images = torch.full((3, 3, 8, 8), 250, dtype=torch.uint8)
    images[:, :, 2:6, 2:6] = 129
    for name, strength in (("brightness", 0.99), ("color", 0.99), ("contrast", 0.99), ("sharpness", 0.99)):
        kinds = np.full(3, NAMES.index(name))
        found = apply_operations(images, kinds, np.array([strength, 256 / 250 - 1, 0.0]))
        assert found[:, :, :2, :2].min() >= 250
