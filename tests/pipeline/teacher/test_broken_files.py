"""Teachers whose files are broken, those of something else, or bring code: one line that holds the reason."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GPT2LMHeadModel

from pipeline.config import PrecomputeConfig
from pipeline.errors import NoSuchTeacherError
from pipeline.teacher.loading import load_teacher
from tests.commands import refused
from tests.storage.tensors.checkpoints.broken_models import MODELS, TOKENIZERS, broken, change_json

BROKEN = MODELS | TOKENIZERS


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_one_line_with_the_reason(
    teacher_dir: Path, text_file: Path, tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    how, words = BROKEN[name]
    teacher = broken(teacher_dir, tmp_path / "broken", how)
    arguments = ["--teacher", str(teacher), "--data", str(text_file), "--out", str(tmp_path / "cache")]
    (line,) = refused("pipeline.cli", *arguments, capfd=capfd).strip().splitlines()
    assert words in line.replace(str(tmp_path), "")
    assert f"teacher {teacher}: " in line
    assert not (tmp_path / "cache").exists()


def test_a_teacher_that_is_a_file(text_file: Path, tmp_path: Path) -> None:
    with pytest.raises(NoSuchTeacherError, match="a file"):
        load_teacher(PrecomputeConfig(teacher=str(text_file), data="stdlib", out=tmp_path))


@pytest.mark.parametrize("name", ["return_dict", "output_attentions", "output_hidden_states", "torchscript"])
def test_how_outputs_come_does_not_hang_on_the_config(teacher_dir: Path, tmp_path: Path, name: str) -> None:
    value = name != "return_dict"
    changed = broken(teacher_dir, tmp_path / "changed", change_json("config.json", **{name: value}))
    found, expected = (
        load_teacher(PrecomputeConfig(teacher=str(directory), data="stdlib", out=tmp_path, device="cpu"))
        for directory in (changed, teacher_dir)
    )
    assert found.weights_sha256 == expected.weights_sha256


def test_weights_that_the_config_has_no_place_for_are_told(
    teacher_dir: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shorter = broken(teacher_dir, tmp_path / "shorter", change_json("config.json", n_layer=1))
    load_teacher(PrecomputeConfig(teacher=str(shorter), data="stdlib", out=tmp_path, device="cpu"))
    assert "11 of its weights have no place in the model, such as transformer.h.1." in capfd.readouterr().err


SMALL: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 16, "n_layer": 1, "n_head": 2},
    "llama": {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2},
}
VALUES = (None, [], "x", -1, 0, 1e400, 10**12, {}, True)


@pytest.mark.parametrize("model_type", SMALL)
def test_any_value_in_a_config_works_or_is_a_line(helpers: Any, tmp_path: Path, model_type: str) -> None:
    directory = tmp_path / "teacher"
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, vocab_size=257, eos_token_id=256, bos_token_id=None, **SMALL[model_type])
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    helpers.make_tokenizer(directory)
    content = json.loads((directory / "config.json").read_text())
    for name in (*content, "quantization_config", "text_config", "auto_map"):
        for value in VALUES:
            (directory / "config.json").write_text(json.dumps(content | {name: value}))
            with suppress(NoSuchTeacherError):
                load_teacher(PrecomputeConfig(teacher=str(directory), data="stdlib", out=tmp_path, device="cpu"))


def test_an_empty_shard_is_named(teacher_dir: Path, tmp_path: Path) -> None:
    model = GPT2LMHeadModel.from_pretrained(teacher_dir)
    model.save_pretrained(tmp_path / "whole", max_shard_size="40KB")
    shards = sorted((tmp_path / "whole").glob("model-*.safetensors"))
    assert len(shards) > 1
    shards[-1].write_bytes(b"")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "whole" / name).write_bytes((teacher_dir / name).read_bytes())
    with pytest.raises(NoSuchTeacherError, match=shards[-1].name):
        load_teacher(PrecomputeConfig(teacher=str(tmp_path / "whole"), data="stdlib", out=tmp_path, device="cpu"))
