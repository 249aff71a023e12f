"""Benchmarks: ratios of time, memory and bytes to references measured beside ours. Run python -m scripts.bench NAME."""
