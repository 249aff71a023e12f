"""The number format of a teacher's weights."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pipeline.config import PrecomputeConfig
from pipeline.teacher.loading import load_teacher
from pipeline.teacher.weights import convert_weights


def test_far_positions_are_as_exact_in_bfloat16_as_transformers_makes_them(helpers: ModuleType, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=257, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=4096, initializer_range=0.12, eos_token_id=256,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(tmp_path)
    helpers.make_tokenizer(tmp_path)
    ids = np.random.default_rng(0).integers(0, 257, (1, 1024))
    naive = LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    teacher = load_teacher(
        PrecomputeConfig(teacher=str(tmp_path), data="stdlib", out=tmp_path, device="cpu", dtype="bfloat16")
    )
    with torch.inference_mode():
        truth_TV = model.double()(torch.from_numpy(ids)).logits[0].log_softmax(dim=1)
        naive_TV = naive(torch.from_numpy(ids)).logits[0]
        found_TV = teacher.logits(teacher.hidden(ids, [np.array([1024])])[0])

    def kl_nats(logits_TV: torch.Tensor) -> float:
        return float((truth_TV.exp() * (truth_TV - logits_TV.double().log_softmax(dim=1))).sum(dim=1)[512:].mean())

    assert kl_nats(found_TV) <= 1.2 * kl_nats(naive_TV)


def test_what_its_makers_keep_in_float32_stays() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.LayerNorm(2))
    model._keep_in_fp32_modules_strict = ["1"]
    convert_weights(model, torch.device("cpu"), torch.bfloat16)
    assert [weight.dtype for weight in model.parameters()] == [torch.bfloat16] * 2 + [torch.float32] * 2
