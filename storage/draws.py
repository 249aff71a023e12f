"""Randomness as a pure function: no state, and no values that change with the version of a library.

Shuffles, tail draws, the sampling of texts and the validation split are hashes of a seed and of the item's own
coordinates, so a value never depends on what was computed before it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

UInt64s = NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def _splitmix64(state: UInt64s) -> UInt64s:
    """Apply the finaliser of SplitMix64 (Steele, Lea & Flood 2014, figure 15) element-wise."""
    z = state + _GOLDEN
    z = (z ^ (z >> np.uint64(30))) * _MIX_1
    z = (z ^ (z >> np.uint64(27))) * _MIX_2
    return z ^ (z >> np.uint64(31))


def hash_u64(*coordinates: ArrayLike) -> UInt64s:
    """Return a uint64 hash of integer coordinates, which are broadcast against each other."""
    with np.errstate(over="ignore"):
        state = np.zeros((), dtype=np.uint64)
        for coordinate in coordinates:
            state = _splitmix64(state ^ np.asarray(coordinate).astype(np.uint64))
        return state


def hash_uniform(*coordinates: ArrayLike) -> NDArray[np.float64]:
    """Return uniform float64 in [0, 1) with 53 random bits, one for each element of the broadcast coordinates."""
    return (hash_u64(*coordinates) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def hash_permutation(size: int, *coordinates: int) -> NDArray[np.int64]:
    """Return a permutation of range(size), int64 [size], that depends on the coordinates alone."""
    keys = hash_u64(*coordinates, np.arange(size, dtype=np.uint64))
    return np.argsort(keys, kind="stable").astype(np.int64)
