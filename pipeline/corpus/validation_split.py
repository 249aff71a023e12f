"""Which part of a text is held out: documents by a hash of their index, or, of few documents, the end of the text."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config import PrecomputeConfig
from pipeline.corpus.token_store import TokenStore, TokenWriter
from storage.disk.files import refusals
from storage.draws import hash_uniform
from storage.records.identity import SPLITS

_VALIDATION_DRAW = 4
_COPIED_TOKENS = 1 << 20


def split_of(config: PrecomputeConfig, document_index: int) -> str:
    """The split of a document: "validation" with probability --validation-fraction."""
    if document_index == 0:
        return "train"  # so that a single document is never wholly held out
    draw = hash_uniform(config.seed, _VALIDATION_DRAW, document_index)
    return "validation" if draw < config.validation_fraction else "train"


def hold_out_end(directory: Path, config: PrecomputeConfig, dtype: Any) -> bool:
    """Move the end of the train store to the validation store where that has no block; whether it was moved.

    The stores lie at directory/SPLIT. The end is as much as --validation-fraction says, at least a block; the train
    store keeps a block, and where both cannot have one, nothing moves. Raises WriteRefusedError.
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
    staged = {split: TokenWriter(directory / "staged" / split, dtype) for split in SPLITS}
    _copy_range(train, 0, boundary, staged["train"])
    _copy_range(validation, 0, validation.num_tokens, staged["validation"])
    _copy_range(train, boundary, train.num_tokens, staged["validation"])
    for split, writer in staged.items():
        writer.close()
        with refusals(directory):
            shutil.rmtree(directory / split)
            (directory / "staged" / split).rename(directory / split)
    return True


def _copy_range(source: TokenStore, start: int, stop: int, writer: TokenWriter) -> None:
    """Append tokens [start, stop); what is left of a document that the range cuts becomes a document."""
    if start == stop:
        return
    for length in source.segment_lengths(start, stop):
        for offset in range(start, start + length, _COPIED_TOKENS):
            writer.append(np.asarray(source.tokens[offset : min(offset + _COPIED_TOKENS, start + length)]))
        writer.end_document()
        start += length
