"""The fields of a recipe that say which samples there are, and what they are made into."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from stoker.recipe.section import Channels, Fraction, Positive, Section

__all__ = ["Augment", "Data", "Resizing"]


class Augment(Section):
    """How a training sample is varied; every draw is keyed by (seed, epoch, sample)."""

    scale: tuple[float, float] = Field((0.08, 1.0), description="share of the image's area that a crop covers")
    ratio: tuple[float, float] = Field((0.75, 4 / 3), description="width by height of a crop")
    flip: Fraction = Field(0.5, description="probability of a horizontal flip")

    @model_validator(mode="after")
    def _ordered(self) -> Augment:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError("scale must be [low, high] with 0 < low <= high <= 1")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError("ratio must be [low, high] with 0 < low <= high")
        return self


class Resizing(Section):
    """Training images that begin small and grow to ``data.image_size``: early epochs cost less."""

    from_size: Positive = Field(description="side in the first epochs, in pixels")
    start_epoch: int = Field(ge=0, description="the last epoch (from 0) of that size")
    end_epoch: Positive = Field(description="the first epoch of the full size; linear in between")
    multiple: Positive = Field(32, description="sizes in between are rounded to a multiple of this")

    @model_validator(mode="after")
    def _ordered(self) -> Resizing:
        if self.start_epoch >= self.end_epoch:
            raise ValueError(f"start_epoch ({self.start_epoch}) must be before end_epoch ({self.end_epoch})")
        return self


class Data(Section):
    """Which samples, how they are read, and what they are made into."""

    url: str = Field(description="the data set: a URL or path that holds dataset.json")
    train_split: str = "train"
    validation_split: str = "validation"
    image_size: Positive = Field(224, description="side of the square that the model sees, in pixels")
    resizing: Resizing | None = Field(None, description="smaller training images in the first epochs")
    mean: Channels = Field((0.485, 0.456, 0.406), description="of the channels R, G, B, in 0 to 1")
    std: Channels = Field((0.229, 0.224, 0.225), description="of the channels R, G, B, in 0 to 1")
    augment: Augment = Field(default_factory=Augment)
    last_batch: Literal["drop", "pad"] = Field("drop", description="what becomes of an epoch's partial global batch")
    block_samples: Positive = Field(16, description="samples that one range read fetches")
    window_blocks: Positive = Field(2, description="blocks of a slot whose samples are mixed")
    memory_mb: Positive = Field(1024, description="bound on a rank's encoded bytes in flight and waiting, in MB")
    read_threads: Positive = Field(16, description="most range reads under way; fewer while the store only queues them")
    read_deadline_s: float = Field(30.0, gt=0, description="a read without an answer is given up and sent again")
    hedge_percentile: float | None = Field(
        None, ge=50, lt=100, description="reads slower than this share of the recent ones get a second one beside them"
    )
    cache_dir: str | None = Field(None, description="folder on each node that keeps what was read; safe to delete")
    cache_mb: Positive = Field(100_000, description="bound on the node's cache, all ranks together, in MB")
    decode: Literal["cpu", "gpu"] = Field(
        "cpu", description="what decodes training images; gpu takes nvJPEG, whose pixels differ a little"
    )
    decode_threads: Positive = 2
    scales_in_dct: bool = Field(
        False, description="decode crops of twice the output's side and more at a fraction: faster, not exact"
    )
    on_corrupt: Literal["fail", "skip"] = Field("fail", description="what to do with a sample that cannot be decoded")
    corrupt_limit: Positive = Field(100, description="with on_corrupt skip: corrupt samples a rank bears an epoch")

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
        share = (epoch - grows.start_epoch) / (grows.end_epoch - grows.start_epoch)
        between = grows.from_size + share * (self.image_size - grows.from_size)
        return min(self.image_size, max(grows.from_size, round(between / grows.multiple) * grows.multiple))

    @model_validator(mode="after")
    def _gpu_decodes_whole_sizes(self) -> Data:
        if self.decode == "gpu" and self.scales_in_dct:
            raise ValueError("scales_in_dct is for decode: cpu; with decode: gpu leave it out")
        return self
