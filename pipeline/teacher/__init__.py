"""The loaded teacher: its passes over packed blocks, faster layers, and the number of tokens in a pass."""
