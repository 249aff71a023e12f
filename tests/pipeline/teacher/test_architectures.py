"""Teachers other than GPT-2: rotary positions, grouped heads, sliding windows and soft caps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from pipeline import BeamsConfig, SamplesConfig
from storage import Cache, verify_cache
from storage.rows import beams, samples

SIZES: dict[str, Any] = {
    "vocab_size": 257, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 64, "initializer_range": 0.25,
    "bos_token_id": None, "eos_token_id": 256, "pad_token_id": None,
}  # fmt: skip
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": SIZES,
    "mistral": SIZES | {"sliding_window": 4},
    "gemma2": SIZES | {"head_dim": 16, "sliding_window": 4, "final_logit_softcapping": 3.0},
    "granite": SIZES | {"logits_scaling": 4.0},
}


@pytest.fixture
def make_teacher(helpers: ModuleType, tmp_path: Path) -> Callable[..., tuple[Path, Any]]:
    def make(model_type: str, settings: dict[str, Any]) -> tuple[Path, Any]:
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **settings)).eval()
        model.save_pretrained(tmp_path / model_type)
        helpers.make_tokenizer(tmp_path / model_type)
        return tmp_path / model_type, model

    return make


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_a_cache_holds_what_the_model_itself_says(
    make_teacher: Callable[..., tuple[Path, Any]],
    helpers: ModuleType,
    text_file: Path,
    tmp_path: Path,
    forced_logprobs: Callable[[Any, Any, Any], np.ndarray],
    model_type: str,
) -> None:
    directory, model = make_teacher(model_type, ARCHITECTURES[model_type])
    config = helpers.tiny_config(
        directory,
        text_file,
        tmp_path / "cache",
        max_tokens=1500,
        samples=SamplesConfig(num_prompts=6, prompt_tokens=5, max_new_tokens=8),
        beams=BeamsConfig(num_prompts=6, prompt_tokens=5, max_new_tokens=4),
    )
    cache: Cache = helpers.precomputed(config)
    assert verify_cache(cache.path).problems == ()
    row = next(iter(cache.record_batches("soft_targets", "train"))).to_pylist()[2]
    start = 0
    for length in row["segment_lengths"]:
        ids = row["input_ids"][start : start + length]
        if length > 1:
            expected = forced_logprobs(model, ids[:1], ids[1:])
            np.testing.assert_allclose(
                row["label_logprob"][start : start + length - 1], expected, rtol=2**-11, atol=2e-3
            )
        start += length
    for sample in samples.decode(next(iter(cache.record_batches("samples", "train")))):
        expected = forced_logprobs(model, sample.prompt_ids, sample.completion_ids)
        np.testing.assert_allclose(sample.completion_logprobs, expected, rtol=2**-11, atol=2e-3)
    for beam in beams.decode(next(iter(cache.record_batches("beams", "train")))):
        for candidate in beam.candidates:
            expected = forced_logprobs(model, beam.prompt_ids, candidate.candidate_ids)
            assert candidate.sum_logprob == pytest.approx(expected.sum(), abs=2e-3)
