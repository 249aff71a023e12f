"""Adapters beside a teacher's weights, or that name the model that they adapt: merged or refused, never ignored."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from pipeline import CutConfig, cut
from pipeline.config import PrecomputeConfig
from pipeline.errors import NoSuchTeacherError
from pipeline.teacher.loading import load_teacher
from storage.errors import MissingExtraError
from student.model.loading import load_student

IDS = np.arange(12)[None] * 5 % 257


def config_of(directory: Path) -> PrecomputeConfig:
    return PrecomputeConfig(teacher=str(directory), data="stdlib", out=directory / "out", device="cpu")


def change_config(directory: Path, **changes: object) -> None:
    path = directory / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_without_peft_an_adapter_is_refused_and_not_ignored(
    teacher_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    directory = shutil.copytree(teacher_dir, tmp_path / "adapted")
    (directory / "adapter_config.json").write_text("{}")
    with pytest.raises(MissingExtraError, match=r"adapter_config\.json\) needs peft.*\.\[peft\]"):
        load_teacher(config_of(directory))
    with pytest.raises(MissingExtraError, match="peft"):
        load_student(directory)


@pytest.fixture
def adapt(teacher_dir: Path, helpers: ModuleType, tmp_path: Path) -> Callable[[bool], tuple[Path, Any]]:
    """Makes a directory with a LoRA, beside the base's weights or alone; returns it and the adapted model's logits."""
    peft = pytest.importorskip("peft")

    def make(is_beside_weights: bool) -> tuple[Path, Any]:
        directory = tmp_path / f"adapted-{is_beside_weights}"
        if is_beside_weights:
            shutil.copytree(teacher_dir, directory)
        torch.manual_seed(1)
        settings = peft.LoraConfig(r=4, task_type="CAUSAL_LM", init_lora_weights=False, fan_in_fan_out=True)
        adapted = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(teacher_dir), settings).eval()
        adapted.save_pretrained(directory)
        helpers.make_tokenizer(directory)
        with torch.inference_mode():
            return directory, adapted(input_ids=torch.from_numpy(IDS)).logits[0]

    return make


@pytest.mark.parametrize("is_beside_weights", [True, False])
def test_an_adapter_is_part_of_teacher_and_student(
    adapt: Callable[[bool], tuple[Path, Any]], teacher_dir: Path, is_beside_weights: bool
) -> None:
    directory, expected_TV = adapt(is_beside_weights)
    teacher, student = load_teacher(config_of(directory)), load_student(directory)
    with torch.inference_mode():
        found_TV = teacher.logits(teacher.hidden(IDS, [np.array([12])])[0])
        torch.testing.assert_close(found_TV, expected_TV, atol=1e-4, rtol=0)
        torch.testing.assert_close(student(input_ids=torch.from_numpy(IDS)).logits[0], expected_TV, atol=1e-4, rtol=0)
    assert not any("lora" in name for name in student.state_dict())
    plain = load_teacher(config_of(teacher_dir))
    assert teacher.weights_sha256 != plain.weights_sha256
    assert teacher.num_parameters == plain.num_parameters


def test_a_cut_has_the_adapter_in_its_weights(adapt: Callable[[bool], tuple[Path, Any]], tmp_path: Path) -> None:
    directory, expected_TV = adapt(False)
    cut(CutConfig(teacher=str(directory), out=tmp_path / "cut", layers="2", device="cpu"))
    with torch.inference_mode():
        found_TV = AutoModelForCausalLM.from_pretrained(tmp_path / "cut")(torch.from_numpy(IDS)).logits[0]
    torch.testing.assert_close(found_TV, expected_TV, atol=1e-4, rtol=0)


def test_adapters_that_cannot_be_applied(adapt: Callable[[bool], tuple[Path, Any]], tmp_path: Path) -> None:
    whole, _ = adapt(True)

    def refused(name: str, change: Callable[[Path], object]) -> str:
        directory = shutil.copytree(whole, tmp_path / name)
        change(directory)
        with pytest.raises(NoSuchTeacherError) as caught:
            load_teacher(config_of(directory))
        return str(caught.value)

    def rename_weights(directory: Path) -> None:
        path = directory / "adapter_model.safetensors"
        save_file({name.replace("c_attn", "other"): tensor for name, tensor in load_file(path).items()}, path)

    assert "missing adapter keys" in refused("renamed", rename_weights)
    assert "adapter_model.safetensors" in refused("cut", lambda d: (d / "adapter_model.safetensors").write_bytes(b"x"))
    assert "adapter_model" in refused("none", lambda d: (d / "adapter_model.safetensors").unlink())
    assert "[], expected a JSON object" in refused("list", lambda d: (d / "adapter_config.json").write_text("[]"))
    assert "never runs" in refused("code", lambda d: change_config(d, megatron_config={"a": 1}))
    assert "peft_type is 'NOPE'" in refused("kind", lambda d: change_config(d, peft_type="NOPE"))
    assert "PROMPT_TUNING" in refused("prompt", lambda d: change_config(d, peft_type="PROMPT_TUNING"))
    nameless, _ = adapt(False)
    change_config(nameless, base_model_name_or_path=None)
    with pytest.raises(NoSuchTeacherError, match="names no model"):
        load_teacher(config_of(nameless))
