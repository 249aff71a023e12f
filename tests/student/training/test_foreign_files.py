"""What another program left under a run's names is named in one line, and stays as it was."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from storage.errors import ConfigError, RecordError, TeachonceError
from storage.records.records import write_record
from student import TrainConfig
from student.errors import CheckpointError, ForeignFileError
from student.generation.candidates import trained_length_penalty
from student.training.trainer import train
from tests.student.training.runs import stopped_at


def require_refused(config: TrainConfig, error: type[TeachonceError], told: str) -> None:
    """Training is refused with one line that names `told`, and touches nothing."""
    before = {path: path.read_bytes() for path in config.out.rglob("*") if path.is_file()}
    with pytest.raises(error) as caught:
        train(config)
    assert told in str(caught.value)
    assert {path: path.read_bytes() for path in config.out.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "content",
    [
        {"model_state_dict": {}, "epoch": 3}, [1], torch.zeros(3), torch.nn.Linear(2, 2).state_dict(),
        torch.nn.Linear(2, 2), {"step": 3, "run": {}}, {"step": 3, "run": [1], "sharded": "checkpoint-3"},
    ],
)  # fmt: skip
def test_a_checkpoint_of_another_program(train_config: Callable[..., TrainConfig], content: Any) -> None:
    config = train_config()
    config.out.mkdir()
    torch.save(content, config.out / "checkpoint.pt")
    require_refused(config, CheckpointError, f"{config.out}/checkpoint.pt: damaged checkpoint (")


@pytest.mark.parametrize(
    "content", [b"text", json.dumps({"a": 1}).encode(), pickle.dumps({"a": 1}), b"\x80\x02}q\x00."]
)
def test_a_file_that_is_no_checkpoint_at_all(train_config: Callable[..., TrainConfig], content: bytes) -> None:
    config = train_config()
    config.out.mkdir()
    (config.out / "checkpoint.pt").write_bytes(content)
    require_refused(config, CheckpointError, "or name another --out if another program wrote it")


@pytest.mark.parametrize("name", ["step", "streams", "random", "run", "model", "optimizer"])
def test_a_checkpoint_that_lacks_a_part(train_config: Callable[..., TrainConfig], name: str) -> None:
    config = train_config(checkpoint_every=1)
    with stopped_at(3):
        train(config)
    state = torch.load(config.out / "checkpoint.pt", weights_only=True)
    del state[name]
    torch.save(state, config.out / "checkpoint.pt")
    require_refused(config, CheckpointError, f"it has no {name}")


@pytest.mark.parametrize("content", [b'{"a": 1}', b"[]", b"{", b"\xff", b"[" * 100_000])
@pytest.mark.parametrize("name", ["run.json", "micro_batches.json", "shards.json"])
def test_a_record_of_another_program(train_config: Callable[..., TrainConfig], name: str, content: bytes) -> None:
    config = train_config()
    config.out.mkdir()
    (config.out / name).write_bytes(content)
    require_refused(config, CheckpointError if name == "run.json" else RecordError, f"{config.out}/{name}: ")


@pytest.mark.parametrize("value", [None, "x", [[1]]])
@pytest.mark.parametrize("name", ["micro_batches", "shards"])
def test_a_record_that_states_something_else(
    train_config: Callable[..., TrainConfig], name: str, value: object
) -> None:
    config = train_config()
    write_record(config.out / f"{name}.json", {name: value})
    require_refused(config, RecordError, f"{config.out}/{name}.json: states no")


@pytest.mark.parametrize("name", ["checkpoint.pt", "metrics.jsonl", "micro_batches.json", "run.json", "shards.json"])
def test_a_directory_where_a_file_belongs(train_config: Callable[..., TrainConfig], name: str) -> None:
    config = train_config()
    (config.out / name).mkdir(parents=True)
    require_refused(config, ForeignFileError, f"{config.out}/{name}: not a file")


def test_a_file_where_event_files_belong(train_config: Callable[..., TrainConfig]) -> None:
    config = train_config(tensorboard=True)
    config.out.mkdir()
    (config.out / "tensorboard").write_text("mine")
    require_refused(config, ForeignFileError, f"{config.out}/tensorboard: not a directory")


@pytest.mark.parametrize("content", ["my notes\n", json.dumps({"epoch": 1, "loss": 3.0}) + "\n"])
def test_a_log_of_another_program(train_config: Callable[..., TrainConfig], content: str) -> None:
    config = train_config()
    config.out.mkdir()
    (config.out / "metrics.jsonl").write_text(content)
    require_refused(config, ForeignFileError, f"{config.out}/metrics.jsonl: not the log of a run")


@pytest.mark.parametrize("left", ["", '{"step": 1, "labels', '{"step": 1}\n{"st'])
def test_a_log_that_a_run_left_before_its_first_checkpoint_is_in_nobodys_way(
    train_config: Callable[..., TrainConfig], left: str
) -> None:
    config = train_config(max_steps=1)
    config.out.mkdir()
    (config.out / "metrics.jsonl").write_text(left)
    train(config)


@pytest.mark.parametrize("name", ["checkpoint-500/optimizer.pt", "checkpoint-best.pt", "metrics.jsonl.old"])
def test_files_whose_names_are_almost_a_runs(train_config: Callable[..., TrainConfig], name: str) -> None:
    """The Trainer of transformers leaves directories named as those of fsdp; they were removed once."""
    config = train_config()
    (config.out / name).parent.mkdir(parents=True)
    (config.out / name).write_text("mine")
    require_refused(config, ConfigError, f"not empty and not a run (found {name.partition('/')[0]!r})")


def test_strangers_beside_a_run_stay(train_config: Callable[..., TrainConfig]) -> None:
    config = train_config(checkpoint_every=1, tensorboard=True)
    with stopped_at(3):
        train(config)
    mine = [config.out / name for name in ("checkpoint-500/optimizer.pt", "tensorboard/events.out.tfevents.1.mine")]
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    (config.out / "tensorboard" / "events.out.tfevents.2.directory").mkdir()
    train(config)
    assert [path.read_text() for path in mine] == ["mine", "mine"]


def test_a_length_penalty_that_is_no_number(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"length_penalty": "x"}))
    with pytest.raises(CheckpointError, match=r"run\.json"):
        trained_length_penalty(tmp_path)
