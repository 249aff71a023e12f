"""Tokens of the whole text, flagged by a naive walk over their characters."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import ByteLevel as ByteLevelOffsets

from pipeline.corpus.chats.token_flags import flags_by_offsets, flags_by_prefixes

TEXTS = [
    "user: who taught you?\nassistant: a teacher did, once. " * 3,
    "ünïcode 教师 🙂🙂  two  spaces\n\n\nand lines\t.",
]


def byte_level(*, trims: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = ByteLevelOffsets(trim_offsets=trims)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(TEXTS * 4, trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet))
    return tokenizer


def metaspace() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.train_from_iterator(TEXTS * 4, trainers.BpeTrainer(vocab_size=100, special_tokens=["<unk>"]))
    return tokenizer


def wordpiece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(TEXTS * 4, trainers.WordPieceTrainer(vocab_size=120, special_tokens=["[UNK]"]))
    return tokenizer


MAKERS: dict[str, Callable[[], Tokenizer]] = {
    "byte level": lambda: byte_level(trims=False),
    "byte level, trimmed": lambda: byte_level(trims=True),
    "metaspace": metaspace,
    "wordpiece": wordpiece,
}


def naive_flags(offsets: list[tuple[int, int]], spans: list[tuple[int, int]]) -> list[bool]:
    wanted = {place for start, stop in spans for place in range(start, stop)}
    flags, last = [], 0
    for start, stop in offsets:
        flags.append(any(place in wanted for place in range(min(start, last) if start == stop else start, stop)))
        last = max(last, stop)
    return flags


def random_spans(rng: random.Random, length: int) -> list[tuple[int, int]]:
    borders = sorted(rng.sample(range(length + 1), 4))
    return [(borders[0], borders[1]), (borders[2], borders[3])]


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("text", TEXTS)
def test_a_token_is_wanted_when_any_of_its_characters_is(maker: str, text: str) -> None:
    encoded, rng = MAKERS[maker]().encode(text), random.Random(0)
    for _ in range(50):
        spans = random_spans(rng, len(text))
        found = flags_by_offsets(text, np.array(encoded.offsets), spans)
        assert found.tolist() == naive_flags(encoded.offsets, spans)


@pytest.mark.parametrize("maker", MAKERS)
def test_the_whole_is_wanted_or_nothing_is(maker: str) -> None:
    for text in TEXTS:
        offsets = np.array(MAKERS[maker]().encode(text).offsets)
        assert flags_by_offsets(text, offsets, [(0, len(text))]).all()
        assert not flags_by_offsets(text, offsets, []).any()


def test_white_space_that_a_tokenizer_drops_decides_for_no_word() -> None:
    text = "yes\nuser no"
    offsets = np.array(wordpiece().encode(text).offsets)
    flags = flags_by_offsets(text, offsets, [(0, text.index("user"))])  # the span ends with the newline
    assert flags.tolist() == [stop <= len("yes") for _, stop in offsets]


def test_trimmed_white_space_is_a_token_of_its_own() -> None:
    tokenizer = byte_level(trims=True)
    text = "教  x"
    encoded = tokenizer.encode(text)
    flags = flags_by_offsets(text, np.array(encoded.offsets), [(1, 3)])
    pieces = [token for token, flag in zip(encoded.tokens, flags, strict=True) if flag]
    assert set("".join(pieces)) <= {"Ġ", "x"}
    assert pieces


def test_no_tokens() -> None:
    assert flags_by_offsets("", np.empty((0, 2), dtype=np.int64), []).tolist() == []


@pytest.mark.parametrize("maker", ["byte level", "metaspace"])
def test_without_offsets_the_flags_are_the_same_where_borders_lie_between_tokens(maker: str) -> None:
    fast, rng = MAKERS[maker](), random.Random(1)

    def ids_of(text: str) -> list[int]:
        ids: list[int] = fast.encode(text).ids
        return ids

    for text in TEXTS:
        encoded = fast.encode(text)
        words = [0, *(place for place, char in enumerate(text) if char == " "), len(text)]
        for _ in range(20):
            spans = [tuple(sorted(rng.sample(words, 2)))]
            expected = flags_by_offsets(text, np.array(encoded.offsets), spans)
            assert flags_by_prefixes(text, encoded.ids, spans, ids_of).tolist() == expected.tolist()
