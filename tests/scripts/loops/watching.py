"""Which rows a recipe learns from, and a stop in the middle of a step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pkgutil import resolve_name
from typing import Any
from unittest.mock import patch

import torch

# The loss that each recipe calls.
LOSSES = {
    "plain": "scripts.loops.plain.distillation_loss",
    "with_accelerate": "scripts.loops.shared.distillation_loss",
    "with_lightning": "scripts.loops.shared.distillation_loss",
    "with_trainer": "student.loops.trainer.distillation_loss",
    "with_trl": "scripts.loops.with_trl.distillation_loss_from_logits",
}
Rows = list[list[int]]


class Stop(Exception):
    """The injected fault."""


@contextmanager
def watched(recipe: str, stop_at_step: int = -1) -> Iterator[list[Rows]]:
    """Yield the input_ids of every step as they come; raise Stop in the loss of step 0, 1, … (−1: of none)."""
    steps: list[Rows] = []
    loss = resolve_name(LOSSES[recipe])

    def watched_loss(outputs: torch.Tensor, *arguments: Any, **settings: Any) -> torch.Tensor:
        if len(steps) == stop_at_step:
            raise Stop
        batch = next(argument for argument in arguments if isinstance(argument, dict))
        steps.append(batch["input_ids"].tolist())
        found: torch.Tensor = loss(outputs, *arguments, **settings)
        return found

    with patch(LOSSES[recipe], watched_loss):
        yield steps
