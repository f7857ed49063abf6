"""What changes the weights once gradients are there: optimisers, clipping, schedule, moving average."""
