"""Every token of the corpus lands in exactly one store, documents whole and in order."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pipeline import BeamsConfig, PrecomputeConfig, SamplesConfig
from pipeline.corpus.blocks import prompts_from_column
from pipeline.corpus.token_store import TokenStore
from pipeline.corpus.tokenization import TokenizedCorpus, tokenize_corpus
from pipeline.errors import BadRowError, ChatTemplateError, NoUsableTextError
from pipeline.sources.corpus import Corpus, open_corpus
from pipeline.sources.documents import Document, Part

EOS = 256
CHAT_TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}>{% endif %}"
)


@pytest.fixture
def tokenize(tokenizer: Any, tmp_path: Path) -> Callable[..., TokenizedCorpus]:
    """Tokenizes texts, each one document (or a list of pieces), into a fresh directory."""
    numbers = itertools.count()

    def tokenize(
        texts: list[Any] | Corpus,
        *,
        tokenizer: Any = tokenizer,
        context_length: int = 64,
        beginning_ids: tuple[int, ...] = (),
        **changes: object,
    ) -> TokenizedCorpus:
        config = PrecomputeConfig(
            **({"teacher": "unused", "data": "made up", "out": tmp_path, "block_size": 8, "quiet": True} | changes)
        )
        corpus = texts if isinstance(texts, Corpus) else corpus_of(texts)
        return tokenize_corpus(
            corpus,
            tokenizer,
            config,
            vocab_size=257,
            beginning_ids=beginning_ids,
            context_length=context_length,
            work_dir=tmp_path / f"work-{next(numbers)}",
        )

    return tokenize


def corpus_of(texts: list[Any]) -> Corpus:
    def documents() -> Iterator[Document]:
        for text in texts:
            yield (
                text
                if isinstance(text, Document)
                else Document(pieces=[text] if isinstance(text, str) else text, prompts={})
            )

    return Corpus(source="made up", fingerprint_of=str, licence=None, parts=lambda _: [Part(documents=documents)])


def documents_of(store: TokenStore) -> list[list[int]]:
    return [store.document(i).tolist() for i in range(len(store.ends))]


def ids_of(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_train_and_validation_hold_every_document_once_and_in_order(
    tokenize: Callable[..., TokenizedCorpus], tokenizer: Any
) -> None:
    texts = [f"document number {i}" for i in range(400)]
    expected = [[*ids_of(tokenizer, text), EOS] for text in texts]
    tokenized = tokenize(texts, validation_fraction=0.2)
    splits = {split: documents_of(store) for split, store in tokenized.documents.items()}
    place = {tuple(ids): i for i, ids in enumerate(expected)}
    order = {split: [place[tuple(ids)] for ids in found] for split, found in splits.items()}
    assert sorted(order["train"] + order["validation"]) == list(range(400))
    assert all(indices == sorted(indices) for indices in order.values())
    # 400 draws with probability 0.2 have mean 80 and deviation 8.
    assert 50 < len(order["validation"]) < 110
    assert not tokenized.counts.validation_is_end_of_text
    assert tokenized.counts.num_documents == 400


def test_the_split_follows_the_seed_alone(tokenize: Callable[..., TokenizedCorpus]) -> None:
    texts = [f"document number {i}" for i in range(100)]

    def validation(**changes: object) -> list[list[int]]:
        return documents_of(tokenize(texts, validation_fraction=0.3, **changes).documents["validation"])

    assert validation() == validation(max_tokens=100_000)
    assert validation(seed=1) != validation()


def test_empty_and_one_token_documents_are_skipped_and_counted(
    tokenize: Callable[..., TokenizedCorpus], tokenizer: Any
) -> None:
    texts = ["a first document", "", "x", "ab", "", "the last document"]
    tokenized = tokenize(texts, validation_fraction=0.0)
    kept = [[*ids_of(tokenizer, text), EOS] for text in texts if len(text) > 1]
    assert documents_of(tokenized.documents["train"]) == kept
    assert (tokenized.counts.num_documents, tokenized.counts.num_documents_skipped) == (6, 3)


def test_empty_pieces_do_not_matter(tokenize: Callable[..., TokenizedCorpus]) -> None:
    whole = tokenize(["one document of two pieces", "another one"], validation_fraction=0.0)
    parts = tokenize([["", "one document", " of two pieces", ""], ["another one"]], validation_fraction=0.0)
    assert documents_of(parts.documents["train"]) == documents_of(whole.documents["train"])
    assert parts.counts.num_documents_skipped == 0


@pytest.mark.parametrize("chars_per_call", [1, 30])
def test_how_many_texts_share_a_tokenizer_call_changes_nothing(
    tokenize: Callable[..., TokenizedCorpus], monkeypatch: pytest.MonkeyPatch, chars_per_call: int
) -> None:
    texts = ["first", ["sec", "ond", " document"], "", ["th", "ird"], "fourth document"] * 3
    expected = tokenize(texts)
    monkeypatch.setattr("pipeline.corpus.tokenizer_calls._CHARS_PER_CALL", chars_per_call)
    found = tokenize(texts)
    for split in ("train", "validation"):
        assert documents_of(found.documents[split]) == documents_of(expected.documents[split])


def test_the_end_that_is_held_out_leaves_training_a_block(tokenize: Callable[..., TokenizedCorpus]) -> None:
    tokenized = tokenize(["a document that is long enough to share"], validation_fraction=0.9999)
    assert tokenized.counts.validation_is_end_of_text
    assert tokenized.documents["train"].num_tokens == 9
    assert tokenized.documents["validation"].num_tokens >= 9


def test_what_is_held_out_is_told_when_too_little_is_left(tokenize: Callable[..., TokenizedCorpus]) -> None:
    with pytest.raises(
        NoUsableTextError, match=r"leave 4 tokens to train on, beside \d+ held out.*validation-fraction"
    ):
        tokenize(["abc"] + ["a document that is long enough"] * 50, validation_fraction=0.9999)


@pytest.mark.parametrize("num_words", [4, 100])
def test_of_a_single_document_the_end_is_held_out(
    tokenize: Callable[..., TokenizedCorpus], tokenizer: Any, num_words: int
) -> None:
    text = " ".join(f"word{i}" for i in range(num_words))
    expected = [*ids_of(tokenizer, text), EOS]
    tokenized = tokenize([text], validation_fraction=0.1)
    train, validation = (tokenized.documents[split] for split in ("train", "validation"))
    assert tokenized.counts.validation_is_end_of_text
    assert train.tokens.tolist() + validation.tokens.tolist() == expected
    # A tenth, but at least one block.
    assert validation.num_tokens == max(len(expected) // 10, 9)
    assert (len(train.ends), len(validation.ends)) == (1, 1)


@pytest.mark.parametrize("seed", range(6))
def test_of_few_documents_the_end_is_held_out_and_no_token_is_lost(
    tokenize: Callable[..., TokenizedCorpus], tokenizer: Any, seed: int
) -> None:
    texts = ["the first of three documents", "short", "and the last one of them"]
    expected = [token for text in texts for token in [*ids_of(tokenizer, text), EOS]]
    tokenized = tokenize(texts, validation_fraction=0.4, seed=seed)
    train, validation = (tokenized.documents[split] for split in ("train", "validation"))
    assert sorted(train.tokens.tolist() + validation.tokens.tolist()) == sorted(expected)
    assert validation.num_tokens > 8
    for store in (train, validation):
        pieces = documents_of(store)
        assert sum(map(len, pieces)) == store.num_tokens
        assert all(EOS not in piece[:-1] for piece in pieces), "no piece runs over the end of its document"
    if tokenized.counts.validation_is_end_of_text:
        assert validation.tokens.tolist()[-9:] == expected[-9:]


def test_a_text_of_one_block_is_all_for_training(tokenize: Callable[..., TokenizedCorpus], tokenizer: Any) -> None:
    tokenized = tokenize(["twelve token"], validation_fraction=0.5)
    assert tokenized.documents["train"].tokens.tolist() == [*ids_of(tokenizer, "twelve token"), EOS]
    assert tokenized.documents["validation"].num_tokens == 0


def test_without_a_validation_fraction_nothing_is_held_out(tokenize: Callable[..., TokenizedCorpus]) -> None:
    tokenized = tokenize([f"document number {i}" for i in range(50)], validation_fraction=0.0)
    assert len(tokenized.documents["train"].ends) == 50
    assert tokenized.documents["validation"].num_tokens == 0
    assert not tokenized.counts.validation_is_end_of_text


def test_a_tokenizer_without_end_of_text_adds_nothing(
    tokenize: Callable[..., TokenizedCorpus], helpers: ModuleType, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    helpers.make_tokenizer(tmp_path / "tokenizer", eos_token=None)
    bare = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    tokenized = tokenize(["first document", "second"], tokenizer=bare, validation_fraction=0.0)
    expected = [ids_of(bare, "first document"), ids_of(bare, "second")]
    assert documents_of(tokenized.documents["train"]) == expected


@pytest.mark.parametrize("max_tokens", [20, 21, 60, 61, 62, 10_000])
def test_max_tokens_keeps_the_beginning(
    tokenize: Callable[..., TokenizedCorpus], tokenizer: Any, max_tokens: int
) -> None:
    texts = ["x" * 20, "y" * 39, "z" * 50]
    expected = [token for text in texts for token in [*ids_of(tokenizer, text), EOS]]
    tokenized = tokenize(texts, max_tokens=max_tokens, validation_fraction=0.0)
    found = tokenized.documents["train"].tokens.tolist()
    # A document that is cut short still gets its end-of-text.
    assert max_tokens <= len(found) <= max_tokens + 1 or found == expected
    assert found[: max_tokens - 1] == expected[: max_tokens - 1]
    assert found[-1] == EOS


def test_max_tokens_cuts_inside_a_document_of_many_pieces(
    tokenize: Callable[..., TokenizedCorpus], tokenizer: Any
) -> None:
    pieces = ["abcdefghij"] * 10
    tokenized = tokenize([pieces, "never reached"], max_tokens=37, validation_fraction=0.0)
    assert documents_of(tokenized.documents["train"]) == [[*ids_of(tokenizer, "".join(pieces))[:37], EOS]]
    assert tokenized.counts.num_documents == 1


def test_too_little_text_says_what_was_found(tokenize: Callable[..., TokenizedCorpus]) -> None:
    with pytest.raises(NoUsableTextError) as caught:
        tokenize(["abc", "", "x"])
    assert caught.value.num_tokens == {"train": 4, "validation": 0}
    assert "3 documents" in str(caught.value)
    assert "2 documents skipped" in str(caught.value)


def test_tokens_of_an_earlier_run_are_used_again(tokenizer: Any, tmp_path: Path) -> None:
    def never() -> Iterator[Document]:
        raise AssertionError("read again")
        yield

    config = PrecomputeConfig(teacher="unused", data="made up", out=tmp_path, block_size=8, quiet=True)
    found = [
        tokenize_corpus(corpus, tokenizer, config, vocab_size=257, context_length=64, work_dir=tmp_path / "work")
        for corpus in (
            corpus_of(["a document that is long enough"]),
            Corpus(source="", fingerprint_of=str, licence=None, parts=lambda _: [Part(documents=never)]),
        )
    ]
    assert found[0].counts == found[1].counts
    assert found[0].documents["train"].tokens.tolist() == found[1].documents["train"].tokens.tolist()


def test_a_tokenization_that_failed_halfway_leaves_nothing_to_be_used(
    tokenize: Callable[..., TokenizedCorpus], tokenizer: Any, tmp_path: Path
) -> None:
    def fails() -> Iterator[Document]:
        yield Document(pieces=["a document that is long enough"], prompts={})
        raise OSError("the disk went away")

    with pytest.raises(OSError, match="went away"):
        tokenize(Corpus(source="", fingerprint_of=str, licence=None, parts=lambda _: [Part(documents=fails)]))
    assert not (tmp_path / "work-0").exists()


def prompts_of(tokenized: TokenizedCorpus, column: str) -> list[list[int]]:
    return [ids for split in ("train", "validation") for ids in documents_of(tokenized.prompts[column][split])]


def test_prompts_follow_their_documents_and_those_that_do_not_fit_are_counted(
    tokenize: Callable[..., TokenizedCorpus], tokenizer: Any
) -> None:
    prompts = ["Who?", "", "x" * 52, "x" * 53, "Why is that?"]
    documents = [
        Document(pieces=[f"document number {i}"], prompts={"question": prompt}) for i, prompt in enumerate(prompts)
    ]
    documents.append(Document(pieces=["x"], prompts={"question": "of a skipped document"}))
    tokenized = tokenize(
        documents,
        samples=SamplesConfig(prompt_column="question", max_new_tokens=12),
        beams=BeamsConfig(prompt_column="question", max_new_tokens=5),
        validation_fraction=0.0,
    )
    assert prompts_of(tokenized, "question") == [ids_of(tokenizer, prompts[i]) for i in (0, 2, 4)]
    assert tokenized.counts.num_prompts_skipped == 2


def test_samples_and_beams_may_take_different_columns(tokenize: Callable[..., TokenizedCorpus], tokenizer: Any) -> None:
    documents = [
        Document(pieces=[f"document number {i}"], prompts={"b": f"beam {i}", "a": f"sample {i}"}) for i in range(40)
    ]
    tokenized = tokenize(
        documents,
        samples=SamplesConfig(prompt_column="a", max_new_tokens=8),
        beams=BeamsConfig(prompt_column="b", max_new_tokens=8),
        validation_fraction=0.3,
    )
    for column, word in (("a", "sample"), ("b", "beam")):
        for split in ("train", "validation"):
            numbers = [tokenizer.decode(ids).split()[2] for ids in documents_of(tokenized.documents[split])]
            numbers = [number.removesuffix("<|endoftext|>") for number in numbers]
            found = [tokenizer.decode(ids) for ids in documents_of(tokenized.prompts[column][split])]
            assert found == [f"{word} {number}" for number in numbers]


def test_chats_go_through_the_chat_template(tokenize: Callable[..., TokenizedCorpus], teacher_dir: Path) -> None:
    from transformers import AutoTokenizer

    chatty = AutoTokenizer.from_pretrained(teacher_dir)
    chatty.chat_template = CHAT_TEMPLATE
    chat = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "A"},
    ]
    settings = {"samples": SamplesConfig(prompt_column="chat", max_new_tokens=8), "validation_fraction": 0.0}
    documents = [Document(pieces=["a long document"], prompts={"chat": chat})]
    tokenized = tokenize(documents, tokenizer=chatty, **settings)
    assert prompts_of(tokenized, "chat") == [ids_of(chatty, "<user>Hi<assistant>Yes?<user>A>")]


def test_a_chat_that_begins_with_bos_gets_no_second_one(
    tokenize: Callable[..., TokenizedCorpus], teacher_dir: Path
) -> None:
    from transformers import AutoTokenizer

    chatty = AutoTokenizer.from_pretrained(teacher_dir)
    chatty.chat_template = "<|endoftext|>" + CHAT_TEMPLATE
    chat = [{"role": "user", "content": "Hi"}]
    settings = {"samples": SamplesConfig(prompt_column="chat", max_new_tokens=8), "validation_fraction": 0.0}
    documents = [Document(pieces=["a long document"], prompts={"chat": prompt}) for prompt in (chat, "Hi")]
    tokenized = tokenize(documents, tokenizer=chatty, beginning_ids=(256,), **settings)
    prompts = prompts_from_column(tokenized.prompts["chat"]["train"], 9, tokenized.beginning_ids)
    begun = [ids.tolist() for ids in prompts.prompt_ids]
    assert begun == [[256, *ids_of(chatty, "<user>Hi>")], [256, *ids_of(chatty, "Hi")]]


def test_a_beginning_takes_room_from_the_longest_prompt(tokenize: Callable[..., TokenizedCorpus]) -> None:
    samples = SamplesConfig(prompt_column="ask", max_new_tokens=8)
    documents = [Document(pieces=["a long document"], prompts={"ask": "x" * length}) for length in (6, 7, 8)]
    for num_beginning in range(3):
        tokenized = tokenize(documents, samples=samples, context_length=16, beginning_ids=(256,) * num_beginning)
        assert tokenized.counts.num_prompts_skipped == num_beginning


def test_chats_without_a_chat_template(tokenize: Callable[..., TokenizedCorpus]) -> None:
    documents = [Document(pieces=["a long document"], prompts={"chat": [{"role": "user", "content": "Hi"}]})]
    with pytest.raises(ChatTemplateError, match=r"no chat template; .* --chat-template FILE"):
        tokenize(documents, samples=SamplesConfig(prompt_column="chat", max_new_tokens=8))


def test_a_bad_chat_among_prompts_stops_the_run_or_is_counted(
    tokenize: Callable[..., TokenizedCorpus], teacher_dir: Path
) -> None:
    from transformers import AutoTokenizer

    chatty = AutoTokenizer.from_pretrained(teacher_dir)
    chatty.chat_template = "{{ raise_exception('no system here') }}"
    chat = [{"role": "system", "content": "Hi"}]
    documents = [Document(pieces=["a long document"], prompts={"chat": chat}, place="rows.jsonl: row 1")]
    settings: dict[str, Any] = {"tokenizer": chatty, "samples": SamplesConfig(prompt_column="chat", max_new_tokens=8)}
    with pytest.raises(BadRowError, match=r"--data rows\.jsonl: row 1, column 'chat': no system here; .*--on-bad-row"):
        tokenize(documents, **settings)
    counts = tokenize(documents, on_bad_row="skip", **settings).counts
    assert (counts.num_bad_rows, counts.num_prompts_skipped) == (0, 1)


def test_prompts_from_a_file_reach_the_store(
    tokenize: Callable[..., TokenizedCorpus], tokenizer: Any, tmp_path: Path
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": f"document {i}", "ask": f"q{i}"}) + "\n" for i in range(5)))
    samples = SamplesConfig(prompt_column="ask", max_new_tokens=8)
    config = PrecomputeConfig(teacher="unused", data=str(path), out=tmp_path / "out", samples=samples)
    tokenized = tokenize(open_corpus(config), samples=samples, validation_fraction=0.0)
    assert prompts_of(tokenized, "ask") == [ids_of(tokenizer, f"q{i}") for i in range(5)]
