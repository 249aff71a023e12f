"""Teachers of every kind: a cache holds what the model alone says of each text, whatever stands beside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertLMHeadModel

from pipeline import BeamsConfig, PrecomputeConfig, SamplesConfig, SoftTargetsConfig
from pipeline.errors import LeakingTeacherError
from pipeline.estimate import render_plan
from pipeline.run import plan_only
from storage import Cache, verify_cache
from storage.reading.inspection import render_summary, summarize
from storage.rows import beams, samples
from storage.tensors.isolation import find_isolation
from storage.tensors.model_facts import body_of
from tests.odd_models import MODELS, in_float64, make_model


@pytest.fixture
def configure_for(helpers: ModuleType, text_file: Path, tmp_path: Path) -> Callable[..., PrecomputeConfig]:
    def configure(model: Any, **changes: object) -> PrecomputeConfig:
        directory = tmp_path / "model"
        model.save_pretrained(directory)
        helpers.make_tokenizer(directory)
        settings: dict[str, Any] = {
            "max_tokens": 1000,
            "soft_targets": SoftTargetsConfig(
                top_k=4, tail_weight=0.05, temperatures=(1.0, 2.0), scalar_mantissa_bits=10
            ),
            "samples": SamplesConfig(num_prompts=4, per_prompt=2, prompt_tokens=9, max_new_tokens=10),
            "beams": BeamsConfig(num_prompts=3, prompt_tokens=9, num_beams=3, num_candidates=3, max_new_tokens=9),
        }
        config: PrecomputeConfig = helpers.tiny_config(directory, text_file, tmp_path / "cache", **(settings | changes))
        return config

    return configure


@torch.inference_mode()
def step_by_step(model: Any, prompt: Sequence[int], continuation: Sequence[int]) -> np.ndarray:
    """Naive truth in nats: one pass over each prefix, as a model writes whose function depends on the text's length."""
    ids, found = [int(i) for i in prompt], []
    for token in map(int, continuation):
        logits_V = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
        found.append(float(torch.log_softmax(logits_V.double(), dim=0)[token]))
        ids.append(token)
    return np.array(found)


def check_blocks(cache: Cache, model: Any, forced_logprobs: Callable[..., np.ndarray]) -> None:
    for batch in cache.record_batches("soft_targets", "train"):
        for row in batch.to_pylist():
            start = 0
            for length in row["segment_lengths"]:
                # The last token of a block is a label alone.
                read = min(start + length, len(row["input_ids"]) - 1) - start
                ids = row["input_ids"][start : start + read]
                if read > 1:
                    found = row["label_logprob"][start : start + read - 1]
                    np.testing.assert_allclose(found, forced_logprobs(model, ids[:1], ids[1:]), rtol=2**-11, atol=2e-3)
                start += length


@pytest.mark.parametrize("name", MODELS)
def test_a_cache_holds_what_the_model_alone_says_of_each_text(
    configure_for: Callable[..., PrecomputeConfig],
    helpers: ModuleType,
    forced_logprobs: Callable[..., np.ndarray],
    name: str,
) -> None:
    model = make_model(name)
    cache: Cache = helpers.precomputed(configure_for(model))
    truth, (_, isolation, _) = in_float64(model), MODELS[name]
    assert cache.identity.teacher.get("isolation", "packed") == isolation
    assert ("isolation" in cache.identity.teacher) == ("one document a row" in render_summary(summarize(cache)))
    assert verify_cache(cache.path).problems == ()
    check_blocks(cache, truth, forced_logprobs)
    for sample in samples.decode(next(iter(cache.record_batches("samples", "train")))):
        expected = step_by_step(truth, sample.prompt_ids, sample.completion_ids)
        np.testing.assert_allclose(sample.completion_logprobs, expected, rtol=2**-11, atol=2e-3)
    for beam in beams.decode(next(iter(cache.record_batches("beams", "train")))):
        for candidate in beam.candidates:
            expected = step_by_step(truth, beam.prompt_ids, candidate.candidate_ids)
            assert candidate.sum_logprob == pytest.approx(expected.sum(), abs=2e-3)


@pytest.mark.parametrize("name", ["phi3", "lfm2"])
def test_the_tokens_of_a_pass_change_nothing(
    configure_for: Callable[..., PrecomputeConfig], helpers: ModuleType, tmp_path: Path, name: str
) -> None:
    model, found = make_model(name), []
    for tokens in (32, 1024):
        config = configure_for(model, kinds=("soft_targets",), batch_tokens=tokens)
        cache: Cache = helpers.precomputed(dataclasses.replace(config, out=tmp_path / str(tokens)))
        batches = cache.record_batches("soft_targets", "train")
        found.append([row["label_logprob"] for batch in batches for row in batch.to_pylist()])
    np.testing.assert_allclose(*found, rtol=2**-11, atol=2e-3)


@pytest.mark.parametrize("name", ["mamba", "bloom", "llama"])
def test_the_plan_says_how_documents_are_read(configure_for: Callable[..., PrecomputeConfig], name: str) -> None:
    plan = plan_only(configure_for(make_model(name)), render_plan)
    _, isolation, reads_whole_texts = MODELS[name]
    assert ("one document a row" in plan) == (isolation != "packed")
    assert ("read each text anew" in plan) == reads_whole_texts


@pytest.mark.parametrize("num_tokens", [32, 64])
@pytest.mark.parametrize("initializer_range", [0.02, 0.25, 1.0])
@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen2", "mixtral"])
def test_rounding_in_bfloat16_is_no_leak(name: str, initializer_range: float, num_tokens: int) -> None:
    model = make_model(name, initializer_range=initializer_range).bfloat16()
    found = find_isolation(body_of(model), vocab_size=257, num_tokens=num_tokens, device=model.device)
    assert found is not None
    assert found.value == "packed"


@pytest.mark.parametrize(
    ("name", "spread"), [("openai-gpt", 0.25), ("openai-gpt", 1.0), ("recurrent_gemma", 0.25), ("lfm2", 0.25)]
)
def test_a_leak_of_a_tenth_of_a_nat_is_found_in_bfloat16(name: str, spread: float) -> None:
    model = make_model(name, initializer_range=spread).bfloat16()
    found = find_isolation(body_of(model), vocab_size=257, num_tokens=32, device=model.device)
    assert found is not None
    assert found.value == MODELS[name][1]


def test_a_model_that_sees_later_tokens_is_refused_before_any_work(
    configure_for: Callable[..., PrecomputeConfig], helpers: ModuleType
) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    config = configure_for(BertLMHeadModel(BertConfig(vocab_size=257, **sizes)))
    with pytest.raises(LeakingTeacherError, match="its hidden states change with later tokens"):
        helpers.precomputed(config)
    assert not config.out.exists()
