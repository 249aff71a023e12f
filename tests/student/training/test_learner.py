"""A step that does not fit into memory is cut into more micro-batches, with the same result."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest
import torch

from storage import Cache, RowStream
from student import TrainConfig
from student.errors import StudentMemoryError
from student.training.learner import Learner, make_learner
from student.training.micro_batches import with_batch_blocks
from student.training.parallel import ParallelModel

CPU = torch.device("cpu")


@pytest.fixture
def rows(cache: Cache) -> dict[str, pa.RecordBatch]:
    sizes = {"soft_targets": 6, "samples": 4, "beams": 2}
    streams = {kind: RowStream(cache, kind, "train", batch_rows=size, seed=0) for kind, size in sizes.items()}
    return {kind: next(stream.batches()).rows for kind, stream in streams.items()}


@pytest.fixture
def config(train_config: Callable[..., TrainConfig]) -> TrainConfig:
    return train_config(batch_blocks=6, dtype="float32")


def memory_for(max_texts: int, error: RuntimeError) -> Any:
    """In the place of ParallelModel.accumulate: fails when a pass holds more texts."""
    original = ParallelModel.accumulate

    def accumulate(self: ParallelModel, loss: Any, *, is_last: bool) -> Any:
        batch = loss.args[1]
        if len(getattr(batch, "texts", batch).input_ids) > max_texts:
            raise error
        return original(self, loss, is_last=is_last)

    return accumulate


def gradients(learner: Learner) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in learner.parallel.model.parameters() if p.grad is not None])


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory: 12")],
    ids=["gpu", "host"],
)
def test_a_step_that_does_not_fit_goes_on_in_more_parts(
    cache: Cache,
    config: TrainConfig,
    rows: dict[str, pa.RecordBatch],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: RuntimeError,
) -> None:
    roomy, tight = make_learner(config, cache, CPU), make_learner(config, cache, CPU)
    losses, num_tokens = roomy.step(0, rows)
    monkeypatch.setattr(ParallelModel, "accumulate", memory_for(4, error))
    found, found_tokens = tight.step(0, rows)
    assert tight.objective.micro_batches == 2
    assert capsys.readouterr().err == "out of memory: going on with 2 micro-batches\n"
    assert found_tokens == num_tokens
    assert {k: float(v) for k, v in found.items()} == pytest.approx({k: float(v) for k, v in losses.items()}, rel=1e-5)
    torch.testing.assert_close(gradients(tight), gradients(roomy), rtol=1e-4, atol=1e-6)


def test_a_row_that_does_not_fit_alone_is_one_clear_error(
    cache: Cache, config: TrainConfig, rows: dict[str, pa.RecordBatch], monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = make_learner(config, cache, CPU)
    monkeypatch.setattr(ParallelModel, "accumulate", memory_for(0, torch.OutOfMemoryError("CUDA out of memory")))
    with pytest.raises(StudentMemoryError, match="--gradient-checkpointing"):
        learner.step(0, rows)
    assert learner.objective.micro_batches == 8


def test_an_optimiser_that_does_not_fit_is_one_clear_error(
    cache: Cache, config: TrainConfig, rows: dict[str, pa.RecordBatch], monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = make_learner(config, cache, CPU)

    def run_out() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(learner.optimizer, "step", run_out)
    with pytest.raises(StudentMemoryError, match="process 0 ran out of memory after 3 steps"):
        learner.step(3, rows)


def test_other_failures_are_no_lack_of_memory(
    cache: Cache, config: TrainConfig, rows: dict[str, pa.RecordBatch], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ParallelModel, "accumulate", memory_for(0, RuntimeError("shapes differ")))
    with pytest.raises(RuntimeError, match="shapes differ"):
        make_learner(config, cache, CPU).step(0, rows)


def test_gradient_checkpointing_changes_no_gradient(
    cache: Cache, config: TrainConfig, rows: dict[str, pa.RecordBatch]
) -> None:
    """Dropout draws the same zeros when activations are computed again."""
    config = dataclasses.replace(config, dropout=0.1)
    plain = make_learner(config, cache, CPU)
    checkpointed = make_learner(dataclasses.replace(config, gradient_checkpointing=True), cache, CPU)
    is_on = [
        any(getattr(m, "gradient_checkpointing", False) for m in x.parallel.model.modules())
        for x in (plain, checkpointed)
    ]
    assert is_on == [False, True]
    for learner in (plain, checkpointed):
        torch.manual_seed(5)
        learner.step(0, rows)
    assert torch.equal(gradients(plain), gradients(checkpointed))


def test_automatic_batches_hold_as_many_tokens_whatever_the_machine(cache: Cache, config: TrainConfig) -> None:
    automatic = with_batch_blocks(dataclasses.replace(config, batch_blocks="auto"), cache)
    assert automatic.batch_blocks == 16_384 // cache.identity.block_size == 512
    assert with_batch_blocks(config, cache) is config


@pytest.mark.parametrize("max_gradient_norm", [1e9, 1e-3])
def test_the_gradient_norm_is_that_before_clipping(
    train_config: Callable[..., TrainConfig], cache: Cache, max_gradient_norm: float
) -> None:
    def gradients(bound: float) -> tuple[float, list[torch.Tensor]]:
        made = make_learner(train_config(max_gradient_norm=bound), cache, torch.device("cpu"))
        rows = {kind: next(cache.record_batches(kind, "train")) for kind in ("soft_targets", "samples", "beams")}
        measures, _ = made.step(0, rows)
        return float(measures["gradient_norm"]), [p.grad for p in made.parallel.model.parameters()]

    _, unclipped = gradients(1e9)
    found, clipped = gradients(max_gradient_norm)
    truth = math.sqrt(sum(float(grad.double().square().sum()) for grad in unclipped))
    assert found == pytest.approx(truth, rel=1e-5)
    norm = math.sqrt(sum(float(grad.double().square().sum()) for grad in clipped))
    assert norm == pytest.approx(min(truth, max_gradient_norm), rel=1e-3)
