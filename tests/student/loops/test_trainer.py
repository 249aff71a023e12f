from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import TrainingArguments

from storage import Cache
from storage.errors import ConfigError
from student import CacheDataset, DistillationTrainer, distillation_loss, hidden_states
from student.errors import CheckpointError, StudentContextError
from student.loops.errors import AdapterError, IdsBeyondStudentError, LostSharesError, UnservedTemperatureError
from tests.places import ROOT

pytest.importorskip("accelerate", reason="the extra trainer")

# What each of several processes runs: {"out", "shape", "cache", "resume", …} as JSON.
PROCESS = """
import json, sys, torch
from transformers import GPT2Config, GPT2LMHeadModel, TrainingArguments
from student import DistillationTrainer

job = json.loads(sys.argv[1])
torch.set_num_threads(1)
torch.manual_seed(0)
model = GPT2LMHeadModel(GPT2Config(**job["shape"]))
trainer = DistillationTrainer(model, TrainingArguments(**job["arguments"]), train_dataset=job["cache"])
trainer.train(resume_from_checkpoint=job["resume"])
assert not [name for name in sys.modules if name.partition(".")[0] == "pipeline"]
if trainer.is_world_process_zero():
    torch.save(trainer.model.state_dict(), job["out"])
"""
# Adam would make differences of rounding as large as steps, where gradients are almost 0.
PLAIN_SGD = {"optim": "sgd", "learning_rate": 0.5, "lr_scheduler_type": "constant", "max_grad_norm": 0.0}
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


@pytest.fixture
def arguments(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    def make(**changes: object) -> dict[str, Any]:
        settings: dict[str, object] = {
            "output_dir": str(tmp_path / "out"), "use_cpu": True, "max_steps": 6, "save_steps": 3, "report_to": [],
            "per_device_train_batch_size": 6, "learning_rate": 1e-2, "disable_tqdm": True, "logging_steps": 1,
        }  # fmt: skip
        return settings | changes

    return make


@pytest.fixture
def make_trainer(cache: Cache, arguments: Callable[..., dict[str, Any]]) -> Callable[..., DistillationTrainer]:
    def make(model: Any, train_dataset: Any = None, settings: dict[str, Any] | None = None, **changes: object) -> Any:
        dataset = cache.path if train_dataset is None else train_dataset
        return DistillationTrainer(
            model, TrainingArguments(**arguments(**changes)), train_dataset=dataset, **(settings or {})
        )

    return make


def weights_of(model: Any) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def losses_of(trainer: DistillationTrainer) -> list[float]:
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def test_it_is_the_plain_loop(cache: Cache, make_student: Callable[..., Any], make_trainer: Any) -> None:
    changes = PLAIN_SGD | {"data_seed": 5, "logging_steps": 6}
    trainer = make_trainer(make_student(**NO_DROPOUT), settings={"label_weight": 0.3}, **changes)
    trainer.train()
    model = make_student(**NO_DROPOUT).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    losses = []
    for _, batch in zip(range(6), CacheDataset(cache.path, batch_rows=6, seed=5), strict=False):
        hidden = hidden_states(model, batch["input_ids"], batch["position_ids"])
        loss = distillation_loss(hidden, model.lm_head.weight, batch, label_weight=0.3)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert torch.allclose(weights_of(trainer.model), weights_of(model), atol=1e-6)
    assert losses_of(trainer) == [pytest.approx(sum(losses) / 6, abs=1e-4)]


def test_a_resumed_run_ends_bit_identical(make_student: Callable[..., Any], make_trainer: Any, tmp_path: Path) -> None:
    whole = make_trainer(make_student())
    whole.train()
    resumed = make_trainer(make_student(seed=1), dataloader_num_workers=2)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-3"))
    assert torch.equal(weights_of(whole.model), weights_of(resumed.model))
    assert losses_of(whole)[3:] == losses_of(resumed)[3:]
    assert whole.state.epoch == resumed.state.epoch == pytest.approx(36 / whole.train_dataset.num_rows)


def test_accumulated_batches_are_one(wanted_cache: Cache, make_student: Callable[..., Any], make_trainer: Any) -> None:
    """Batches with very different numbers of wanted targets."""
    cut = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3}
    whole, parts = (
        make_trainer(make_student(**NO_DROPOUT), wanted_cache.path, **PLAIN_SGD, **changes) for changes in ({}, cut)
    )
    for trainer in (whole, parts):
        trainer.train()
    assert torch.allclose(weights_of(whole.model), weights_of(parts.model), atol=1e-5)
    assert losses_of(whole) == pytest.approx(losses_of(parts), abs=1e-4)


def test_mixed_precision_checkpointing_and_evaluation(
    cache: Cache, make_student: Callable[..., Any], make_trainer: Any
) -> None:
    held_out = CacheDataset(cache.path, split="validation", batch_rows=6, num_epochs=1, shuffle=False)
    plain = make_trainer(make_student(**NO_DROPOUT), settings={"eval_dataset": held_out})
    mixed = make_trainer(make_student(**NO_DROPOUT), bf16=True, gradient_checkpointing=True)
    before = plain.evaluate()["eval_loss"]
    for trainer in (plain, mixed):
        trainer.train()
    assert plain.evaluate()["eval_loss"] == plain.evaluate()["eval_loss"] < before
    assert losses_of(mixed) != losses_of(plain)
    assert losses_of(mixed) == pytest.approx(losses_of(plain), abs=0.05)


def test_epochs_are_passes_over_the_rows(cache: Cache, make_student: Callable[..., Any], make_trainer: Any) -> None:
    dataset = CacheDataset(cache.path, "samples", batch_rows=7)
    trainer = make_trainer(make_student(), dataset, max_steps=-1, num_train_epochs=2.0, gradient_accumulation_steps=2)
    trainer.train()
    assert trainer.state.global_step == -(-2 * dataset.num_rows // 14)
    assert trainer.state.epoch >= 2


def test_lora_learns_and_what_the_losses_do_not_see_is_refused(
    make_student: Callable[..., Any], make_trainer: Any
) -> None:
    peft = pytest.importorskip("peft")

    def adapted(**settings: Any) -> Any:
        config = peft.LoraConfig(task_type="CAUSAL_LM", fan_in_fan_out=True, **settings)
        return peft.get_peft_model(make_student(), config)

    trainer = make_trainer(adapted(target_modules=["c_attn"]))
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    changed = {name for name, parameter in trainer.model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == {name for name in before if "lora" in name}
    with pytest.raises(AdapterError, match="its adapter changes its output head, which the losses do not see"):
        make_trainer(adapted(target_modules=["c_attn"], modules_to_save=["lm_head"]))
    prompts = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with pytest.raises(AdapterError, match="its adapter puts tokens before the text"):
        make_trainer(peft.get_peft_model(make_student(), prompts))


def test_what_does_not_fit_is_refused(
    cache: Cache, make_student: Callable[..., Any], make_trainer: Any, tmp_path: Path
) -> None:
    with pytest.raises(StudentContextError):
        make_trainer(make_student(n_positions=16))
    with pytest.raises(UnservedTemperatureError):
        make_trainer(make_student(), settings={"temperature": 3.0})
    with pytest.raises(ConfigError, match="train_dataset ends after"):
        make_trainer(make_student(), CacheDataset(cache.path, batch_rows=4, num_epochs=1))
    with pytest.raises(LostSharesError, match="shares rows among 2 processes, of which 1 learn together"):
        make_trainer(make_student(), CacheDataset(cache.path, batch_rows=4, rank=0, world_size=2))
    make_trainer(make_student()).train()
    state = tmp_path / "out" / "checkpoint-3" / "trainer_state.json"
    state.write_text(state.read_text().replace('"CacheDataset"', '"other"'))
    with pytest.raises(CheckpointError, match="states no place in the cache"):
        make_trainer(make_student()).train(resume_from_checkpoint=str(state.parent))


def test_ids_beyond_the_student_are_left_out(
    helpers: ModuleType, text_file: Path, make_student: Callable[..., Any], make_trainer: Any, tmp_path: Path
) -> None:
    teacher = helpers.make_teacher(tmp_path / "teacher", vocab_size=300)
    config = helpers.tiny_config(teacher, text_file, tmp_path / "cache", max_tokens=2000, kinds=("soft_targets",))
    padded = helpers.precomputed(config)
    with pytest.raises(IdsBeyondStudentError, match=r"has 257 rows, the cache's 300; make the dataset by CacheDataset"):
        make_trainer(make_student(), CacheDataset(padded.path, batch_rows=4))
    make_trainer(make_student(), CacheDataset(padded.path, batch_rows=4, num_vocabulary_rows=257))
    make_trainer(make_student(), padded.path, max_steps=2).train()


def test_a_run_goes_on_in_several_processes(
    cache: Cache,
    shape: dict[str, Any],
    make_student: Callable[..., Any],
    make_trainer: Any,
    arguments: Callable[..., dict[str, Any]],
    tmp_path: Path,
) -> None:
    whole = make_trainer(make_student(**NO_DROPOUT), **PLAIN_SGD)
    whole.train()
    checkpoint, out = tmp_path / "out" / "checkpoint-3", tmp_path / "weights.pt"
    job = {
        "out": str(out), "shape": shape | NO_DROPOUT, "cache": str(cache.path), "resume": str(checkpoint),
        "arguments": arguments(per_device_train_batch_size=2, save_strategy="no", **PLAIN_SGD),
    }  # fmt: skip
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    meeting = {"WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, json.dumps(job)],
            cwd=ROOT,
            env=os.environ | meeting | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(3)
    ]
    for process in processes:
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
    found = torch.load(out)
    for name, expected in whole.model.state_dict().items():
        assert torch.allclose(found[name], expected, atol=1e-5), name
