"""The weighted parts of the loss against a dense implementation with autograd, end to end through the model."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pyarrow as pa
import pytest
import torch
from torch import Tensor

from pipeline import SoftTargetsConfig
from storage import Cache
from storage.errors import ConfigError, MissingKindError
from student import MixConfig, TrainConfig, train
from student.errors import TemperatureError
from student.losses.parts.soft_targets import resolve_head_loss
from student.processes import Processes
from student.training.objective import Objective, resolve_weights
from student.training.parallel import ParallelModel


def alone(model: Any) -> ParallelModel:
    return ParallelModel(model, "ddp", Processes())


@dataclass
class Dense:
    """Means of each part, with gradient: one document or candidate at a time, [T, V] at once."""

    model: Any
    temperature: float

    def logprobs(self, ids: list[int], temperature: float = 1.0) -> Tensor:
        return torch.log_softmax(self.model(input_ids=torch.tensor([ids])).logits[0] / temperature, dim=1)

    def blocks(self, rows: pa.RecordBatch, *, unbiased: bool, tail_weight: float | None) -> tuple[Tensor, Tensor]:
        soft, labels = [], []
        for row in rows.to_pylist():
            entries = list(_entries(row))
            start = 0
            for length in row["segment_lengths"]:
                ids = row["input_ids"][start : start + length]
                if length > 1:
                    plain, tempered = self.logprobs(ids[:-1]), self.logprobs(ids[:-1], self.temperature)
                for i in range(length - 1):
                    labels.append(-plain[i, ids[i + 1]])
                    head, head_logprobs, tail = entries[start + i]
                    if unbiased:
                        cross = -(torch.tensor(head_logprobs).exp() * plain[i, head]).sum()
                        cross = cross - (tail_weight or 0.0) * plain[i, tail].sum()
                        soft.append(cross - row["entropy"][start + i])
                    else:
                        soft.append(self._bucketed(row, start + i, head, head_logprobs, tempered[i]))
                start += length
        return torch.stack(soft).mean(), torch.stack(labels).mean()

    def cross_entropy(self, rows: pa.RecordBatch, tail_weight: float) -> Tensor:
        """From tempered heads, and a tail drawn at that temperature."""
        found = []
        for row in rows.to_pylist():
            entries, start = list(_entries(row)), 0
            for length in row["segment_lengths"]:
                tempered = self.logprobs(row["input_ids"][start : start + length], self.temperature)
                for i in range(length - 1):
                    head, logprobs, drawn = entries[start + i]
                    masses = torch.tensor(
                        [*(x / self.temperature for x in logprobs), row["tail_logmass_at_2"][start + i]]
                    )
                    cross = -(torch.softmax(masses, dim=0)[:-1] * tempered[i, head]).sum()
                    found.append(cross - tail_weight * tempered[i, drawn].sum())
                start += length
        return torch.stack(found).mean()

    def _bucketed(
        self, row: dict[str, Any], t: int, head: list[int], logprobs: list[float], log_student: Tensor
    ) -> Any:
        tail = row["tail_logprob"][t] if self.temperature == 1 else row["tail_logmass_at_2"][t]
        teacher = torch.softmax(torch.tensor([*(x / self.temperature for x in logprobs), tail]), dim=0)
        rest = [i for i in range(log_student.shape[0]) if i not in head]
        student = torch.cat([log_student[head], log_student[rest].logsumexp(0)[None]])
        return (teacher * (teacher.log() - student)).sum()

    def samples(self, rows: pa.RecordBatch) -> Tensor:
        return -torch.cat(
            [self.continuation(row["prompt_ids"], row["completion_ids"]) for row in rows.to_pylist()]
        ).mean()

    def continuation(self, prompt: list[int], continuation: list[int]) -> Tensor:
        logprobs = self.logprobs((prompt + continuation)[:-1])
        return torch.stack([logprobs[len(prompt) - 1 + i, token] for i, token in enumerate(continuation)])

    def beams(self, rows: pa.RecordBatch, temperature: float) -> Tensor:
        losses = []
        for row in rows.to_pylist():
            ids = iter(row["candidate_ids"])
            scores = torch.stack(
                [
                    self.continuation(row["prompt_ids"], [next(ids) for _ in range(length)]).mean()
                    for length in row["candidate_lengths"]
                ]
            )
            choice = torch.softmax(torch.tensor(row["scores"]) / temperature, dim=0)
            losses.append(-(choice * torch.log_softmax(scores / temperature, dim=0)).sum())
        return torch.stack(losses).mean()


def _entries(row: dict[str, Any]) -> Any:
    ids, logprobs = iter(row["ids"]), iter(row["logprobs"])
    for head_size, tail_size in zip(row["head_size"], row["tail_size"], strict=True):
        head = [next(ids) for _ in range(head_size)]
        yield head, [next(logprobs) for _ in range(head_size)], [next(ids) for _ in range(tail_size)]


def rows_of(cache: Cache, kinds: dict[str, int]) -> dict[str, pa.RecordBatch]:
    return {
        kind: next(iter(cache.record_batches(kind, "train"))).slice(1, count) for kind, count in kinds.items() if count
    }


def gradients(model: Any) -> list[Tensor]:
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]


def assert_gradients_close(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    largest = max(float(gradient.abs().max()) for gradient in expected)
    assert largest > 1e-3
    for gradient, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient, wanted, atol=tolerance * largest, rtol=0)


PARTS = {
    "soft targets": {"soft_targets": 0.7, "samples": 0.0, "beams": 0.0, "labels": 0.0},
    "labels": {"soft_targets": 0.0, "samples": 0.0, "beams": 0.0, "labels": 0.4},
    "samples": {"soft_targets": 0.0, "samples": 0.6, "beams": 0.0, "labels": 0.0},
    "beams": {"soft_targets": 0.0, "samples": 0.0, "beams": 0.5, "labels": 0.0},
    "all": {"soft_targets": 0.7, "samples": 0.6, "beams": 0.5, "labels": 0.4},
}


@pytest.mark.parametrize("mix", PARTS)
@pytest.mark.parametrize(("kind", "temperature"), [("sampled", 1.0), ("bucketed", 1.0), ("bucketed", 2.0)])
def test_losses_and_gradients_equal_the_dense_truth(
    request: pytest.FixtureRequest,
    make_student: Callable[..., Any],
    train_config: Callable[..., TrainConfig],
    kind: str,
    temperature: float,
    mix: str,
) -> None:
    cache: Cache = request.getfixturevalue("cache" if kind == "sampled" else "bucketed_cache")
    weights, model = PARTS[mix], make_student()
    config = train_config(mix=MixConfig(**weights), temperature=temperature, selection_temperature=0.3)
    objective = Objective(alone(model), cache, config)
    rows = rows_of(cache, {"soft_targets": 3, "samples": 5, "beams": 3})
    used = {name: batch for name, batch in rows.items() if name in objective.batch_rows()}
    losses, num_tokens = objective.accumulate(used)
    found = gradients(model)

    model.zero_grad()
    dense = Dense(model, temperature)
    soft, labels = dense.blocks(rows["soft_targets"], unbiased=kind == "sampled", tail_weight=0.05)
    expected = {
        "soft_targets_nats": (soft, weights["soft_targets"] * temperature**2),
        "labels_nats": (labels, weights["labels"]),
        "samples_nats": (dense.samples(rows["samples"]), weights["samples"]),
        "beams_nats": (dense.beams(rows["beams"], 0.3), weights["beams"]),
    }
    assert losses.keys() == {name for name, (_, weight) in expected.items() if weight}
    for name, value in losses.items():
        assert float(value) == pytest.approx(float(expected[name][0]), abs=2e-5)
    sum(weight * value for value, weight in expected.values() if weight).backward()
    assert_gradients_close(found, gradients(model), 2e-5)
    assert num_tokens > 0


@pytest.mark.parametrize("mix", PARTS)
def test_micro_batches_change_nothing(
    cache: Cache, make_student: Callable[..., Any], train_config: Callable[..., TrainConfig], mix: str
) -> None:
    results = []
    for micro_batches in (1, 3, 100):
        model = make_student()
        config = train_config(mix=MixConfig(**PARTS[mix]), micro_batches=micro_batches)
        objective = Objective(alone(model), cache, config)
        kinds = dict.fromkeys(objective.batch_rows(), 7)
        losses, _ = objective.accumulate(rows_of(cache, kinds))
        results.append((gradients(model), {name: float(value) for name, value in losses.items()}))
    for found, losses in results[1:]:
        assert_gradients_close(found, results[0][0], 1e-5)
        assert losses == pytest.approx(results[0][1], abs=1e-5)


def test_gradients_of_several_calls_add_up(
    cache: Cache, make_student: Callable[..., Any], train_config: Callable[..., TrainConfig]
) -> None:
    model = make_student()
    objective = Objective(alone(model), cache, train_config())
    rows = rows_of(cache, {"soft_targets": 3, "samples": 3, "beams": 3})
    objective.accumulate(rows)
    once = gradients(model)
    objective.accumulate(rows)
    assert_gradients_close(gradients(model), [2 * gradient for gradient in once], 1e-6)


def test_bfloat16_stays_close(
    cache: Cache, make_student: Callable[..., Any], train_config: Callable[..., TrainConfig]
) -> None:
    results = []
    for dtype in ("float32", "bfloat16"):
        model = make_student()
        losses, _ = Objective(alone(model), cache, train_config(dtype=dtype)).accumulate(
            rows_of(cache, {"soft_targets": 8, "samples": 8, "beams": 8})
        )
        assert all(gradient.dtype == torch.float32 for gradient in gradients(model))
        results.append((gradients(model), {name: float(value) for name, value in losses.items()}))
    assert results[1][1] == pytest.approx(results[0][1], abs=0.1)
    assert_gradients_close(results[1][0], results[0][0], 0.1)


def test_default_weights_follow_what_the_cache_holds(
    cache: Cache, make_cache: Callable[..., Cache], train_config: Callable[..., TrainConfig]
) -> None:
    assert resolve_weights(train_config(), cache) == {
        "labels": 0.1, "soft_targets": 1.0, "samples": 0.5, "beams": 0.05,
    }  # fmt: skip
    only_soft = make_cache(kinds=("soft_targets",))
    assert resolve_weights(train_config(), only_soft) == {
        "labels": 0.1, "soft_targets": 1.0, "samples": 0.0, "beams": 0.0,
    }  # fmt: skip
    asked = train_config(mix=MixConfig(soft_targets=0.0, samples=2.0, beams=0.0, labels=0.0))
    assert resolve_weights(asked, cache) == {"labels": 0.0, "soft_targets": 0.0, "samples": 2.0, "beams": 0.0}


@pytest.mark.parametrize("kind", ["samples", "beams"])
def test_a_cache_of_one_kind_trains_with_the_default_mix(
    make_cache: Callable[..., Cache], train_config: Callable[..., TrainConfig], kind: str
) -> None:
    cache = make_cache(kinds=(kind,))
    weights = resolve_weights(train_config(cache=cache.path), cache)
    assert weights[kind] > 0
    assert sum(weights.values()) == weights[kind]
    train(train_config(cache=cache.path, max_steps=2))


@pytest.mark.parametrize("kind", ["soft_targets", "samples", "beams"])
def test_a_part_that_was_asked_for_and_is_not_there(
    make_cache: Callable[..., Cache], train_config: Callable[..., TrainConfig], kind: str
) -> None:
    cache = make_cache(kinds=("samples",) if kind != "samples" else ("soft_targets",))
    with pytest.raises(MissingKindError) as caught:
        resolve_weights(train_config(mix=MixConfig(labels=0.0, **{kind: 1.0})), cache)
    assert caught.value.kind == kind


def test_a_mix_that_leaves_nothing_is_refused(
    make_cache: Callable[..., Cache], train_config: Callable[..., TrainConfig]
) -> None:
    without_beams = train_config(mix=MixConfig(beams=0.0))
    with pytest.raises(ConfigError, match="its train split holds beams, and --mix"):
        resolve_weights(without_beams, make_cache(kinds=("beams",)))
    with pytest.raises(ConfigError, match="its train split holds no rows"):
        resolve_weights(train_config(), make_cache().restricted_to([]))


def test_labels_that_were_asked_for_need_blocks(
    make_cache: Callable[..., Cache], train_config: Callable[..., TrainConfig]
) -> None:
    with pytest.raises(MissingKindError) as caught:
        resolve_weights(train_config(mix=MixConfig(labels=0.7)), make_cache(kinds=("samples",)))
    assert caught.value.kind == "soft_targets"


@pytest.mark.parametrize("loss", ["forward_kl", "reverse_kl", "jsd", "skew_kl"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_sampled_tail_is_used_where_it_is_fair(
    cache: Cache, bucketed_cache: Cache, train_config: Callable[..., TrainConfig], loss: str, temperature: float
) -> None:
    config = train_config(loss=loss, temperature=temperature)
    for used, is_sampled in ((cache, True), (bucketed_cache, False)):
        found = resolve_head_loss(config, used, resolve_weights(config, used))
        assert found.unbiased == (is_sampled and loss == "forward_kl" and temperature == 1.0)
        assert (found.divergence, found.temperature) == (loss, temperature)


def test_a_tail_drawn_at_temperature_2_is_fair_at_2_alone(
    make_cache: Callable[..., Cache], train_config: Callable[..., TrainConfig]
) -> None:
    settings = SoftTargetsConfig(top_k=4, tail_weight=0.05, temperatures=(2.0,))
    cache = make_cache(kinds=("soft_targets",), soft_targets=settings)
    for temperature, unbiased in ((2.0, True), (1.0, False)):
        config = train_config(cache=cache.path, temperature=temperature)
        assert resolve_head_loss(config, cache, resolve_weights(config, cache)).unbiased is unbiased


def test_what_is_no_divergence_is_not_called_one(
    make_cache: Callable[..., Cache], make_student: Callable[..., Any], train_config: Callable[..., TrainConfig]
) -> None:
    """Of distributions tempered by other than 1 the cache holds no entropy to take from their cross-entropy."""
    settings = SoftTargetsConfig(top_k=4, tail_weight=0.05, temperatures=(2.0,))
    cache = make_cache(kinds=("soft_targets",), soft_targets=settings)
    rows, model = rows_of(cache, {"soft_targets": 3}), make_student()
    config = train_config(cache=cache.path, temperature=2.0, mix=MixConfig(labels=0.0))
    losses, _ = Objective(alone(model), cache, config).accumulate(rows)
    assert losses.keys() == {"soft_targets_cross_entropy_nats"}
    truth = Dense(model, 2.0).cross_entropy(rows["soft_targets"], tail_weight=0.05)
    assert float(losses["soft_targets_cross_entropy_nats"]) == pytest.approx(float(truth), abs=2e-5)
    for other in ({"temperature": 1.0}, {"temperature": 2.0, "loss": "reverse_kl"}):
        config = train_config(cache=cache.path, mix=MixConfig(labels=0.0), **other)
        losses, _ = Objective(alone(model), cache, config).accumulate(rows)
        assert losses.keys() == {"soft_targets_nats"}


def test_a_temperature_that_was_not_stored_is_refused(cache: Cache, train_config: Callable[..., TrainConfig]) -> None:
    with pytest.raises(TemperatureError) as caught:
        train(train_config(temperature=3.0))
    assert (caught.value.temperature, caught.value.served) == (3.0, [1.0, 2.0])
    config = train_config(temperature=3.0, mix=MixConfig(soft_targets=0.0))
    assert resolve_head_loss(config, cache, resolve_weights(config, cache)).temperature == 1.0


@pytest.mark.parametrize("temperature", [1 / 3, 1.2345678, 1e-3])
def test_a_temperature_of_many_digits_that_was_stored_can_be_used(
    make_cache: Callable[..., Cache], train_config: Callable[..., TrainConfig], temperature: float
) -> None:
    settings = SoftTargetsConfig(top_k=4, tail_weight=None, temperatures=(1.0, temperature))
    cache = make_cache(kinds=("soft_targets",), soft_targets=settings, max_tokens=1000)
    assert train(train_config(cache=cache.path, temperature=temperature, max_steps=1)).is_dir()


@pytest.mark.parametrize("length_penalty", [0.0, 2.0])
def test_candidates_are_scored_with_the_caches_length_penalty(
    helpers: ModuleType,
    make_cache: Callable[..., Cache],
    make_student: Callable[..., Any],
    train_config: Callable[..., TrainConfig],
    length_penalty: float,
) -> None:
    beams = helpers.BeamsConfig(num_prompts=6, prompt_tokens=5, max_new_tokens=4, length_penalty=length_penalty)
    cache, model = make_cache(kinds=("beams",), beams=beams), make_student()
    config = train_config(mix=MixConfig(labels=0.0), selection_temperature=None)
    rows = rows_of(cache, {"beams": 3})
    losses, _ = Objective(alone(model), cache, config).accumulate(rows)
    dense, expected = Dense(model, 1.0), []
    for row in rows["beams"].to_pylist():
        ids = iter(row["candidate_ids"])
        scores = [
            float(dense.continuation(row["prompt_ids"], [next(ids) for _ in range(n)]).sum()) / n**length_penalty
            for n in row["candidate_lengths"]
        ]
        expected.append(math.log(sum(math.exp(score - scores[0]) for score in scores)))
    assert float(losses["beams_nats"]) == pytest.approx(sum(expected) / len(expected), abs=1e-4)
