"""The benchmark of the step runs, and its sides make steps of the same kind on as many tokens."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch

from scripts.bench.config import BenchConfig
from scripts.bench.step import SHAPES, OurStep, ReferenceStep, make_cache, make_steps, run
from scripts.support.neighbour import NEIGHBOURS


def test_every_comparison_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(NEIGHBOURS, "small models")  # takes seconds to start, and the benchmark of the loss starts it
    found = list(run(BenchConfig(name="step", size="tiny", rounds=2)))
    step = "step of 4 × 16 tokens, mini"
    assert [(c.what, c.reference, c.target) for c in found] == [
        (step, "labels alone", 0.95),
        (step, "labels alone, transformers' defaults", None),
        (step, "the head's three products alone", None),
        (f"{step}, beside a busy loop", "labels alone", 1.0),
    ]
    assert all(math.isfinite(value) and value > 0 for c in found for value in (*c.our_values, *c.reference_values))


def test_both_sides_change_every_parameter_of_one_model(tmp_path: Path) -> None:
    (shape,) = SHAPES["tiny"]
    steps = make_steps(make_cache(tmp_path / "cache", shape), shape, torch.device("cpu"))
    ours, reference, defaults, products = steps.values()
    assert isinstance(ours, OurStep)
    assert isinstance(reference, ReferenceStep)
    assert isinstance(defaults, ReferenceStep)
    assert isinstance(products, ReferenceStep)
    model = ours.learner.parallel.model
    for step in (ours, reference, products):
        before = copy.deepcopy(model.state_dict())
        step()
        moved = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
        assert len(moved) == len(before)
    assert ours()["labels_nats"].item() < 1.2 * math.log(shape.vocab_size)
    assert defaults().item() < 1.2 * math.log(shape.vocab_size)
