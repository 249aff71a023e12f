"""Tokenizers with code, with other ids, or that are none."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from storage.errors import MissingFileError, RecordError, UnlistedFileError
from student.errors import VocabularyMismatchError
from tests.storage.reading.forging import identity, outside, tokenizer, tokenizer_with_code, vocabulary, write_json
from tests.storage.reading.readers import FILES, Case, cases, errors_of, train_a_student


def with_extra_tokenizer_file(cache_dir: Path, forge: SimpleNamespace) -> None:
    """A file that the manifest does not list, and that transformers would read."""
    write_json(cache_dir / "tokenizer/config.json", {"model_type": "gpt2"})


def with_extra_tokenizer_link(cache_dir: Path, forge: SimpleNamespace) -> None:
    (cache_dir / "tokenizer/config.json").symlink_to(outside(cache_dir) / "secret")


def panics(content: dict[str, Any]) -> None:
    content["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": "/////wAAAAA="}


TOKENIZERS = (
    cases(
        RecordError,
        {
            "tokenizer with code": tokenizer_with_code(
                "tokenizer_config.json",
                tokenizer_class="Stranger",
                auto_map={"AutoTokenizer": ["stranger.Stranger"] * 2},
            ),
            "tokenizer that is none": tokenizer("tokenizer.json", lambda content: content.clear()),
            "tokenizer that is a list": tokenizer("tokenizer.json", lambda content: [1]),
            "tokenizer that panics": tokenizer("tokenizer.json", panics),
            "tokenizer with ids below zero": tokenizer("tokenizer.json", lambda c: c["model"]["vocab"].update(a=-1)),
            "tokenizer settings that are a list": tokenizer("tokenizer_config.json", lambda content: [1]),
            "tokenizer of a class that is none": tokenizer(
                "tokenizer_config.json", lambda c: c.update(tokenizer_class=[1])
            ),
            "tokenizer with an end of text that is none": tokenizer(
                "tokenizer_config.json", lambda c: c.update(eos_token={"content": 5})
            ),
            "tokenizer with a code map that is none": tokenizer(
                "tokenizer_config.json", lambda c: c.update(auto_map=7)
            ),
        },
        ("train",),
    )
    | cases(
        VocabularyMismatchError,
        {
            "vocabulary of padding": identity(vocab_size=60_000),
        },
        ("train",),
    )
    | cases(UnlistedFileError, {"tokenizer with a file more": with_extra_tokenizer_file}, FILES)
    | cases(UnlistedFileError, {"tokenizer with a link more": with_extra_tokenizer_link}, FILES)
    | cases(MissingFileError, {"no tokenizer": lambda cache_dir, _: shutil.rmtree(cache_dir / "tokenizer")}, FILES)
)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_hostile_cache_is_refused(require_refused: Callable[[Case], None], name: str) -> None:
    require_refused(TOKENIZERS[name])


@pytest.mark.parametrize("name", ["tokenizer_config.json", "config.json"])
@pytest.mark.parametrize("answer", ["y", "n"])
def test_code_beside_a_tokenizer_is_never_run_nor_offered(
    stranger: Path, forge: SimpleNamespace, name: str, answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = []
    monkeypatch.setattr("builtins.input", lambda *question: questions.append(question) or answer)
    code = {"AutoTokenizer": ["stranger.Stranger", "stranger.Stranger"], "AutoConfig": "stranger.Stranger"}
    tokenizer_with_code(name, auto_map=code, model_type="stranger", trust_remote_code=True)(stranger, forge)
    errors_of(train_a_student, stranger)
    assert questions == []
    assert not (outside(stranger) / "code-was-run").exists()


@pytest.mark.parametrize("num_tokens", [45, 51, 900])
def test_a_tokenizer_with_fewer_or_more_tokens_than_rows_of_the_output_is_served(
    stranger: Path, forge: SimpleNamespace, num_tokens: int
) -> None:
    vocabulary(num_tokens)(stranger, forge)
    assert errors_of(train_a_student, stranger) == []
