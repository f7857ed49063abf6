"""From gradients to new weights: optimisers, clipping, learning-rate schedule, moving average of the weights."""
