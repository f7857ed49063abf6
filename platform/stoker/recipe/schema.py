"""The fields of a recipe. Each default stands here and nowhere else."""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
Channels = tuple[float, float, float]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Augment(_Section):
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


class Data(_Section):
    """Which samples, how they are read, and what they are made into."""

    url: str = Field(description="the data set: a URL or path that holds dataset.json")
    train_split: str = "train"
    validation_split: str = "validation"
    image_size: Positive = Field(224, description="side of the square that the model sees, in pixels")
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
    def _gpu_decodes_whole_sizes(self) -> Data:
        if self.decode == "gpu" and self.scales_in_dct:
            raise ValueError("scales_in_dct is for decode: cpu; with decode: gpu leave it out")
        return self


class Model(_Section):
    name: str = Field(description="a torchvision classification model, or digitsnet for 32 pixel inputs")
    classes: Positive | None = Field(None, description="outputs; default, and only possible value: the data set's")
    drop_rate: Fraction | None = Field(None, description="dropout, for models that take one")


class BatchSizes(_Section):
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


class Optimizer(_Section):
    name: Literal["sgd", "adamw"] = "sgd"
    lr: float = Field(gt=0, description="peak learning rate, for the whole global batch")
    momentum: Fraction = 0.9
    nesterov: bool = True
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(5e-5, ge=0)
    decay_norm_and_bias: bool = Field(False, description="whether weight decay acts on norms and biases too")


class Schedule(_Section):
    epochs: Positive
    warmup_epochs: float = Field(0.0, ge=0, description="linear warm-up, in epochs")
    final_lr_ratio: Fraction = Field(0.0, description="where the cosine ends, as a share of the peak rate")

    @model_validator(mode="after")
    def _warms_up_within(self) -> Schedule:
        if self.warmup_epochs > self.epochs:
            raise ValueError(f"warmup_epochs ({self.warmup_epochs:g}) is longer than epochs ({self.epochs})")
        return self


class Loss(_Section):
    label_smoothing: float = Field(0.0, ge=0, lt=1)


class Ema(_Section):
    """An exponential moving average of the weights; when given, it is what is evaluated and published."""

    decay: float = Field(0.999, gt=0, lt=1, description="per step, reached after a warm-up of (1 + s) / (10 + s)")


class Evaluation(_Section):
    every_epochs: Positive = 1
    resize: Positive | None = Field(
        None, description="shorter side before the centre crop, in pixels; default image_size / 0.875"
    )


class CheckpointPolicy(_Section):
    every_steps: Positive = 500
    keep: Positive = Field(3, description="checkpoints kept; older ones are deleted")


class Workers(_Section):
    """Ranks of the run. ``min`` below ``max`` makes it elastic: it goes on with what is there."""

    min: Positive = 1
    max: Positive = 1
    gpus: Literal[0, 1] = Field(1, description="GPUs a worker; 0 trains on the CPU over gloo")
    cpus: Positive = Field(4, description="CPUs a worker, its decode threads included")
    max_failures: int = Field(3, ge=-1, description="restarts after a failed worker before the run ends; -1: no bound")

    @model_validator(mode="after")
    def _ordered(self) -> Workers:
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) is above max ({self.max})")
        return self


class Mlflow(_Section):
    """Credentials come from MLflow's own environment variables, never from here."""

    uri: str = Field(description="the tracking server or store, as MLflow takes it; no user, password or token in it")
    experiment: str = "stoker"

    @model_validator(mode="after")
    def _has_no_secret(self) -> Mlflow:
        parts = urlsplit(self.uri)
        if "@" in parts.netloc or parts.query:
            raise ValueError(
                "uri must not hold credentials; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
                "MLFLOW_TRACKING_TOKEN, in the environment of the workers"
            )
        return self


class Wandb(_Section):
    """The API key comes from WANDB_API_KEY or ~/.netrc on the workers, never from here."""

    project: str = "stoker"
    entity: str | None = Field(None, description="user or team; default: that of the API key")


class Tracking(_Section):
    """Where else a run's curves go; TensorBoard's event files are always written, to <run>/tensorboard/."""

    mlflow: Mlflow | None = None
    wandb: Wandb | None = None


class Recipe(_Section):
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
    ema: Ema | None = None
    evaluation: Evaluation = Field(default_factory=Evaluation)
    checkpoint: CheckpointPolicy = Field(default_factory=CheckpointPolicy)
    workers: Workers = Field(default_factory=Workers)
    tracking: Tracking = Field(default_factory=Tracking)
    precision: Literal["float32", "bfloat16"] = "float32"
    channels_last: bool = True
    compile: bool = Field(False, description="torch.compile the model")
    patience_s: float = Field(120.0, gt=0, description="how long a worker waits for the store, in seconds")
    log_every_s: float = Field(10.0, gt=0, description="seconds between progress lines in a job's log")
    trace_dir: str | None = Field(None, description="folder on the workers where each step's sample numbers go")

    @model_validator(mode="after")
    def _ranks_have_work(self) -> Recipe:
        if self.workers.max > self.batch.micro_batches:
            raise ValueError(
                f"workers.max ({self.workers.max}) is above the number of micro-batches "
                f"(batch.total / batch.micro = {self.batch.micro_batches}); lower it or batch.micro"
            )
        if self.data.decode == "gpu" and not self.workers.gpus:
            raise ValueError("data.decode is gpu, but workers.gpus is 0; set data.decode to cpu or give workers a GPU")
        resize = self.evaluation.resize
        if resize is not None and resize < self.data.image_size:
            raise ValueError(
                f"evaluation.resize ({resize}) is below data.image_size ({self.data.image_size}), "
                "the centre crop would leave the image"
            )
        return self

    @property
    def evaluation_resize(self) -> int:
        """Shorter side before the centre crop of an evaluation, in pixels."""
        return self.evaluation.resize or round(self.data.image_size / 0.875)
