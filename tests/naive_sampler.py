"""Sampling from a nucleus as it is defined, one id at a time in float64: what draws are compared with."""

from __future__ import annotations

import itertools

import numpy as np


def naive_distribution(logprobs: np.ndarray, temperature: float, top_p: float) -> np.ndarray:
    """Probabilities [V] of the ids inside the nucleus; logprobs may be logits."""
    scaled = (logprobs.astype(np.float64) - logprobs.max()) / temperature
    probabilities = np.exp(scaled)
    probabilities /= probabilities.sum()
    mass = 0.0
    for i in sorted(range(len(probabilities)), key=lambda i: (-probabilities[i], i)):
        if mass >= top_p:
            probabilities[i] = 0.0
        mass += probabilities[i]
    return probabilities / probabilities.sum()


def naive_draw(logprobs: np.ndarray, uniform: float, temperature: float, top_p: float) -> int:
    """The first id at which the running sum of the distribution exceeds its share of the whole."""
    distribution = naive_distribution(logprobs, temperature, top_p)
    running = itertools.accumulate(distribution)
    return next(i for i, total in enumerate(running) if total > uniform * distribution.sum())
