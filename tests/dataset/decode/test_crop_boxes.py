"""Boxes: turned ones as Pillow turns pixels, crops at the smallest images, and what evaluation keeps of long ones."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.transforms.v2 import functional as transform

from stoker.dataset import Sample
from stoker.dataset.decode import EvaluationImages, TrainingImages, crop, evaluation_image
from stoker.dataset.decode.image import decode, resample
from stoker.dataset.undecodable import UndecodableImage
from stoker.recipe import Augment

WIDTH, HEIGHT = 7, 5


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_box_and_its_pixels_are_turned_as_pillow_turns_the_image(orientation: int) -> None:
    stored = np.arange(WIDTH * HEIGHT, dtype=np.uint8).reshape(HEIGHT, WIDTH)
    image = Image.fromarray(stored)
    image.getexif()[0x112] = orientation
    upright = torch.from_numpy(np.array(ImageOps.exif_transpose(image)))
    assert torch.equal(crop.turned(torch.from_numpy(stored), orientation), upright)
    left, top, w, h = 1, 2, 3, 2
    x, y, width, height = crop.stored_box((left, top, w, h), WIDTH, HEIGHT, orientation)
    cut = crop.turned(torch.from_numpy(stored[y : y + height, x : x + width].copy()), orientation)
    assert torch.equal(cut, upright[top : top + h, left : left + w])


def test_a_training_image_takes_one_draw_for_its_flip_and_twenty_two_for_its_crop() -> None:
    """The draws of a sample are the same in every version."""
    assert (crop.CROP_DRAWS, TrainingImages.draws, EvaluationImages.draws) == (22, 23, 0)


@pytest.mark.parametrize(("width", "height"), [(1, 2), (2, 1)])
def test_a_crop_of_one_pixel_is_a_crop(width: int, height: int) -> None:
    fraction = (0.25 - 0.08) / 0.92  # of the draws' range: a quarter of the area
    draws = [fraction, 0.5] * 10 + [0.9, 0.9]
    assert crop.random_resized_crop(draws, width, height, Augment()) == (width - 1, height - 1, 1, 1)


@pytest.mark.parametrize("aspect", [0.01, 0.99])
def test_a_crop_without_pixels_is_none(aspect: float) -> None:
    fraction = (0.25 - 0.08) / 0.92
    draws = [fraction, aspect] * 10 + [0.0, 0.0]
    assert crop.random_resized_crop(draws, 1, 1, Augment()) == (0, 0, 1, 1)


@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (50, 50), (33, 200), (200, 33)])
def test_evaluation_is_torchvisions_resize_and_centre_crop(shape: tuple[int, int]) -> None:
    data = png(np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8))
    height, width = (48 * side // min(shape) for side in shape)
    expected = transform.center_crop_image(resample(decode(data), height, width), [32, 32])
    assert torch.equal(evaluation_image(data, image_size=32, resize=48), expected)


@pytest.mark.parametrize("is_tall", [False, True])
def test_a_crop_longer_than_eight_widths_has_the_pixels_of_all_of_its_length(is_tall: bool) -> None:
    pixels = np.full((10, 120, 3), 255, np.uint8)
    data = png(pixels.transpose(1, 0, 2) if is_tall else pixels)
    seen = evaluation_image(data, image_size=320, resize=32)
    line = seen[0, :, 160] if is_tall else seen[0, 160, :]
    assert line.min() == 255, "nothing of the image's own length is black"


def test_images_for_evaluation_are_decoded_into_their_places_and_the_others_named() -> None:
    good = png(np.full((20, 20, 3), 9, np.uint8))
    decoder = EvaluationImages(16, 20)
    out = decoder.empty(3)
    samples = [Sample(n, "key", 0, memoryview(data), "shard", 0, 1, None) for n, data in enumerate((good, b"no", good))]
    failed = decoder.decode(samples, np.zeros((3, 0)), out)
    assert list(failed) == [1]
    assert isinstance(failed[1], UndecodableImage)
    assert out.shape == (3, 3, 16, 16)
    assert out[0].unique().tolist() == out[2].unique().tolist() == [9]
