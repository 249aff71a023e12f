"""Students whose files are broken, those of something else, or bring code: one line, before step 1."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from storage import Cache
from student.errors import StudentError
from student.model.presets import build_student
from tests.commands import refused
from tests.storage.tensors.checkpoints.broken_models import MODELS, TOKENIZERS, broken

# Of these, a config .json says nothing wrong: it gets new weights.
ONLY_WEIGHTS = {name for name in MODELS if name.startswith(("weights", "index", "pickled", "generation"))}
ONLY_WEIGHTS |= {"other width", "more layers than weights", "config without a type", "config is a directory"}


@pytest.mark.parametrize("name", MODELS)
def test_a_checkpoint_of_broken_files_is_one_line_with_the_reason(
    saved: Path, cache: Cache, tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    how, words = MODELS[name]
    student = broken(saved, tmp_path / "broken", how)
    out = ["--out", str(tmp_path / "out")]
    for arguments in (
        ["train", str(cache.path), "--preset", str(student), *out],
        ["evaluate", str(student), "--cache", str(cache.path)],
        ["generate", str(student), "--prompt", "a"],
        ["export", str(student), "--format", "safetensors", "--cache", str(cache.path), *out],
    ):
        (line,) = refused("student.cli", *arguments, capfd=capfd).strip().splitlines()
        assert words in line.replace(str(tmp_path), ""), arguments
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", sorted(MODELS.keys() - ONLY_WEIGHTS))
def test_a_broken_config_file_is_one_line_with_the_reason(
    saved: Path, cache: Cache, tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    how, words = MODELS[name]
    preset = broken(saved, tmp_path / "broken", how) / "config.json"
    arguments = ["train", str(cache.path), "--preset", str(preset), "--out", str(tmp_path / "out")]
    (line,) = refused("student.cli", *arguments, capfd=capfd).strip().splitlines()
    assert words in line.replace(str(tmp_path), "")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_broken_tokenizer_is_one_line_with_the_reason(
    saved: Path, tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    how, words = TOKENIZERS[name]
    student = broken(saved, tmp_path / "broken", how)
    (line,) = refused("student.cli", "generate", str(student), "--prompt", "a", capfd=capfd).strip().splitlines()
    assert words in line.replace(str(tmp_path), "")


SMALL: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 16, "n_layer": 1, "n_head": 2, "activation_function": "gelu", "attn_pdrop": 0.0},
    "llama": {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 8,
        "hidden_act": "silu", "rms_norm_eps": 1e-6,
    },
}  # fmt: skip
MORE = ("pad_token_id", "quantization_config", "dtype", "return_dict", "tie_word_embeddings", "max_position_embeddings")


@pytest.mark.parametrize("model_type", SMALL)
@pytest.mark.parametrize("value", [None, [], "x", -1, 0, 1e400, 10**12, {}], ids=str)
def test_any_value_in_a_config_works_or_is_a_line(cache: Cache, tmp_path: Path, model_type: str, value: object) -> None:
    preset, content = tmp_path / "student.json", {"model_type": model_type} | SMALL[model_type]
    for name in (*content, *MORE):
        preset.write_text(json.dumps(content | {name: value}))
        with suppress(StudentError):
            build_student(str(preset), cache, seed=0)
