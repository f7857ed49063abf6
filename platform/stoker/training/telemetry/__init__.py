"""What a run tells while it runs: progress, goodput, events, metrics, trackers."""
