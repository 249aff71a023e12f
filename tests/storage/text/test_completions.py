"""A completion's text is what decoding the whole gives, drawn at once or piece by piece, in every tokenizer family."""

from __future__ import annotations

import random
from typing import Any

import pytest

from storage.text.completions import completion_text, stream_completion
from tests.storage.text.tokenizer_families import FAMILIES, sentencepiece_bpe, word_piece

_REPLACEMENT = "\ufffd"


def decoded(tokenizer: Any, ids: list[int]) -> str:
    text: str = tokenizer.decode(ids, skip_special_tokens=True)
    return text


def random_ids(tokenizer: Any, rng: random.Random) -> list[int]:
    """Uniform ids, or a text's ids with some replaced: runs that make sense and runs that do not."""
    if rng.random() < 0.4:
        return [rng.randrange(len(tokenizer)) for _ in range(rng.randint(1, 12))]
    ids: list[int] = tokenizer("it's the cat, don't sat. 猫 é it ' s n ' t", add_special_tokens=False)["input_ids"]
    start = rng.randrange(len(ids))
    ids = ids[start : start + rng.randint(1, 12)]
    return [rng.randrange(len(tokenizer)) if rng.random() < 0.15 else i for i in ids]


@pytest.mark.parametrize("family", FAMILIES)
def test_text_follows_the_prompt_and_streams_to_the_same(family: str) -> None:
    tokenizer, rng = FAMILIES[family](), random.Random(family)
    num_plain = 0
    for _ in range(1500):
        prompt, completion = random_ids(tokenizer, rng), random_ids(tokenizer, rng)
        before, whole = decoded(tokenizer, prompt), decoded(tokenizer, prompt + completion)
        text = completion_text(tokenizer, prompt, completion)
        assert whole.endswith(text)
        kept = whole.removesuffix(text) if text else whole
        assert before.startswith(kept), (before, whole, text)
        assert not text or not before[len(kept) :].startswith(text[0])
        if before == kept:
            num_plain += 1
        else:  # the completion changed the prompt's end: a character that was unfinished, or spaces
            assert _REPLACEMENT in before + whole or tokenizer.clean_up_tokenization_spaces
        pieces = list(stream_completion(tokenizer, prompt, completion))
        assert "".join(pieces) == text, (prompt, completion, pieces)
        assert all(pieces)
    assert num_plain > 500


@pytest.mark.parametrize("family", FAMILIES)
def test_pieces_come_before_the_text_ends(family: str) -> None:
    tokenizer = FAMILIES[family]()
    ids = tokenizer("the cat sat on the mat and the teacher", add_special_tokens=False)["input_ids"]
    assert len(list(stream_completion(tokenizer, ids[:3], ids[3:]))) > 3


def test_a_sentencepiece_completion_keeps_its_space() -> None:
    tokenizer = sentencepiece_bpe()
    prompt = tokenizer("the cat", add_special_tokens=False)["input_ids"]
    completion = tokenizer("sat", add_special_tokens=False)["input_ids"]
    assert decoded(tokenizer, completion) == "sat"  # what was stored before
    assert completion_text(tokenizer, prompt, completion) == " sat"


def test_the_hard_cases() -> None:
    byte_level, pieces = FAMILIES["byte_level"](), word_piece()
    cat = byte_level("猫", add_special_tokens=False)["input_ids"]
    assert decoded(byte_level, cat[:1]) == _REPLACEMENT
    assert completion_text(byte_level, cat[:1], cat[1:]) == "猫"  # the unfinished character, whole
    ids = pieces.convert_tokens_to_ids
    assert completion_text(pieces, ids(["un"]), ids(["##able"])) == "able"
    assert completion_text(pieces, ids(["it"]), ids(["'", "s", "."])) == "'s."
    assert list(stream_completion(pieces, ids(["it"]), ids(["'", "s", "."]))) == ["'s."]
    assert completion_text(pieces, ids(["it", "'"]), ids(["s"])) == "'s"  # "it '" and "it's" part before the space


def test_special_tokens_may_be_shown() -> None:
    tokenizer = sentencepiece_bpe()
    prompt = tokenizer("the cat")["input_ids"]
    end = [tokenizer.eos_token_id]
    assert completion_text(tokenizer, prompt, end) == ""
    assert completion_text(tokenizer, prompt, end, skip_special_tokens=False) == "</s>"
