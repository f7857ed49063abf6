"""Training: the ranks' step loop on Ray Train, checkpoints, evaluation, and what a run leaves behind."""
