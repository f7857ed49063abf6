"""Select samples and assign them to splits by their names alone, before an image is read."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stoker.dataset.prepare.entries import Entries
from stoker.dataset.prepare.plan import Options
from stoker.dataset.prepare.sources.base import Source
from stoker.errors import DatasetError

__all__ = ["held_out", "select"]

_DEFAULT_FRACTION = 0.2


def select(source: Source, options: Options) -> Source:
    """The source with a part of ``train`` held out where it has no validation split, and at most ``limit`` samples.

    Raises:
        DatasetError: a fraction to hold out is given although there is a validation split, or the limit is below one
            sample of each class.
    """
    splits = source.splits
    if "validation" not in splits:
        fraction = _DEFAULT_FRACTION if options.validation_fraction is None else options.validation_fraction
        train = splits["train"]
        chosen = held_out(train, fraction, options.seed)
        carved = {"train": train.take(~chosen), "validation": train.take(chosen)} if chosen.any() else {"train": train}
        splits = carved | {name: entries for name, entries in splits.items() if name != "train"}
    elif options.validation_fraction is not None:
        raise DatasetError(
            f"{source.url} has a validation split already; leave --validation-fraction out, or remove the split"
        )
    if options.limit is not None:
        splits = _limited(source.url, splits, options.limit, options.seed)
    return source.with_splits(splits)


def held_out(entries: Entries, fraction: float, seed: int) -> NDArray[np.bool_]:
    """A mask of the samples held out: a fraction of each class, at least one sample and never all."""
    if fraction <= 0:
        return np.zeros(len(entries), np.bool_)
    counts = np.bincount(entries.label)
    wanted = np.clip(np.rint(fraction * counts).astype(np.int64), 1, None)
    return _first_of_each_class(entries, np.minimum(wanted, np.maximum(counts - 1, 0)), f"hold-out:{seed}")


def _limited(url: str, splits: dict[str, Entries], limit: int, seed: int) -> dict[str, Entries]:
    """At most ``limit`` samples: each class of each split in proportion, rounded by largest remainder."""
    classes = max(int(entries.label.max()) for entries in splits.values()) + 1
    counts = np.stack([np.bincount(entries.label, minlength=classes) for entries in splits.values()])
    cells = int((counts > 0).sum())
    if limit < cells:
        raise DatasetError(
            f"--limit {limit}: too few for one sample of each class in each split of {url}; give at least {cells}"
        )
    if limit >= counts.sum():
        return splits
    exact = counts * (limit / counts.sum())
    kept = np.maximum(np.floor(exact).astype(np.int64), counts > 0)
    by_remainder = np.argsort(-(exact - kept).ravel(), kind="stable")
    flat = kept.ravel()
    while (missing := limit - int(flat.sum())) > 0:
        open_cells = [cell for cell in by_remainder if flat[cell] < counts.ravel()[cell]][:missing]
        flat[open_cells] += 1
    while (over := int(flat.sum()) - limit) > 0:  # cells of less than one sample were rounded up
        flat[np.argsort(-flat, kind="stable")[:over]] -= flat[np.argsort(-flat, kind="stable")[:over]] > 1
    return {
        split: entries.take(_first_of_each_class(entries, flat.reshape(counts.shape)[row], f"limit:{seed}:{split}"))
        for row, (split, entries) in enumerate(splits.items())
    }


def _first_of_each_class(entries: Entries, wanted: NDArray[np.int64], salt: str) -> NDArray[np.bool_]:
    """A mask of ``wanted[label]`` samples of each class, drawn by their names."""
    order = np.lexsort((entries.draws(salt), entries.label))
    labels = entries.label[order]
    counts = np.bincount(labels, minlength=len(wanted))
    place = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    chosen = np.zeros(len(order), np.bool_)
    chosen[order[place < wanted[labels]]] = True
    return chosen
