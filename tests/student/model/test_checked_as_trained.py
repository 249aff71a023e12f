"""A student is checked before step 1 as if it were trained, and trains in float32 whatever its config names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from storage import Cache
from student import TrainConfig, train
from student.errors import StudentError
from student.model.architecture import head_weight
from student.model.enlarging import enlarge_weights
from student.model.loading import load_student
from student.model.presets import build_student

SIZES: dict[str, Any] = {
    "vocab_size": 257, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 64,
}  # fmt: skip
# Caps, scales, biases, leaks: with new weights they change next to nothing.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": SIZES,
    "gemma2": SIZES | {"head_dim": 16, "final_logit_softcapping": 30.0},
    "lfm2": SIZES | {"layer_types": ["conv", "full_attention"], "block_ff_dim": 48, "conv_L_cache": 3},
    "nanochat": SIZES,
    "cohere": SIZES,
    "phi": SIZES | {"num_key_value_heads": 2},
    "bloom": {"vocab_size": 257, "hidden_size": 32, "n_layer": 2, "n_head": 2},
    "mamba": {"vocab_size": 257, "hidden_size": 32, "num_hidden_layers": 2},
}


LETTER_T = ord("t") - ord("!")


@pytest.fixture
def write_preset(tmp_path: Path) -> Callable[..., str]:
    def write(model_type: str, **settings: object) -> str:
        path = tmp_path / "student.json"
        path.write_text(json.dumps({"model_type": model_type} | settings))
        return str(path)

    return write


def is_accepted(preset: str, cache: Cache) -> bool:
    try:
        build_student(preset, cache, seed=0)
    except StudentError:
        return False
    return True


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_what_is_refused_after_training_is_refused_before_step_1(
    cache: Cache, tmp_path: Path, write_preset: Callable[..., str], model_type: str
) -> None:
    settings = ARCHITECTURES[model_type] | {"pad_token_id": None, "eos_token_id": 256, "bos_token_id": 256}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **settings)).eval()
    enlarge_weights(model, seed=7)
    model.save_pretrained(tmp_path / "trained")
    assert is_accepted(write_preset(model_type, **settings), cache) == is_accepted(str(tmp_path / "trained"), cache)


@pytest.mark.parametrize("seed", range(3))
def test_enlarged_logits_are_as_large_as_a_trained_models(make_student: Callable[..., Any], seed: int) -> None:
    model = make_student()
    enlarge_weights(model, seed)
    first = head_weight(model).clone()
    with torch.inference_mode():
        logits = model(input_ids=torch.arange(20)[None]).logits
    assert 5 < float(logits.std()) < 80
    enlarge_weights(model, seed)
    assert torch.equal(first, head_weight(model))


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_student_trains_and_is_saved_in_float32(
    train_config: Callable[..., TrainConfig], write_preset: Callable[..., str], key: str, dtype: str
) -> None:
    settings = SIZES | {"pad_token_id": None, key: dtype}
    student = train(train_config(preset=write_preset("llama", **settings), max_steps=2))
    assert json.loads((student / "config.json").read_text())["dtype"] == "float32"
    assert {weight.dtype for weight in AutoModelForCausalLM.from_pretrained(student).parameters()} == {torch.float32}


def test_weights_of_a_float16_checkpoint_train_in_float32(
    train_config: Callable[..., TrainConfig], make_student: Callable[..., Any], tmp_path: Path
) -> None:
    make_student().half().save_pretrained(tmp_path / "half")
    student = train(train_config(preset=str(tmp_path / "half"), max_steps=2))
    assert json.loads((student / "config.json").read_text())["dtype"] == "float32"


@pytest.mark.parametrize("model_type", ["phi3", "glm", "glm4", "smollm3", "flex_olmo", "llama"])
@pytest.mark.parametrize(
    "pad", [{}, {"pad_token_id": None}, {"pad_token_id": LETTER_T}, {"pad_token_id": 5000}], ids=str
)
def test_any_pad_token_and_none(
    train_config: Callable[..., TrainConfig],
    cache: Cache,
    write_preset: Callable[..., str],
    model_type: str,
    pad: dict[str, Any],
) -> None:
    """Padding is never read. The token of that id learns as all others do."""
    settings = SIZES | {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "tie_word_embeddings": False} | pad
    preset = write_preset(model_type, **settings)
    student = load_student(train(train_config(preset=preset, max_steps=2)))
    assert student.get_input_embeddings().padding_idx is None
    fresh = build_student(preset, cache, seed=0)
    moved = student.get_input_embeddings().weight - fresh.get_input_embeddings().weight
    assert float(moved[LETTER_T].abs().max()) > 1e-4


def test_a_null_in_a_config_is_null(cache: Cache, write_preset: Callable[..., str]) -> None:
    """A window of null is none, not the architecture's default."""
    preset = write_preset("mistral", **SIZES, sliding_window=None, pad_token_id=None)
    assert build_student(preset, cache, seed=0).config.sliding_window is None
