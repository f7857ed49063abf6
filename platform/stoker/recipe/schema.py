"""The fields of a recipe. Each default stands here and nowhere else."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from stoker.recipe.data_fields import Data
from stoker.recipe.model_fields import Augmentation, Loss, Model, Optimizer
from stoker.recipe.section import Fraction, Name, Positive, Section
from stoker.recipe.tracking_fields import Tracking


class BatchSizes(Section):
    """G and m of the order contract: what a micro-batch computes does not depend on who computes it."""

    total: Positive = Field(description="samples a step over all ranks (the global batch)")
    micro: Positive = Field(description="samples that go through the model at once; divides total")

    @property
    def micro_batches(self) -> int:
        return self.total // self.micro

    @model_validator(mode="after")
    def _divides(self) -> BatchSizes:
        if self.total % self.micro:
            raise ValueError(f"total ({self.total}) must be a multiple of micro ({self.micro})")
        return self


class Schedule(Section):
    epochs: Positive
    warmup_epochs: float = Field(0.0, ge=0, description="linear warm-up, in epochs")
    shape: Literal["cosine", "linear", "steps"] = Field("cosine", description="how the rate falls after the warm-up")
    final_lr_ratio: Fraction = Field(0.0, description="where cosine and linear end, as a share of the peak rate")
    step_epochs: Positive = Field(30, description="with shape steps: epochs between two steps")
    step_factor: Fraction = Field(0.1, description="with shape steps: what the rate is multiplied by")

    @model_validator(mode="after")
    def _warms_up_within(self) -> Schedule:
        if self.warmup_epochs > self.epochs:
            raise ValueError(f"warmup_epochs ({self.warmup_epochs:g}) is longer than epochs ({self.epochs})")
        return self


class Ema(Section):
    """An exponential moving average of the weights; when given, it is what is evaluated and published."""

    decay: float = Field(0.999, gt=0, lt=1, description="per step, reached after a warm-up of (1 + s) / (10 + s)")


class Evaluation(Section):
    every_epochs: Positive = 1
    image_size: Positive | None = Field(
        None, description="side of the square that is evaluated and served, in pixels; default data.image_size"
    )
    resize: Positive | None = Field(
        None, description="shorter side before the centre crop, in pixels; default image_size / 0.875"
    )


class CheckpointPolicy(Section):
    every_steps: Positive = 500
    every_minutes: float | None = Field(None, gt=0, description="one at least this often too, by rank 0's clock")
    keep: Positive = Field(3, description="checkpoints kept; older ones are deleted")
    keep_best: bool = Field(True, description="keep the one with the best validation accuracy beside them")


class Workers(Section):
    """Ranks of the run. ``min`` below ``max`` makes it elastic: it goes on with what is there."""

    min: Positive = 1
    max: Positive = 1
    gpus: Literal[0, 1] = Field(1, description="GPUs a worker; 0 trains on the CPU over gloo")
    cpus: Positive = Field(4, description="CPUs a worker, its decode threads included")
    max_failures: int = Field(3, ge=-1, description="restarts after a failure before the run ends; -1: no bound")
    stall_timeout_s: float = Field(
        600.0, gt=0, description="abort a rank that makes no progress for this long, after dumping all stacks"
    )
    resize_every_s: float = Field(60.0, gt=0, description="elastic: how often nodes that came are looked for")

    @model_validator(mode="after")
    def _ordered(self) -> Workers:
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) is above max ({self.max})")
        return self


class Recipe(Section):
    """Everything a run is. The resolved recipe, stored with the run, reproduces it alone."""

    name: Name = Field(description="the run's name; submitting the same name again continues it")
    seed: int = Field(0, ge=0, lt=2**63)
    storage: str = Field(description="URL below which runs/ and models/ live")
    data: Data
    model: Model
    batch: BatchSizes
    optimizer: Optimizer
    schedule: Schedule
    loss: Loss = Field(default_factory=Loss)
    augmentation: Augmentation = Field(default_factory=Augmentation)
    ema: Ema | None = None
    evaluation: Evaluation = Field(default_factory=Evaluation)
    checkpoint: CheckpointPolicy = Field(default_factory=CheckpointPolicy)
    workers: Workers = Field(default_factory=Workers)
    tracking: Tracking = Field(default_factory=Tracking)
    reproducible: bool = Field(
        False, description="exact sums: the same weights, bit for bit, at any number of workers and through restarts"
    )
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="of the forward and backward pass; weights are float32, float16 scales its loss"
    )
    gradient_clip: float | None = Field(None, gt=0, description="bound on the norm of the global batch's gradient")
    gradient_compression: Literal["none", "bfloat16"] = Field(
        "none", description="how gradients travel between workers; bfloat16 halves the bytes and keeps 8 bits"
    )
    sync_batch_norm: bool = Field(
        False, description="batch-norm statistics of all workers' micro-batches together, on GPUs only"
    )
    channels_last: bool = True
    compile: bool = Field(False, description="torch.compile the model")
    storage_timeout_s: float = Field(
        120.0, gt=0, description="how long a worker retries a failing object store, in seconds"
    )
    on_nan: Literal["stop", "skip"] = Field(
        "stop", description="a loss that is no number: end, or go back to the last checkpoint and leave its step out"
    )
    nan_skips: Positive = Field(3, description="with on_nan skip: steps left out before the run ends")
    log_every_s: float = Field(10.0, gt=0, description="seconds between progress lines in a job's log")
    trace_dir: str | None = Field(None, description="folder on the workers where each step's sample numbers go")

    @model_validator(mode="after")
    def _ranks_have_work(self) -> Recipe:
        if self.workers.max > self.batch.micro_batches:
            raise ValueError(
                f"workers.max ({self.workers.max}) is above the number of micro-batches "
                f"(batch.total / batch.micro = {self.batch.micro_batches}); lower it or batch.micro"
            )
        self._combines()
        if self.data.decode == "gpu" and not self.workers.gpus:
            raise ValueError("data.decode is gpu, but workers.gpus is 0; set data.decode to cpu or give workers a GPU")
        if self.workers.stall_timeout_s <= self.storage_timeout_s:
            raise ValueError(
                f"workers.stall_timeout_s ({self.workers.stall_timeout_s:g}) must be above storage_timeout_s "
                f"({self.storage_timeout_s:g}): a rank that waits for the store is not stalled"
            )
        resize, size = self.evaluation.resize, self.evaluation_image_size
        if resize is not None and resize < size:
            key = "evaluation.image_size" if self.evaluation.image_size else "data.image_size"
            raise ValueError(
                f"evaluation.resize ({resize}) is below {key} ({size}), the centre crop would leave the image"
            )
        if self.data.resizing is not None and self.data.resizing.end_epoch >= self.schedule.epochs:
            raise ValueError(
                f"data.resizing.end_epoch ({self.data.resizing.end_epoch}) leaves no epoch at the full size; "
                f"it must be below schedule.epochs ({self.schedule.epochs})"
            )
        return self

    def _combines(self) -> None:
        """Refuse what cannot be had together with exact sums or synchronised batch norm."""
        if self.reproducible and self.gradient_compression != "none":
            raise ValueError(
                f"reproducible sums gradients exactly, gradient_compression {self.gradient_compression} rounds them; "
                "set reproducible to false or gradient_compression to none"
            )
        if not self.sync_batch_norm:
            return
        if self.reproducible:
            raise ValueError(
                "with sync_batch_norm the statistics depend on the number of workers, which reproducible rules out; "
                "set one of them to false"
            )
        if not self.workers.gpus:
            raise ValueError("sync_batch_norm is for GPUs, but workers.gpus is 0; set sync_batch_norm to false")
        even = self.workers.min == self.workers.max and self.batch.micro_batches % self.workers.max == 0
        if not even or self.data.last_batch != "drop":
            raise ValueError(
                "with sync_batch_norm all workers need the same number of micro-batches in each step: set workers.min "
                "and workers.max to one divisor of batch.total / batch.micro, and data.last_batch to drop"
            )

    @property
    def evaluation_image_size(self) -> int:
        """Side of the square that is evaluated and served, in pixels."""
        return self.evaluation.image_size or self.data.image_size

    @property
    def evaluation_resize(self) -> int:
        """Shorter side before the centre crop of an evaluation, in pixels."""
        return self.evaluation.resize or round(self.evaluation_image_size / 0.875)
