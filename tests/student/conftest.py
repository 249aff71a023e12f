"""Shared by the tests of the student side: small students."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from storage import Cache
from student import Generator, TrainConfig
from student.model.tokenizers import load_tokenizer
from tests.wanted import marked, some


@pytest.fixture(scope="session")
def shape() -> dict[str, Any]:
    """A student of 9,000 parameters, with GPT-2's dropout of 0.1, for the session's caches."""
    return {"vocab_size": 257, "n_positions": 64, "n_embd": 16, "n_layer": 1, "n_head": 2, "initializer_range": 0.3}


@pytest.fixture(scope="session")
def preset(shape: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same as a config file."""
    path = tmp_path_factory.mktemp("preset") / "student.json"
    path.write_text(json.dumps({"model_type": "gpt2"} | shape))
    return str(path)


@pytest.fixture
def make_student(shape: dict[str, Any]) -> Callable[..., Any]:
    def make(seed: int = 0, **changes: object) -> Any:
        torch.manual_seed(seed)
        return GPT2LMHeadModel(GPT2Config(**(shape | changes))).eval()

    return make


@pytest.fixture
def saved(make_student: Callable[..., Any], cache: Cache, tmp_path: Path) -> Path:
    """A student with its tokenizer, as training leaves it."""
    directory = tmp_path / "saved"
    make_student().save_pretrained(directory)
    load_tokenizer(cache.tokenizer_dir).save_pretrained(directory)
    return directory


@pytest.fixture
def generator(saved: Path) -> Generator:
    return Generator(saved, device="cpu")


@pytest.fixture(scope="session")
def make_cache(
    helpers: ModuleType, teacher_dir: Path, text_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Cache]:
    """Makes a cache of 2,000 tokens in place of the whole text, or with other changes."""

    def make(**changes: object) -> Cache:
        out = tmp_path_factory.mktemp("cache") / "cache"
        return helpers.precomputed(helpers.tiny_config(teacher_dir, text_file, out, **({"max_tokens": 2000} | changes)))

    return make


@pytest.fixture(scope="session")
def wanted_cache(cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """The session's cache, of which only some targets are wanted, and in some rows none."""
    return marked(cache, tmp_path_factory.mktemp("wanted") / "cache", some)


@pytest.fixture
def train_config(preset: str, cache: Cache, tmp_path: Path) -> Callable[..., TrainConfig]:
    """Eight steps of a run that lasts a fifth of a second."""

    def make(**changes: object) -> TrainConfig:
        settings: dict[str, object] = {
            "cache": cache.path,
            "out": tmp_path / "student",
            "preset": preset,
            "max_steps": 8,
            "batch_blocks": 4,
            "batch_samples": 4,
            "batch_beams": 2,
            "device": "cpu",
            "quiet": True,
        }
        return TrainConfig(**(settings | changes))

    return make
