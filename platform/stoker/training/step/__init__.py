"""One optimiser step over a global batch, the same bits on any number of ranks."""
