"""Faults injected on purpose (scripts/soak.py): killed writers, flipped bits, refused writes, racing writers."""
