"""Fields of a recipe: the run as a whole. Defaults are here and in the modules of its sections, nowhere else."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from stoker.recipe.data_fields import Data
from stoker.recipe.model_fields import Augmentation, Loss, Model, Optimizer
from stoker.recipe.section import Fraction, Name, Positive, Section
from stoker.recipe.tracking_fields import Tracking


class BatchSizes(Section):
    """Batch sizes: what a micro-batch computes does not depend on the worker that computes it."""

    total: Positive = Field(description="samples per step over all workers (the global batch)")
    micro: Positive = Field(description="samples that go through the model at once (the micro-batch); divides total")

    @property
    def micro_batches(self) -> int:
        return self.total // self.micro

    @model_validator(mode="after")
    def _divides(self) -> BatchSizes:
        if self.total % self.micro:
            raise ValueError(f"total ({self.total}) must be a multiple of micro ({self.micro})")
        return self


class Schedule(Section):
    """How long the run is, and the learning rate over it."""

    epochs: Positive = Field(description="passes over the training split")
    warmup_epochs: float = Field(0.0, ge=0, description="length of the linear warm-up in epochs, 0 to epochs")
    shape: Literal["cosine", "linear", "steps"] = Field(
        "cosine", description="how the learning rate falls after the warm-up"
    )
    final_lr_ratio: Fraction = Field(
        0.0, description="with shape cosine and linear: last learning rate as a fraction of the peak, 0 to 1"
    )
    step_epochs: Positive = Field(
        30, description="with shape steps: epochs from one drop of the learning rate to the next"
    )
    step_factor: Fraction = Field(0.1, description="with shape steps: factor of each drop, 0 to 1")

    @model_validator(mode="after")
    def _warms_up_within(self) -> Schedule:
        if self.warmup_epochs > self.epochs:
            raise ValueError(f"warmup_epochs ({self.warmup_epochs:g}) is longer than epochs ({self.epochs})")
        return self


class Ema(Section):
    """An exponential moving average of the weights; when given, it is what is evaluated and published."""

    decay: float = Field(
        0.999, gt=0, lt=1, description="decay per step, above 0 to below 1; at most (1 + s) / (10 + s) at step s"
    )


class Evaluation(Section):
    """When and at which size the validation split is evaluated."""

    every_epochs: Positive = Field(
        1, description="epochs from one evaluation to the next; the last is always evaluated"
    )
    image_size: Positive | None = Field(
        None, description="side of the square images for evaluation and serving, in pixels; default data.image_size"
    )
    resize: Positive | None = Field(
        None,
        description="shorter side before the centre crop, in pixels, at least image_size; default image_size / 0.875",
    )


class CheckpointPolicy(Section):
    """When checkpoints are written, and which are kept."""

    every_steps: Positive = Field(500, description="steps from one checkpoint to the next")
    every_minutes: float | None = Field(
        None,
        gt=0,
        description="minutes after which a checkpoint is written in any case, by rank 0's clock; default off",
    )
    keep: Positive = Field(3, description="checkpoints that are kept; older ones are deleted")
    keep_best: bool = Field(True, description="also keep the checkpoint with the best validation accuracy")


class Workers(Section):
    """Workers of the run. With ``min`` below ``max`` it is elastic: it continues on the workers available."""

    min: Positive = Field(1, description="fewest workers that the run trains on")
    max: Positive = Field(1, description="most workers that the run trains on, at most batch.total / batch.micro")
    gpus: Literal[0, 1] = Field(1, description="GPUs per worker; 0 trains on the CPU over gloo")
    cpus: Positive = Field(4, description="CPUs per worker, those of its decode threads included")
    max_failures: int = Field(3, ge=-1, description="restarts after failures before the run fails; -1 for no limit")
    stall_timeout_s: float = Field(
        600.0,
        gt=0,
        description="seconds after which a worker without progress dumps its stacks and is aborted; above "
        "storage_timeout_s",
    )
    resize_every_s: float = Field(
        60.0, gt=0, description="seconds from one check for added nodes to the next, for an elastic run"
    )

    @model_validator(mode="after")
    def _ordered(self) -> Workers:
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) is above max ({self.max})")
        return self


class Recipe(Section):
    """Everything that defines a run. The resolved recipe is stored with the run, and is enough to reproduce it."""

    name: Name = Field(
        description="name of the run, 1 to 100 letters, digits, dots, dashes and underscores; submit it again to resume"
    )
    seed: int = Field(0, ge=0, lt=2**63, description="seed of every random draw, 0 to below 2^63")
    storage: str = Field(description="URL or path of the folder that holds runs/ and models/")
    data: Data = Field(description="the data set, and how it is read")
    model: Model = Field(description="the model, and what it is initialized from")
    batch: BatchSizes = Field(description="batch sizes")
    optimizer: Optimizer = Field(description="the optimiser and its peak learning rate")
    schedule: Schedule = Field(description="length of the run and learning-rate schedule")
    loss: Loss = Field(default_factory=Loss, description="the loss")
    augmentation: Augmentation = Field(
        default_factory=Augmentation, description="augmentation of decoded images on the device"
    )
    ema: Ema | None = Field(None, description="moving average of the weights; default none")
    evaluation: Evaluation = Field(default_factory=Evaluation, description="evaluation of the validation split")
    checkpoint: CheckpointPolicy = Field(default_factory=CheckpointPolicy, description="checkpoints of the run")
    workers: Workers = Field(default_factory=Workers, description="workers, their resources and their failures")
    tracking: Tracking = Field(default_factory=Tracking, description="experiment trackers")
    reproducible: bool = Field(
        False, description="exact sums: bit-identical weights at any number of workers and through restarts"
    )
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        "float32",
        description="dtype of the forward and backward pass; weights stay float32, and float16 scales the loss",
    )
    gradient_clip: float | None = Field(
        None, gt=0, description="limit of the norm of the global batch's gradient, above 0; default no clipping"
    )
    gradient_compression: Literal["none", "bfloat16"] = Field(
        "none", description="dtype of gradients between workers; bfloat16 halves the bytes and keeps 8 significant bits"
    )
    sync_batch_norm: bool = Field(
        False, description="compute batch-norm statistics over the micro-batches of all workers; on GPUs only"
    )
    channels_last: bool = Field(True, description="store images and weights in channels_last memory format")
    compile: bool = Field(False, description="compile the model with torch.compile")
    storage_timeout_s: float = Field(
        120.0, gt=0, description="seconds for which a worker retries a failing request to the object store"
    )
    on_nan: Literal["stop", "skip"] = Field(
        "stop",
        description="what to do after a loss that is not finite: stop the run, or roll back to the last checkpoint and "
        "skip that step",
    )
    nan_skips: Positive = Field(3, description="with on_nan: skip, steps that may be skipped before the run fails")
    log_every_s: float = Field(10.0, gt=0, description="seconds from one progress line in the job's log to the next")
    trace_dir: str | None = Field(
        None, description="folder on the workers to which the sample numbers of each step are written; default none"
    )

    @model_validator(mode="after")
    def _ranks_have_work(self) -> Recipe:
        if self.workers.max > self.batch.micro_batches:
            raise ValueError(
                f"workers.max ({self.workers.max}) is above the number of micro-batches "
                f"(batch.total / batch.micro = {self.batch.micro_batches}); lower it or batch.micro"
            )
        self._check_combinations()
        if self.data.decode == "gpu" and not self.workers.gpus:
            raise ValueError("data.decode is gpu, but workers.gpus is 0; set data.decode to cpu or give workers a GPU")
        if self.workers.stall_timeout_s <= self.storage_timeout_s:
            raise ValueError(
                f"workers.stall_timeout_s ({self.workers.stall_timeout_s:g}) must be above storage_timeout_s "
                f"({self.storage_timeout_s:g}): a worker that waits for the store is not stalled"
            )
        resize, size = self.evaluation.resize, self.evaluation_image_size
        if resize is not None and resize < size:
            key = "evaluation.image_size" if self.evaluation.image_size else "data.image_size"
            raise ValueError(
                f"evaluation.resize ({resize}) is below {key} ({size}): the centre crop would be larger than the image"
            )
        if self.data.resizing is not None and self.data.resizing.end_epoch >= self.schedule.epochs:
            raise ValueError(
                f"data.resizing.end_epoch ({self.data.resizing.end_epoch}) leaves no epoch at the full size; "
                f"it must be below schedule.epochs ({self.schedule.epochs})"
            )
        return self

    def _check_combinations(self) -> None:
        """Refuse settings that exact sums or synchronised batch norm rule out."""
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
    def refusal(self) -> str | None:
        """Why no run of this recipe is started, in one line; None: one may be. Stored ones stay readable."""
        if self.compile and self.reproducible and self.workers.gpus:
            return (
                "compile: equal weights, which reproducible promises, were measured with compile on CPUs only; "
                "set compile or reproducible to false"
            )
        if self.compile and self.sync_batch_norm:
            return "compile: it was never tried with sync_batch_norm; set one of them to false"
        return None

    @property
    def evaluation_image_size(self) -> int:
        """Side of the square images for evaluation and serving, in pixels."""
        return self.evaluation.image_size or self.data.image_size

    @property
    def evaluation_resize(self) -> int:
        """Shorter side before the centre crop of an evaluation, in pixels."""
        return self.evaluation.resize or round(self.evaluation_image_size / 0.875)
