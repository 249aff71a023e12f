"""Blocks whose segments all begin with BOS, against a loop over single tokens."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline import PrecomputeConfig
from pipeline.corpus.blocks import Blocks, block_starts, prompts_from_blocks, prompts_from_column
from pipeline.corpus.token_store import TokenStore, TokenWriter
from pipeline.corpus.validation_split import hold_out_end
from storage.records.identity import SPLITS

MakeStore = Callable[[list[int]], TokenStore]


@dataclasses.dataclass
class NaiveBlock:
    """Ids, segment lengths, and whether each token, as a label, is wanted."""

    ids: list[int]
    lengths: list[int]
    is_wanted: list[bool]


def naive_blocks(documents: list[list[int]], block_tokens: int, beginning: list[int]) -> list[NaiveBlock]:
    """Fill blocks token by token: a segment opens with the beginning; what is left of a block is a beginning's part."""
    blocks = [NaiveBlock([], [], [])]
    for document in documents:
        place = 0
        while place < len(document):
            block = blocks[-1]
            opening = beginning[: block_tokens - len(block.ids)]
            block.ids += opening
            block.is_wanted += [False] * len(opening)
            block.lengths.append(len(opening))
            is_continuation = place > 0
            while place < len(document) and len(block.ids) < block_tokens:
                block.ids.append(document[place])
                block.is_wanted.append(not is_continuation)
                block.lengths[-1] += 1
                place, is_continuation = place + 1, False
            if len(block.ids) == block_tokens:
                blocks.append(NaiveBlock([], [], []))
    return blocks[:-1]


@pytest.fixture
def make_store(tmp_path: Path) -> MakeStore:
    """Documents of given lengths; token values count up from 100."""

    def make(lengths: list[int]) -> TokenStore:
        writer = TokenWriter(tmp_path / f"store-{random.getrandbits(64)}", np.uint16)
        start = 100
        for length in lengths:
            writer.append(np.arange(start, start + length))
            writer.end_document()
            start += length
        return writer.close()

    return make


def documents_of(store: TokenStore) -> list[list[int]]:
    return [store.document(i).tolist() for i in range(len(store.ends))]


@pytest.mark.parametrize("num_beginning", [0, 1, 2, 3])
@pytest.mark.parametrize("block_size", [3, 4, 7, 16])
def test_every_segment_begins_and_no_token_is_lost(make_store: MakeStore, block_size: int, num_beginning: int) -> None:
    rng, beginning = random.Random(block_size * 10 + num_beginning), list(range(1, num_beginning + 1))
    for longest in (3, 9, 60):
        store = make_store([rng.randint(1, longest) for _ in range(80)])
        blocks, expected = (
            Blocks(store, block_size, beginning),
            naive_blocks(documents_of(store), block_size + 1, beginning),
        )
        assert len(blocks) == len(expected) > 5
        ids, is_wanted = blocks.input_ids(0, len(blocks)), blocks.is_wanted(0, len(blocks))
        assert ids.tolist() == [block.ids for block in expected]
        assert [blocks.segment_lengths(i).tolist() for i in range(len(blocks))] == [block.lengths for block in expected]
        kept = [token for token in ids.reshape(-1).tolist() if token >= 100]
        assert kept == list(range(100, 100 + len(kept)))
        if num_beginning:
            assert is_wanted is not None
            assert is_wanted.tolist() == [block.is_wanted[1:] for block in expected]
            some = blocks.is_wanted(2, 5)
            assert some is not None
            assert some.tolist() == is_wanted[2:5].tolist()
        else:
            assert is_wanted is None
        assert blocks.input_ids(2, 5).tolist() == ids[2:5].tolist()
        assert blocks.input_ids(3, 3).shape == (0, block_size + 1)


def test_flags_of_the_text_hold_beside_those_of_beginnings(tmp_path: Path) -> None:
    writer = TokenWriter(tmp_path / "store", np.uint16, marks_wanted=True)
    flags = [True, False, True, True, False, True, True, True, False, True]
    writer.append(np.arange(100, 110), np.array(flags))
    writer.end_document()
    blocks = Blocks(writer.close(), 3, [7])
    assert blocks.input_ids(0, 3).tolist() == [[7, 100, 101, 102], [7, 103, 104, 105], [7, 106, 107, 108]]
    is_wanted = blocks.is_wanted(0, 3)
    assert is_wanted is not None
    assert is_wanted.tolist() == [[True, False, True], [False, False, True], [False, True, False]]


def test_the_layout_takes_eight_bytes_a_block_and_none_without_a_beginning(make_store: MakeStore) -> None:
    store = make_store([5000, 3, 4000])
    starts = block_starts(store, 10, 1)
    assert len(starts) == 1 + len(naive_blocks(documents_of(store), 10, [0]))
    assert starts.itemsize == 8  # type: ignore[attr-defined]
    assert block_starts(store, 10, 0) == range(0, 9004, 10)


def test_prompts_begin_and_count_the_tokens_of_the_text(make_store: MakeStore) -> None:
    blocks = Blocks(make_store([2, 2, 9, 4, 9]), 7, [1, 2])
    prompts = prompts_from_blocks(blocks, 10, 3)
    assert [ids[:2].tolist() for ids in prompts.prompt_ids] == [[1, 2]] * len(prompts)
    assert [len(ids) for ids in prompts.prompt_ids] == [5] * len(prompts)
    for prompt_id, ids in zip(prompts.prompt_id, prompts.prompt_ids, strict=True):
        block = blocks.input_ids(prompt_id, prompt_id + 1)[0].tolist()
        starts = [i for i in range(len(block)) if block[i : i + 5] == ids.tolist()]
        assert starts
        assert block[starts[0] + 5] >= 100  # there is text to continue


def test_prompts_of_a_column_begin_once(make_store: MakeStore) -> None:
    prompts = prompts_from_column(make_store([3, 2]), 5, [1, 2])
    assert [ids.tolist() for ids in prompts.prompt_ids] == [[1, 2, 100, 101, 102], [1, 2, 103, 104]]


def test_the_end_that_is_held_out_inside_a_document_is_marked(tmp_path: Path) -> None:
    """Its first token continues a document, which BOS does not foretell."""
    config = PrecomputeConfig(teacher="", data="", out=tmp_path, block_size=4, validation_fraction=0.3)
    for marks_cut in (False, True):
        for length, is_cut in ((50, True), (35, False)):
            directory = tmp_path / f"{marks_cut}-{length}"
            writers = {split: TokenWriter(directory / split, np.uint16) for split in SPLITS}
            for part in (length, 50 - length):
                writers["train"].append(np.arange(100, 100 + part))
                if part:
                    writers["train"].end_document()
            for writer in writers.values():
                writer.close()
            assert hold_out_end(directory, config, np.uint16, marks_cut=marks_cut)
            held_out = TokenStore(directory / "validation", np.uint16)
            assert held_out.num_tokens == 15
            assert TokenStore(directory / "train", np.uint16).is_wanted is None
            if marks_cut and is_cut:
                assert held_out.is_wanted is not None
                assert held_out.is_wanted.tolist() == [False] + [True] * 14
            else:
                assert held_out.is_wanted is None
