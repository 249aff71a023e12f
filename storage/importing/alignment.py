"""Find lists that are about another token than the import takes them to be about.

A teacher's most probable ids hold the token that really comes far more often than its neighbours in the text.
"""

from __future__ import annotations

import math

import numpy as np

from storage.importing.errors import MisalignedRowError
from storage.importing.source_text import Int64s, SourceText

# Tokens by their place beside the label: the one before it, the label, the one after it.
_BEFORE, _LABEL, _AFTER = range(3)
_FEWEST_TARGETS = 16


class AlignmentGuard:
    """Counts, over all texts of a source, how often lists hold the label and how often its neighbours."""

    def __init__(self) -> None:
        self._hits, self._num_targets = np.zeros(3, np.int64), 0

    def add(self, text: SourceText) -> None:
        """Count a text. Raise MisalignedRowError when its lists fit a neighbour of the label far better."""
        hits, num_targets = _hits(text)
        _refuse_shifted(text.where, hits, num_targets)
        self._hits += hits
        self._num_targets += num_targets

    def close(self, where: str) -> None:
        """Raise MisalignedRowError, which names `where`, when all texts together show what no single one does."""
        _refuse_shifted(f"{where}, all rows", self._hits, self._num_targets)


def describe_shift(text: SourceText) -> str:
    """Say how often the lists of a text hold the label and how often its neighbours."""
    hits, num_targets = _hits(text)
    return _describe(hits, num_targets)


def _describe(hits: Int64s, num_targets: int) -> str:
    return (
        f"of {num_targets} positions {hits[_LABEL]} list the token that they should be about, {hits[_BEFORE]} the one "
        f"before it, {hits[_AFTER]} the one after it"
    )


def _hits(text: SourceText) -> tuple[Int64s, int]:
    """Return how many targets list the token before the label, the label, and the one after it; and how many count.

    A target counts when it has entries and all three tokens exist.
    """
    counts_T = text.is_wanted & (text.size > 0)
    counts_T[-1:] = False
    target_E = text.target_of_entry
    is_used_E = counts_T[target_E] & (text.logprobs != -np.inf)
    target_E, ids_E = target_E[is_used_E], text.ids[is_used_E]
    # Only the last target lacks a token after its label, and it does not count.
    hits = [len(np.unique(target_E[ids_E == text.input_ids[target_E + place]])) for place in range(3)]
    return np.array(hits, np.int64), int(counts_T.sum())


def _refuse_shifted(where: str, hits: Int64s, num_targets: int) -> None:
    """Raise MisalignedRowError when a neighbour is listed more often than the label, by far more than chance explains.

    Chance moves the difference of two such counts by less than √n, so 3 √n is beyond it.
    """
    neighbour = _BEFORE if hits[_BEFORE] >= hits[_AFTER] else _AFTER
    if num_targets < _FEWEST_TARGETS or hits[neighbour] - hits[_LABEL] <= 3 * math.sqrt(num_targets):
        return
    way = "late" if neighbour == _BEFORE else "early"
    raise MisalignedRowError(
        where,
        f"the lists are one position {way}: {_describe(hits, num_targets)}; shift them, or try the other --alignment",
    )
