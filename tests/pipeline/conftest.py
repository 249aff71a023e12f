"""Shared by the tests of the teacher side: teachers small enough to enumerate."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from pipeline import BeamsConfig, PrecomputeConfig, SamplesConfig
from pipeline.teacher.model import Teacher
from storage import Cache
from tests.precomputed import precomputed


@pytest.fixture(scope="session")
def tokenizer(teacher_dir: Path) -> Any:
    return AutoTokenizer.from_pretrained(teacher_dir)


@pytest.fixture(scope="session")
def teacher_model(teacher_dir: Path) -> Any:
    """The session's teacher as plain transformers loads it: the truth that caches are compared with."""
    return GPT2LMHeadModel.from_pretrained(teacher_dir).eval()


@pytest.fixture
def wrap_teacher() -> Callable[..., Teacher]:
    """Wraps a model, and a stand-in for a tokenizer, as a Teacher on the CPU."""

    def wrap(model: Any, eos_token_id: int | None = None) -> Teacher:
        tokenizer = SimpleNamespace(
            eos_token_id=eos_token_id, decode=lambda ids, skip_special_tokens: "".join(f"{i} " for i in ids)
        )
        return Teacher(
            model.eval().requires_grad_(False),
            tokenizer,
            torch.device("cpu"),
            name="tiny",
            revision=None,
            weights_sha256="0" * 64,
            weights_bytes=0,
        )

    return wrap


@pytest.fixture
def tiny_teacher(wrap_teacher: Callable[..., Teacher]) -> Callable[..., Teacher]:
    """Makes a random teacher with a vocabulary small enough to enumerate."""

    def make(vocab_size: int, eos_token_id: int | None = None, seed: int = 0) -> Teacher:
        torch.manual_seed(seed)
        config = GPT2Config(
            vocab_size=vocab_size, n_positions=32, n_embd=16, n_layer=2, n_head=2, initializer_range=0.6,
            bos_token_id=None, eos_token_id=None,
        )  # fmt: skip
        return wrap_teacher(GPT2LMHeadModel(config), eos_token_id)

    return make


@pytest.fixture(scope="session")
def forced_logprobs() -> Callable[..., np.ndarray]:
    """Naive truth: log-probabilities [continuation] of a continuation, by one pass over prompt and continuation."""

    @torch.inference_mode()
    def score(model: Any, prompt: Any, continuation: Any) -> np.ndarray:
        ids = torch.tensor([[*map(int, prompt), *map(int, continuation)]])
        logprobs = torch.log_softmax(model(input_ids=ids, use_cache=False).logits[0].double(), dim=1)
        first = len(prompt) - 1
        return np.array([float(logprobs[first + i, int(token)]) for i, token in enumerate(continuation)])

    return score


@pytest.fixture
def snapshot() -> Callable[[Path], dict[str, str]]:
    """Every file below a directory with the sha256 of its bytes."""

    def take(directory: Path) -> dict[str, str]:
        return {
            path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(directory.rglob("*"))
            if path.is_file()
        }

    return take


@pytest.fixture(scope="session")
def small_text(helpers: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "documents.txt"
    path.write_text("".join(helpers.make_text(30, seed=3)))
    return path


@pytest.fixture(scope="session")
def configure(helpers: ModuleType, teacher_dir: Path, small_text: Path) -> Callable[..., PrecomputeConfig]:
    """A run of a tenth of a second: ten shards of three kinds, several passes and batches in each."""

    def configure(out: Path, **changes: object) -> PrecomputeConfig:
        settings: dict[str, object] = {
            "shard_tokens": 600,
            "batch_tokens": 224,
            "samples": SamplesConfig(num_prompts=8, per_prompt=3, prompt_tokens=5, max_new_tokens=5),
            "beams": BeamsConfig(num_prompts=20, prompt_tokens=5, num_beams=3, num_candidates=3, max_new_tokens=3),
        }
        return dataclasses.replace(helpers.tiny_config(teacher_dir, small_text, out, **settings), **changes)

    return configure


@pytest.fixture(scope="session")
def finished(configure: Callable[..., PrecomputeConfig], tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """An undisturbed run; tests copy it before they change it."""
    return precomputed(configure(tmp_path_factory.mktemp("finished") / "cache"))


@pytest.fixture
def copied(finished: Cache, tmp_path: Path) -> Path:
    return shutil.copytree(finished.path, tmp_path / "copied")
