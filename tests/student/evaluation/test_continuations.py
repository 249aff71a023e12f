"""The student's texts against a loop without batches, padding or kept keys, and against the teacher's own."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from storage import Cache
from storage.draws import hash_uniform
from storage.errors import RecordError
from storage.rows.samples import SampleRow, decode
from storage.sharing.merging import merge
from student.evaluation.continuations import SamplingSettings, choose_prompts, continue_prompts
from tests.naive_sampler import naive_draw


@torch.inference_mode()
def naive_text(model: Any, row: SampleRow, settings: SamplingSettings) -> list[int]:
    ids, text = row.prompt_ids.tolist(), []
    for step in range(settings.max_new_tokens):
        logits = model(input_ids=torch.tensor([ids + text]), use_cache=False).logits[0, -1].double().numpy()
        uniform = float(hash_uniform(np.uint64(row.seed), step))
        text.append(naive_draw(logits, uniform, settings.temperature, settings.top_p))
        if text[-1] in settings.end_ids:
            break
    return text


def make_rows(num_rows: int, vocab_size: int = 257) -> list[SampleRow]:
    """Prompts of 1 to 9 tokens."""
    rng = np.random.default_rng(0)
    return [
        SampleRow(
            row_id=i, prompt_id=i, sample_index=0, prompt_ids=rng.integers(0, vocab_size, 1 + 4 * i % 9),
            completion_ids=np.array([1]), completion_logprobs=np.array([-1.0]), text="", finish_reason="length",
            seed=int(rng.integers(0, 2**63)),
        )
        for i in range(num_rows)
    ]  # fmt: skip


SETTINGS = SamplingSettings(temperature=1.0, top_p=1.0, max_new_tokens=12, end_ids=(256,))


@pytest.mark.parametrize("batch_tokens", [1, 60, 10_000])
@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.8, 0.9)])
def test_texts_equal_the_naive_ones_in_any_batch(
    make_student: Callable[..., Any], batch_tokens: int, temperature: float, top_p: float
) -> None:
    model, rows = make_student(), make_rows(9)
    settings = SamplingSettings(temperature=temperature, top_p=top_p, max_new_tokens=12, end_ids=(256,))
    found = continue_prompts(model, rows, settings, batch_tokens=batch_tokens)
    expected = [naive_text(model, row, settings) for row in rows]
    assert [text.tolist() for text in found] == expected


def test_texts_stop_at_the_end_of_text_and_only_there(make_student: Callable[..., Any]) -> None:
    model, rows = make_student(), make_rows(8)
    with torch.no_grad():
        model.transformer.ln_f.bias += 0.5 * model.transformer.wte.weight[256]
    found = continue_prompts(model, rows, SETTINGS)
    assert [text.tolist() for text in found] == [naive_text(model, row, SETTINGS) for row in rows]
    assert {text[-1] == 256 for text in found} == {len(text) < 12 for text in found} == {True, False}
    assert all(256 not in text[:-1] for text in found)
    endless = SamplingSettings(temperature=1.0, top_p=1.0, max_new_tokens=12, end_ids=())
    assert {len(text) for text in continue_prompts(model, rows, endless)} == {12}


def test_a_student_of_another_architecture() -> None:
    torch.manual_seed(0)
    shape = {"vocab_size": 257, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    config = LlamaConfig(**shape, num_attention_heads=2, max_position_embeddings=64, initializer_range=0.3)
    model, rows = LlamaForCausalLM(config).eval(), make_rows(6)
    found = continue_prompts(model, rows, SETTINGS)
    assert [text.tolist() for text in found] == [naive_text(model, row, SETTINGS) for row in rows]


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 0.9)])
def test_the_teacher_itself_writes_the_cached_texts_again(
    make_cache: Callable[..., Cache], helpers: ModuleType, teacher_dir: Path, temperature: float, top_p: float
) -> None:
    samples = helpers.SamplesConfig(
        num_prompts=20, prompt_tokens=6, max_new_tokens=12, temperature=temperature, top_p=top_p
    )
    cache = make_cache(kinds=("samples",), samples=samples, max_tokens=None)
    settings = SamplingSettings.of_cache(cache)
    assert settings == SamplingSettings(temperature=temperature, top_p=top_p, max_new_tokens=12, end_ids=(256,))
    rows = [row for prompt in choose_prompts(cache, 1000) for row in prompt]
    found = continue_prompts(GPT2LMHeadModel.from_pretrained(teacher_dir).eval(), rows, settings)
    assert [text.tolist() for text in found] == [row.completion_ids.tolist() for row in rows]
    assert len({tuple(text) for text in found}) > 4


def test_prompts_are_chosen_by_a_seed_with_all_their_texts(cache: Cache) -> None:
    rows = [row for batch in cache.record_batches("samples", "validation") for row in decode(batch)]
    by_prompt = [list(group) for _, group in itertools.groupby(rows, key=lambda row: row.prompt_id)]
    everything = choose_prompts(cache, 1000)
    key = lambda prompt: [row.row_id for row in prompt]  # noqa: E731
    assert sorted(map(key, everything)) == sorted(map(key, by_prompt))
    assert list(map(key, everything)) != sorted(map(key, everything))
    for num_prompts in (1, 2, 3):
        assert list(map(key, choose_prompts(cache, num_prompts))) == list(map(key, everything[:num_prompts]))


def test_of_a_merged_cache_no_two_prompts_have_the_same_draws(
    helpers: ModuleType, teacher_dir: Path, tmp_path: Path
) -> None:
    """Sources count their rows, and so their seeds, each from 0."""
    sources = []
    for seed, name in enumerate("ab"):
        text = tmp_path / f"{name}.txt"
        text.write_text("".join(helpers.make_text(60, seed=seed + 7)))
        config = helpers.tiny_config(
            teacher_dir, text, tmp_path / name, kinds=("samples",), validation_fraction=0.5,
            samples=helpers.SamplesConfig(num_prompts=20, prompt_tokens=6, max_new_tokens=4),
        )  # fmt: skip
        sources.append(helpers.precomputed(config))
    merged = merge([source.path for source in sources], tmp_path / "merged")
    prompts = choose_prompts(merged, 1000)
    seeds = [row.seed for prompt in prompts for row in prompt]
    assert len(set(seeds)) == len(seeds)
    assert len(prompts) == max(len(choose_prompts(source, 1000)) for source in sources)
    held = [{rows[0].prompt_ids.tobytes() for rows in choose_prompts(source, 1000)} for source in sources]
    chosen = {rows[0].prompt_ids.tobytes() for rows in prompts}
    assert chosen & held[0]
    assert chosen & held[1]


def test_a_cache_that_does_not_say_how_texts_were_drawn(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(cache.identity.config["samples"], "top_p")
    with pytest.raises(RecordError, match=r"config\.samples\.top_p"):
        SamplingSettings.of_cache(cache)
