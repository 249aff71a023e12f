"""What is known about a student, also when its files say less than they should, or nonsense."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from student.errors import CheckpointError
from student.report.curves import training_charts
from student.report.runs import Run, distinct_names
from student.report.training_log import Curve, TrainingLog
from student.run_record import read_run
from student.training.run_log import metrics_lines


def make_run(**changes: Any) -> Run:
    """A student of the report, with the lines `metrics` as its log."""
    settings: dict[str, Any] = {
        "name": "student", "directory": Path("student"), "settings": {}, "measures": {}, "tokens_per_second": 10.0,
        "log": TrainingLog.of(changes.pop("metrics", [])),
    }  # fmt: skip
    return Run(**(settings | changes))


def values(curve: Curve) -> list[tuple[float, float]]:
    return [(point.step, point.mean) for point in curve.points]


def test_names_are_told_apart(tmp_path: Path) -> None:
    assert distinct_names([Path("a/student"), Path("b/plain")]) == ["student", "plain"]
    assert distinct_names([Path("a/s"), Path("b/s"), Path("b/t")]) == ["a/s", "b/s", "b/t"]
    assert distinct_names([tmp_path]) == [tmp_path.name]


@pytest.mark.parametrize(
    ("mix", "is_baseline"),
    [
        ({"soft_targets": 0.0, "samples": 0.0, "beams": 0.0, "labels": 1.0}, True),
        ({"soft_targets": 0.0, "samples": 0.5, "beams": 0.0, "labels": 1.0}, False),
        ({"soft_targets": None, "samples": 0.0, "beams": 0.0, "labels": 1.0}, False),
        ({"soft_targets": 0.0, "samples": 0.0, "beams": 0.0, "labels": None}, True),
        (None, False),
        ("labels", False),
    ],
)
def test_a_baseline_is_what_saw_plain_text_alone(mix: object, is_baseline: bool) -> None:
    assert make_run(settings={"mix": mix}).is_baseline == is_baseline


def test_a_log_with_nonsense_in_it(tmp_path: Path) -> None:
    lines = [
        {"step": 10, "soft_targets_nats": 2.0, "tokens_seen": 100, "seconds": 1.5},
        {"step": 10, "validation": {"kl_nats": 0.5, "perplexity": None}},
        {"step": 20, "soft_targets_nats": "<b>", "labels_nats": float("nan"), "tokens_seen": 200},
        {"no step": 1},
        {"step": "x"},
        {"step": 30, "soft_targets_nats": True, "validation": "none"},
        [1],
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 4')
    log = TrainingLog.of(metrics_lines(tmp_path))
    assert list(log.losses) == ["soft_targets_nats", "labels_nats"]
    assert values(log.losses["soft_targets_nats"]) == [(10.0, 2.0)]
    assert values(log.losses["labels_nats"]) == []
    assert values(log.held_out["kl_nats"]) == [(10.0, 0.5)]
    assert "perplexity" not in log.held_out
    assert log.last == {"step": 30.0, "soft_targets_nats": 2.0, "tokens_seen": 200.0, "seconds": 1.5}
    assert TrainingLog.of(metrics_lines(tmp_path / "nowhere")) == TrainingLog()


def test_a_part_of_the_loss_without_a_number_has_no_chart() -> None:
    broken = make_run(metrics=[{"step": 10, "soft_targets_nats": float("nan")}])
    assert training_charts([broken]) is None
    charts = training_charts([broken, make_run(name="b", metrics=[{"step": 10, "labels_nats": 2.0}])])
    assert charts is not None
    assert charts.count("<figure ") == 1


def test_losses_of_different_functions_share_no_axis() -> None:
    def soft(name: str, **settings: Any) -> Run:
        return make_run(name=name, settings=settings, metrics=[{"step": 10, "soft_targets_nats": 1.0}])

    forward, reverse = {"loss": "forward_kl", "temperature": 1.0}, {"loss": "reverse_kl", "temperature": 1.0}
    alike = training_charts([soft("a", **forward), soft("b", **forward)])
    assert alike is not None
    assert alike.count("<figure ") == 1
    assert "forward_kl" not in alike
    plain = make_run(name="d", settings=forward, metrics=[{"step": 10, "labels_nats": 2.0}])
    charts = training_charts([soft("a", **forward), soft("b", **reverse), soft("c", **forward), plain])
    assert charts is not None
    forwards, reverses, labels = charts.split("<figure ")[1:]
    assert "Loss on soft targets: forward_kl at temperature 1" in forwards
    assert "Loss on soft targets: reverse_kl at temperature 1" in reverses
    assert "Loss on real text" in labels
    bound = make_run(
        name="e", settings=forward | {"temperature": 1}, metrics=[
            {"step": 10, "soft_targets_nats": 0.5}, {"step": 10, "validation": {"kl_is_lower_bound": True}},
        ],
    )  # fmt: skip
    with_bound = training_charts([soft("a", **forward), bound, soft("f", **forward, mix=None)])
    assert with_bound is not None
    assert [title in with_bound for title in ("temperature 1<", "temperature 1, a lower bound<")] == [True, True]
    assert with_bound.count("<figure ") == 2
    shown = [[f">{name}</" in figure for name in "abcd"] for figure in (forwards, reverses, labels)]
    assert shown == [[True, False, True, False], [False, True, False, False], [False, False, False, True]]


def test_bounds_and_estimates_share_no_axis() -> None:
    def run(name: str, is_bound: bool | None) -> Run:
        found = {"kl_nats": 0.5, "perplexity": 20.0, "kl_is_lower_bound": is_bound}
        return make_run(name=name, metrics=[{"step": 10, "validation": found}])

    charts = training_charts([run("a", False), run("b", True), run("c", None)])
    assert charts is not None
    perplexity, estimates, bounds = charts.split("<figure ")[1:]
    assert "KL to the teacher as training went on: estimate" in estimates
    assert "KL to the teacher as training went on: lower bound" in bounds
    shown = [[f">{name}</" in figure for name in "abc"] for figure in (perplexity, estimates, bounds)]
    assert shown == [[True, True, True], [True, False, True], [False, True, False]]
    alone = training_charts([run("b", True)])
    assert alone is not None
    assert alone.count("<figure ") == 2


@pytest.mark.parametrize("content", ["{", "[]", '"text"', "\x00", '{"lora": "x"}', '{"mix": 1}'])
def test_damaged_settings_are_refused(tmp_path: Path, content: str) -> None:
    assert read_run(tmp_path) == {}
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"run\.json"):
        read_run(tmp_path)
