"""The benchmark of the loss runs, and both of its sides answer for the same positions."""

from __future__ import annotations

import math

import torch

from scripts.bench.config import BenchConfig
from scripts.bench.loss import SHAPES, Head, forward_kl, make_targets, run
from student.losses.targets import SparseTargets


def test_every_comparison_is_there() -> None:
    found = list(run(BenchConfig(name="loss", size="tiny", rounds=2)))
    targets = {"peak memory beyond inputs": 0.25, "time, float32": 0.8, "time, bf16 autocast": None}
    for neighbour in ("a busy loop", "small models"):
        targets |= {f"time, {dtype}, beside {neighbour}": 1.1 for dtype in ("float32", "bf16 autocast")}
    assert [(c.what, c.ours) for c in found] == [(what, ours) for what in targets for ours in ("sampled tail", "top 8")]
    assert all(math.isfinite(value) and value >= 0 for c in found for value in c.our_values)
    assert [c.target for c in found[::2]] == [c.target for c in found[1::2]] == list(targets.values())


def test_both_sides_give_the_same_gradients_for_the_same_loss() -> None:
    shape = SHAPES["tiny"]
    head, targets = Head(shape, "cpu"), make_targets(shape, 1, 1 / 32, "cpu")
    assert len(targets) == shape.positions
    labels_only = forward_kl(is_unbiased=True, soft_weight=0.0, label_weight=1.0)
    expected = head.reference(targets.label_ids)
    for found in (
        head.ours(targets, labels_only),
        head.ours(SparseTargets.labels_only(targets.label_ids), labels_only),
    ):
        for gradient, wanted in zip(found, expected, strict=True):
            torch.testing.assert_close(gradient, wanted)
