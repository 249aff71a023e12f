"""--lora.rank: adapters are trained beside weights that stay as they are, and merged into a student like any other."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from storage import Cache
from storage.errors import ConfigError, MissingExtraError
from student import TrainConfig
from student.config import LoraConfig
from student.errors import ArchitectureError, RunMismatchError
from student.model.adapters import add_adapters
from student.training.checkpoint import whole_model
from student.training.learner import Learner, make_learner
from student.training.trainer import train
from tests.odd_models import make_model
from tests.student.training.runs import final_files, stopped_at

pytest.importorskip("peft")
CPU = torch.device("cpu")


@pytest.fixture
def rows(cache: Cache) -> dict[str, pa.RecordBatch]:
    return {kind: next(cache.record_batches(kind, "train")) for kind in ("soft_targets", "samples", "beams")}


@pytest.fixture
def config(train_config: Callable[..., TrainConfig], saved: Path) -> TrainConfig:
    """A run from the saved student, whose config says dropout 0.1."""
    return train_config(preset=str(saved), learning_rate=1e-2, lora=LoraConfig(rank=3, alpha=6.0), checkpoint_every=3)


def tensors_of(learner: Learner) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in learner.parallel.model.state_dict().items()}


def gradients(learner: Learner) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in learner.parallel.model.parameters() if p.grad is not None])


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt", "falcon"])
@pytest.mark.parametrize("train_embeddings", [False, True])
def test_the_student_has_the_sum_of_its_weights_and_adapters(
    config: TrainConfig, cache: Cache, rows: dict[str, pa.RecordBatch], family: str, train_embeddings: bool
) -> None:
    """W + α/r · B A in float64, for layers stored as [out, in] and as [in, out], and for an architecture's own class.

    All else is as it was, to the bit.
    """
    start = make_model(family)
    start.save_pretrained(config.preset)
    lora = dataclasses.replace(config.lora, train_embeddings=train_embeddings)
    learner = make_learner(dataclasses.replace(config, lora=lora), cache, CPU)
    for step in range(3):
        learner.step(step, rows)
    trained, merged = tensors_of(learner), whole_model(learner).state_dict()
    before, num_adapted = start.state_dict(), 0
    assert merged.keys() == before.keys()
    for name, weight in merged.items():
        layer = name.removesuffix(".weight")
        if f"{layer}.lora_A.default.weight" in trained:
            a, b = (trained[f"{layer}.lora_{part}.default.weight"].double() for part in "AB")
            product = (2.0 * b @ a).T if family == "gpt2" else 2.0 * b @ a
            assert product.abs().max() > 1e-3
            torch.testing.assert_close(weight.double(), before[name].double() + product, rtol=1e-6, atol=1e-6)
            num_adapted += 1
        else:
            is_trained = train_embeddings and any(part in name for part in ("wte", "wpe", "embed", "lm_head"))
            assert torch.equal(weight, before[name]) != is_trained, name
    assert num_adapted == {"gpt2": 8, "llama": 14, "opt": 12, "falcon": 8}[family]


def test_before_the_first_step_it_is_the_checkpoint(
    config: TrainConfig, cache: Cache, rows: dict[str, pa.RecordBatch]
) -> None:
    adapted = make_learner(config, cache, CPU)
    plain = make_learner(dataclasses.replace(config, lora=LoraConfig()), cache, CPU)
    (losses, _), (expected, _) = adapted.step(0, rows), plain.step(0, rows)
    assert {name: float(value) for name, value in losses.items() if name != "gradient_norm"} == {
        name: float(value) for name, value in expected.items() if name != "gradient_norm"
    }
    names = [name for name, parameter in adapted.parallel.model.named_parameters() if parameter.requires_grad]
    assert len(names) == 8
    assert all("lora_" in name for name in names)
    assert sum(len(group["params"]) for group in adapted.optimizer.param_groups) == len(names)


def test_parts_and_gradient_checkpointing_change_no_gradient(
    config: TrainConfig, cache: Cache, rows: dict[str, pa.RecordBatch]
) -> None:
    settings: tuple[dict[str, Any], ...] = ({}, {"micro_batches": 2}, {"gradient_checkpointing": True})
    found = []
    for changes in settings:
        learner = make_learner(dataclasses.replace(config, **changes), cache, CPU)
        learner.step(0, rows)
        found.append(gradients(learner))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)
    assert torch.equal(found[2], found[0])


def test_a_run_stopped_anywhere_ends_with_the_same_bytes(
    config: TrainConfig, cache: Cache, saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(config)
    assert "adapters of rank 3: " in capsys.readouterr().err
    again = dataclasses.replace(config, out=tmp_path / "again")
    for step in (5, 2):
        with stopped_at(step):
            train(again)
    state = torch.load(again.out / "checkpoint.pt", weights_only=True)
    assert all("lora_" in name for name in state["model"])
    with pytest.raises(RunMismatchError, match="lora"):
        train(dataclasses.replace(again, lora=LoraConfig(rank=4)))
    train(again)
    assert final_files(again.out) == final_files(config.out)
    train(again)  # finished
    # A student like any other, which peft is not needed for.
    assert not list(again.out.glob("adapter*"))
    run = json.loads((again.out / "run.json").read_text())
    assert run["lora"]["rank"] == 3
    assert run["num_trained_parameters"] == sum(tensor.numel() for tensor in state["model"].values())
    assert load_file(again.out / "model.safetensors").keys() == load_file(saved / "model.safetensors").keys()
    AutoModelForCausalLM.from_pretrained(again.out)


@pytest.mark.parametrize("changes", [{"rank": 0}, {"rank": -2}, {"alpha": 0.0}, {"alpha": float("nan")}])
def test_a_rank_or_alpha_that_means_nothing_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"--lora\.{next(iter(changes))} is "):
        LoraConfig(**changes)


@pytest.mark.parametrize("changes", [{"alpha": 5.0}, {"train_embeddings": True}])
def test_settings_of_adapters_need_a_rank(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"read only with --lora\.rank"):
        LoraConfig(**changes)


def test_adapters_of_what_they_do_not_suit_are_refused_in_one_line(
    config: TrainConfig, preset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for new in ("mini", preset):
        with pytest.raises(ConfigError, match=r"--lora\.rank 3 with --preset .*expected a checkpoint directory"):
            train(dataclasses.replace(config, preset=new))
    with pytest.raises(ConfigError, match="fsdp"):
        dataclasses.replace(config, parallelism="fsdp")
    without_layers = make_model("gpt2", n_layer=0)
    with pytest.raises(ArchitectureError, match=r"has no linear layer for --lora\.rank"):
        add_adapters(without_layers, config.lora, "start", seed=0)
    with pytest.raises(ArchitectureError, match="out_proj"):
        add_adapters(make_model("mamba"), config.lora, "start", seed=0)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtraError, match=r"--lora\.rank needs peft.*\.\[peft\]"):
        train(config)
    assert not config.out.exists() or not list(config.out.glob("checkpoint*"))


def test_a_model_that_reads_weights_past_their_layers_is_refused(config: TrainConfig) -> None:
    """Jamba multiplies by dt_proj.weight itself, which an adapter of the layer does not change until it is merged."""
    with pytest.raises(ArchitectureError, match=r"once its adapters of --lora\.rank are merged") as caught:
        add_adapters(make_model("jamba"), config.lora, "start", seed=0)
    assert "\n" not in str(caught.value)


def test_the_checkpoint_directory_may_move(config: TrainConfig, saved: Path, tmp_path: Path) -> None:
    """Checkpoints hold adapters alone; the rest comes from the preset, which counts by its content."""
    with stopped_at(5):
        train(config)
    moved = shutil.move(saved, tmp_path / "moved")
    train(dataclasses.replace(config, preset=str(moved)))
