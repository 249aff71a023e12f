"""Text from a student: the draws, pieces that join to the whole, ranked candidates, and speed."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import student
from pipeline.config import PrecomputeConfig
from pipeline.decoding.sampling import stream_completions
from pipeline.teacher.loading import load_teacher
from storage.errors import ConfigError
from storage.text.completions import completion_text
from student import Generator
from student.errors import BrokenStudentError, NoSuchStudentError, PromptError, StudentContextError
from student.generation import generator as generator_module
from student.generation.generator import generation_speeds
from student.model.tokenizers import load_tokenizer
from student.token_loop import collect_texts, draw_tokens

EOS = 256


def ids_of(directory: Path, text: str) -> list[int]:
    ids: list[int] = load_tokenizer(directory)(text, add_special_tokens=False)["input_ids"]
    return ids


def replay(patch: pytest.MonkeyPatch, *texts: list[int]) -> None:
    """The student draws these tokens; of texts that end it goes on with the first token."""
    longest = max(map(len, texts))

    def draw(*args: object, **settings: object) -> Iterator[list[int]]:
        return iter([[ids[i] if i < len(ids) else ids[0] for ids in texts] for i in range(longest)])

    patch.setattr(generator_module, "draw_tokens", draw)


def test_greedy_text_takes_the_most_probable_token(saved: Path, make_student: Callable[..., Any]) -> None:
    model, tokenizer = make_student(), load_tokenizer(saved)
    ids = tokenizer("the", add_special_tokens=False)["input_ids"]
    expected = list(ids)
    with torch.inference_mode():
        for _ in range(6):
            expected.append(int(model(torch.tensor([expected])).logits[0, -1].argmax()))
    assert 256 not in expected
    found = Generator(saved).generate("the", max_new_tokens=6, temperature=0.0, top_p=1.0, seed=0)
    assert found == tokenizer.decode(expected[3:], skip_special_tokens=True)


def test_sampled_text_follows_the_seed(saved: Path) -> None:
    texts = [
        Generator(saved).generate("the", max_new_tokens=20, temperature=1.0, top_p=0.95, seed=seed)
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_generation_settings_shipped_with_a_checkpoint_do_not_bend_greedy_text(saved: Path) -> None:
    expected = Generator(saved).generate("the", max_new_tokens=12, temperature=0.0, top_p=1.0, seed=0)
    settings = json.loads((saved / "generation_config.json").read_text())
    settings |= {"do_sample": True, "temperature": 5.0, "repetition_penalty": 3.0}
    (saved / "generation_config.json").write_text(json.dumps(settings))
    texts = {Generator(saved).generate("the", max_new_tokens=12, temperature=0.0, top_p=1.0, seed=s) for s in range(4)}
    assert texts == {expected}


def test_text_longer_than_the_context(saved: Path) -> None:
    assert Generator(saved).generate("x" * 32, max_new_tokens=32, temperature=1.0, top_p=1.0, seed=0)
    with pytest.raises(StudentContextError) as caught:
        Generator(saved).generate("x" * 32, max_new_tokens=33, temperature=1.0, top_p=1.0, seed=0)
    assert (caught.value.context_length, caught.value.needed) == (64, 65)


def teachers_texts(directory: Path, prompt: str, num_texts: int, **settings: Any) -> list[str]:
    """What the teacher's side draws with seeds 0, 1, …, all texts side by side."""
    teacher = load_teacher(PrecomputeConfig(teacher=str(directory), data="", out=directory, device="cpu"))
    prompts, seeds = [np.array(ids_of(directory, prompt))] * num_texts, np.arange(num_texts, dtype=np.uint64)
    completions = stream_completions(teacher, prompts, seeds, num_slots=num_texts, **settings)
    return [completion_text(teacher.tokenizer, prompts[0], c.completion_ids) for c in completions]


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.3, 1.0), (0.8, 0.95), (2.0, 0.5)])
def test_text_is_what_the_teachers_side_draws_of_the_same_model_with_the_same_seed(
    saved: Path, architecture: str, temperature: float, top_p: float
) -> None:
    if architecture == "llama":
        torch.manual_seed(3)
        config = LlamaConfig(
            vocab_size=257, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=64, initializer_range=0.3,
        )  # fmt: skip
        LlamaForCausalLM(config).save_pretrained(saved)
    settings = {"max_new_tokens": 40, "temperature": temperature, "top_p": top_p}
    generator = Generator(saved, device="cpu")
    found = [generator.generate("the teacher", seed=seed, **settings) for seed in range(5)]
    assert found == teachers_texts(saved, "the teacher", 5, **settings)
    assert len(set(found)) > 1


def test_tokens_are_drawn_as_often_as_the_student_finds_them_probable(saved: Path, generator: Generator) -> None:
    """One token of the nucleus, drawn with 4,000 seeds, against float64 probabilities cut by hand."""
    model = AutoModelForCausalLM.from_pretrained(saved).double().eval()
    with torch.inference_mode():
        probabilities = torch.softmax(model(torch.tensor([ids_of(saved, "a")])).logits[0, -1] / 1.5, dim=0)
    order = probabilities.argsort(descending=True)
    nucleus = order[: int((probabilities[order].cumsum(0) < 0.6).sum()) + 1]
    expected = (probabilities[nucleus] / probabilities[nucleus].sum()).tolist()
    num_draws = 4000
    steps = generator_module.draw_tokens(
        AutoModelForCausalLM.from_pretrained(saved).eval(), [np.array(ids_of(saved, "a"))] * num_draws,
        list(range(num_draws)), temperature=1.5, top_p=0.6,
    )  # fmt: skip
    counts = Counter(next(steps))
    assert counts.keys() <= set(nucleus.tolist())
    for token, probability in zip(nucleus.tolist(), expected, strict=True):
        spread = math.sqrt(num_draws * probability * (1 - probability))
        assert abs(counts[token] - num_draws * probability) < 5 * spread + 1


def test_random_state_and_gradients_of_the_caller_stay_as_they_are(generator: Generator) -> None:
    before = torch.get_rng_state()
    pieces = generator.stream("the", max_new_tokens=20)
    next(pieces)
    assert not torch.is_inference_mode_enabled()
    assert torch.is_grad_enabled()
    list(pieces)
    generator.candidates("the", 3, max_new_tokens=5)
    assert torch.equal(torch.get_rng_state(), before)


TEXTS = {
    "plain": b"the teacher ran once",
    "accents": "naïve café".encode(),
    "three and four bytes": "日本語 \U0001f600 ok \U0001f469‍\U0001f4bb".encode(),
    "half a character at the end": b"abc" + "語".encode()[:2],
    "no character in the middle": b"a\xff\xfeb\xe2c \xf0\x9f\x98d",
    "only halves": b"\xe2\xe2\xf0\x9f",
    "a replacement character of its own": "a\ufffdb\ufffd".encode(),
    "nothing": b"",
}


@pytest.mark.parametrize("name", TEXTS)
def test_pieces_are_whole_characters_and_join_to_the_text(
    saved: Path, generator: Generator, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    tokenizer = load_tokenizer(saved)
    byte_ids = {bytes([b]): tokenizer.convert_tokens_to_ids(char) for b, char in byte_characters().items()}
    ids = [byte_ids[bytes([b])] for b in TEXTS[name]]
    replay(monkeypatch, [*ids, EOS])
    pieces = list(generator.stream("x", max_new_tokens=60))
    whole = tokenizer.decode(ids)
    assert "".join(pieces) == whole == TEXTS[name].decode(errors="replace")
    assert "" not in pieces
    if "\ufffd" not in whole:
        assert pieces == list(whole), "a character is given as soon as its last byte is drawn"


def byte_characters() -> dict[int, str]:
    """How a byte-level tokenizer writes each byte (Radford et al. 2019): itself, or shifted if it is no character."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    shifted = [b for b in range(256) if b not in plain]
    return {b: chr(b) for b in plain} | {b: chr(256 + i) for i, b in enumerate(shifted)}


def test_a_piece_comes_before_the_next_token_is_drawn(
    generator: Generator, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []

    def draw(*args: object, **settings: object) -> Iterator[list[int]]:
        for token in ids_of(saved, "abc"):
            drawn.append(token)
            yield [token]

    monkeypatch.setattr(generator_module, "draw_tokens", draw)
    for num_pieces, _ in enumerate(generator.stream("x", max_new_tokens=60), start=1):
        assert len(drawn) == num_pieces


def test_the_prompt_is_read_once_and_then_one_token_at_a_time(
    generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator.generate("x", max_new_tokens=1)  # The first text tries out the key-value cache.
    lengths = []
    model = generator._model
    original = model.forward

    def forward(input_ids: torch.Tensor, **settings: Any) -> Any:
        lengths.append(tuple(input_ids.shape))
        return original(input_ids=input_ids, **settings)

    monkeypatch.setattr(model, "forward", forward)
    generator.generate("the teacher", max_new_tokens=4, temperature=0)
    assert lengths == [(1, 11), (1, 1), (1, 1), (1, 1)]


def test_text_ends_where_the_student_ends_it(
    generator: Generator, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replay(monkeypatch, [*ids_of(saved, "ab"), EOS, *ids_of(saved, "cd")])
    assert generator.generate("x", max_new_tokens=60) == "ab"


@torch.inference_mode()
def naive_score(directory: Path, prompt: str, ids: list[int], length_penalty: float) -> float:
    """In float64 and without the key-value cache."""
    model, prompt_ids = AutoModelForCausalLM.from_pretrained(directory).double().eval(), ids_of(directory, prompt)
    logprobs = torch.log_softmax(model(torch.tensor([prompt_ids + ids])).logits[0], dim=1)
    total = sum(float(logprobs[len(prompt_ids) - 1 + i, token]) for i, token in enumerate(ids))
    return total / len(ids) ** length_penalty


@pytest.mark.parametrize("length_penalty", [None, 0.0, 2.0])
def test_candidates_are_ranked_by_the_score_that_selection_trained(
    saved: Path, monkeypatch: pytest.MonkeyPatch, length_penalty: float | None
) -> None:
    (saved / "run.json").write_text(json.dumps({"length_penalty": length_penalty}))
    drawn = [ids_of(saved, "abc"), [*ids_of(saved, "a"), EOS], [EOS], ids_of(saved, "zzz"), [*ids_of(saved, "ab"), EOS]]
    replay(monkeypatch, *drawn)
    found = Generator(saved, device="cpu").candidates("the", len(drawn), max_new_tokens=9)
    penalty = 1.0 if length_penalty is None else length_penalty
    truth = sorted(
        (-naive_score(saved, "the", ids, penalty), load_tokenizer(saved).decode(ids, skip_special_tokens=True), ids)
        for ids in drawn
    )
    assert [candidate.text for candidate in found] == [text for _, text, _ in truth]
    for candidate, (minus_score, _, ids) in zip(found, truth, strict=True):
        assert candidate.score == pytest.approx(-minus_score, abs=1e-4)
        assert candidate.finish_reason == ("stop" if ids[-1] == EOS else "length")


def test_equal_texts_are_one_candidate_with_the_best_of_their_scores(
    saved: Path, generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended, cut = [*ids_of(saved, "ab"), EOS], ids_of(saved, "ab")
    scores = {"stop": naive_score(saved, "the", ended, 1.0), "length": naive_score(saved, "the", cut, 1.0)}
    monkeypatch.setattr(generator_module, "draw_tokens", lambda *args, **settings: iter([[i, i, i] for i in cut]))
    [alone] = generator.candidates("the", 3, max_new_tokens=2)
    assert (alone.text, alone.finish_reason) == ("ab", "length")
    monkeypatch.setattr(
        generator_module, "draw_tokens", lambda *args, **settings: iter([[cut[0]] * 2, [cut[1]] * 2, [EOS, cut[0]]])
    )
    found = {candidate.text: candidate for candidate in generator.candidates("the", 2, max_new_tokens=3)}
    assert found.keys() == {"ab", "aba"}
    assert found["ab"].score == pytest.approx(scores["stop"], abs=1e-4)
    assert alone.score == pytest.approx(scores["length"], abs=1e-4)


def test_a_candidate_is_the_text_of_its_own_seed_however_many_are_drawn(generator: Generator) -> None:
    settings = {"max_new_tokens": 20, "temperature": 1.0, "top_p": 0.9}
    texts = [generator.generate("the", seed=7 + i, **settings) for i in range(6)]
    assert len(set(texts)) > 3
    for num_candidates in (1, 2, 6):
        found = generator.candidates("the", num_candidates, seed=7, **settings)
        assert {candidate.text for candidate in found} == set(texts[:num_candidates])
        assert [c.score for c in found] == sorted((c.score for c in found), reverse=True)


def test_of_a_prompt_too_long_the_end_is_read_when_asked(generator: Generator) -> None:
    settings = {"max_new_tokens": 10, "seed": 3}
    prompt = "".join(chr(97 + i % 26) for i in range(200))
    assert generator.num_tokens(prompt) == 200
    assert generator.generate(prompt, keep_end=True, **settings) == generator.generate(prompt[-54:], **settings)
    assert generator.candidates(prompt, 3, keep_end=True, **settings) == generator.candidates(
        prompt[-54:], 3, **settings
    )
    for draw in (generator.generate, generator.stream):
        with pytest.raises(StudentContextError):
            draw(prompt[-55:], **settings)
        with pytest.raises(StudentContextError):
            draw(prompt, max_new_tokens=64, keep_end=True)


def test_an_empty_prompt_is_continued_from_the_end_of_text(generator: Generator, saved: Path) -> None:
    assert generator.num_tokens("") == 1
    steps = draw_tokens(generator._model, [np.array([EOS])], [1], temperature=1.0, top_p=1.0)
    [drawn] = collect_texts(itertools.islice(steps, 9), (EOS,))
    settings = {"max_new_tokens": 9, "temperature": 1.0, "top_p": 1.0, "seed": 1}
    assert generator.generate("", **settings) == completion_text(generator._tokenizer, [EOS], drawn)


def test_a_control_token_that_a_prompt_spells_out_is_characters(generator: Generator) -> None:
    assert generator.num_tokens("<|endoftext|>") == len("<|endoftext|>")


@pytest.mark.parametrize(
    "settings",
    [
        {"max_new_tokens": 0}, {"temperature": -0.1}, {"temperature": math.nan}, {"temperature": math.inf},
        {"temperature": 1e-30}, {"top_p": 0.0}, {"top_p": 1.1}, {"top_p": math.nan}, {"seed": -1}, {"seed": 1 << 63},
    ],
    ids=str,
)  # fmt: skip
def test_settings_out_of_range_are_refused_before_anything_is_drawn(
    generator: Generator, settings: dict[str, Any]
) -> None:
    for draw in (generator.stream, generator.generate, lambda prompt, **s: generator.candidates(prompt, 2, **s)):
        with pytest.raises(ConfigError):
            draw("the", **settings)


def test_the_smallest_temperature_is_nearly_greedy(generator: Generator) -> None:
    expected = generator.generate("the", temperature=0, max_new_tokens=20)
    assert generator.generate("the", temperature=1e-4, seed=5, max_new_tokens=20) == expected


@pytest.mark.parametrize(("num_candidates", "temperature"), [(0, 1.0), (-1, 1.0), (3, 0.0)])
def test_candidates_that_cannot_be_drawn(generator: Generator, num_candidates: int, temperature: float) -> None:
    with pytest.raises(ConfigError):
        generator.candidates("the", num_candidates, temperature=temperature)


def test_a_prompt_that_is_no_text_and_a_student_that_is_none(generator: Generator, tmp_path: Path) -> None:
    with pytest.raises(PromptError) as caught:
        generator.stream("ab\udcff")
    assert caught.value.place == 2
    with pytest.raises(NoSuchStudentError):
        Generator(tmp_path / "nothing")


def test_a_student_whose_weights_are_not_finite(saved: Path, make_student: Callable[..., Any]) -> None:
    model = make_student()
    model.transformer.ln_f.weight.data[0] = math.nan
    model.save_pretrained(saved)
    for temperature in (0.0, 1.0):
        with pytest.raises(BrokenStudentError, match=str(saved)):
            Generator(saved, device="cpu").generate("the", temperature=temperature, max_new_tokens=9)


def test_the_package_offers_the_generator_and_nothing_by_another_name() -> None:
    assert student.Generator is Generator
    with pytest.raises(AttributeError):
        student.Generatr  # noqa: B018


def test_speed_is_that_of_the_fastest_of_runs_that_models_take_in_turns(
    make_student: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock on which two models' runs take 100 and 8, 1 and 4, 4 and 2 seconds."""
    clock = iter([0.0, 100.0, 100.0, 108.0, 108.0, 109.0, 109.0, 113.0, 113.0, 117.0, 117.0, 119.0])
    monkeypatch.setattr(generator_module.time, "perf_counter", lambda: next(clock))
    model = make_student()
    assert generation_speeds([model, model], new_tokens=8, rounds=3) == [8.0, 4.0]


@pytest.mark.parametrize("context_length", [2, 3, 40])
def test_the_speed_of_a_student_with_a_short_context(make_student: Callable[..., Any], context_length: int) -> None:
    assert generation_speeds([make_student(n_positions=context_length)], rounds=1)[0] > 0
