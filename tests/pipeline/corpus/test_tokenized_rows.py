"""Conversations and pairs in the token stores: ids of the whole, flags of what is taught, ends, bad rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from pipeline import PrecomputeConfig, SamplesConfig
from pipeline.corpus.token_store import TokenStore
from pipeline.corpus.tokenization import TokenizedCorpus, tokenize_corpus
from pipeline.errors import BadRowError
from pipeline.sources.corpus import Corpus
from pipeline.sources.documents import Document, Part
from pipeline.sources.turns import Conversation, Pair
from tests.pipeline.corpus.chats.templates import CHATML, CONVERSATION

EOS = 256
BAD = [{"role": "user", "content": None}]


@pytest.fixture
def tokenize(teacher_dir: Path, tmp_path: Path) -> Callable[..., TokenizedCorpus]:
    def tokenize(documents: list[Document], beginning_ids: tuple[int, ...] = (), **settings: Any) -> TokenizedCorpus:
        def read() -> Iterator[Document]:
            yield from documents

        tokenizer = AutoTokenizer.from_pretrained(teacher_dir)
        tokenizer.chat_template = CHATML
        config = PrecomputeConfig(
            teacher="t", data="d", out=tmp_path, block_size=8, quiet=True, validation_fraction=0.0, **settings
        )
        corpus = Corpus(source="made up", fingerprint_of=str, licence=None, parts=lambda _: [Part(documents=read)])
        work_dir = tmp_path / f"work-{len(list(tmp_path.iterdir()))}"
        return tokenize_corpus(
            corpus, tokenizer, config, vocab_size=257, context_length=64, work_dir=work_dir,
            beginning_ids=beginning_ids,
        )  # fmt: skip

    return tokenize


def row(turns: Conversation | Pair | str, number: int = 1) -> Document:
    place = f"rows.jsonl: row {number}"
    if isinstance(turns, str):
        return Document(pieces=[turns], prompts={}, place=place)
    return Document(pieces=[], prompts={}, turns=turns, place=place)


def wanted_of(store: TokenStore) -> list[list[tuple[int, bool]]]:
    """Ids and flags of each document, without what lengthens it to the end of its block."""
    assert store.is_wanted is not None
    starts = [0, *store.ends[:-1].tolist()]
    documents = []
    for start, stop in zip(starts, store.ends.tolist(), strict=True):
        document = list(zip(store.tokens[start:stop].tolist(), store.is_wanted[start:stop].tolist(), strict=True))
        while document[-1] == (EOS, False):
            document.pop()
        documents.append(document)
    return documents


def flagged(*parts: tuple[str, bool], end: bool) -> list[tuple[int, bool]]:
    """The ids of a byte-level tokenizer whose ids are the sorted alphabet's places."""
    from tokenizers.pre_tokenizers import ByteLevel

    alphabet = sorted(ByteLevel.alphabet())
    shown = {part: ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(part)[0][0] for part, _ in parts}
    ids = [(alphabet.index(char), flag) for part, flag in parts for char in shown[part]]
    return ids + ([(EOS, True)] if end else [])


def test_conversations_pairs_and_texts_in_one_store(tokenize: Callable[..., TokenizedCorpus]) -> None:
    documents = [
        row(Conversation(CONVERSATION[1:3])),
        row(Pair("Q: who? A:", " a teacher")),
        row("a plain text of the same directory"),
        row(Pair(CONVERSATION[1:2], "She.")),
    ]
    question = "<|im_start|>user\nWho taught you?<|im_end|>\n<|im_start|>assistant\n"
    assert wanted_of(tokenize(documents, messages_column="messages").documents["train"]) == [
        flagged((question, False), ("A teacher did.<|im_end|>\n", True), end=False),
        flagged(("Q: who? A:", False), (" a teacher", True), end=True),
        flagged(("a plain text of the same directory", True), end=True),
        flagged((question, False), ("She.<|im_end|>\n", True), end=False),
    ]


def test_a_beginning_that_the_template_writes_is_not_doubled(tokenize: Callable[..., TokenizedCorpus]) -> None:
    ((first_id, _),) = flagged(("<", False), end=False)  # CHATML begins with it
    documents = [row(Conversation(CONVERSATION[1:3])), row(Pair("Q: who? A:", " a teacher"))]
    tokenized = tokenize(documents, beginning_ids=(first_id,), messages_column="messages")
    question = "|im_start|>user\nWho taught you?<|im_end|>\n<|im_start|>assistant\n"
    assert wanted_of(tokenized.documents["train"]) == [
        flagged((question, False), ("A teacher did.<|im_end|>\n", True), end=False),
        flagged(("Q: who? A:", False), (" a teacher", True), end=True),
    ]


def test_max_tokens_cuts_ids_and_flags_alike(tokenize: Callable[..., TokenizedCorpus]) -> None:
    whole = tokenize([row(Pair("Q: who? A:", " a teacher"))] * 3, prompt_column="p", completion_column="c")
    cut = tokenize([row(Pair("Q: who? A:", " a teacher"))] * 3, prompt_column="p", completion_column="c", max_tokens=25)
    (first, second, _), (same, short) = wanted_of(whole.documents["train"]), wanted_of(cut.documents["train"])
    assert same == first
    assert short == [*second[: 25 - len(first)], (EOS, True)]


def test_a_bad_row_stops_the_run_and_is_named(tokenize: Callable[..., TokenizedCorpus]) -> None:
    documents = [row(Conversation(CONVERSATION)), row(Conversation(BAD), 2)]
    with pytest.raises(
        BadRowError,
        match=r"^--data rows\.jsonl: row 2, column 'messages': message 1 has nothing for content, expected text; "
        "mend the row, take it out, or give --on-bad-row skip$",
    ):
        tokenize(documents, messages_column="messages")


def test_both_columns_of_a_bad_pair_are_named(tokenize: Callable[..., TokenizedCorpus]) -> None:
    with pytest.raises(BadRowError, match=r"row 1, columns 'p' and 'c': the completion is nothing, expected text"):
        tokenize([row(Pair("Who?", None))], prompt_column="p", completion_column="c")


def test_a_conversation_that_the_assistant_begins_is_taught_and_gives_no_prompt(
    tokenize: Callable[..., TokenizedCorpus],
) -> None:
    question, answer = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes."}
    documents = [
        dataclasses.replace(row(Conversation(turns)), prompts={"messages": turns})
        for turns in ([answer], [question, answer])
    ]
    short = SamplesConfig(max_new_tokens=1)
    tokenized = tokenize(documents, messages_column="messages", kinds=("samples",), samples=short)
    assert len(wanted_of(tokenized.documents["train"])) == 2
    assert len(tokenized.prompts["messages"]["train"].ends) == 1
    assert tokenized.counts.num_prompts_skipped == 1


def test_bad_rows_are_skipped_and_counted(tokenize: Callable[..., TokenizedCorpus]) -> None:
    documents = [row(Conversation(turns)) for turns in (BAD, CONVERSATION, None, CONVERSATION, CONVERSATION[:2])]
    tokenized = tokenize(documents, messages_column="messages", on_bad_row="skip")
    assert len(wanted_of(tokenized.documents["train"])) == 2
    assert tokenized.counts.facts() == {
        "num_documents": 5,
        "num_documents_skipped": 0,
        "num_prompts_skipped": 0,
        "validation_is_end_of_text": False,
        "num_bad_rows": 3,
    }


def test_without_bad_rows_the_facts_are_those_of_before(tokenize: Callable[..., TokenizedCorpus]) -> None:
    assert "num_bad_rows" not in tokenize([row("a plain text of one document")]).counts.facts()


def test_control_tokens_are_characters_in_pairs_and_counted_in_messages(
    tokenize: Callable[..., TokenizedCorpus],
) -> None:
    spelt = "Is <|endoftext|> a word?"
    answer = {"role": "assistant", "content": "No."}
    documents = [row(Pair(spelt, " No.")), row(Conversation([{"role": "user", "content": spelt}, answer]))]
    tokenized = tokenize(documents, prompt_column="p", completion_column="c")
    pair, conversation = wanted_of(tokenized.documents["train"])
    assert pair == flagged((spelt, False), (" No.", True), end=True)
    assert (EOS, False) in conversation
    assert tokenized.counts.num_control_tokens == {"<|endoftext|>": 1}
    assert tokenized.counts.num_chat_control_tokens == {"<|endoftext|>": 1}


def test_a_tokenizer_without_offsets_gives_the_same(
    tokenize: Callable[..., TokenizedCorpus], monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = [row(Conversation(CONVERSATION)), row(Pair("Q: who? A:", " a teacher"))]
    expected = wanted_of(tokenize(documents, messages_column="messages").documents["train"])
    from transformers import PreTrainedTokenizerFast

    monkeypatch.setattr(PreTrainedTokenizerFast, "is_fast", False)
    assert wanted_of(tokenize(documents, messages_column="messages").documents["train"]) == expected
