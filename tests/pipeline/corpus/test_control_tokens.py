"""Control tokens that texts spell out are characters, counted and told."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from pipeline import PrecomputeConfig, SamplesConfig
from pipeline.corpus import long_texts, tokenization_key
from pipeline.corpus.notices import tokenization_notices
from pipeline.corpus.tokenization import TokenizedCorpus, tokenize_corpus
from pipeline.estimate import render_plan
from pipeline.run import plan_only, precompute
from pipeline.sources.corpus import Corpus
from pipeline.sources.documents import Document, Part
from tests.storage.text.families import tokenizer_of

END = "<|endoftext|>"


def corpus_of(documents: Iterable[Document]) -> Corpus:
    return Corpus(
        source="made up", fingerprint_of=str, licence=None, parts=lambda _: [Part(documents=lambda: iter(documents))]
    )


def unused_config(**changes: Any) -> PrecomputeConfig:
    return PrecomputeConfig(teacher="unused", data="a.txt", out="unused", **changes)


@pytest.fixture
def tokenize(tmp_path: Path) -> Callable[..., TokenizedCorpus]:
    """Tokenizes documents, with nothing held out."""

    def tokenize(tokenizer: Any, *documents: Document, **changes: Any) -> TokenizedCorpus:
        config = unused_config(block_size=2, validation_fraction=0, quiet=True, **changes)
        return tokenize_corpus(
            corpus_of(documents),
            tokenizer,
            config,
            vocab_size=len(tokenizer),
            context_length=64,
            work_dir=tmp_path / "work",
        )

    return tokenize


def test_documents_and_prompts_hold_the_end_of_text_only_at_the_end(
    tokenize: Callable[..., TokenizedCorpus], tokenizer: Any
) -> None:
    document = Document(pieces=["one ", f"st{END}ory.{END[:5]}", END[5:]], prompts={"ask": f"who{END}?"})
    found = tokenize(tokenizer, document, samples=SamplesConfig(prompt_column="ask", max_new_tokens=8))
    tokens = found.documents["train"].tokens.tolist()
    assert tokens.index(tokenizer.eos_token_id) == len(tokens) - 1
    assert len(tokens) == len(f"one st{END}ory.{END}") + 1
    assert len(found.prompts["ask"]["train"].tokens) == len(f"who{END}?")
    assert found.counts.num_control_tokens == {END: 3}
    assert found.counts.facts()["num_control_tokens"] == {END: 3}


@pytest.mark.parametrize("window_chars", [40, 41, 47, 60])
def test_each_is_counted_once_wherever_windows_and_pieces_end(
    tokenize: Callable[..., TokenizedCorpus], tokenizer: Any, monkeypatch: pytest.MonkeyPatch, window_chars: int
) -> None:
    monkeypatch.setattr(long_texts, "WINDOW_CHARS", window_chars)
    monkeypatch.setattr(long_texts, "OVERLAP_CHARS", 15)
    text = f"a{END}b{END}{END} and more words " * 9
    found = tokenize(tokenizer, Document(pieces=[text[:33], text[33:40], text[40:]], prompts={}))
    assert found.counts.num_control_tokens == {END: 27}
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert found.documents["train"].tokens.tolist() == [*ids, tokenizer.eos_token_id]


def test_a_template_reads_them_in_messages_as_control_tokens(
    tokenize: Callable[..., TokenizedCorpus], teacher_dir: Path
) -> None:
    chatty = AutoTokenizer.from_pretrained(teacher_dir)
    chatty.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    chat = [{"role": "user", "content": f"say {END}"}]
    document = Document(pieces=["a document"], prompts={"chat": chat})
    found = tokenize(chatty, document, samples=SamplesConfig(prompt_column="chat", max_new_tokens=8))
    assert found.counts.num_chat_control_tokens == {END: 1}
    assert found.counts.num_control_tokens == {}
    [notice] = tokenization_notices(unused_config(), found.counts.facts())
    assert f"messages of chats spell out {END} 1 time;" in notice


def test_a_document_that_begins_with_a_token_of_its_own_is_not_skipped(
    tokenize: Callable[..., TokenizedCorpus], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(long_texts, "WINDOW_CHARS", 300)
    monkeypatch.setattr(long_texts, "OVERLAP_CHARS", 100)
    tokenizer = tokenizer_of("wordpiece")
    found = tokenize(tokenizer, Document(pieces=["q" * 1_000 + " the teacher once knew"], prompts={}))
    assert found.counts.num_documents_skipped == 0
    assert found.counts.num_inexact_cuts > 0
    [notice] = tokenization_notices(unused_config(), found.counts.facts())
    assert notice.startswith(f"--data a.txt: {found.counts.num_inexact_cuts} cuts of long documents")


def test_a_separator_is_proposed_where_it_may_be_missing() -> None:
    facts = {"num_control_tokens": {"<b>": 2, END: 3, "<a>": 2}}
    read = f"--data a.txt: the text spells out {END} 3 times, <a> 2 times, <b> 2 times; they were read as characters."
    remedy = f" If one separates the documents of a text file, name it: --document-separator '{END}'"
    assert tokenization_notices(unused_config(), facts) == [read + remedy]
    assert tokenization_notices(unused_config(document_separator=END), facts) == [read]
    assert tokenization_notices(unused_config(prompt_column="p", completion_column="c"), facts) == [read]


def test_a_run_tells_them_once_and_its_plan_too(
    configure: Callable[..., PrecomputeConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "stories.txt"
    path.write_text(f"one story of the teacher.\n{END}\nanother one.\n" * 60)
    config = configure(tmp_path / "out", data=str(path), document_separator=None, kinds=("soft_targets",))
    told = f"--data {path}: the text spells out {END} 60 times; they were read as characters."
    assert told in plan_only(config, render_plan)
    capsys.readouterr()
    manifest = precompute(config)
    assert capsys.readouterr().err.count(told) == 1
    assert manifest.identity.data["num_control_tokens"] == {END: 60}
    named = dataclasses.replace(config, out=tmp_path / "named", document_separator=END)
    data = precompute(named).identity.data
    assert END not in capsys.readouterr().err
    assert data["num_documents"] == 61
    assert "num_control_tokens" not in data


def test_tokens_of_another_rule_are_not_used_again(
    configure: Callable[..., PrecomputeConfig], tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def key() -> str:
        return tokenization_key.tokenization_key(corpus_of([]), tokenizer, configure(tmp_path / "out"))

    before = key()
    assert key() == before
    monkeypatch.setattr(tokenization_key, "TOKENIZATION_RULE", "another")
    assert key() != before
