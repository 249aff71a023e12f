"""Faults injected on purpose: killed writers, flipped bits, refused writes, racing writers."""
