"""A run's folder in storage: its records and checkpoints."""
