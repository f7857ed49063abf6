"""The order of samples, by pure arithmetic: the same on every rank, at any world size, in any process."""

from stoker.dataset.order.draws import key_of, uniform
from stoker.dataset.order.epoch import EpochOrder, Window
from stoker.dataset.order.permutation import Permutation
from stoker.dataset.order.ranks import micro_batches_of

__all__ = ["EpochOrder", "Permutation", "Window", "key_of", "micro_batches_of", "uniform"]
