"""Speed, memory and bytes as ratios measured side by side in one process: python -m scripts.bench NAME."""
