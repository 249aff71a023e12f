"""Token sequences that a student was not trained on, to compare it with its export."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.errors import ConfigError, first_line
from storage.reading.cache import Cache, open_cache
from storage.rows import soft_targets
from storage.tensors.model_facts import context_length_of
from storage.text.characters import text_ids
from student.errors import HeldOutTextError, VocabularyMismatchError
from student.model.architecture import head_weight

_LONGEST_PIECE = 256

Sequences = list[NDArray[np.int64]]


def cached_sequences(source: str | Path, model: Any, name: str, max_tokens: int) -> tuple[Cache, Sequences]:
    """Return the cache, and the pieces of documents in its validation blocks, in order, at most max_tokens in all.

    Raises a CacheError, HeldOutTextError for a cache without such pieces, or VocabularyMismatchError for a student with
    another vocabulary.
    """
    cache = open_cache(source)
    vocab_size = head_weight(model).shape[0]
    if vocab_size != cache.identity.vocab_size:
        raise VocabularyMismatchError(name, vocab_size, cache.identity.vocab_size)
    return cache, _take(_segments(cache), cache.where, context_length_of(model), max_tokens)


def text_sequences(path: Path, model: Any, tokenizer: Any, max_tokens: int) -> Sequences:
    """Return the text of a file in pieces of up to 256 tokens, at most max_tokens in all.

    Raises HeldOutTextError when the file cannot be read or is too short, ConfigError when the tokenizer has ids beyond
    the model's vocabulary.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise HeldOutTextError(str(path), first_line(error)) from error
    ids = np.array(text_ids(tokenizer, text), dtype=np.int64)
    if len(ids) and ids.max() >= head_weight(model).shape[0]:
        raise ConfigError(f"{path}: the tokenizer beside the student has ids beyond its vocabulary")
    return _take(iter([ids]), str(path), min(context_length_of(model), _LONGEST_PIECE), max_tokens)


def _segments(cache: Cache) -> Iterator[NDArray[np.int64]]:
    """Yield each document's part of each block."""
    for batch in cache.record_batches("soft_targets", "validation"):
        rows = soft_targets.decode(batch)
        for ids, lengths in zip(rows.input_ids, rows.segment_lengths, strict=True):
            for start, end in pairwise([0, *np.cumsum(lengths)]):
                yield ids[start:end].astype(np.int64)


def _take(documents: Iterator[NDArray[np.int64]], where: str, longest: int, max_tokens: int) -> Sequences:
    """Cut documents into pieces of 2 to `longest` tokens, at most max_tokens in all.

    Raises HeldOutTextError when there is no such piece.
    """
    sequences: Sequences = []
    num_left = max_tokens
    for document in documents:
        for start in range(0, len(document), longest):
            piece = document[start : min(start + longest, start + num_left)]
            if len(piece) > 1:
                sequences.append(piece)
                num_left -= len(piece)
            if num_left < 2:
                return sequences
    if not sequences:
        raise HeldOutTextError(where, "holds fewer than two tokens")
    return sequences
