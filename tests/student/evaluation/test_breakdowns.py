"""Divergence by position and by entropy, calibration, and the five most probable tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from storage import Cache
from student.evaluation.positions import measure_positions
from student.losses.batches import BlockBatch
from student.losses.targets import SparseTargets
from tests.student.evaluation.naive import mean_with_error, naive_positions

CACHES = {"sampled": "cache", "bucketed": "bucketed_cache", "some wanted": "wanted_cache"}


@pytest.mark.parametrize("kind", CACHES)
def test_bins_and_top_five_equal_the_naive_ones(
    request: pytest.FixtureRequest, make_student: Callable[..., Any], evaluated: Callable[..., Any], kind: str
) -> None:
    cache: Cache = request.getfixturevalue(CACHES[kind])
    model = make_student()
    found = evaluated(model, cache, batch_blocks=5, num_prompts=0)
    positions = naive_positions(model, cache, tail_weight=None if kind == "bucketed" else 0.05)
    assert found["top5_agreement"] == pytest.approx(np.mean([p["in_top5"] for p in positions]))
    assert found["top1_agreement"] < found["top5_agreement"] < 1
    edges = [(0, 0), (1, 1), (2, 3), (4, 7), (8, 15), (16, 31)]
    assert [(b["first_position"], b["last_position"]) for b in found["kl_by_position"]] == edges
    for b in found["kl_by_position"]:
        check_bin(b, [p for p in positions if b["first_position"] <= p["position"] <= b["last_position"]])
    for b in found["kl_by_entropy"]:
        assert b["high_nats"] - b["low_nats"] == 0.5
        check_bin(b, [p for p in positions if b["low_nats"] <= p["entropy"] < b["high_nats"]])
    for name in ("kl_by_position", "kl_by_entropy"):
        assert sum(b["num_targets"] for b in found[name]) == found["num_targets"] == len(positions)
    for side in ("student", "teacher"):
        check_calibration(found["calibration"][side], [p[side] for p in positions])


def check_bin(found: dict[str, Any], positions: list[dict[str, Any]]) -> None:
    mean, error = mean_with_error(positions)
    assert found["num_targets"] == len(positions) > 0
    assert found["kl_nats"] == pytest.approx(mean, rel=1e-4, abs=1e-5)
    assert found["kl_standard_error"] == (None if error is None else pytest.approx(error, rel=1e-3, abs=1e-5))


def check_calibration(found: dict[str, Any], pairs: list[tuple[float, float]]) -> None:
    error = 0.0
    for b in found["bins"]:
        confidences, accuracies = np.array([pair for pair in pairs if b["low"] < pair[0] <= b["high"]]).T
        assert b["num_targets"] == len(confidences)
        assert b["mean_confidence"] == pytest.approx(confidences.mean(), rel=1e-5)
        assert b["accuracy"] == pytest.approx(accuracies.mean(), abs=1e-9)
        error += len(confidences) / len(pairs) * abs(confidences.mean() - accuracies.mean())
    assert found["expected_calibration_error"] == pytest.approx(error, abs=1e-6)
    assert sum(b["num_targets"] for b in found["bins"]) == len(pairs)


def test_fewer_tokens_than_five(make_student: Callable[..., Any]) -> None:
    """A vocabulary of three: the five most probable tokens are all of them."""
    targets = SparseTargets(
        head_ids=torch.tensor([[0, 2], [1, 2]]),
        head_logprobs=torch.tensor([[0.6, 0.4], [0.3, 0.7]]).log(),
        is_head=torch.ones(2, 2, dtype=torch.bool),
        tail_logprob=torch.full((2,), -torch.inf),
        tail_ids=torch.zeros(2, 0, dtype=torch.int64),
        is_drawn=torch.zeros(2, 0, dtype=torch.bool),
        tail_weight=None,
        tempered_tail_logmass=None,
        label_ids=torch.tensor([0, 0]),
    )
    ids = torch.tensor([[0, 1]])
    batch = BlockBatch(
        input_ids=ids, position_ids=ids, is_valid=ids >= 0, targets=targets,
        entropy=torch.zeros(2), label_logprob=torch.zeros(2), lost_mass=torch.zeros(2),
    )  # fmt: skip
    found = measure_positions(make_student(vocab_size=3), batch, 5)
    assert found.hits.shape == (2, 3)
    assert found.hits.sum(1).tolist() == [1, 1]
    assert found.teacher_is_right.tolist() == [1.0, 0.0]
    assert found.teacher_confidence.tolist() == pytest.approx([0.6, 0.7])
