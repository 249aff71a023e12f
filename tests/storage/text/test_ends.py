"""Every id that is named as an end, wherever it is named."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from transformers import GenerationConfig, GPT2Config, PretrainedConfig

from storage.errors import EndBeyondVocabularyError
from storage.text.ends import as_stated, end_ids, unreachable_ends


def named(
    tokenizer: int | None, config: Any, generation: Any, config_class: type[PretrainedConfig] = GPT2Config
) -> Any:
    model = SimpleNamespace(
        config=config_class(eos_token_id=config), generation_config=GenerationConfig(eos_token_id=generation)
    )
    return SimpleNamespace(eos_token_id=tokenizer, eos_token="</s>", name_or_path="teacher"), model


@pytest.mark.parametrize(
    ("tokenizer", "config", "generation", "expected"),
    [
        (2, 2, 2, (2,)), (2, 5, None, (2, 5)), (2, None, [7, 5], (2, 5, 7)), (None, 5, None, (5,)),
        (None, None, None, ()), (257, 256, [257, 256], (257, 256)), (0, [0, 3], 3, (0, 3)),
    ],
)  # fmt: skip
def test_ends_are_all_that_are_named_with_the_tokenizers_first(
    tokenizer: int | None, config: Any, generation: Any, expected: tuple[int, ...]
) -> None:
    assert end_ids(*named(tokenizer, config, generation), 300) == expected
    assert as_stated((3,)) == 3
    assert as_stated((3, 4)) == [3, 4]


def test_an_end_without_a_row_is_told_with_its_place() -> None:
    tokenizer, model = named(2, 50256, [400, 3])
    assert end_ids(tokenizer, model, 300) == (2, 3)
    assert unreachable_ends(tokenizer, model, 300) == {50256: "config.json", 400: "generation_config.json"}
    with pytest.raises(
        EndBeyondVocabularyError, match=r"^teacher: its tokenizer names '</s>', id 400, .* below 300; name"
    ):
        end_ids(*named(400, 2, None), 300)
