"""The loss of a step: the weighted parts of the loss, and how they become gradients.

Every part is a mean: over all valid positions, all completion tokens or all prompts of the step's whole
batch, however many processes share it and micro-batches it is cut into.
"""

from __future__ import annotations

import functools
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from storage.errors import ConfigError
from storage.reading.cache import Cache
from student.config import TrainConfig
from student.losses.parts.table import PARTS
from student.training.parallel import ParallelModel


def resolve_weights(config: TrainConfig, cache: Cache) -> dict[str, float]:
    """Each weight in --mix; those left to their default count only where the cache holds the rows.

    Raises MissingKindError when a weight is asked for and the cache does not hold the rows, ConfigError when all are 0.
    """
    weights = {}
    for name, (kind, default) in _default_weights().items():
        asked = getattr(config.mix, name)
        weights[name] = asked if asked is not None else default if cache.num_rows(kind, "train") else 0.0
        if weights[name]:
            cache.shards(kind, "train")
    if not any(weights.values()):
        held = ", ".join(cache.held_kinds("train")) or "no rows"
        raise ConfigError(
            f"{cache.where}: nothing to learn: its train split holds {held}, "
            "and --mix gives no part of that a weight; give one, or another cache"
        )
    return weights


def _default_weights() -> dict[str, tuple[str, float]]:
    """Each weight in --mix with the kind whose rows it needs and its default."""
    own = {kind: (kind, part.default_weight) for kind, part in PARTS.items()}
    further = {name: (kind, default) for kind, part in PARTS.items() for name, default in part.further_weights.items()}
    return own | further


class Objective:
    """Adds up gradients of the weighted parts for one step; returns what each part's loss was."""

    def __init__(self, parallel: ParallelModel, cache: Cache, config: TrainConfig) -> None:
        """Raises ConfigError, RecordError or StudentError when settings and cache do not go together."""
        weights = resolve_weights(config, cache)
        self.micro_batches = config.micro_batches
        self._parallel, self._config = parallel, config
        self._parts = {
            kind: part(parallel.model, cache, config, weights) for kind, part in PARTS.items() if part.is_used(weights)
        }

    def batch_rows(self) -> dict[str, int]:
        """Rows per step of each kind that is used, over all processes."""
        return {kind: part.step_rows(self._config) for kind, part in self._parts.items()}

    def remarks(self) -> list[str]:
        """What users should know about how the settings meet the cache."""
        return [remark for part in self._parts.values() if (remark := part.remark()) is not None]

    def accumulate(self, rows: dict[str, pa.RecordBatch]) -> tuple[dict[str, Tensor], int]:
        """Backward pass over this process's rows of a step; the gradients are yet to be joined.

        Returns its share of the losses in nats by name, whose sum over processes is the mean over the step, and the
        number of tokens that all processes read. Raises torch.OutOfMemoryError as ParallelModel.within_memory does.
        """
        batches = self._parallel.within_memory(
            lambda: {kind: self._batches(kind, stored) for kind, stored in rows.items()}
        )
        num_targets, num_tokens = self._counts(batches)
        return self._parallel.within_memory(lambda: self._passes(batches, num_targets)), num_tokens

    def halve_micro_batches(self) -> bool:
        """Cut every batch into twice as many parts from now on; False when no part can be smaller."""
        if self.micro_batches >= max(map(self._share, self._parts)):
            return False
        self.micro_batches *= 2
        return True

    def _share(self, kind: str) -> int:
        """Most rows of a step that a process gets."""
        return -(-self.batch_rows()[kind] // self._parallel.processes.world_size)

    def _batches(self, kind: str, stored: pa.RecordBatch) -> list[Any]:
        """As many batches in every process, which may be without rows: each takes part in every pass."""
        most_rows = max(self._share(kind), stored.num_rows)
        return [self._parts[kind].batch(rows) for rows in _cut(stored, most_rows, self.micro_batches)]

    def _counts(self, batches: dict[str, list[Any]]) -> tuple[dict[str, int], int]:
        """Over all processes: what the loss of each kind is a mean of, at least 1, and the tokens read."""
        counts = [sum(map(self._parts[kind].num_targets, of_kind)) for kind, of_kind in batches.items()]
        num_tokens = sum(self._parts[kind].num_tokens(batch) for kind, of_kind in batches.items() for batch in of_kind)
        *totals, all_tokens = self._parallel.processes.sum(torch.tensor([*counts, num_tokens])).tolist()
        return {kind: max(total, 1) for kind, total in zip(batches, totals, strict=True)}, all_tokens

    def _passes(self, batches: dict[str, list[Any]], num_targets: dict[str, int]) -> dict[str, Tensor]:
        passes = [(kind, batch) for kind, of_kind in batches.items() for batch in of_kind]
        losses: dict[str, Tensor] = {}
        for index, (kind, batch) in enumerate(passes):
            loss = functools.partial(self._loss, kind, batch, num_targets[kind])
            for name, value in self._parallel.accumulate(loss, is_last=index == len(passes) - 1).items():
                losses[name] = losses[name] + value if name in losses else value
        return losses

    def _loss(self, kind: str, batch: Any, num_targets: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss whose mean over processes is this part of the whole, and this process's shares of its losses."""
        with self.autocast():
            total, sums = self._parts[kind].loss(batch)
        scale = self._parallel.processes.world_size / num_targets
        return total * scale, {name: loss_sum / num_targets for name, loss_sum in sums.items()}

    def autocast(self) -> torch.autocast:
        """bfloat16 arithmetic where it was asked for, or pays."""
        wanted, device_type = self._config.dtype, self._parallel.model.device.type
        enabled = wanted == "bfloat16" or (wanted == "auto" and device_type == "cuda")
        return torch.autocast(device_type, dtype=torch.bfloat16, enabled=enabled)


def _cut(rows: pa.RecordBatch, most_rows: int, parts: int) -> list[pa.RecordBatch]:
    """Rows in at most `parts` nearly equal parts, as many as `most_rows` rows are cut into."""
    size = -(-most_rows // parts)
    return [rows.slice(start, size) for start in range(0, most_rows, size)]
