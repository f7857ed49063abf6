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


class Resizing(_Section):
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


class Data(_Section):
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


class Source(_Section):
    """Where ``model.weights`` were found; ``jobs/train.py`` fills it in for a reference to the registry."""

    url: str
    sha256: str | None = None
    reference: str | None = Field(None, description="the model version, as digits@3")
    classes: tuple[str, ...] | None = Field(None, description="what its outputs stand for")


class Model(_Section):
    name: str = Field(description="a torchvision classification model, or digitsnet for 32 pixel inputs")
    classes: Positive | None = Field(None, description="outputs; default, and only possible value: the data set's")
    drop_rate: Fraction | None = Field(None, description="dropout, for models that take one")
    stochastic_depth: Fraction | None = Field(None, description="drop probability of the last block, for such models")
    blur_pool: bool = Field(False, description="blur before strided convolutions (Zhang, 2019)")
    weights: str | None = Field(
        None,
        description="what to begin with: a model version (digits@3, digits@production), or the URL of a safetensors "
        "file or of a state dict by torch.save",
    )
    source: Source | None = Field(None, description="where weights were found; filled in, and kept with the run")
    head: Literal["auto", "new"] = Field(
        "auto", description="auto keeps the weights' head where its classes are the data set's; new never does"
    )
    frozen: Literal["backbone"] | tuple[str, ...] = Field(
        (), description="what is not trained: names, beginnings or patterns of them, or backbone for a linear probe"
    )

    @model_validator(mode="after")
    def _source_is_of_weights(self) -> Model:
        if self.source is not None and self.weights is None:
            raise ValueError("source belongs to weights; give weights, or leave it out")
        return self

    @property
    def names_version(self) -> bool:
        """Whether ``weights`` are a model version and no file: a name, @, and a number or an alias."""
        return self.weights is not None and "@" in self.weights and "/" not in self.weights

    @property
    def asks_more_than_a_name(self) -> bool:
        """Whether there is more to check about the model than its name."""
        return self != Model(name=self.name, classes=self.classes)

    @property
    def parent(self) -> str | None:
        """What the model begins with, for the record: a version's reference, or a URL."""
        return (self.source.reference or self.source.url) if self.source else self.weights


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
    name: Literal["sgd", "adamw", "lamb"] = "sgd"
    lr: float = Field(gt=0, description="peak learning rate, for the whole global batch")
    momentum: Fraction = 0.9
    nesterov: bool = True
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0, description="of adamw and lamb")
    weight_decay: float = Field(5e-5, ge=0)
    decay_norm_and_bias: bool = Field(False, description="whether weight decay acts on norms and biases too")
    decay_embeddings: bool = Field(True, description="whether it acts on class tokens and position embeddings")
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="each layer's rate as a share of that of the layer above it; the head has lr"
    )


class Schedule(_Section):
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


class Loss(_Section):
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    auxiliary_weight: float | None = Field(
        None, ge=0, description="of each auxiliary head's loss; default 0.3 (GoogLeNet), 0.4 (Inception v3)"
    )


class Augmentation(_Section):
    """What the device does to images that are decoded, beside ``data.augment``, which chooses what is decoded."""

    policy: Literal["none", "rand_augment", "trivial_augment_wide"] = "none"
    operations: Positive = Field(2, description="with rand_augment: operations an image")
    magnitude: int = Field(9, ge=0, le=30, description="with rand_augment: their strength, 0 to 30")
    erase: Fraction = Field(0.0, description="probability that a rectangle of an image is erased")
    mixup: float = Field(0.0, ge=0, description="alpha of mixup's Beta distribution; 0 is off")
    cutmix: float = Field(
        0.0,
        ge=0,
        description="alpha of cutmix's Beta distribution; 0 is off; with mixup each takes half of the batches",
    )


class Ema(_Section):
    """An exponential moving average of the weights; when given, it is what is evaluated and published."""

    decay: float = Field(0.999, gt=0, lt=1, description="per step, reached after a warm-up of (1 + s) / (10 + s)")


class Evaluation(_Section):
    every_epochs: Positive = 1
    image_size: Positive | None = Field(
        None, description="side of the square that is evaluated and served, in pixels; default data.image_size"
    )
    resize: Positive | None = Field(
        None, description="shorter side before the centre crop, in pixels; default image_size / 0.875"
    )


class CheckpointPolicy(_Section):
    every_steps: Positive = 500
    every_minutes: float | None = Field(None, gt=0, description="one at least this often too, by rank 0's clock")
    keep: Positive = Field(3, description="checkpoints kept; older ones are deleted")
    keep_best: bool = Field(True, description="keep the one with the best validation accuracy beside them")


class Workers(_Section):
    """Ranks of the run. ``min`` below ``max`` makes it elastic: it goes on with what is there."""

    min: Positive = 1
    max: Positive = 1
    gpus: Literal[0, 1] = Field(1, description="GPUs a worker; 0 trains on the CPU over gloo")
    cpus: Positive = Field(4, description="CPUs a worker, its decode threads included")
    max_failures: int = Field(3, ge=-1, description="restarts after a failure before the run ends; -1: no bound")
    hang_s: float = Field(600.0, gt=0, description="a rank that does nothing for so long writes its stacks and ends")
    resize_every_s: float = Field(60.0, gt=0, description="elastic: how often nodes that came are looked for")

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
    patience_s: float = Field(120.0, gt=0, description="how long a worker waits for the store, in seconds")
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
        if self.workers.hang_s <= self.patience_s:
            raise ValueError(
                f"workers.hang_s ({self.workers.hang_s:g}) must be above patience_s ({self.patience_s:g}): "
                "a rank that waits for the store does not hang"
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
