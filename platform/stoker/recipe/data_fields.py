"""Fields of a recipe: which samples are read, and how they become training images."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from stoker.recipe.section import Channels, Fraction, Positive, Section

__all__ = ["Augment", "Data", "Resizing"]


class Augment(Section):
    """Random crop and flip of training samples; every draw is keyed by (seed, epoch, sample)."""

    scale: tuple[float, float] = Field(
        (0.08, 1.0), description="lowest and highest fraction of the image's area that a crop covers, above 0 to 1"
    )
    ratio: tuple[float, float] = Field(
        (0.75, 4 / 3), description="lowest and highest width / height of a crop, above 0"
    )
    flip: Fraction = Field(0.5, description="probability of a horizontal flip, 0 to 1")

    @model_validator(mode="after")
    def _ordered(self) -> Augment:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError("scale must be [low, high] with 0 < low <= high <= 1")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError("ratio must be [low, high] with 0 < low <= high")
        return self


class Resizing(Section):
    """Progressive resizing: training images grow to ``data.image_size``, so early epochs cost less."""

    from_size: Positive = Field(
        description="side of the training images in the first epochs, in pixels, at most data.image_size"
    )
    start_epoch: int = Field(ge=0, description="last epoch (from 0) at from_size")
    end_epoch: Positive = Field(description="first epoch at data.image_size, above start_epoch; linear in between")
    multiple: Positive = Field(32, description="sizes in between are rounded to a multiple of this, in pixels")

    @model_validator(mode="after")
    def _ordered(self) -> Resizing:
        if self.start_epoch >= self.end_epoch:
            raise ValueError(f"start_epoch ({self.start_epoch}) must be before end_epoch ({self.end_epoch})")
        return self


class Data(Section):
    """Which samples are read, how, and what the model gets of them."""

    url: str = Field(description="URL or path of the data set, the folder that holds dataset.json")
    train_split: str = Field("train", description="split to train on")
    validation_split: str = Field("validation", description="split to evaluate on")
    image_size: Positive = Field(224, description="side of the square training images, in pixels")
    resizing: Resizing | None = Field(
        None, description="progressive resizing: smaller training images in the first epochs; default none"
    )
    mean: Channels = Field(
        (0.485, 0.456, 0.406), description="mean of the channels R, G, B, subtracted from pixels in 0 to 1"
    )
    std: Channels = Field(
        (0.229, 0.224, 0.225),
        description="standard deviation of the channels R, G, B, above 0; pixels are divided by it",
    )
    augment: Augment = Field(default_factory=Augment, description="random crop and flip of training images")
    last_batch: Literal["drop", "pad"] = Field(
        "drop", description="what happens to the last, partial global batch of an epoch: drop it, or pad it"
    )
    block_samples: Positive = Field(16, description="samples in a block, which one range read fetches")
    window_blocks: Positive = Field(2, description="blocks among which the samples of a slot are shuffled")
    memory_mb: Positive = Field(1024, description="bound on a worker's encoded images in flight and waiting, in MiB")
    read_threads: Positive = Field(
        16, description="most range reads in flight per worker; fewer are used while the store only queues them"
    )
    read_deadline_s: float = Field(
        30.0, gt=0, description="seconds after which a read without an answer is cancelled and sent again"
    )
    hedge_percentile: float | None = Field(
        None,
        ge=50,
        lt=100,
        description="reads slower than this percentage of the recent ones are sent a second time, and the first answer "
        "is used; 50 to below 100; default never",
    )
    cache_dir: str | None = Field(
        None, description="folder on each node that caches what was read, safe to delete; default none"
    )
    cache_mb: Positive = Field(100_000, description="bound on a node's cache, all its workers together, in MiB")
    decode: Literal["cpu", "gpu"] = Field(
        "cpu", description="where training images are decoded; gpu uses nvJPEG, whose pixels differ slightly"
    )
    decode_threads: Positive = Field(
        2, description="threads per worker that decode images; with decode: gpu, that feed nvJPEG"
    )
    scales_in_dct: bool = Field(
        False,
        description="decode crops of at least twice the output's side at a fraction of their size, in the JPEG's own "
        "transform: faster, but the pixels are not exactly the same",
    )
    on_corrupt: Literal["fail", "skip"] = Field(
        "fail",
        description="what to do with a sample that cannot be decoded: fail the run, or replace it and count it (an "
        "evaluation leaves it out)",
    )
    corrupt_limit: Positive = Field(
        100, description="with on_corrupt: skip, corrupt samples per worker and epoch above which the run fails"
    )

    @model_validator(mode="after")
    def _std_divides(self) -> Data:
        if min(self.std) <= 0:
            raise ValueError("std must be above 0 in each channel")
        return self

    @model_validator(mode="after")
    def _grows(self) -> Data:
        if self.resizing is not None and self.resizing.from_size > self.image_size:
            raise ValueError(f"resizing.from_size ({self.resizing.from_size}) is above image_size ({self.image_size})")
        return self

    def image_size_at(self, epoch: int) -> int:
        """Side of the training images of ``epoch`` (from 0), in pixels: a function of the epoch alone."""
        grows = self.resizing
        if grows is None or epoch >= grows.end_epoch:
            return self.image_size
        if epoch <= grows.start_epoch:
            return grows.from_size
        fraction = (epoch - grows.start_epoch) / (grows.end_epoch - grows.start_epoch)
        between = grows.from_size + fraction * (self.image_size - grows.from_size)
        return min(self.image_size, max(grows.from_size, round(between / grows.multiple) * grows.multiple))

    @model_validator(mode="after")
    def _gpu_decodes_whole_sizes(self) -> Data:
        if self.decode == "gpu" and self.scales_in_dct:
            raise ValueError("scales_in_dct is for decode: cpu; with decode: gpu leave it out")
        return self
