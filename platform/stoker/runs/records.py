"""The stored records of a run: one per epoch in ``history.json``, and ``result.json`` when it is finished."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["KINDS", "EpochRecord", "Goodput", "History", "Metrics", "Mistake", "ParitySample", "Record", "Result"]

KINDS = ("compute", "data_wait", "communication", "checkpoint", "evaluation", "restart")
"""what an epoch's wall time is spent on, as defined in ``stoker.training.telemetry.goodput``"""


class Record(BaseModel):
    """Base of what is stored as JSON: immutable; unknown fields are ignored, so that newer files can be read."""

    model_config = ConfigDict(
        frozen=True,
        extra="ignore",
        ser_json_inf_nan="constants",
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
    )


class Metrics(Record):
    """Metrics of an evaluation over a whole split: each sample once, padding excluded.

    Those of a later version are kept, as a model's card is, and are in no figures.
    """

    model_config = ConfigDict(extra="allow")

    samples: int
    loss: float
    """mean cross-entropy, without label smoothing, in nats"""
    accuracy: float
    """fraction of samples whose most probable class is the label, 0 to 1"""
    top5: float
    """fraction of samples whose label is among the five most probable classes, 0 to 1"""
    macro_accuracy: float | None = None
    """mean over the classes that have a sample of the fraction of their samples whose most probable class is theirs, 0
    to 1; None in records of versions that did not compute it"""

    def figures(self) -> dict[str, float]:
        """Loss and accuracies by name, for curves; what is None is left out."""
        return self.model_dump(include=type(self).model_fields.keys() - {"samples"}, exclude_none=True)


class Goodput(Record):
    """What an epoch's wall time was spent on, over all attempts at it."""

    wall_s: float
    fractions: dict[str, float] = Field(validation_alias="shares", serialization_alias="shares")
    """of ``wall_s``, by each of ``KINDS``, 0 to 1, with a sum of 1; stored as ``shares``"""
    rank: int = 0
    """the critical rank, whose time this is: the others waited for it"""
    behind_s: float = 0.0
    """how much less this rank waited for the others than the one that waited most, in seconds"""
    repeated_s: float = 0.0
    """of the restarts: steps that were repeated since the last checkpoint"""
    advice: str = ""
    """the bottleneck and what to try, one line"""


class EpochRecord(Record):
    """One epoch of a run's history."""

    epoch: int
    step: int
    """steps since the start of the run, at the end of this epoch"""
    seconds: float
    """wall time of the epoch's steps, without evaluation and restarts"""
    images_per_s: float
    """training samples of all ranks per second of ``seconds``"""
    data_wait: float
    """fraction of ``seconds`` spent waiting for a batch, 0 to 1"""
    learning_rate: float
    train_loss: float
    """mean loss of the epoch's samples as it was minimized: label smoothing, class weights and auxiliary heads included
    """
    train_accuracy: float
    world_size: int
    validation: Metrics | None = None
    reads: dict[str, float] = {}
    """``stoker.dataset.Loader.metrics`` of rank 0 since it started (docs/reference/metrics.md)"""
    goodput: Goodput | None = None


class History(Record):
    """``history.json`` of a run."""

    epochs: tuple[EpochRecord, ...] = ()


class ParitySample(Record):
    """The trainer's own prediction for a validation sample, which a published version must reproduce."""

    number: int
    """of the sample in its split"""
    key: str
    label: int
    probabilities: tuple[float, ...]
    """[classes], float32"""


class Mistake(Record):
    """A misclassified validation sample, one of those with the highest loss."""

    number: int
    """of the sample in its split"""
    label: int
    predicted: int
    probability: float
    """of ``predicted``, as the model gave it"""
    loss: float
    """cross-entropy, in nats"""


class Result(Record):
    """``result.json`` of a run, written last: it marks the run as finished."""

    run: str
    checkpoint: int
    """the step of the checkpoint that holds the final weights"""
    epochs: int
    seconds: float
    """wall time of all epochs' steps, over all attempts, without evaluation and restarts"""
    images_per_s: float
    """training samples per second over all epochs, without evaluation and restarts"""
    metrics: Metrics
    confusion: tuple[tuple[int, ...], ...]
    """[label][predicted class]: samples of the validation split"""
    top5_by_class: tuple[int, ...] = ()
    """[label]: samples whose label is among the five most probable classes"""
    mistakes: tuple[Mistake, ...] = ()
    """of the validation split, highest loss first"""
    parity: tuple[ParitySample, ...]
    parity_precision: str = ""
    """in which the trainer predicted them: float32; "" in results of versions that did not say it"""
    classes: tuple[str, ...]
    dataset_url: str
    dataset_fingerprint: str
    world_size: int
    versions: dict[str, str]
    """of Python, stoker, torch, torchvision and Ray, and the name of the device"""
    nondeterministic_operations: tuple[str, ...] = ()
    """with ``reproducible``: operations that ran without a deterministic algorithm, by torch's names; equal weights are
    certain only without any"""
