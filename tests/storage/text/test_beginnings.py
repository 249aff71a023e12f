"""The ids that a tokenizer puts before a text."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tokenizers import processors

from storage.errors import NoBosTokenError
from storage.text.beginnings import beginning_ids, without_beginning
from tests.storage.text.tokenizer_families import FAMILIES, byte_level, sentencepiece_bpe, unigram, word_piece


def framed(tokenizer: Any, template: str) -> Any:
    """The tokenizer with a template of its special tokens around every text."""
    tokens = {token: tokenizer.convert_tokens_to_ids(token) for token in template.split() if token != "$A"}
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=template, pair=f"{template} $B", special_tokens=list(tokens.items())
    )
    return tokenizer


@pytest.mark.parametrize("make", [sentencepiece_bpe, unigram])
def test_a_tokenizer_that_begins_with_bos(make: Any) -> None:
    tokenizer = make()
    bos = (tokenizer.bos_token_id,)
    assert tokenizer("x")["input_ids"][0] == bos[0]
    assert beginning_ids(tokenizer, "auto") == beginning_ids(tokenizer, "always") == bos
    assert beginning_ids(tokenizer, "never") == ()
    assert beginning_ids(make(adds_bos=False), "auto") == ()
    assert beginning_ids(make(adds_bos=False), "always") == bos


def test_what_stands_behind_a_text_is_no_beginning() -> None:
    pieces = framed(word_piece(), "[CLS] $A [SEP]")
    assert beginning_ids(pieces, "auto") == (pieces.cls_token_id,)
    assert beginning_ids(framed(byte_level(), "$A <|end|>"), "auto") == ()
    several = framed(byte_level(), "<|other|> <|end|> $A <|end|>")
    assert beginning_ids(several, "auto") == tuple(several.convert_tokens_to_ids(["<|other|>", "<|end|>"]))


@pytest.mark.parametrize("family", FAMILIES)
def test_bos_that_is_not_named_is_refused_in_one_line(family: str) -> None:
    tokenizer = FAMILIES[family]()
    if tokenizer.bos_token_id is None:
        with pytest.raises(NoBosTokenError, match=r"^--bos always: the tokenizer names no BOS token .*auto or never$"):
            beginning_ids(tokenizer, "always")


def test_a_beginning_that_is_written_already_is_left_out_once() -> None:
    assert without_beginning(np.array([1, 2, 1, 2, 100]), [1, 2]).tolist() == [1, 2, 100]
    assert without_beginning([1, 2, 100], (1, 2)) == [100]
    assert without_beginning([1, 100], (1, 2)) == [1, 100]
    assert without_beginning([1], (1, 2)) == [1]
    assert without_beginning([100], ()) == [100]
