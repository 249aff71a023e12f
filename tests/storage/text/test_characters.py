"""Control tokens that a text spells out are characters, in every family of tokenizers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from transformers import ByT5Tokenizer

from storage.text.characters import CharacterTokenizer, text_ids
from tests.storage.text.families import END, FAMILIES, TOOL, tokenizer_of

TEXT = f"the teacher{END} once {TOOL} knew </s> the end"


@pytest.fixture(scope="module", params=FAMILIES)
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return tokenizer_of(request.param)


def test_a_control_token_is_characters_and_vocabulary_stays_a_token(tokenizer: Any) -> None:
    end, stop, tool = tokenizer.convert_tokens_to_ids([END, "</s>", TOOL])
    plain = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    assert {end, stop, tool} <= set(plain)
    ids = text_ids(tokenizer, TEXT)
    assert tool in ids
    assert not {end, stop} & set(ids)


def test_without_control_tokens_it_is_the_tokenizer_as_it_is(tokenizer: Any) -> None:
    texts = [f"the teacher once {TOOL} knew", "", "12345  67\n\n你好 e\u0301", "unknown: Ω, ж and Q"]
    plain = tokenizer(texts, add_special_tokens=False)["input_ids"]
    assert CharacterTokenizer(tokenizer).ids_of_all(texts) == plain


def test_the_places_are_those_of_the_ids(tokenizer: Any) -> None:
    characters = CharacterTokenizer(tokenizer)
    encoded = characters.encode(TEXT)
    assert encoded.ids.tolist() == characters.ids(TEXT)
    assert len(encoded.ids) == len(encoded.starts) == len(encoded.ends)
    assert (np.diff(encoded.starts) >= 0).all()
    tool = encoded.ids.tolist().index(tokenizer.convert_tokens_to_ids(TOOL))
    assert TEXT[encoded.starts[tool] : encoded.ends[tool]].strip() == TOOL


def test_a_tokenizer_reads_control_tokens_as_before_afterwards(tokenizer: Any) -> None:
    before = tokenizer(TEXT)["input_ids"]
    text_ids(tokenizer, TEXT)
    assert tokenizer(TEXT)["input_ids"] == before


def test_a_tokenizer_in_python() -> None:
    tokenizer = ByT5Tokenizer()
    assert tokenizer.eos_token_id in tokenizer("a</s>b", add_special_tokens=False)["input_ids"]
    assert text_ids(tokenizer, "a</s>b") == [byte + 3 for byte in b"a</s>b"]
