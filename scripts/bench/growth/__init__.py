"""Benchmarks of what must not grow: parts of `scale`."""
