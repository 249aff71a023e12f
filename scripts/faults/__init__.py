"""Injected faults: killed writers, flipped bits, refused writes, racing writers."""
