"""Token sequences that a student was not trained on, to compare it with its export."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.errors import first_line
from storage.reading.cache import Cache, open_cache
from storage.rows import soft_targets
from storage.tensors.model_facts import context_length_of
from storage.text.characters import text_ids
from student.errors import HeldOutTextError, VocabularyMismatchError
from student.losses.batches import require_rows
from student.model.architecture import num_vocabulary_rows
from student.model.fitting import num_token_ids
from student.model.framing import Framing, require_known_ids

_LONGEST_PIECE = 256

Sequences = list[NDArray[np.int64]]


def cached_sequences(source: str | Path, model: Any, name: str, max_tokens: int) -> tuple[Cache, Sequences]:
    """Return the cache, and the pieces of documents in its validation blocks, in order, at most max_tokens in all.

    Raises a CacheError, HeldOutTextError for a cache without such pieces, VocabularyMismatchError for a student without
    rows for the cache's tokens, or MissingRowError.
    """
    cache = open_cache(source)
    num_rows = num_vocabulary_rows(model)
    if num_rows < cache.identity.vocab_size and num_rows < (needed := num_token_ids(cache)):
        raise VocabularyMismatchError(name, num_rows, needed)
    longest = context_length_of(model)
    sequences = _take(_segments(cache), cache.where, cache.identity.beginning_ids, longest, max_tokens)
    for ids in sequences:
        require_rows(ids, num_rows)
    return cache, sequences


def text_sequences(path: Path, model: Any, tokenizer: Any, framing: Framing, max_tokens: int, name: str) -> Sequences:
    """Return the text of a file in pieces of up to 256 tokens, at most max_tokens in all.

    name: of the student. Raises HeldOutTextError when the file cannot be read or is too short, IdBeyondVocabularyError
    when it holds a token that the model has no row for.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise HeldOutTextError(str(path), first_line(error)) from error
    ids = require_known_ids(text_ids(tokenizer, text), model, tokenizer, name)
    longest = min(context_length_of(model), _LONGEST_PIECE)
    return _take(iter([np.array(ids, dtype=np.int64)]), str(path), framing.beginning_ids, longest, max_tokens)


def _segments(cache: Cache) -> Iterator[NDArray[np.int64]]:
    """Yield each document's part of each block, without its beginning."""
    num_beginning = len(cache.identity.beginning_ids)
    for batch in cache.record_batches("soft_targets", "validation"):
        rows = soft_targets.decode(batch)
        for ids, lengths in zip(rows.input_ids, rows.segment_lengths, strict=True):
            for start, end in pairwise([0, *np.cumsum(lengths)]):
                yield ids[start + num_beginning : end].astype(np.int64)


def _take(
    documents: Iterator[NDArray[np.int64]], where: str, beginning_ids: Sequence[int], longest: int, max_tokens: int
) -> Sequences:
    """Cut documents into pieces of 2 to `longest` tokens, at most max_tokens in all; each begins with beginning_ids.

    Raises HeldOutTextError when there is no such piece.
    """
    sequences: Sequences = []
    num_left, num_beginning = max_tokens, len(beginning_ids)
    for document in documents:
        for start in range(0, len(document), max(1, longest - num_beginning)):
            room = min(longest, num_left) - num_beginning
            piece = np.array([*beginning_ids, *document[start : start + max(0, room)]], dtype=np.int64)
            if len(piece) > max(1, num_beginning):
                sequences.append(piece)
                num_left -= len(piece)
            if num_left < max(2, num_beginning + 1):
                return sequences
    if not sequences:
        raise HeldOutTextError(where, "holds fewer than two tokens")
    return sequences
