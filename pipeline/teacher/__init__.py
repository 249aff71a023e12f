"""The loaded teacher: its passes over packed blocks, faster layers, and how much fits into a pass."""
