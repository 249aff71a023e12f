"""A student with its optimiser and its objective: all that one optimiser step needs beside rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from storage.cache import Cache
from student.config import TrainConfig
from student.model import build_student
from student.objective import Objective
from student.schedule import learning_rate, make_optimizer


@dataclass(frozen=True, kw_only=True)
class Learner:
    """What training changes, and how."""

    model: Any
    optimizer: torch.optim.Optimizer
    objective: Objective
    config: TrainConfig

    def step(self, step: int, rows: dict[str, pa.RecordBatch]) -> tuple[dict[str, Tensor], int]:
        """Optimiser step 0, 1, … on rows of each kind; returns measures by name, and tokens read.

        The measures are losses in nats, and gradient_norm of all parameters together before it is clipped.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, self.config)
        self.optimizer.zero_grad(set_to_none=True)
        losses, num_tokens = self.objective.accumulate(rows)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_gradient_norm)
        self.optimizer.step()
        return losses | {"gradient_norm": norm}, num_tokens


def make_learner(config: TrainConfig, cache: Cache, device: torch.device) -> Learner:
    """The learner before its first step; raises StudentError for a student that does not fit the cache."""
    model = build_student(config.preset, cache, config.seed).to(device).train()
    optimizer = make_optimizer(model, config)
    return Learner(model=model, optimizer=optimizer, objective=Objective(model, cache, config, device), config=config)
