"""Long texts in windows get the ids of the whole text at once, in linear time and bounded memory."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from transformers import ByT5Tokenizer

from pipeline.corpus import long_texts
from pipeline.corpus.long_texts import LongTextTokenizer, TextAhead
from storage.text.characters import CharacterTokenizer, Encoded
from tests.storage.text.families import FAMILIES, awkward_text, tokenizer_of

WINDOW, OVERLAP = 700, 320


class Counting(CharacterTokenizer):
    """Counts the characters that it is given, and remembers the longest text."""

    num_chars = 0
    most_chars = 0

    def ids_of_all(self, texts: Any) -> list[list[int]]:
        self._count(texts)
        return super().ids_of_all(texts)

    def encode(self, text: str) -> Encoded:
        self._count([text])
        return super().encode(text)

    def _count(self, texts: Iterable[str]) -> None:
        for text in texts:
            self.num_chars += len(text)
            self.most_chars = max(self.most_chars, len(text))


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_texts, "WINDOW_CHARS", WINDOW)
    monkeypatch.setattr(long_texts, "OVERLAP_CHARS", OVERLAP)
    monkeypatch.setattr(long_texts, "_CONTEXT_CHARS", 64)


@pytest.fixture(scope="module", params=FAMILIES)
def characters(request: pytest.FixtureRequest) -> CharacterTokenizer:
    return CharacterTokenizer(tokenizer_of(request.param))


def ids_in_windows(long: LongTextTokenizer, pieces: Iterable[str]) -> list[int]:
    return [int(token) for ids in long.ids(TextAhead(pieces)) for token in ids]


@pytest.mark.parametrize("seed", range(2))
def test_windows_give_the_ids_of_the_whole_text(characters: CharacterTokenizer, seed: int) -> None:
    text = awkward_text(random.Random(seed), 60_000)
    long = LongTextTokenizer(characters)
    assert ids_in_windows(long, [text]) == characters.ids(text)
    assert long.num_inexact_cuts == 0


@pytest.mark.parametrize(
    "text",
    [" " * 5_000, "0123456789" * 500, "你好" * 2_500, "a\u0301" * 2_500, "👩\u200d" * 2_500, "\n" * 5_000, "a" * 5_000],
    ids=["spaces", "digits", "chinese", "marks", "emoji", "newlines", "letters"],
)
def test_a_text_without_a_place_to_cut(characters: CharacterTokenizer, text: str) -> None:
    long = LongTextTokenizer(characters)
    found, whole = ids_in_windows(long, [text]), characters.ids(text)
    if long.num_inexact_cuts == 0:
        assert found == whole
    else:  # only what WordPiece reads as a single unknown token
        assert len(whole) == 1, whole
        assert set(found) == set(whole)


def test_how_a_text_comes_in_pieces_changes_nothing(characters: CharacterTokenizer) -> None:
    text = awkward_text(random.Random(5), 3_000)
    long = LongTextTokenizer(characters)
    whole = ids_in_windows(long, [text])
    for size in (1, 7, 500):
        assert ids_in_windows(long, (text[i : i + size] for i in range(0, len(text), size))) == whole


@pytest.mark.parametrize("text", [awkward_text(random.Random(6), 60_000), "q" * 60_000, " " * 60_000])
def test_work_is_linear_and_no_call_is_longer_than_a_window(characters: CharacterTokenizer, text: str) -> None:
    counting = Counting(characters._tokenizer)
    for _ in LongTextTokenizer(counting).ids(TextAhead([text])):
        pass
    assert counting.most_chars <= WINDOW
    # A window moves on by at least WINDOW − OVERLAP. At worst two beginnings are tried and a cut is made after them.
    assert counting.num_chars <= 4 * WINDOW / (WINDOW - OVERLAP) * len(text)


def test_cuts_that_change_tokens_are_counted_and_depend_on_the_text_alone() -> None:
    characters = CharacterTokenizer(tokenizer_of("wordpiece"))
    text = "the teacher " + "q" * 2_000 + " once"
    found = []
    for pieces in ([text], list(text)):
        long = LongTextTokenizer(characters)
        found.append(ids_in_windows(long, pieces))
        assert long.num_inexact_cuts > 0
    assert found[0] == found[1]
    assert found[0][:2] == characters.ids("the teacher")[:2]
    assert found[0][-1] == characters.ids("once")[-1]


def test_a_tokenizer_in_python_is_cut_beside_spaces() -> None:
    characters = CharacterTokenizer(ByT5Tokenizer())
    text = "the teacher ran once " * 200
    long = LongTextTokenizer(characters)
    pieces = list(long.ids(TextAhead([text])))
    assert np.concatenate(pieces).tolist() == characters.ids(text)
    assert len(pieces) > 5
    assert long.num_inexact_cuts == 0
    assert ids_in_windows(long, ["x" * 1_000]) == characters.ids("x" * 1_000)
    assert long.num_inexact_cuts > 0
