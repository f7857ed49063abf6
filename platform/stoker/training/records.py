"""What a run tells about itself, as it is stored: one record an epoch, one result at the end."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

__all__ = ["EpochRecord", "History", "Metrics", "ParitySample", "Result"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Metrics(_Record):
    """Of an evaluation over a whole split: each sample once, no padding counted."""

    samples: int
    loss: float
    """mean cross-entropy, without label smoothing, in nats"""
    accuracy: float
    """share of samples whose most probable class is the label, 0 to 1"""
    top5: float
    """share of samples whose label is among the five most probable classes, 0 to 1"""


class EpochRecord(_Record):
    """One line of a run's history."""

    epoch: int
    step: int
    """steps since the run's beginning, at the end of this epoch"""
    seconds: float
    images_per_s: float
    """training samples of all ranks by the wall clock of the epoch's steps, evaluation left out"""
    data_wait: float
    """share of the steps' wall time that rank 0 waited for a batch, 0 to 1"""
    learning_rate: float
    train_loss: float
    train_accuracy: float
    world_size: int
    validation: Metrics | None = None
    reads: dict[str, float] = {}
    """of rank 0 since it started: what ``stoker.dataset.Loader.metrics`` tells (docs/streaming.md)"""


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


class Result(_Record):
    """``result.json`` of a run, written last: the run is finished."""

    run: str
    checkpoint: int
    """the step of the checkpoint that holds the final weights"""
    epochs: int
    seconds: float
    """wall time in the step loop, over all attempts"""
    images_per_s: float
    """training samples a second over all epochs, evaluation left out"""
    metrics: Metrics
    confusion: tuple[tuple[int, ...], ...]
    """[label][predicted class]: samples of the validation split"""
    parity: tuple[ParitySample, ...]
    classes: tuple[str, ...]
    dataset_url: str
    dataset_fingerprint: str
    world_size: int
    versions: dict[str, str]
    """of Python, stoker, torch, torchvision and Ray"""
