"""No block cuts a conversation that fits into one; nothing is lost or doubled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.corpus.blocks import Blocks
from pipeline.corpus.document_writer import DocumentWriter, Piece
from pipeline.corpus.token_store import TokenStore

BLOCK_TOKENS, FILLER, BEGINNING = 9, 99, 98


def written(directory: Path, lengths: list[int], num_beginning: int = 0) -> TokenStore:
    """Document d has tokens d, of which the second half is wanted."""
    writer = DocumentWriter(
        directory, np.uint16, block_tokens=BLOCK_TOKENS, num_beginning=num_beginning, filler_id=FILLER
    )
    for document, length in enumerate(lengths):
        writer.write(Piece(np.full(length, document), np.arange(length) >= length // 2))
    writer.close()
    return TokenStore(directory, np.uint16)


@pytest.mark.parametrize("num_beginning", [0, 1, 2])
@pytest.mark.parametrize("seed", range(20))
def test_conversations_that_fit_are_whole(tmp_path: Path, seed: int, num_beginning: int) -> None:
    lengths = np.random.default_rng(seed).integers(2, 14, 40).tolist()
    store = written(tmp_path, lengths, num_beginning)
    blocks = Blocks(store, BLOCK_TOKENS - 1, [BEGINNING] * num_beginning)
    ids = blocks.input_ids(0, len(blocks))
    texts = ids[(ids != FILLER) & (ids != BEGINNING)]
    assert texts.tolist() == np.repeat(range(40), lengths).tolist(), "the last block is whole too"
    assert len(store.ends) == 40
    for document, length in enumerate(lengths):
        num_blocks = int((ids == document).any(axis=1).sum())
        assert num_blocks == 1 if num_beginning + length <= BLOCK_TOKENS else num_blocks >= 2
    assert store.is_wanted is not None
    assert not store.is_wanted[store.tokens == FILLER].any()
    assert int(store.is_wanted.sum()) == sum(length - length // 2 for length in lengths)
    for row in ids:  # a filler ends a block, it is no block
        assert row[0] != FILLER
        assert not (np.diff((row == FILLER).astype(int)) < 0).any()


def test_an_empty_store(tmp_path: Path) -> None:
    assert written(tmp_path, []).num_tokens == 0
