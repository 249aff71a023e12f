"""The loss of a step: add up the weighted parts of the loss and their gradients.

Every part is a mean over all valid positions, completion tokens or prompts of the step's whole batch. It does not
depend on the number of processes that share the batch, or of micro-batches that it is cut into.
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
    """Return each weight in --mix by name; a weight left to its default is 0 if the cache has no targets for it.

    Raise MissingKindError when --mix sets a weight above 0 and the cache's train split lacks the rows, and ConfigError
    when all weights are 0.
    """
    weights = {}
    for name, (kind, default) in _default_weights().items():
        asked = getattr(config.mix, name)
        weights[name] = asked if asked is not None else default if has_targets(cache, kind) else 0.0
        if weights[name]:
            cache.shards(kind, "train")
    if not any(weights.values()):
        held = [kind if has_targets(cache, kind) else f"{kind} without a target" for kind in cache.held_kinds("train")]
        raise ConfigError(
            f"{cache.where}: nothing to learn: its train split holds {', '.join(held) or 'no rows'}, "
            "and --mix gives no part of that a weight; give one, or another cache"
        )
    return weights


def has_targets(cache: Cache, kind: str) -> bool:
    """Return whether the train split has a target of this kind: of soft targets, perhaps none is wanted."""
    return any(shard.num_targets for shard in cache.manifest.shards_of(kind, "train"))


def _default_weights() -> dict[str, tuple[str, float]]:
    """Return, for each weight in --mix, the kind whose rows it needs and its default."""
    own = {kind: (kind, part.default_weight) for kind, part in PARTS.items()}
    further = {name: (kind, default) for kind, part in PARTS.items() for name, default in part.further_weights.items()}
    return own | further


class Objective:
    """Add up the gradients of the weighted parts for one step, and return the loss of each part."""

    def __init__(self, parallel: ParallelModel, cache: Cache, config: TrainConfig) -> None:
        """Raise ConfigError, MissingKindError, RecordError or a StudentError when the cache does not fit `config`."""
        weights = resolve_weights(config, cache)
        self.micro_batches = config.micro_batches
        self._parallel, self._config = parallel, config
        self._parts = {
            kind: part(parallel.model, cache, config, weights) for kind, part in PARTS.items() if part.is_used(weights)
        }

    def batch_rows(self) -> dict[str, int]:
        """Return the rows per step, over all processes, of each kind that is used."""
        return {kind: part.step_rows(self._config) for kind, part in self._parts.items()}

    def remarks(self) -> list[str]:
        """Return lines for the user about effects of the settings on this cache."""
        return [remark for part in self._parts.values() if (remark := part.remark()) is not None]

    def accumulate(self, rows: dict[str, pa.RecordBatch]) -> tuple[dict[str, Tensor], int]:
        """Run forward and backward passes over this process's rows of a step.

        Afterwards, call ParallelModel.join_gradients. Return this process's share of each loss in nats by name, and the
        number of tokens that all processes read. The sum of a loss's shares over the processes is its mean over the
        step. A kind whose rows have no target in any process has no loss. Raise torch.OutOfMemoryError as
        ParallelModel.within_memory does.
        """
        batches = self._parallel.within_memory(
            lambda: {kind: self._batches(kind, stored) for kind, stored in rows.items()}
        )
        num_targets, num_tokens = self._counts(batches)
        return self._parallel.within_memory(lambda: self._passes(batches, num_targets)), num_tokens

    def halve_micro_batches(self) -> bool:
        """Cut every batch into twice as many micro-batches from now on; return False if none has two rows."""
        if self.micro_batches >= max(map(self._share, self._parts)):
            return False
        self.micro_batches *= 2
        return True

    def _share(self, kind: str) -> int:
        """Return the largest number of rows of a step that one process gets."""
        return -(-self.batch_rows()[kind] // self._parallel.processes.world_size)

    def _batches(self, kind: str, stored: pa.RecordBatch) -> list[Any]:
        """Return the micro-batches of a kind: the same number in every process, as each takes part in every pass.

        Some may have no rows.
        """
        most_rows = max(self._share(kind), stored.num_rows)
        return [self._parts[kind].batch(rows) for rows in _cut(stored, most_rows, self.micro_batches)]

    def _counts(self, batches: dict[str, list[Any]]) -> tuple[dict[str, int], int]:
        """Return how many items the loss of each kind is a mean over, and how many tokens are read.

        Both are sums over all processes.
        """
        counts = [sum(map(self._parts[kind].num_targets, of_kind)) for kind, of_kind in batches.items()]
        num_tokens = sum(self._parts[kind].num_tokens(batch) for kind, of_kind in batches.items() for batch in of_kind)
        *totals, all_tokens = self._parallel.processes.sum(torch.tensor([*counts, num_tokens])).tolist()
        return dict(zip(batches, totals, strict=True)), all_tokens

    def _passes(self, batches: dict[str, list[Any]], num_targets: dict[str, int]) -> dict[str, Tensor]:
        passes = [(kind, batch) for kind, of_kind in batches.items() for batch in of_kind]
        losses: dict[str, Tensor] = {}
        for index, (kind, batch) in enumerate(passes):
            loss = functools.partial(self._loss, kind, batch, max(num_targets[kind], 1))
            found = self._parallel.accumulate(loss, is_last=index == len(passes) - 1)
            if num_targets[kind]:  # without a target there is no mean, but every process takes part in every pass
                losses |= {name: losses.get(name, 0.0) + value for name, value in found.items()}
        return losses

    def _loss(self, kind: str, batch: Any, num_targets: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss for the backward pass and this process's share of each unweighted loss in nats by name.

        The mean over processes of the first, summed over a kind's micro-batches, is the weighted part of the kind.
        """
        with self.autocast():
            total, sums = self._parts[kind].loss(batch)
        scale = self._parallel.processes.world_size / num_targets
        return total * scale, {name: loss_sum / num_targets for name, loss_sum in sums.items()}

    def autocast(self) -> torch.autocast:
        """Return the autocast context of --dtype: bfloat16 if asked for, or for auto on a GPU; otherwise disabled."""
        wanted, device_type = self._config.dtype, self._parallel.model.device.type
        enabled = wanted == "bfloat16" or (wanted == "auto" and device_type == "cuda")
        return torch.autocast(device_type, dtype=torch.bfloat16, enabled=enabled)


def _cut(rows: pa.RecordBatch, most_rows: int, parts: int) -> list[pa.RecordBatch]:
    """Cut rows into slices of ⌈most_rows / parts⌉ rows, as many as `most_rows` rows need; the last may be empty."""
    size = -(-most_rows // parts)
    return [rows.slice(start, size) for start in range(0, most_rows, size)]
