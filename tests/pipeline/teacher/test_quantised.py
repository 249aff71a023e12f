"""Teachers with quantised weights, as transformers loads them; composite models with a text model inside."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.integrations.bitnet import pack_weights

from pipeline import CutConfig, cut
from pipeline.config import PrecomputeConfig
from pipeline.errors import NoSuchTeacherError, UncuttableTeacherError
from pipeline.teacher.loading import load_teacher
from storage.errors import ConfigError
from tests.precomputed import precomputed

IDS = np.arange(12)[None] * 5 % 257


@pytest.fixture
def bitnet(helpers: ModuleType, tmp_path: Path) -> Path:
    """A Llama whose linear layers hold −1, 0 and 1 in two bits each."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=257, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, initializer_range=0.3, eos_token_id=256, dtype="float32",
    )  # fmt: skip
    stored = {}
    for name, weight in LlamaForCausalLM(config).state_dict().items():
        if "proj" in name:
            stored[name.replace("weight", "weight_scale")] = torch.tensor([4.0])
            stored[name] = pack_weights(torch.randint(-1, 2, weight.shape).float())
        else:
            stored[name] = weight.clone()
    directory = tmp_path / "bitnet"
    directory.mkdir()
    save_file({name: tensor.contiguous() for name, tensor in stored.items()}, directory / "model.safetensors")
    quantization = {"quant_method": "bitnet", "modules_to_not_convert": ["lm_head"]}
    (directory / "config.json").write_text(json.dumps(config.to_dict() | {"quantization_config": quantization}))
    helpers.make_tokenizer(directory)
    return directory


def test_a_quantised_teacher_says_how(bitnet: Path, configure: Callable[..., PrecomputeConfig], tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    config = configure(tmp_path / "cache", teacher=str(bitnet), kinds=("soft_targets",))
    cache = precomputed(config)
    assert cache.identity.teacher["quantization"] == "bitnet"
    assert cache.identity.teacher["dtype"] == "float32"
    teacher = load_teacher(config)
    with torch.inference_mode():
        found_TV = teacher.logits(teacher.hidden(IDS, [np.array([12])])[0])
        expected_TV = AutoModelForCausalLM.from_pretrained(bitnet)(torch.from_numpy(IDS)).logits[0]
    torch.testing.assert_close(found_TV, expected_TV, atol=1e-3, rtol=0)
    with pytest.raises(ConfigError, match="quantised \\(bitnet\\) and compute in float32; leave --dtype out"):
        load_teacher(dataclasses.replace(config, dtype="bfloat16"))
    with pytest.raises(UncuttableTeacherError, match=r"quantised \(bitnet\); give the model as it was before"):
        cut(CutConfig(teacher=str(bitnet), out=tmp_path / "cut", layers="1"))


def test_a_plain_teacher_says_nothing_of_it(configure: Callable[..., PrecomputeConfig], tmp_path: Path) -> None:
    assert "quantization" not in precomputed(configure(tmp_path / "cache", kinds=("samples",))).identity.teacher


def test_a_quantised_teacher_without_its_package_names_that(
    bitnet: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("transformers.quantizers.quantizer_bitnet.is_accelerate_available", lambda: False)
    with pytest.raises(NoSuchTeacherError, match="pip install accelerate"):
        load_teacher(PrecomputeConfig(teacher=str(bitnet), data="stdlib", out=tmp_path, device="cpu"))


def test_the_text_model_of_a_composite_one(helpers: ModuleType, tmp_path: Path) -> None:
    torch.manual_seed(0)
    text = {
        "model_type": "gemma3_text", "vocab_size": 257, "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
        "max_position_embeddings": 64,
    }  # fmt: skip
    vision = {
        "model_type": "siglip_vision_model", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
        "num_attention_heads": 2, "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    config = AutoConfig.for_model("gemma3", text_config=text, vision_config=vision, image_token_index=5)
    model = AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(tmp_path)
    helpers.make_tokenizer(tmp_path)
    teacher = load_teacher(PrecomputeConfig(teacher=str(tmp_path), data="stdlib", out=tmp_path, device="cpu"))
    with torch.inference_mode():
        expected_TV = model(input_ids=torch.from_numpy(IDS)).logits[0]
        torch.testing.assert_close(teacher.logits(teacher.hidden(IDS, [np.array([12])])[0]), expected_TV)
