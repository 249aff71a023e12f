"""Students of caches in which only some targets are wanted: losses over those alone, and nothing divided by none."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from storage import Cache
from storage.errors import ConfigError
from student import EvaluateConfig, MixConfig, TrainConfig, evaluate, train
from student.evaluation import evaluate_model
from student.evaluation.ratios import ratio_with_error
from student.evaluation.table import render
from student.processes import Processes
from student.report.passage import PassageToken, look_at_passage, passage_view
from student.training.meter import Meter
from student.training.objective import Objective
from student.training.parallel import ParallelModel
from student.training.run_log import read_metrics
from tests.student.evaluation.naive import heads_of
from tests.wanted import every, marked, none, some

ONLY_BLOCKS = {"samples": 0.0, "beams": 0.0}
TAIL_WEIGHT = 0.05


def first_rows(cache: Cache, num_rows: int = 8) -> pa.RecordBatch:
    return next(cache.record_batches("soft_targets", "train")).slice(0, num_rows)


def unwanted_row(cache: Cache) -> pa.RecordBatch:
    rows = first_rows(cache)
    (place, *_) = [r for r, flags in enumerate(rows["is_wanted"].to_pylist()) if not any(flags)]
    return rows.slice(place, 1)


def objective_of(model: Any, cache: Cache, config: TrainConfig) -> Objective:
    return Objective(ParallelModel(model, "ddp", Processes()), cache, config)


def truth(model: Any, rows: pa.RecordBatch, weights: dict[str, float]) -> tuple[Tensor, dict[str, float]]:
    """The loss in float64, and each part of it: means over wanted targets, one document at a time."""
    soft, labels = [], []
    for row in rows.to_pylist():
        entries, start = heads_of(row), 0
        for length in row["segment_lengths"]:
            ids = row["input_ids"][start : start + length]
            logs = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0], dim=1)
            for i in range(length - 1):
                if row["is_wanted"][start + i]:
                    head, head_logprobs, tail = entries[start + i]
                    cross = -(torch.from_numpy(np.exp(head_logprobs)) * logs[i, head]).sum()
                    soft.append(cross - TAIL_WEIGHT * logs[i, tail].sum() - row["entropy"][start + i])
                    labels.append(-logs[i, ids[i + 1]])
            start += length
    parts = {"soft_targets": torch.stack(soft).mean(), "labels": torch.stack(labels).mean()}
    total = sum((weights[name] * value for name, value in parts.items()), start=torch.zeros(()))
    return total, {f"{name}_nats": value.item() for name, value in parts.items()}


@pytest.mark.parametrize("micro_batches", [1, 3, 100])
def test_loss_and_gradient_are_means_over_wanted_targets(
    wanted_cache: Cache,
    make_student: Callable[..., Any],
    train_config: Callable[..., TrainConfig],
    micro_batches: int,
) -> None:
    """With 100 micro-batches, every row is one: some have no target."""
    weights = {"soft_targets": 0.7, "labels": 0.4}
    model, rows = make_student().double(), first_rows(wanted_cache)
    config = train_config(mix=MixConfig(**weights, **ONLY_BLOCKS), micro_batches=micro_batches, batch_blocks=8)
    losses, num_tokens = objective_of(model, wanted_cache, config).accumulate({"soft_targets": rows})
    found = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    total, parts = truth(model, rows, weights)
    total.backward()
    assert {name: float(value) for name, value in losses.items()} == pytest.approx(parts, rel=1e-6)
    for gradient, parameter in zip(found, model.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-5, atol=1e-7)
    assert num_tokens == 8 * 32


def test_a_step_without_a_wanted_target_moves_nothing_and_has_no_loss(
    wanted_cache: Cache, make_student: Callable[..., Any], train_config: Callable[..., TrainConfig]
) -> None:
    model = make_student()
    objective = objective_of(model, wanted_cache, train_config(mix=MixConfig(**ONLY_BLOCKS)))
    losses, num_tokens = objective.accumulate({"soft_targets": unwanted_row(wanted_cache)})
    assert (losses, num_tokens) == ({}, 32)
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in model.parameters())


def test_means_of_a_log_are_over_the_steps_that_have_the_measure() -> None:
    meter = Meter()
    for measures in ({"a": 1.0, "b": 4.0}, {"b": 6.0}, {"a": 2.0, "b": 8.0}):
        meter.add_step({name: torch.tensor(value) for name, value in measures.items()}, 1)
    resumed = Meter(**json.loads(json.dumps(meter.state())))
    assert meter.read().items() >= {"a": 1.5, "b": 6.0}.items()
    resumed.add_step({"b": torch.tensor(2.0)}, 1)
    assert resumed.read().items() >= {"a": 1.5, "b": 5.0}.items()
    meter.add_step({"b": torch.tensor(2.0)}, 1)
    assert meter.read().keys() == {"b", "tokens_per_second"}


def test_a_checkpoint_of_an_earlier_teachonce_has_every_measure_in_every_step() -> None:
    meter = Meter(sums={"a": 6.0}, num_steps=3, num_tokens=3, step_seconds=1.0)
    assert meter.read()["a"] == 2.0


def test_a_student_of_flags_that_are_all_true_ends_with_the_same_weights(
    cache: Cache, train_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    twin = marked(cache, tmp_path / "twin", every)
    assert json.loads((twin.path / "manifest.json").read_bytes())["format_version"] == 2
    weights = [
        (train(train_config(cache=held.path, out=tmp_path / name)) / "model.safetensors").read_bytes()
        for name, held in {"plain": cache, "flagged": twin}.items()
    ]
    assert weights[0] == weights[1]


def test_a_student_is_trained_from_start_to_end_where_many_steps_have_no_target(
    wanted_cache: Cache, train_config: Callable[..., TrainConfig]
) -> None:
    config = train_config(
        cache=wanted_cache.path, batch_blocks=1, max_steps=24, evaluate_every=12, mix=MixConfig(**ONLY_BLOCKS)
    )
    out = train(config)
    lines = [line for line in read_metrics(out) if "soft_targets_nats" in line]
    assert len(lines) == 3
    assert all(math.isfinite(line["soft_targets_nats"]) and line["labels_nats"] > 1 for line in lines)


def test_blocks_that_teach_nothing_are_told_before_the_first_step(
    cache: Cache, train_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    held = marked(cache, tmp_path / "none", none)
    with pytest.raises(ConfigError, match="holds soft_targets without a target, samples, beams, and --mix"):
        train(train_config(cache=held.path, mix=MixConfig(**ONLY_BLOCKS)))
    assert not (tmp_path / "student").exists()


def test_held_out_blocks_without_a_wanted_target_have_no_figures(
    cache: Cache, make_student: Callable[..., Any], tmp_path: Path
) -> None:
    held = marked(cache, tmp_path / "none", none)
    found = evaluate_model(make_student(), held)
    assert found["num_targets"] is found["kl_nats"] is found["perplexity"] is None
    assert held.manifest.teacher_perplexity("validation") is None
    assert look_at_passage([make_student()], held, lambda before, ids: str(ids)) is None


def test_a_block_without_a_target_is_no_draw() -> None:
    """Two blocks of which one has targets say nothing about chance."""
    assert ratio_with_error(torch.tensor([3.0, 0.0]), torch.tensor([2.0, 0.0])) == (1.5, None)
    sums, counts = torch.tensor([3.0, 0.0, 5.0]), torch.tensor([2.0, 0.0, 2.0])
    assert ratio_with_error(sums, counts) == ratio_with_error(sums[[0, 2]], counts[[0, 2]])


def test_the_evaluation_counts_what_the_manifest_counts(
    wanted_cache: Cache, make_student: Callable[..., Any], tmp_path: Path
) -> None:
    make_student().save_pretrained(tmp_path / "model")
    settings = {"student": tmp_path / "model", "cache": wanted_cache.path, "device": "cpu", "quiet": True}
    found = evaluate(EvaluateConfig(**settings, num_prompts=0))
    assert found["num_targets"] == sum(s.num_targets for s in wanted_cache.shards("soft_targets", "validation"))
    teacher = wanted_cache.manifest.teacher_perplexity("validation")
    assert found["teacher_perplexity"] == pytest.approx(teacher, rel=1e-6)
    assert f"Next token, {found['num_targets']:,} held-out targets" in render(found)


@pytest.mark.parametrize("kind", ["sampled", "bucketed"])
def test_batches_of_a_block_without_a_target_add_nothing(
    request: pytest.FixtureRequest, make_student: Callable[..., Any], tmp_path: Path, kind: str
) -> None:
    whole: Cache = request.getfixturevalue("cache" if kind == "sampled" else "bucketed_cache")
    held = marked(whole, tmp_path / "some", some)
    make_student().save_pretrained(tmp_path / "model")
    settings = {"student": tmp_path / "model", "cache": held.path, "device": "cpu", "quiet": True, "num_prompts": 0}
    found, expected = (evaluate(EvaluateConfig(**settings, batch_blocks=blocks)) for blocks in (1, 1000))
    for side in ("student", "teacher"):
        one, other = (f["calibration"][side] for f in (found, expected))
        assert [part["num_targets"] for part in one["bins"]] == [part["num_targets"] for part in other["bins"]]
        for name in ("expected_calibration_error", "expected_calibration_error_by_chance"):
            assert one[name] == pytest.approx(other[name], rel=1e-5), (side, name)
    for name in ("perplexity", "kl_nats", "kl_standard_error", "top1_agreement", "top5_agreement", "num_targets"):
        assert found[name] == pytest.approx(expected[name], rel=1e-5), name


def test_the_passage_shows_predictions_of_wanted_tokens_alone(
    wanted_cache: Cache, make_student: Callable[..., Any]
) -> None:
    passage = look_at_passage([make_student()], wanted_cache, lambda before, ids: f"t{ids[0]}")
    assert passage is not None
    rows = next(wanted_cache.record_batches("soft_targets", "validation")).to_pylist()
    texts = [passage.first, *[t.text if isinstance(t, PassageToken) else t for t in passage.tokens]]
    (row, start) = next(
        (row, start)
        for row in rows
        for start in range(33)
        if [f"t{i}" for i in row["input_ids"][start : start + len(texts)]] == texts
    )
    assert [isinstance(t, PassageToken) for t in passage.tokens] == row["is_wanted"][start:][: len(passage.tokens)]
    assert sum(isinstance(t, PassageToken) for t in passage.tokens) == max(_wanted_of_pieces(rows))
    for t, token in enumerate(passage.tokens, start):
        if isinstance(token, PassageToken):
            assert token.teacher.probability == pytest.approx(math.exp(row["label_logprob"][t]), rel=1e-3)
    view = passage_view(passage, ["a"])
    assert "Grey tokens are not for the student to learn" in view
    assert view.count('class="grey"') == 1 + sum(isinstance(t, str) for t in passage.tokens)


def _wanted_of_pieces(rows: list[dict[str, Any]]) -> list[int]:
    found = []
    for row in rows:
        ends = np.cumsum(row["segment_lengths"])
        found += [
            sum(row["is_wanted"][end - length : end]) for end, length in zip(ends, row["segment_lengths"], strict=True)
        ]
    return found


def test_a_long_prompt_is_not_shown_whole(cache: Cache, make_student: Callable[..., Any], tmp_path: Path) -> None:
    def last(rows: Any) -> Any:
        flags = every(rows)
        flags[:, :-3] = False
        return flags

    held = marked(cache, tmp_path / "last", last)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("student.report.passage._MOST_BEFORE", 4)
        passage = look_at_passage([make_student()], held, lambda before, ids: str(ids))
    assert passage is not None
    assert [isinstance(token, PassageToken) for token in passage.tokens] == [False] * 4 + [True] * 3


def test_some_rows_want_nothing(wanted_cache: Cache) -> None:
    """What the tests above stand on."""
    batches = [batch["is_wanted"].to_pylist() for batch in wanted_cache.record_batches("soft_targets", "train")]
    num_wanted = [sum(flags) for batch in batches for flags in batch]
    assert num_wanted.count(0) > len(num_wanted) // 5
    assert 0.2 < np.mean(num_wanted) / 32 < 0.4
