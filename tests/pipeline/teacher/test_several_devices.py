"""--device-map: a teacher partly on disk says what the whole one says, and is the same teacher."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from pipeline import BeamsConfig, PrecomputeConfig, SamplesConfig
from pipeline.teacher.loading import load_teacher
from storage.errors import ConfigError, MissingExtraError
from tests.precomputed import precomputed

IS_INSTALLED = importlib.util.find_spec("accelerate") is not None
IDS = np.arange(12)[None] * 5 % 257


@pytest.mark.skipif(IS_INSTALLED, reason="accelerate is installed")
def test_without_accelerate_it_is_refused(teacher_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingExtraError, match=r"--device-map needs accelerate.*\.\[accelerate\]"):
        load_teacher(PrecomputeConfig(teacher=str(teacher_dir), data="stdlib", out=tmp_path, device_map="auto"))


def test_it_chooses_the_devices_itself(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="leave out --device"):
        PrecomputeConfig(teacher="t", data="d", out=tmp_path, device_map="auto", device="cpu")
    with pytest.raises(ConfigError, match="--engine local"):
        PrecomputeConfig(teacher="t", data="d", out=tmp_path, device_map="auto", engine="ray")


@pytest.mark.skipif(not IS_INSTALLED, reason="needs accelerate")
@pytest.mark.skipif(torch.cuda.is_available(), reason="spreads over the GPU")
def test_a_teacher_partly_on_disk_is_the_same_teacher(
    helpers: ModuleType, teacher_dir: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.integrations.accelerate.get_max_memory", lambda *args: {"cpu": 70_000})
    settings = {
        "max_tokens": 1500,
        "samples": SamplesConfig(num_prompts=6, prompt_tokens=5, max_new_tokens=8),
        "beams": BeamsConfig(num_prompts=6, prompt_tokens=5, max_new_tokens=4),
    }
    plain = helpers.tiny_config(teacher_dir, text_file, tmp_path / "plain", **settings)
    spread = helpers.tiny_config(
        teacher_dir, text_file, tmp_path / "spread", device="auto", device_map="auto", **settings
    )
    teacher, expected = load_teacher(spread), load_teacher(plain)
    assert any(weight.is_meta for weight in teacher.model.parameters())
    with torch.inference_mode():
        found_TV, expected_TV = (t.logits(t.hidden(IDS, [np.array([12])])[0]) for t in (teacher, expected))
    torch.testing.assert_close(found_TV, expected_TV, atol=1e-4, rtol=0)
    caches = [precomputed(config) for config in (plain, spread)]
    assert caches[0].identity.teacher == caches[1].identity.teacher
    for kind in ("soft_targets", "samples", "beams"):
        texts = [next(iter(cache.record_batches(kind, "train"))).to_pylist() for cache in caches]
        assert [row.get("prompt_ids") for row in texts[0]] == [row.get("prompt_ids") for row in texts[1]]
        assert [row.get("input_ids") for row in texts[0]] == [row.get("input_ids") for row in texts[1]]
