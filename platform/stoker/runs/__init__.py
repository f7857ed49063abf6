"""A run's folder in storage: records and checkpoints."""
