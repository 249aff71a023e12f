"""Tokenize documents. Short documents share a call of the tokenizer; a long one takes several calls."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.sources.corpus import Document

_CHARS_PER_CALL = 4 << 20


class _Piece(NamedTuple):
    document_index: int
    document: Document
    text: str


def tokenized_documents(
    documents: Iterable[Document], tokenizer: Any, dtype: Any
) -> Iterator[tuple[Document, Iterator[NDArray[Any]]]]:
    """Yield each document in order, with its token ids piece by piece.

    Read the pieces of a document before you take the next document. Pieces are arrays [num_tokens] of `dtype`, without
    special tokens; some may be empty.
    """
    pieces = (_Piece(index, document, text) for index, document in enumerate(documents) for text in document.pieces)
    tokenized = ((piece, ids) for batch in _batches(pieces) for piece, ids in _tokenized(batch, tokenizer, dtype))
    for _, group in itertools.groupby(tokenized, key=lambda item: item[0].document_index):
        piece, first = next(group)
        yield piece.document, itertools.chain([first], (ids for _, ids in group))  # noqa: B031


def _tokenized(batch: list[_Piece], tokenizer: Any, dtype: Any) -> Iterator[tuple[_Piece, NDArray[Any]]]:
    texts = [piece.text for piece in batch]
    ids = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return zip(batch, (np.array(piece_ids, dtype=dtype) for piece_ids in ids), strict=True)


def _batches(pieces: Iterator[_Piece]) -> Iterator[list[_Piece]]:
    """Yield lists of pieces with about _CHARS_PER_CALL characters in each list."""
    batch: list[_Piece] = []
    num_chars = 0
    for piece in pieces:
        batch.append(piece)
        num_chars += len(piece.text)
        if num_chars >= _CHARS_PER_CALL:
            yield batch
            batch, num_chars = [], 0
    if batch:
        yield batch
