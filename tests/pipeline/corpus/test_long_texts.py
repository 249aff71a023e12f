"""Long texts in windows get the ids of the whole text at once, in linear time and bounded memory."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pytest
from transformers import ByT5Tokenizer

from pipeline.corpus import long_texts, text_ahead, windows_ahead
from pipeline.corpus.long_texts import LongTextTokenizer
from pipeline.corpus.text_ahead import TextAhead
from pipeline.corpus.tokenizer_calls import CorpusTokenizer, use_threads
from storage.processes import num_cores
from storage.text.characters import CharacterTokenizer, Encoded
from tests.storage.text.families import FAMILIES, awkward_text, tokenizer_of

WINDOW, OVERLAP = 700, 320


class Counting(CharacterTokenizer):
    """Counts the characters that it is given, and remembers the longest text and the most texts in one call."""

    num_chars = 0
    most_chars = 0
    most_texts = 0

    def ids_of_all(self, texts: Any) -> list[list[int]]:
        self._count(texts)
        return super().ids_of_all(texts)

    def encode_all(self, texts: Sequence[str]) -> list[Encoded]:
        self._count(texts)
        self.most_texts = max(self.most_texts, len(texts))
        return super().encode_all(texts)

    def _count(self, texts: Iterable[str]) -> None:
        for text in texts:
            self.num_chars += len(text)
            self.most_chars = max(self.most_chars, len(text))


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_texts, "WINDOW_CHARS", WINDOW)
    monkeypatch.setattr(long_texts, "OVERLAP_CHARS", OVERLAP)
    monkeypatch.setattr(long_texts, "_CONTEXT_CHARS", 64)
    monkeypatch.setattr(windows_ahead, "_CONTEXT_CHARS", 16)
    monkeypatch.setattr(text_ahead, "_SLICE_CHARS", WINDOW)


@pytest.fixture(scope="module", params=FAMILIES)
def characters(request: pytest.FixtureRequest) -> CharacterTokenizer:
    return CharacterTokenizer(tokenizer_of(request.param))


@pytest.fixture(params=[1, 3, 4])
def num_threads(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def ids_in_windows(long: LongTextTokenizer, pieces: Iterable[str]) -> list[int]:
    return [int(token) for ids in long.ids(TextAhead(pieces)) for token in ids]


@pytest.mark.parametrize("seed", range(2))
def test_windows_give_the_ids_of_the_whole_text(num_threads: int, characters: CharacterTokenizer, seed: int) -> None:
    text = awkward_text(random.Random(seed), 60_000)
    long = LongTextTokenizer(characters, num_threads)
    assert ids_in_windows(long, [text]) == characters.ids(text)
    assert long.num_inexact_cuts == 0


@pytest.mark.parametrize(
    "text",
    [" " * 5_000, "0123456789" * 500, "你好" * 2_500, "a\u0301" * 2_500, "👩\u200d" * 2_500, "\n" * 5_000, "a" * 5_000],
    ids=["spaces", "digits", "chinese", "marks", "emoji", "newlines", "letters"],
)
def test_a_text_without_a_place_to_cut(num_threads: int, characters: CharacterTokenizer, text: str) -> None:
    long = LongTextTokenizer(characters, num_threads)
    found, whole = ids_in_windows(long, [text]), characters.ids(text)
    if long.num_inexact_cuts == 0:
        assert found == whole
    else:  # only what WordPiece reads as a single unknown token
        assert len(whole) == 1, whole
        assert set(found) == set(whole)


def test_how_a_text_comes_in_pieces_changes_nothing(num_threads: int, characters: CharacterTokenizer) -> None:
    text = awkward_text(random.Random(5), 3_000)
    long = LongTextTokenizer(characters, num_threads)
    whole = ids_in_windows(long, [text])
    for size in (1, 7, 500):
        assert ids_in_windows(long, (text[i : i + size] for i in range(0, len(text), size))) == whole


@pytest.mark.parametrize("text", [awkward_text(random.Random(6), 60_000), "q" * 60_000, " " * 60_000])
def test_work_is_linear_and_no_call_is_longer_than_a_window(
    num_threads: int, characters: CharacterTokenizer, text: str
) -> None:
    counting = Counting(characters._tokenizer)
    for _ in LongTextTokenizer(counting, num_threads).ids(TextAhead([text])):
        pass
    assert counting.most_chars <= WINDOW
    # A window moves on by at least WINDOW − OVERLAP. At worst two beginnings are tried and a cut is made after them.
    # Where every guess fails, every third window is encoded in vain.
    most_windows = 4 if num_threads == 1 else 4 + 4 / 3
    assert counting.num_chars <= most_windows * WINDOW / (WINDOW - OVERLAP) * len(text)


def test_windows_of_a_plain_text_share_calls(num_threads: int) -> None:
    counting = Counting(tokenizer_of("gpt2"))
    text = "".join(random.Random(0).choices(["the teacher ", "ran once, ", "then no more. "], k=3_000))
    assert ids_in_windows(LongTextTokenizer(counting, num_threads), [text]) == counting.ids(text)
    assert counting.most_texts == num_threads


@pytest.mark.parametrize(
    ("stated", "environment", "expected"),
    [
        (None, {}, num_cores()),
        (None, {"RAYON_NUM_THREADS": "3"}, 3),
        (None, {"RAYON_NUM_THREADS": "0"}, num_cores()),
        (None, {"RAYON_NUM_THREADS": "many"}, num_cores()),
        (None, {"RAYON_NUM_THREADS": "3", "TOKENIZERS_PARALLELISM": "False"}, 1),
        (None, {"RAYON_NUM_THREADS": "3", "TOKENIZERS_PARALLELISM": ""}, 1),
        (None, {"RAYON_NUM_THREADS": "3", "TOKENIZERS_PARALLELISM": "yes"}, 3),
        (1, {}, 1),
        (5, {"RAYON_NUM_THREADS": "3", "TOKENIZERS_PARALLELISM": "no"}, 5),
    ],
)
def test_the_threads_of_a_process(
    stated: int | None, environment: dict[str, str], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAYON_NUM_THREADS", "TOKENIZERS_PARALLELISM"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    use_threads(stated)
    assert CorpusTokenizer(tokenizer_of("gpt2"), reads_all=True)._long_texts._most_at_once == min(
        expected, long_texts._MOST_AT_ONCE
    )


def test_cuts_that_change_tokens_are_counted_and_depend_on_the_text_alone(num_threads: int) -> None:
    characters = CharacterTokenizer(tokenizer_of("wordpiece"))
    text = "the teacher " + "q" * 2_000 + " once"
    found = []
    for pieces in ([text], list(text)):
        long = LongTextTokenizer(characters, num_threads)
        found.append(ids_in_windows(long, pieces))
        assert long.num_inexact_cuts > 0
    assert found[0] == found[1]
    assert found[0][:2] == characters.ids("the teacher")[:2]
    assert found[0][-1] == characters.ids("once")[-1]


def test_a_tokenizer_in_python_is_cut_beside_spaces(num_threads: int) -> None:
    characters = CharacterTokenizer(ByT5Tokenizer())
    text = "the teacher ran once " * 200
    long = LongTextTokenizer(characters, num_threads)
    pieces = list(long.ids(TextAhead([text])))
    assert np.concatenate(pieces).tolist() == characters.ids(text)
    assert len(pieces) > 5
    assert long.num_inexact_cuts == 0
    assert ids_in_windows(long, ["x" * 1_000]) == characters.ids("x" * 1_000)
    assert long.num_inexact_cuts > 0
