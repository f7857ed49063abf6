"""What a run tells about itself, as it is stored: one record an epoch, one result at the end."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

__all__ = ["KINDS", "EpochRecord", "Goodput", "History", "Metrics", "Mistake", "ParitySample", "Result"]

KINDS = ("compute", "data_wait", "communication", "checkpoint", "evaluation", "restart")
"""what an epoch's wall time goes into; ``stoker.training.telemetry.goodput`` says what each means"""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="constants")


class Metrics(_Record):
    """Of an evaluation over a whole split: each sample once, no padding counted."""

    samples: int
    loss: float
    """mean cross-entropy, without label smoothing, in nats"""
    accuracy: float
    """share of samples whose most probable class is the label, 0 to 1"""
    top5: float
    """share of samples whose label is among the five most probable classes, 0 to 1"""


class Goodput(_Record):
    """What an epoch's wall time went into, over all attempts at it."""

    wall_s: float
    shares: dict[str, float]
    """of ``wall_s`` by each of ``KINDS``, 0 to 1, together 1"""
    rank: int = 0
    """the one whose time this is: the others waited for it"""
    behind_s: float = 0.0
    """how much less this rank waited for the others than the one that waited most, in seconds"""
    repeated_s: float = 0.0
    """of the restarts: steps that had been done before, since the last checkpoint"""
    advice: str = ""
    """the bottleneck and what to try, one line"""


class EpochRecord(_Record):
    """One line of a run's history."""

    epoch: int
    step: int
    """steps since the run's beginning, at the end of this epoch"""
    seconds: float
    """wall time of the epoch's steps; evaluation and restarts left out"""
    images_per_s: float
    """training samples of all ranks by ``seconds``"""
    data_wait: float
    """share of ``seconds`` that went into waiting for a batch, 0 to 1"""
    learning_rate: float
    train_loss: float
    train_accuracy: float
    world_size: int
    validation: Metrics | None = None
    reads: dict[str, float] = {}
    """of rank 0 since it started: what ``stoker.dataset.Loader.metrics`` tells (docs/reference/metrics.md)"""
    goodput: Goodput | None = None


class History(_Record):
    """``history.json`` of a run."""

    epochs: tuple[EpochRecord, ...] = ()


class ParitySample(_Record):
    """What the trainer's own evaluation said of one validation sample; a published version must say the same."""

    number: int
    """of the sample in its split"""
    key: str
    label: int
    probabilities: tuple[float, ...]
    """[classes], float32"""


class Mistake(_Record):
    """A validation sample that the model is most wrong about."""

    number: int
    """of the sample in its split"""
    label: int
    predicted: int
    probability: float
    """that the model gave to ``predicted``"""
    loss: float
    """cross-entropy, in nats"""


class Result(_Record):
    """``result.json`` of a run, written last: the run is finished."""

    run: str
    checkpoint: int
    """the step of the checkpoint that holds the final weights"""
    epochs: int
    seconds: float
    """wall time of all epochs' steps, over all attempts; evaluation and restarts left out"""
    images_per_s: float
    """training samples a second over all epochs, evaluation left out"""
    metrics: Metrics
    confusion: tuple[tuple[int, ...], ...]
    """[label][predicted class]: samples of the validation split"""
    top5_by_class: tuple[int, ...] = ()
    """[label]: samples whose label is among the five most probable classes"""
    mistakes: tuple[Mistake, ...] = ()
    """of the validation split, the highest loss first"""
    parity: tuple[ParitySample, ...]
    classes: tuple[str, ...]
    dataset_url: str
    dataset_fingerprint: str
    world_size: int
    versions: dict[str, str]
    """of Python, stoker, torch, torchvision and Ray"""
