"""A student to start from, and what teachonce-student train makes of it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from storage import Cache
from student import CacheDataset, MixConfig, TrainConfig, train
from tests.scripts.loops.watching import Rows

MAX_STEPS, BATCH_ROWS, SAVE_EVERY = 8, 4, 3


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student of 12,000 parameters without dropout."""
    directory = tmp_path_factory.mktemp("start")
    config = GPT2Config(
        vocab_size=257, n_positions=64, n_embd=16, n_layer=2, n_head=2, initializer_range=0.3,
        resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, bos_token_id=None, eos_token_id=256,
    )  # fmt: skip
    torch.manual_seed(1)
    GPT2LMHeadModel(config).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def ours(cache: Cache, start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The student of teachonce-student train after the steps of the recipes."""
    config = TrainConfig(
        cache=cache.path, out=tmp_path_factory.mktemp("ours") / "student", preset=str(start), max_steps=MAX_STEPS,
        batch_blocks=BATCH_ROWS, mix=MixConfig(samples=0.0, beams=0.0), device="cpu", quiet=True,
    )  # fmt: skip
    return train(config)


@pytest.fixture(scope="session")
def settings_for(cache: Cache, start: Path) -> Callable[[Path], dict[str, Any]]:
    """Arguments of every recipe, for a directory that it writes."""
    settings: dict[str, Any] = {"cache": str(cache.path), "start": str(start)}
    settings |= {"max_steps": MAX_STEPS, "batch_rows": BATCH_ROWS, "save_every": SAVE_EVERY}
    return lambda out: settings | {"out": str(out)}


@pytest.fixture(scope="session")
def rows_of_steps(cache: Cache) -> list[Rows]:
    """The input_ids that every step is to learn from."""
    batches = islice(CacheDataset(cache.path, batch_rows=BATCH_ROWS), MAX_STEPS)
    return [batch["input_ids"].tolist() for batch in batches]


def _weights(directory: Path | str) -> dict[str, torch.Tensor]:
    """Return the weights of a student but the bias of the keys.

    It adds the same number to all scores of a query, so its gradient is 0 but for rounding, which AdamW makes as large
    as any other step.
    """
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    with torch.no_grad():
        for block in model.transformer.h:
            block.attn.c_attn.bias.chunk(3)[1].zero_()
    found: dict[str, torch.Tensor] = model.state_dict()
    return found


@pytest.fixture
def assert_same_weights() -> Callable[[Path | str, Path | str], None]:
    def compare(found: Path | str, expected: Path | str) -> None:
        torch.testing.assert_close(_weights(found), _weights(expected), rtol=0, atol=1e-6)

    return compare
