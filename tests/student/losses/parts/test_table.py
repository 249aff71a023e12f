"""One part of the loss for each kind, and a further kind is learnt from by its lines in the tables alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from torch import Tensor

from storage import Cache, open_cache
from storage.rows.kinds import KINDS
from student import MixConfig, TrainConfig
from student.losses.parts.part import LossPart
from student.losses.parts.table import PARTS
from student.processes import Processes
from student.training.objective import Objective
from student.training.parallel import ParallelModel
from tests.storage.ratings import PROMPTS, RATINGS, Ratings, write_rated_cache


@dataclasses.dataclass(frozen=True, kw_only=True)
class RatedMix(MixConfig):
    ratings: float | None = None


class RatingsPart(LossPart[Tensor]):
    """Mean over prompts: the rating is the token that follows the prompt's first."""

    kind = "ratings"
    default_weight = 0.3

    def __init__(self, model: Any, cache: Cache, config: TrainConfig, weights: Mapping[str, float]) -> None:
        self._model, self._weight = model, weights[self.kind]

    @staticmethod
    def step_rows(config: TrainConfig) -> int:
        return config.batch_beams

    def batch(self, rows: pa.RecordBatch) -> Tensor:
        plain = rows.to_pylist()
        return torch.tensor([[row["prompt_ids"][0], row["rating"]] for row in plain])

    def num_targets(self, batch: Tensor) -> int:
        return len(batch)

    def num_tokens(self, batch: Tensor) -> int:
        return len(batch)

    def loss(self, batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        logits_BV = self._model(input_ids=batch[:, :1]).logits[:, 0]
        loss = torch.nn.functional.cross_entropy(logits_BV, batch[:, 1], reduction="sum")
        return loss * self._weight, {"ratings_nats": loss.detach()}


def test_the_tables_of_kinds_agree() -> None:
    assert tuple(PARTS) == tuple(KINDS)
    weights = {name for kind, part in PARTS.items() for name in (kind, *part.further_weights)}
    assert weights == {field.name for field in dataclasses.fields(MixConfig)}


def test_a_further_kind_is_learnt_from(
    cache: Cache,
    make_student: Callable[..., Any],
    train_config: Callable[..., TrainConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(KINDS, "ratings", Ratings())
    monkeypatch.setitem(PARTS, "ratings", RatingsPart)
    config = {"ratings": {"most_stars": 5}}
    identity = dataclasses.replace(cache.identity, config=config, planned_shards={"ratings": {"train": 1}})
    rated = open_cache(write_rated_cache(tmp_path / "rated", identity))
    model = make_student()
    parallel = ParallelModel(model, "ddp", Processes())
    objective = Objective(parallel, rated, train_config(mix=RatedMix(), batch_beams=5))
    assert objective.batch_rows() == {"ratings": 5}
    losses, num_tokens = objective.accumulate({"ratings": next(rated.record_batches("ratings", "train"))})
    assert num_tokens == len(PROMPTS)
    logprobs = torch.log_softmax(model(input_ids=torch.tensor([[ids[0]] for ids in PROMPTS])).logits[:, 0], dim=1)
    truth = -logprobs[torch.arange(len(PROMPTS)), torch.tensor(RATINGS)].mean()
    assert float(losses["ratings_nats"]) == pytest.approx(float(truth), abs=1e-5)
    found = model.lm_head.weight.grad.clone()
    model.zero_grad()
    (0.3 * truth).backward()
    torch.testing.assert_close(found, model.lm_head.weight.grad)
