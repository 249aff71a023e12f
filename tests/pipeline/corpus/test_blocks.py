"""Blocks cut from a token store, and prompts taken from them, against loops over single tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline import PrecomputeConfig
from pipeline.corpus.blocks import Blocks, prompts_from_blocks, prompts_from_column
from pipeline.corpus.token_store import TokenStore, TokenWriter
from pipeline.corpus.validation_split import hold_out_end
from storage.records.identity import SPLITS


@pytest.fixture
def make_store(tmp_path: Path) -> Callable[..., TokenStore]:
    """Documents of given lengths; token values count up, so that each names its place."""

    def make(lengths: list[int]) -> TokenStore:
        writer = TokenWriter(tmp_path / "store", np.uint16)
        start = 0
        for length in lengths:
            tokens, start = np.arange(start, start + length), start + length
            writer.append(tokens[:2])
            writer.append(tokens[2:])
            writer.end_document()
        return writer.close()

    return make


def naive_segments(lengths: list[int], start: int, stop: int) -> list[int]:
    owner = [document for document, length in enumerate(lengths) for _ in range(length)][start:stop]
    return [owner.count(document) for document in sorted(set(owner))]


def test_the_store_gives_back_its_documents(make_store: Callable[..., TokenStore]) -> None:
    store = make_store([3, 1, 7])
    assert store.num_tokens == 11
    assert [store.document(i).tolist() for i in range(3)] == [[0, 1, 2], [3], [4, 5, 6, 7, 8, 9, 10]]
    assert store.tokens.dtype == np.uint16


@pytest.fixture
def flagged_store(tmp_path: Path) -> tuple[TokenStore, list[bool]]:
    """Five documents of which some tokens are wanted, and the flag of each token."""
    writer = TokenWriter(tmp_path / "flagged", np.uint16, marks_wanted=True)
    rng = np.random.default_rng(0)
    flags: list[bool] = []
    for length in (7, 1, 12, 3, 9):
        part = rng.random(length) < 0.5
        writer.append(np.arange(length), part)
        writer.append(np.array([99]))  # without flags: wanted
        writer.end_document()
        flags += [*part.tolist(), True]
    return writer.close(), flags


def test_a_store_keeps_the_flag_of_every_token(flagged_store: tuple[TokenStore, list[bool]]) -> None:
    store, flags = flagged_store
    assert store.is_wanted is not None
    assert store.is_wanted.tolist() == flags
    assert len(flags) == store.num_tokens


@pytest.mark.parametrize("block_size", [1, 4, 6])
def test_a_target_is_wanted_when_its_label_is(flagged_store: tuple[TokenStore, list[bool]], block_size: int) -> None:
    store, flags = flagged_store
    blocks = Blocks(store, block_size)
    assert blocks.marks_wanted
    for start in range(len(blocks)):
        for stop in range(start, len(blocks) + 1):
            found = blocks.is_wanted(start, stop)
            assert found is not None
            assert found.shape == (stop - start, block_size)
            for row, block in zip(found, range(start, stop), strict=True):
                first = block * (block_size + 1)
                assert row.tolist() == [flags[first + t + 1] for t in range(block_size)]


def test_a_store_without_flags_wants_every_target(make_store: Callable[..., TokenStore]) -> None:
    blocks = Blocks(make_store([12]), 3)
    assert not blocks.marks_wanted
    assert blocks.is_wanted(0, 2) is None


@pytest.mark.parametrize("marks_wanted", [True, False])
def test_the_end_is_held_out_with_its_flags(tmp_path: Path, marks_wanted: bool) -> None:
    flags = np.random.default_rng(1).random(100) < 0.5
    stores = {split: TokenWriter(tmp_path / split, np.uint16, marks_wanted=marks_wanted) for split in SPLITS}
    for split, places in {"train": range(90), "validation": range(90, 100)}.items():
        stores[split].append(np.array(places), flags[places] if marks_wanted else None)
        stores[split].end_document()
        stores[split].close()
    config = PrecomputeConfig(teacher="", data="", out=tmp_path, block_size=19, validation_fraction=0.3)
    assert hold_out_end(tmp_path, config, np.uint16)
    for split, places in {"train": [*range(63)], "validation": [*range(90, 100), *range(63, 90)]}.items():
        moved = TokenStore(tmp_path / split, np.uint16)
        assert moved.tokens.tolist() == places
        assert (moved.is_wanted is not None) == marks_wanted
        if moved.is_wanted is not None:
            assert moved.is_wanted.tolist() == flags[places].tolist()


def test_an_empty_store_has_no_tokens(make_store: Callable[..., TokenStore]) -> None:
    store = make_store([])
    assert (store.num_tokens, len(store.ends), len(Blocks(store, 4))) == (0, 0, 0)


@pytest.mark.parametrize("lengths", [[1], [12], [1, 1, 1], [3, 1, 7, 2, 2, 9], [5, 5, 5]])
def test_segment_lengths_of_every_range_equal_counting(
    make_store: Callable[..., TokenStore], lengths: list[int]
) -> None:
    store = make_store(lengths)
    for start in range(store.num_tokens):
        for stop in range(start + 1, store.num_tokens + 1):
            assert store.segment_lengths(start, stop).tolist() == naive_segments(lengths, start, stop)


def test_blocks_are_consecutive_and_leave_out_the_rest(make_store: Callable[..., TokenStore]) -> None:
    lengths = [3, 9, 1, 4, 6]
    blocks = Blocks(make_store(lengths), 4)
    assert len(blocks) == 4
    assert blocks.input_ids(0, 4).tolist() == np.arange(20).reshape(4, 5).tolist()
    assert blocks.input_ids(2, 3).tolist() == [[10, 11, 12, 13, 14]]
    assert [blocks.segment_lengths(b).tolist() for b in range(4)] == [
        naive_segments(lengths, 5 * b, 5 * b + 5) for b in range(4)
    ]


@pytest.mark.parametrize("num_prompts", [0, 1, 5, 1000])
@pytest.mark.parametrize("prompt_tokens", [1, 4, 9])
def test_prompts_begin_pieces_and_never_span_documents(
    make_store: Callable[..., TokenStore], num_prompts: int, prompt_tokens: int
) -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 15, 60).tolist()
    store = make_store(lengths)
    blocks = Blocks(store, 11)
    prompts = prompts_from_blocks(blocks, num_prompts, prompt_tokens)
    assert len(prompts) <= min(num_prompts, len(blocks))
    assert len(set(prompts.prompt_id)) == len(prompts)
    assert prompts.prompt_id == sorted(prompts.prompt_id)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    for block, ids in zip(prompts.prompt_id, prompts.prompt_ids, strict=True):
        start = int(ids[0])
        assert ids.tolist() == list(range(start, start + prompt_tokens))
        assert 12 * block <= start
        assert start + prompt_tokens < 12 * (block + 1), "a token of the same block follows"
        assert len(set(owner[start : start + prompt_tokens + 1])) == 1, "and it is of the same document"
        assert start == 12 * block or owner[start - 1] != owner[start], "it begins a piece"


def test_blocks_without_a_long_enough_piece_give_no_prompt_and_the_others_do(
    make_store: Callable[..., TokenStore],
) -> None:
    # Three blocks of 6 tokens: pieces of 2, 2, 2; of 1 and 5; of 3 and 3.
    blocks = Blocks(make_store([2, 2, 2, 1, 5, 3, 3]), 5)
    assert prompts_from_blocks(blocks, 10, 3).prompt_id == [1]
    assert [ids.tolist() for ids in prompts_from_blocks(blocks, 10, 3).prompt_ids] == [[7, 8, 9]]
    assert prompts_from_blocks(blocks, 10, 2).prompt_id == [1, 2]
    assert prompts_from_blocks(blocks, 1, 2).prompt_id == [1]
    assert prompts_from_blocks(blocks, 10, 5).prompt_id == []


def test_prompts_are_spread_over_the_text(make_store: Callable[..., TokenStore]) -> None:
    blocks = Blocks(make_store([700]), 6)
    assert prompts_from_blocks(blocks, 4, 3).prompt_id == [0, 25, 50, 75]


def test_prompts_from_a_column_are_the_first_ones(make_store: Callable[..., TokenStore]) -> None:
    store = make_store([3, 1, 2])
    prompts = prompts_from_column(store, 2)
    assert prompts.prompt_id == [0, 1]
    assert [ids.tolist() for ids in prompts.prompt_ids] == [[0, 1, 2], [3]]
    assert len(prompts_from_column(store, 10)) == 3
