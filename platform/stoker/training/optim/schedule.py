"""The learning rate as a function of the step: pure, so that a resumed run needs no scheduler state."""

import math

from stoker.recipe import Schedule

__all__ = ["learning_rate_ratio"]


def learning_rate_ratio(schedule: Schedule, step: int, steps_per_epoch: int) -> float:
    """Fraction of the peak rate at ``step`` (from 0 over the whole run): linear warm-up, then the schedule's shape.

    ``cosine`` is half a cosine, ``linear`` a line, both to the schedule's end; ``steps`` multiplies every few epochs.
    Loshchilov and Hutter, *SGDR* (ICLR 2017), section 3, without restarts; the warm-up is that of Goyal and others,
    *Accurate, Large Minibatch SGD* (2017), section 2.2.
    """
    total = schedule.epochs * steps_per_epoch
    warmup = schedule.warmup_epochs * steps_per_epoch
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if schedule.shape == "steps":
        return schedule.step_factor ** (step // (schedule.step_epochs * steps_per_epoch))
    progress = (step - warmup) / max(1.0, total - warmup)
    left = 1 - progress if schedule.shape == "linear" else 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return schedule.final_lr_ratio + (1 - schedule.final_lr_ratio) * left
