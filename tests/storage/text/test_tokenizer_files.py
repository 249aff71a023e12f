"""A tokenizer is read from files that may hold anything, and never made up where there are none."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers

from storage.errors import UnusableModelError
from storage.text.tokenizer_files import load_tokenizer_files


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox", "qwen2", "gemma", "xglm", "llama"])
def test_a_model_without_tokenizer_files_has_no_tokenizer(architecture: str, tmp_path: Path) -> None:
    transformers.CONFIG_MAPPING[architecture]().save_pretrained(tmp_path)
    with pytest.raises(UnusableModelError, match="no tokenizer: "):
        load_tokenizer_files(transformers.AutoTokenizer, str(tmp_path))


def test_a_tokenizer_that_needs_no_files_for_its_vocabulary_is_one(tmp_path: Path) -> None:
    transformers.ByT5Tokenizer().save_pretrained(tmp_path)
    assert load_tokenizer_files(transformers.AutoTokenizer, str(tmp_path))("é").input_ids[:2] == [198, 172]
