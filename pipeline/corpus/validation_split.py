"""Decide which part of a text is held out for validation.

Documents are chosen by a hash of their index. If these are shorter than a block, the end of the text is held out too.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import PrecomputeConfig
from pipeline.corpus.token_store import TokenStore, TokenWriter
from storage.disk.files import refusals
from storage.draws import hash_uniform
from storage.records.identity import SPLITS

_VALIDATION_DRAW = 4


def is_held_out(config: PrecomputeConfig, document_indices: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which documents are for validation: each with probability --validation-fraction, and never the first.

    A single document must not be held out as a whole.
    """
    draws = hash_uniform(config.seed, _VALIDATION_DRAW, document_indices)
    return (draws < config.validation_fraction) & (document_indices > 0)


def hold_out_end(directory: Path, config: PrecomputeConfig, dtype: Any, *, marks_cut: bool = False) -> bool:
    """Move the end of the train store to the validation store if that is shorter than a block; return whether it moved.

    The stores are at directory/SPLIT. Move --validation-fraction of the train tokens, but at least a block, and leave
    at least a block in the train store. Move nothing if the train store has less than two blocks.

    marks_cut: if the end begins inside a document, mark its first token as unwanted: a beginning before it does not
    foretell it. Raises WriteRefusedError.
    """
    train, validation = (TokenStore(directory / split, dtype) for split in SPLITS)
    block_tokens = config.block_size + 1
    if config.validation_fraction == 0 or validation.num_tokens >= block_tokens:
        return False
    num_held_out = max(int(train.num_tokens * config.validation_fraction), block_tokens)
    num_held_out = min(num_held_out, train.num_tokens - block_tokens)
    if num_held_out < block_tokens:
        return False
    boundary = train.num_tokens - num_held_out
    has_mark = marks_cut and boundary not in train.ends
    marks_wanted = {"train": train.is_wanted is not None, "validation": train.is_wanted is not None or has_mark}
    staged = {
        split: TokenWriter(directory / "staged" / split, dtype, marks_wanted=marks_wanted[split]) for split in SPLITS
    }
    _copy_range(train, 0, boundary, staged["train"])
    _copy_range(validation, 0, validation.num_tokens, staged["validation"])
    _copy_range(train, boundary, train.num_tokens, staged["validation"], marks_first=has_mark)
    for split, writer in staged.items():
        writer.close()
        with refusals(directory):
            shutil.rmtree(directory / split)
            (directory / "staged" / split).rename(directory / split)
    return True


def _copy_range(source: TokenStore, start: int, stop: int, writer: TokenWriter, *, marks_first: bool = False) -> None:
    """Append tokens [start, stop) to `writer`, with their flags if `source` has flags.

    If the range cuts a document, the part inside becomes a document. marks_first: mark the first token as unwanted.
    """
    if start == stop:
        return
    ends = start + np.cumsum(source.segment_lengths(start, stop))
    if marks_first:
        writer.append(source.tokens[start : start + 1], np.zeros(1, np.bool_))
        start += 1
    writer.extend(source, start, stop, ends)
