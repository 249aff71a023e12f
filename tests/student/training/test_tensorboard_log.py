"""Event files say what metrics.jsonl says, by TensorBoard's own reader, also of runs that were stopped and resumed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from storage.errors import MissingExtraError
from student import TrainConfig
from student.training import loop
from student.training.run_log import RunLog, read_metrics
from student.training.trainer import train
from tests.student.training.runs import stopped_at

# Every point of a tag: step and value, as they stand in the file.
Points = dict[str, list[tuple[int, float]]]
CLOCK = ("tokens_per_second", "seconds")


def train_until(config: TrainConfig, num_steps: int) -> None:
    """Fails in the place of a step, counted from 1 after the start or resume."""
    with stopped_at(num_steps):
        train(config)


def read_events(out: Path) -> EventAccumulator:
    return EventAccumulator(str(out / "tensorboard"), size_guidance={"scalars": 0}).Reload()


def points_of(events: EventAccumulator) -> Points:
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def expected_points(lines: list[dict[str, Any]]) -> Points:
    points: Points = {}
    for line in lines:
        plain = {name: value for name, value in line.items() if name not in ("step", "validation")}
        inner = {f"validation/{name}": value for name, value in line.get("validation", {}).items()}
        for name, value in (plain | inner).items():
            if type(value) in (int, float):
                points.setdefault(name, []).append((line["step"], pytest.approx(value, rel=1e-6)))
    return points


def without_clock(points: Points) -> Points:
    return {name: values for name, values in points.items() if name not in CLOCK}


@pytest.fixture(autouse=True)
def log_every_third_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_LOG_EVERY", 3)


@pytest.fixture
def config(train_config: Callable[..., TrainConfig]) -> TrainConfig:
    return train_config(tensorboard=True, checkpoint_every=4, evaluate_every=2)


def test_every_number_of_every_line_is_a_point_of_its_name(config: TrainConfig) -> None:
    train(config)
    lines = read_metrics(config.out)
    assert [line["step"] for line in lines if "validation" not in line] == [3, 6, 8]
    points = points_of(read_events(config.out))
    assert points == expected_points(lines)
    assert {
        "soft_targets_nats", "samples_nats", "beams_nats", "labels_nats", "gradient_norm", "learning_rate",
        "tokens_per_second", "tokens_seen", "seconds", "validation/perplexity", "validation/kl_nats",
    } <= points.keys()  # fmt: skip


@pytest.mark.parametrize("stops", [(2,), (5, 3), (8, 1)])
def test_a_resumed_run_has_every_point_once(
    config: TrainConfig, train_config: Callable[..., TrainConfig], tmp_path: Path, stops: tuple[int, ...]
) -> None:
    undisturbed = train_config(out=tmp_path / "undisturbed", checkpoint_every=4, evaluate_every=2)
    train(undisturbed)
    for steps in stops:
        train_until(config, steps)
        assert points_of(read_events(config.out)) == expected_points(read_metrics(config.out))
    train(config)
    points = points_of(read_events(config.out))
    assert points == expected_points(read_metrics(config.out))
    assert without_clock(points) == without_clock(expected_points(read_metrics(undisturbed.out)))
    assert weights_sha256(config.out) == weights_sha256(undisturbed.out)


def weights_sha256(out: Path) -> str:
    return hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()


def test_a_run_that_changes_its_mind_has_the_points_of_the_steps_before(
    config: TrainConfig, train_config: Callable[..., TrainConfig]
) -> None:
    without = train_config(checkpoint_every=4, evaluate_every=2)
    train_until(without, 5)
    train_until(config, 3)
    train(without)
    assert points_of(read_events(config.out)) != expected_points(read_metrics(config.out))
    train(config)
    assert points_of(read_events(config.out)) == expected_points(read_metrics(config.out)), "a finished run's too"


def test_a_tensorboard_that_looks_on_forgets_what_the_resumed_run_does_again(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_until(config, 8)
    watching = read_events(config.out)
    assert [step for step, _ in points_of(watching)["learning_rate"]] == [3, 6]
    real_time = time.time
    monkeypatch.setattr(time, "time", lambda: real_time() + 60)  # event files are read in the order of their seconds
    train(config)
    assert points_of(watching.Reload()) == expected_points(read_metrics(config.out))


@pytest.mark.parametrize("clock_shift_seconds", [60, -60, 0])
def test_a_run_resumed_often_keeps_two_event_files_at_most(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, clock_shift_seconds: int
) -> None:
    """Also where the clock was set back, so that the newest file does not have the last name."""
    real_time = time.time
    config = dataclasses.replace(config, checkpoint_every=2)
    for session in range(3):
        monkeypatch.setattr(time, "time", lambda shift=session * clock_shift_seconds: real_time() + shift)
        train_until(config, 3)
        assert len(list((config.out / "tensorboard").iterdir())) <= 2
        assert points_of(read_events(config.out)) == expected_points(read_metrics(config.out))


def test_points_stand_in_time_where_the_run_was(config: TrainConfig) -> None:
    train_until(config, 6)
    train(config)
    events = read_events(config.out)
    origins = [
        event.wall_time - event.value for event in events.Scalars("seconds") if event.step in (3, 6, 8)
    ]  # in float32
    assert origins == pytest.approx([origins[0]] * len(origins), abs=1e-3)
    assert abs(origins[0] - time.time()) < 600


def test_without_the_extra_nothing_is_begun(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(MissingExtraError) as caught:
        train(config)
    assert caught.value.extra == "tensorboard"
    assert not config.out.exists()


def test_lines_of_an_earlier_version_that_counted_no_seconds(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 10, "labels_nats": 2.5}) + "\n")
    log = RunLog(tmp_path, 10, tensorboard=True)
    log.write(20, labels_nats=2.25, seconds=7.0, validation={"perplexity": None, "kl_is_lower_bound": True})
    log.close()
    assert points_of(read_events(tmp_path)) == {"labels_nats": [(10, 2.5), (20, 2.25)], "seconds": [(20, 7.0)]}
