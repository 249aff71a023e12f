"""--dropout sets every dropout of a student, however its architecture calls it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from transformers import AutoModelForCausalLM

from storage import Cache
from storage.errors import ConfigError
from student import TrainConfig
from student.errors import RunMismatchError
from student.model.dropout import set_dropout
from student.training.learner import make_learner
from student.training.trainer import train
from tests.odd_models import make_model
from tests.student.training.runs import final_files, stopped_at

_CPU = torch.device("cpu")
# Settings that turn on each dropout of a family.
ALL = {
    "gpt2": {"resid_pdrop": 0.3, "embd_pdrop": 0.3, "attn_pdrop": 0.3},  # modules
    "llama": {"attention_dropout": 0.3},  # a number that each layer holds
    "opt": {"dropout": 0.3, "attention_dropout": 0.3, "layerdrop": 0.3},  # one of them drops whole layers
    "bloom": {"hidden_dropout": 0.3, "attention_dropout": 0.3},
    "falcon": {"hidden_dropout": 0.3, "attention_dropout": 0.3},
    "jamba": {"attention_dropout": 0.3},
}


def logits(model: Any, *, is_training: bool) -> torch.Tensor:
    torch.manual_seed(0)
    with torch.no_grad():
        found: torch.Tensor = model.train(is_training)(input_ids=torch.arange(40)[None], use_cache=False).logits
    return found


@pytest.mark.parametrize("family", ALL)
def test_no_dropout_is_left_or_stated(family: str, tmp_path: Any) -> None:
    model = make_model(family, **ALL[family])
    assert not torch.equal(logits(model, is_training=True), logits(model, is_training=False))
    set_dropout(model, 0.0)
    assert torch.equal(logits(model, is_training=True), logits(model, is_training=False))
    model.save_pretrained(tmp_path)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert {name: getattr(saved.config, name) for name in ALL[family]} == dict.fromkeys(ALL[family], 0.0)


@pytest.mark.parametrize("family", ALL)
def test_a_share_is_that_of_all_units_and_of_no_layers(family: str) -> None:
    set_everywhere = make_model(family, **ALL[family] | ({"layerdrop": 0.0} if family == "opt" else {}))
    changed = make_model(family)
    set_dropout(changed, 0.3)
    for is_training in (True, False):
        assert torch.equal(logits(changed, is_training=is_training), logits(set_everywhere, is_training=is_training))
    assert {name: getattr(changed.config, name) for name in ALL[family]} == {
        name: 0.0 if name == "layerdrop" else 0.3 for name in ALL[family]
    }


def test_settings_of_heads_that_are_not_there_stay() -> None:
    model = make_model("gpt2", summary_first_dropout=0.25)
    set_dropout(model, 0.0)
    assert model.config.summary_first_dropout == 0.25


@pytest.mark.parametrize(("family", "why"), [("mpt", "attn_pdrop"), ("diffllama", "does not support")])
def test_a_share_that_a_config_cannot_state_is_refused(family: str, why: str) -> None:
    """What could be trained so could not be loaded."""
    model = make_model(family) if family == "mpt" else _diffllama()
    set_dropout(model, 0.0)
    with pytest.raises(ConfigError, match=rf"--dropout 0\.2: .*{why}.*expected 0 or None") as caught:
        set_dropout(model, 0.2)
    assert "\n" not in str(caught.value)


def _diffllama() -> Any:
    from transformers import DiffLlamaConfig

    config = DiffLlamaConfig(
        vocab_size=257, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("dropout", [-0.1, 1.0, 1, float("nan")])
def test_a_share_that_means_nothing_is_refused(train_config: Callable[..., TrainConfig], dropout: float) -> None:
    with pytest.raises(ConfigError, match="--dropout is "):
        train_config(dropout=dropout)


@pytest.mark.parametrize("beginning", ["config", "checkpoint", "attention alone"])
def test_a_config_that_says_dropout_trains_without_it(
    train_config: Callable[..., TrainConfig], cache: Cache, preset: str, saved: Path, beginning: str
) -> None:
    """Parts of a batch draw other zeros, so that equal steps in one part and in two mean that none is drawn."""
    if beginning == "attention alone":
        make_model("llama", attention_dropout=0.3).save_pretrained(saved)
    rows: dict[str, pa.RecordBatch] = {"soft_targets": next(cache.record_batches("soft_targets", "train"))}
    config = train_config(preset=preset if beginning == "config" else str(saved))
    found = [make_learner(dataclasses.replace(config, micro_batches=n), cache, _CPU).step(0, rows)[0] for n in (1, 2)]
    own = make_learner(dataclasses.replace(config, dropout=None), cache, _CPU).step(0, rows)[0]
    assert float(found[0]["soft_targets_nats"]) == pytest.approx(float(found[1]["soft_targets_nats"]), rel=1e-6)
    assert float(found[0]["gradient_norm"]) == pytest.approx(float(found[1]["gradient_norm"]), rel=1e-5)
    assert float(own["gradient_norm"]) != pytest.approx(float(found[0]["gradient_norm"]), rel=1e-3)


def test_the_saved_config_states_what_the_student_was_trained_with(
    train_config: Callable[..., TrainConfig], preset: str, tmp_path: Path
) -> None:
    for dropout, stated in ((0.0, 0.0), (0.25, 0.25), (None, 0.1)):
        out = train(train_config(max_steps=1, out=tmp_path / str(dropout), dropout=dropout))
        config = json.loads((out / "config.json").read_text())
        assert {config[name] for name in ("attn_pdrop", "embd_pdrop", "resid_pdrop")} == {stated}
        assert json.loads((out / "run.json").read_text())["dropout"] == dropout


def test_a_run_of_an_earlier_version_goes_on_with_the_dropout_of_its_config(
    train_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    """Its record has neither dropout nor lora."""
    own = train_config(out=tmp_path / "own", dropout=None, checkpoint_every=3)
    train(own)
    config = train_config(checkpoint_every=3)
    with stopped_at(5):
        train(dataclasses.replace(config, dropout=None))
    state = torch.load(config.out / "checkpoint.pt", weights_only=True)
    del state["run"]["dropout"], state["run"]["lora"]
    torch.save(state, config.out / "checkpoint.pt")
    with pytest.raises(RunMismatchError, match="dropout"):
        train(dataclasses.replace(config, dropout=0.2))
    train(config)
    assert final_files(config.out) == final_files(own.out)
    train(config)  # finished: its run.json says null, as that of an earlier version says nothing
    run = json.loads((config.out / "run.json").read_text())
    del run["dropout"], run["lora"]
    (config.out / "run.json").write_text(json.dumps(run))
    train(config)
