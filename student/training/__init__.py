"""Training from a cache: steps, checkpoints, logs, and several processes."""
