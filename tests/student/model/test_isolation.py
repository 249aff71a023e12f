"""Students of every kind: they learn from, are measured on and write what the model alone says of each text."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from storage import Cache
from storage.tensors import packing
from storage.tensors.model_facts import body_of
from student import EvaluateConfig, TrainConfig, evaluate, train
from student.errors import ArchitectureError
from student.losses.batches import text_batch
from student.model.architecture import hidden_states
from student.model.isolation import isolation_of
from student.model.loading import load_student
from student.processes import Processes
from student.token_loop import draw_tokens
from student.training.learner import make_learner
from student.training.parallel import ParallelModel
from tests.odd_models import MODELS, in_float64, make_model

SEGMENTS = [[32], [3, 9, 13, 1, 6], [17, 15]]
# The losses do not know the soft cap of its head.
STUDENTS = [name for name in MODELS if name != "recurrent_gemma"]


@pytest.mark.parametrize("longest_masked", [packing.LONGEST_MASKED, 16])
@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_those_of_each_document_alone(
    monkeypatch: pytest.MonkeyPatch, name: str, longest_masked: int
) -> None:
    monkeypatch.setattr(packing, "LONGEST_MASKED", longest_masked)
    model = make_model(name)
    ids = torch.randint(257, (3, 32), generator=torch.Generator().manual_seed(0))
    positions = torch.stack([torch.cat([torch.arange(length) for length in row]) for row in SEGMENTS])
    documents = torch.split(ids.flatten(), [length for row in SEGMENTS for length in row])

    def gradients(hidden_PD: torch.Tensor) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(1)
        loss = (hidden_PD * torch.randn(hidden_PD.shape, generator=generator)).sum()
        used = [parameter for parameter in body_of(model).parameters() if parameter.requires_grad]
        return [g for g in torch.autograd.grad(loss, used, allow_unused=True) if g is not None]

    found = hidden_states(model, ids, positions).flatten(0, 1)
    alone = torch.cat([body_of(model)(input_ids=d[None], use_cache=False).last_hidden_state[0] for d in documents])
    torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-4)
    truth = gradients(alone)
    atol = 1e-5 * max(float(gradient.abs().max()) for gradient in truth)
    for gradient, expected in zip(gradients(found), truth, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=atol)


@pytest.fixture
def group_of_one(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize(("gatherer", "expected"), [("", 2), ("DeepSpeed", 1), ("FSDP2", 1)])
def test_where_processes_gather_parameters_long_blocks_run_in_one_pass(
    monkeypatch: pytest.MonkeyPatch, group_of_one: None, gatherer: str, expected: int
) -> None:
    """Otherwise a process whose blocks hold more documents would wait for the others for ever."""
    monkeypatch.setattr(packing, "LONGEST_MASKED", 16)
    model = make_model("llama")
    isolation_of(model)
    if gatherer == "DeepSpeed":
        next(model.parameters()).ds_id = 0  # as it marks a parameter that it has cut into parts
    parallel = ParallelModel(model, "fsdp" if gatherer == "FSDP2" else "ddp", Processes())
    passes: list[object] = []
    body_of(model).register_forward_hook(lambda *told: passes.append(told))
    positions = torch.cat([torch.arange(4), torch.arange(28)])[None]
    loss = functools.partial(hidden_states, model, torch.zeros((1, 32), dtype=torch.int64), positions)
    parallel.accumulate(lambda: (loss().sum(), None), is_last=True)
    assert len(passes) == expected


@pytest.mark.parametrize("name", ["llama", "bloom", "mamba", "phi3"])
def test_texts_of_unlike_lengths_get_what_each_gets_alone(name: str) -> None:
    model = make_model(name)
    batch = text_batch([1, 2, 3], [[4], [5] * 20, [6, 7, 8]], model.device)
    hidden = hidden_states(model, batch.input_ids, batch.position_ids)
    for row, length in enumerate([3, 22, 5]):
        alone = body_of(model)(input_ids=batch.input_ids[row : row + 1, :length], use_cache=False)
        torch.testing.assert_close(hidden[row, :length], alone.last_hidden_state[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", STUDENTS)
def test_a_student_is_trained_and_measured_and_writes(
    cache: Cache, train_config: Callable[..., TrainConfig], tmp_path: Path, name: str
) -> None:
    settings, isolation, reads_whole_texts = MODELS[name]
    preset = tmp_path / "student.json"
    preset.write_text(json.dumps({"model_type": name} | settings))
    directory = train(train_config(preset=str(preset), max_steps=2))
    model = load_student(directory).eval()
    assert isolation_of(model).value == isolation
    measured = evaluate(EvaluateConfig(student=directory, cache=cache.path, quiet=True))
    prompts = [np.arange(length) * 7 % 256 for length in (3, 12, 5, 3)]
    steps = list(islice(draw_tokens(model, prompts, [0] * 4, temperature=0.0, top_p=1.0), 8))
    assert model.reads_whole_texts is reads_whole_texts
    for prompt, written in zip(prompts, zip(*steps, strict=True), strict=True):
        ids = prompt.tolist()
        for token in written:
            with torch.inference_mode():
                logits_V = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
            assert logits_V[token] >= logits_V.max() - 1e-4
            ids.append(token)
    truth = perplexity_of_each_text(in_float64(model), cache)
    assert measured["perplexity"] == pytest.approx(truth, rel=1e-3)


def perplexity_of_each_text(model: Any, cache: Cache) -> float:
    nll: list[float] = []
    for batch in cache.record_batches("soft_targets", "validation"):
        for row in batch.to_pylist():
            start = 0
            for length in row["segment_lengths"]:
                ids = torch.tensor([row["input_ids"][start : start + length]])
                start += length
                if length > 1:
                    # The model reads all but a block's last token.
                    read = ids if start < len(row["input_ids"]) else ids[:, :-1]
                    with torch.inference_mode():
                        logprobs = torch.log_softmax(model(input_ids=read, use_cache=False).logits[0], dim=1)
                    nll += (-logprobs[: length - 1].gather(1, ids[0, 1:, None])[:, 0]).tolist()
    return math.exp(sum(nll) / len(nll))


def test_a_leak_that_new_weights_hide_is_found() -> None:
    """With weights of 0.00001 the documents of a block seem apart, and no longer once the student has learnt."""
    assert isolation_of(make_model("bloom", initializer_range=1e-5)).value == "rows"
    assert isolation_of(make_model("llama", initializer_range=1e-5)).value == "packed"


def test_fsdp_refuses_a_student_that_reads_a_document_a_row(
    cache: Cache, train_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    preset = tmp_path / "student.json"
    preset.write_text(json.dumps({"model_type": "bloom"} | MODELS["bloom"][0]))
    config = train_config(preset=str(preset), parallelism="fsdp")
    with pytest.raises(ArchitectureError, match="fsdp"):
        make_learner(config, cache, torch.device("cpu"), Processes(world_size=2))
