"""A student begins and ends its texts as it was trained to, by what its directory says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from student import Generator
from student.errors import CheckpointError, IdBeyondVocabularyError, StudentContextError
from student.generation.candidates import _continuation_ids, rank_candidates
from student.model.framing import Framing, read_framing
from student.model.loading import load_student
from student.model.tokenizers import load_tokenizer
from tests.storage.text.tokenizer_families import FAMILIES, sentencepiece_bpe

BOS, EOS, EOT = 1, 2, 3


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """A random Llama whose generation config names two ends, beside a tokenizer that begins texts with BOS."""
    tokenizer = sentencepiece_bpe()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=24, initializer_range=0.4, eos_token_id=EOS,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=[EOS, EOT])
    model.save_pretrained(tmp_path / "llama")
    tokenizer.save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


def framing_of(directory: Path) -> Framing:
    return read_framing(directory, load_student(directory), load_tokenizer(directory))


def test_the_beginning_is_that_of_the_run_else_the_tokenizers(llama: Path) -> None:
    assert framing_of(llama) == Framing(beginning_ids=(BOS,), end_ids=(EOS, EOT))
    for run, expected in (({"beginning_ids": [4, 5]}, (4, 5)), ({"beginning_ids": []}, ()), ({"preset": "mini"}, ())):
        (llama / "run.json").write_text(json.dumps(run))
        assert framing_of(llama).beginning_ids == expected
    for damaged in ([9999], "1", [-1], [True], None):
        (llama / "run.json").write_text(json.dumps({"beginning_ids": damaged}))
        with pytest.raises(CheckpointError, match=r"run\.json: .*beginning_ids"):
            framing_of(llama)


@torch.inference_mode()
def greedy(directory: Path, ids: list[int], num_new: int) -> list[int]:
    """The most probable tokens behind these ids, by whole passes, up to an end."""
    model, drawn = load_student(directory), list[int]()
    while len(drawn) < num_new and drawn[-1:] not in ([EOS], [EOT]):
        drawn.append(int(model(input_ids=torch.tensor([[*ids, *drawn]])).logits[0, -1].argmax()))
    return drawn


@pytest.mark.parametrize("prompt", ["the cat", "", "a student"])
def test_generated_text_follows_bos_and_prompt(llama: Path, prompt: str) -> None:
    tokenizer = load_tokenizer(llama)
    ids = tokenizer(prompt)["input_ids"]
    assert ids[0] == BOS
    drawn = greedy(llama, ids, 10)
    text = Generator(llama, device="cpu").generate(prompt, max_new_tokens=10, temperature=0)
    before, whole = (tokenizer.decode(some, skip_special_tokens=True) for some in (ids, ids + drawn))
    assert before + text == whole
    assert text


def test_the_end_of_a_long_prompt_keeps_its_beginning(llama: Path) -> None:
    generator, prompt = Generator(llama, device="cpu"), "the cat sat on the mat and it sat and sat on the cat"
    ids = load_tokenizer(llama)(prompt, add_special_tokens=False)["input_ids"]
    assert len(ids) > 18
    drawn = greedy(llama, [BOS, *ids[-17:]], 6)
    found = generator.generate(prompt, max_new_tokens=6, temperature=0, keep_end=True)
    tokenizer = load_tokenizer(llama)
    whole = tokenizer.decode([BOS, *ids[-17:], *drawn], skip_special_tokens=True)
    assert whole.endswith(found)
    with pytest.raises(StudentContextError):
        generator.generate("the", max_new_tokens=23, keep_end=True)


def test_a_text_stops_at_any_end(llama: Path) -> None:
    tokenizer = load_tokenizer(llama)
    drawn = greedy(llama, tokenizer("the cat")["input_ids"], 12)
    assert len(drawn) == 12
    settings = json.loads((llama / "generation_config.json").read_text())
    settings["eos_token_id"] = [EOS, drawn[4]]
    (llama / "generation_config.json").write_text(json.dumps(settings))
    found = Generator(llama, device="cpu").candidates("the cat", 3, max_new_tokens=12, temperature=1e-4)
    assert found[0].finish_reason == "stop"
    assert len(drawn[: drawn.index(drawn[4]) + 1]) <= 5


@torch.inference_mode()
def test_selection_scores_the_tokens_of_the_whole_text(llama: Path) -> None:
    model, tokenizer, framing = load_student(llama), load_tokenizer(llama), framing_of(llama)
    texts = [" sat", " cat", "s"]
    ranked = rank_candidates(model, tokenizer, framing, "the cat", texts, 1.0)
    prompt_ids = tokenizer("the cat")["input_ids"]
    for candidate in ranked:
        whole = tokenizer("the cat" + candidate.text)["input_ids"]
        assert whole[: len(prompt_ids)] == prompt_ids
        logprobs = torch.log_softmax(model(input_ids=torch.tensor([whole])).logits[0].double(), dim=1)
        expected = [float(logprobs[t, whole[t + 1]]) for t in range(len(prompt_ids) - 1, len(whole) - 1)]
        assert candidate.score == pytest.approx(sum(expected) / len(expected), abs=1e-4)


@pytest.mark.parametrize("family", ["sentencepiece_bpe", "unigram"])
def test_a_candidate_has_no_second_mark_of_a_words_beginning(family: str) -> None:
    tokenizer = FAMILIES[family]()
    mark = tokenizer.convert_tokens_to_ids("▁")
    for prompt, text in (("the cat", " sat"), ("the ca", "t"), ("the cat ", "sat"), ("it's", ".")):
        ids = _continuation_ids(tokenizer, prompt, text)
        assert ids.count(mark) <= text.count(" "), (prompt, text)
        assert tokenizer.decode(tokenizer(prompt, add_special_tokens=False)["input_ids"] + ids) == prompt + text
    assert _continuation_ids(tokenizer, "", "sat") == tokenizer("sat", add_special_tokens=False)["input_ids"]


def test_a_token_without_a_row_is_refused_where_it_is_used(llama: Path) -> None:
    file = llama / "tokenizer.json"
    content: dict[str, Any] = json.loads(file.read_text())
    token_id = len(content["model"]["vocab"])
    content["model"]["vocab"]["<tool>"] = token_id
    content["added_tokens"].append(dict(content["added_tokens"][0], id=token_id, content="<tool>", special=False))
    file.write_text(json.dumps(content))
    generator = Generator(llama, device="cpu")
    assert generator.generate("the", max_new_tokens=2)
    with pytest.raises(IdBeyondVocabularyError, match=rf"holds '<tool>', id {token_id} to its tokenizer"):
        generator.generate("the <tool>", max_new_tokens=2)
