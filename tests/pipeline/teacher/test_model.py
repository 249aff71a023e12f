"""The teacher in two halves: packed documents are isolated, leaks and unusual heads are noticed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from pipeline.errors import ContextTooShortError, NoSuchTeacherError, UnknownHeadError
from pipeline.teacher.loading import hash_weights, load_teacher
from pipeline.teacher.model import Teacher
from storage.tensors.packing import Isolation

SEGMENTS = [[32], [5, 27], [1, 1, 30], [10, 1, 9, 12], [31, 1]]


class IgnoresPositions(nn.Module):
    """A body that packs without isolating: the positions that tell documents apart are dropped."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self._body = body

    def forward(self, **inputs: Any) -> Any:
        return self._body(**(inputs | {"position_ids": None}))


class ScaledHead(GPT2LMHeadModel):
    """Does more than a linear head, as models with a logit scale or a soft cap do."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        output.logits = 3.0 * torch.tanh(output.logits / 3.0)
        return output


class ShortHead(GPT2LMHeadModel):
    """Leaves out the last rows of the vocabulary."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        output.logits = output.logits[..., :17]
        return output


class ReadsItsIds(GPT2LMHeadModel):
    """Adds to the logits what no hidden state tells."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        output.logits = output.logits + 5.0 * (kwargs["input_ids"][..., None] == torch.arange(20))
        return output


@pytest.fixture
def load(helpers: ModuleType, tmp_path: Path) -> Callable[..., Teacher]:
    def load(directory: Path, **changes: object) -> Teacher:
        return load_teacher(helpers.tiny_config(directory, tmp_path / "unused.txt", tmp_path / "unused", **changes))

    return load


@pytest.fixture
def copied_teacher(teacher_dir: Path, tmp_path: Path) -> Path:
    return shutil.copytree(teacher_dir, tmp_path / "teacher")


def random_blocks(vocab_size: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, vocab_size, (len(SEGMENTS), 32))


def test_a_packed_document_gets_the_hidden_states_and_logits_that_it_gets_alone(
    teacher_dir: Path, load: Callable[..., Teacher], teacher_model: Any
) -> None:
    teacher, input_ids = load(teacher_dir), random_blocks(257)
    with torch.inference_mode():
        packed = teacher.hidden(input_ids, [np.array(lengths) for lengths in SEGMENTS])
        for row, lengths in enumerate(SEGMENTS):
            ends = np.cumsum(lengths)
            for start, stop in zip(ends - lengths, ends, strict=True):
                alone = torch.from_numpy(input_ids[row : row + 1, start:stop])
                truth = teacher_model(input_ids=alone, output_hidden_states=True)
                torch.testing.assert_close(packed[row, start:stop], truth.hidden_states[-1][0], atol=1e-4, rtol=0)
                logits = teacher.logits(packed[row, start:stop])
                torch.testing.assert_close(logits, truth.logits[0], atol=1e-3, rtol=0)


def test_packed_documents_would_differ_if_they_were_not_isolated(teacher_dir: Path, teacher_model: Any) -> None:
    """The leak that the test above would find is four orders of magnitude above its tolerance."""
    input_ids = torch.from_numpy(random_blocks(257)[1:2])
    positions = torch.cat([torch.arange(5), torch.arange(27)])[None]
    with torch.inference_mode():
        leaking = teacher_model(
            input_ids=input_ids, position_ids=positions, attention_mask=torch.ones_like(input_ids), use_cache=True
        )
        alone = teacher_model(input_ids=input_ids[:, 5:])
    assert (leaking.logits[0, 5:] - alone.logits[0]).abs().max() > 1.0


def test_a_teacher_that_ignores_positions_gets_a_document_a_row(
    tiny_teacher: Callable[..., Teacher], monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = tiny_teacher(50)
    teacher.choose_isolation(32, "tiny")
    assert teacher.isolation is Isolation.PACKED
    monkeypatch.setattr(teacher, "_body", IgnoresPositions(teacher.model.base_model))
    teacher.choose_isolation(32, "tiny")
    assert teacher.isolation is Isolation.ROWS


def test_loading_chooses_the_isolation_for_blocks_of_the_run(
    teacher_dir: Path, load: Callable[..., Teacher], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = []
    monkeypatch.setattr(Teacher, "choose_isolation", lambda self, block_size, where: chosen.append(block_size))
    load(teacher_dir, block_size=40)
    assert chosen == [40]


@pytest.mark.parametrize(("model_class", "num_logits"), [(ScaledHead, 20), (ShortHead, 17)])
def test_a_head_that_no_formula_explains_is_run_by_its_own_code(
    wrap_teacher: Callable[..., Teacher], model_class: type[GPT2LMHeadModel], num_logits: int
) -> None:
    """It gets hidden states chunk by chunk, as every head does, and does not run the body again."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=20, n_positions=16, n_embd=16, n_layer=1, n_head=2, initializer_range=0.6)
    teacher = wrap_teacher(model_class(config))
    input_ids = np.arange(10)[None] % 7
    truth = teacher.model(input_ids=torch.from_numpy(input_ids)).logits[0]
    plain = teacher.model.lm_head(teacher.model.transformer(torch.from_numpy(input_ids)).last_hidden_state[0])
    assert plain.shape != truth.shape or (plain - truth).abs().max() > 0.1
    assert teacher.vocab_size == num_logits
    teacher.check_head("tiny")
    teacher.choose_isolation(16, "tiny")
    with torch.inference_mode():
        hidden = teacher.hidden(input_ids, [np.array([10])])[0]
        assert hidden.shape == (10, 16)
        for rows in (slice(0, 3), slice(3, 10)):
            torch.testing.assert_close(teacher.logits(hidden[rows]), truth[rows], atol=1e-5, rtol=0)


def test_logits_that_do_not_follow_from_the_hidden_states(wrap_teacher: Callable[..., Teacher]) -> None:
    config = GPT2Config(vocab_size=20, n_positions=16, n_embd=16, n_layer=1, n_head=2, initializer_range=0.6)
    with pytest.raises(UnknownHeadError, match="tiny"):
        wrap_teacher(ReadsItsIds(config)).check_head("tiny")


def test_logits_of_a_bfloat16_teacher_are_float32(teacher_dir: Path, load: Callable[..., Teacher]) -> None:
    teacher = load(teacher_dir, dtype="bfloat16")
    with torch.inference_mode():
        hidden = teacher.hidden(random_blocks(257)[:1], [np.array([32])])[0]
        logits = teacher.logits(hidden)
    assert (teacher.dtype, hidden.dtype, logits.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
    weight = teacher.model.get_output_embeddings().weight.detach()
    truth = hidden.double() @ weight.double().T
    torch.testing.assert_close(logits.double(), truth, atol=1e-4 * float(truth.abs().max()), rtol=0)


def test_facts_of_a_loaded_teacher(teacher_dir: Path, load: Callable[..., Teacher], teacher_model: Any) -> None:
    teacher = load(teacher_dir)
    assert teacher.vocab_size == 257
    assert teacher.context_length == 64
    assert teacher.name == teacher_dir.name
    assert teacher.num_parameters == sum(p.numel() for p in teacher_model.parameters())
    assert teacher.weights_bytes == 4 * teacher.num_parameters
    assert teacher.weights_sha256 == hash_weights(teacher_model)
    assert not teacher.model.training


def test_the_context_is_a_limit_and_not_one_token_less(tiny_teacher: Callable[..., Teacher]) -> None:
    teacher = tiny_teacher(20)
    teacher.require_context("--block-size", 32)
    with pytest.raises(ContextTooShortError) as caught:
        teacher.require_context("--block-size", 33)
    assert (caught.value.setting, caught.value.wanted, caught.value.context_length) == ("--block-size", 33, 32)


def test_the_hash_of_the_weights_sees_every_parameter(tiny_teacher: Callable[..., Teacher]) -> None:
    model = tiny_teacher(20).model
    hashes = {hash_weights(model), hash_weights(tiny_teacher(20, seed=1).model)}
    assert hash_weights(tiny_teacher(20).model) in hashes
    parameters = list(model.parameters())
    for parameter in parameters:
        parameter.reshape(-1)[-1] += 1e-3
        hashes.add(hash_weights(model))
    assert len(hashes) == 2 + len(parameters)


def test_weights_without_dimensions_can_be_hashed() -> None:
    module = nn.Module()
    module.register_buffer("scale", torch.tensor(1.0))
    first = hash_weights(module)
    module.scale += 1
    assert hash_weights(module) != first


def test_no_teacher_at_all(load: Callable[..., Teacher], tmp_path: Path) -> None:
    with pytest.raises(NoSuchTeacherError) as caught:
        load(tmp_path / "nothing")
    assert caught.value.teacher == str(tmp_path / "nothing")


def test_a_teacher_with_a_broken_config(copied_teacher: Path, load: Callable[..., Teacher]) -> None:
    (copied_teacher / "config.json").write_text("{")
    with pytest.raises(NoSuchTeacherError):
        load(copied_teacher)


def test_a_teacher_with_truncated_weights(copied_teacher: Path, load: Callable[..., Teacher]) -> None:
    weights = copied_teacher / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(NoSuchTeacherError):
        load(copied_teacher)


def test_a_teacher_that_lacks_a_weight_is_not_filled_up_at_random(
    copied_teacher: Path, load: Callable[..., Teacher]
) -> None:
    weights = copied_teacher / "model.safetensors"
    tensors = load_file(weights)
    del tensors["transformer.h.0.attn.c_proj.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(NoSuchTeacherError):
        load(copied_teacher)
