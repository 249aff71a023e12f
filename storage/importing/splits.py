"""Which texts are held out, and how many rows a shard has."""

from __future__ import annotations

from collections.abc import Iterator

from storage.records.identity import SPLITS

RECORD_BATCH_ROWS = 16


def splits_of(num_texts: int, fraction: float) -> Iterator[str]:
    """Yield the split of each text, in order."""
    for index in range(num_texts):
        yield SPLITS[held_out(index, num_texts, fraction)]


def held_out(index: int, num_texts: int, fraction: float) -> bool:
    """Return whether text `index` of `num_texts` is held out.

    That share of the texts is, evenly spread: at least one text of two or more, and never all.
    """
    if fraction == 0 or num_texts < 2:
        return False
    num_held = min(max(1, round(num_texts * fraction)), num_texts - 1)
    return (index + 1) * num_held // num_texts > index * num_held // num_texts


def rows_per_shard(shard_tokens: int, block_size: int) -> int:
    """Return the rows of a full shard: as many record batches as shard_tokens tokens hold, at least one."""
    return max(1, shard_tokens // ((block_size + 1) * RECORD_BATCH_ROWS)) * RECORD_BATCH_ROWS
