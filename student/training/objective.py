"""The parts of the loss: what each takes from the cache and how it becomes gradients.

Every part is a mean: over all valid positions, all completion tokens or all prompts of the step's whole
batch, however many processes share it and micro-batches it is cut into.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from storage.errors import ConfigError
from storage.reading.cache import Cache
from student.config import TrainConfig
from student.errors import TemperatureError
from student.losses.batches import BeamBatch, BlockBatch, TextBatch, beam_batch, block_batch, sample_batch
from student.losses.fused_head import HeadLoss, fused_head_loss
from student.losses.scores import candidate_scores, hidden_at
from student.losses.selection import selection_loss
from student.losses.targets import SparseTargets, soft_target_settings
from student.model import head_weight
from student.training.parallel import ParallelModel

_DEFAULT_WEIGHTS = {"soft_targets": 1.0, "samples": 0.5, "beams": 0.25, "labels": 0.1}
_LABEL_LOSS = HeadLoss(divergence="forward_kl", unbiased=False, temperature=1.0, soft_weight=0.0, label_weight=1.0)

_Batch = BlockBatch | TextBatch | BeamBatch


def resolve_weights(config: TrainConfig, cache: Cache) -> dict[str, float]:
    """Weight of each part; parts left to their default count only where the cache holds them.

    Raises MissingKindError when a part is asked for and the cache does not hold it, ConfigError when no part is left.
    """
    weights = {}
    for part, default in _DEFAULT_WEIGHTS.items():
        kind = "soft_targets" if part == "labels" else part  # labels are the tokens of the same blocks
        asked = getattr(config.mix, part)
        weights[part] = asked if asked is not None else default if cache.num_rows(kind, "train") else 0.0
        if weights[part]:
            cache.shards(kind, "train")
    if not any(weights.values()):
        held = ", ".join(cache.held_kinds("train")) or "no rows"
        raise ConfigError(
            f"{cache.where}: nothing to learn: its train split holds {held}, "
            "and --mix gives no part of that a weight; give one, or another cache"
        )
    return weights


def resolve_head_loss(config: TrainConfig, cache: Cache, weights: dict[str, float]) -> HeadLoss:
    """The loss on blocks that the cache can serve; raises TemperatureError.

    Forward KL uses the sampled tail where there is one, at the temperature that it was drawn at; every
    other combination uses the head and the tail's mass, which is exact at T = 1 and at every
    temperature whose tempered mass was stored.
    """
    unbiased, temperature = False, 1.0
    if weights["soft_targets"]:
        settings, temperature = soft_target_settings(cache), config.temperature
        unbiased = (
            config.loss == "forward_kl" and settings.tail_weight is not None and temperature == settings.temperatures[0]
        )
        served = sorted({1.0, *settings.temperatures})
        if temperature not in served:
            raise TemperatureError(temperature, config.loss, served)
    return HeadLoss(
        divergence=config.loss,
        unbiased=unbiased,
        temperature=temperature,
        soft_weight=weights["soft_targets"],
        label_weight=weights["labels"],
    )


class Objective:
    """Adds up gradients of the weighted parts for one step; returns what each part's loss was."""

    def __init__(self, parallel: ParallelModel, cache: Cache, config: TrainConfig) -> None:
        self.weights = resolve_weights(config, cache)
        self.head_loss = resolve_head_loss(config, cache, self.weights)
        self.micro_batches = config.micro_batches
        self._parallel, self._config = parallel, config
        self._model, self._device = parallel.model, parallel.model.device
        self._tail_weight = soft_target_settings(cache).tail_weight if self._uses_blocks else None
        self._length_penalty = (
            float(cache.setting("config", "beams", "length_penalty")) if self.weights["beams"] else 1.0
        )

    @property
    def _uses_blocks(self) -> bool:
        return self.weights["soft_targets"] > 0 or self.weights["labels"] > 0

    def batch_rows(self) -> dict[str, int]:
        """Rows per step of each kind that is used, over all processes."""
        rows = {}
        if self._uses_blocks:
            rows["soft_targets"] = int(self._config.batch_blocks)
        if self.weights["samples"]:
            rows["samples"] = self._config.batch_samples
        if self.weights["beams"]:
            rows["beams"] = self._config.batch_beams
        return rows

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
        if self.micro_batches >= max(map(self._share, self.batch_rows())):
            return False
        self.micro_batches *= 2
        return True

    def _share(self, kind: str) -> int:
        """Most rows of a step that a process gets."""
        return -(-self.batch_rows()[kind] // self._parallel.processes.world_size)

    def _passes(self, batches: dict[str, list[_Batch]], num_targets: dict[str, int]) -> dict[str, Tensor]:
        passes = [(kind, batch) for kind, parts in batches.items() for batch in parts]
        losses: dict[str, Tensor] = {}
        for index, (kind, batch) in enumerate(passes):
            loss = functools.partial(self._loss, kind, batch, num_targets[kind])
            for name, value in self._parallel.accumulate(loss, is_last=index == len(passes) - 1).items():
                losses[name] = losses[name] + value if name in losses else value
        return losses

    def _batches(self, kind: str, stored: pa.RecordBatch) -> list[_Batch]:
        """As many batches in every process, which may be without rows: each takes part in every pass."""
        most_rows = max(self._share(kind), stored.num_rows)
        parts = _cut(stored, most_rows, self.micro_batches)
        match kind:
            case "soft_targets":
                temperature = self.head_loss.temperature
                return [
                    block_batch(part, tail_weight=self._tail_weight, temperature=temperature, device=self._device)
                    for part in parts
                ]
            case "samples":
                return [sample_batch(part, self._device) for part in parts]
            case _:
                return [beam_batch(part, self._device) for part in parts]

    def _counts(self, batches: dict[str, list[_Batch]]) -> tuple[dict[str, int], int]:
        """Over all processes: what the loss of each kind is a mean of, at least 1, and the tokens read."""
        counts = [sum(map(_num_targets, parts)) for parts in batches.values()]
        num_tokens = sum(_texts_of(batch).input_ids.numel() for parts in batches.values() for batch in parts)
        *totals, all_tokens = self._parallel.processes.sum(torch.tensor([*counts, num_tokens])).tolist()
        return {kind: max(total, 1) for kind, total in zip(batches, totals, strict=True)}, all_tokens

    def _loss(self, kind: str, batch: Any, num_targets: int) -> tuple[Tensor, dict[str, Tensor]]:
        """What to derive, whose mean over processes is this part's of the whole loss, and this process's shares."""
        parts: dict[str, Callable[[Any], tuple[Tensor, dict[str, Tensor]]]] = {
            "soft_targets": self._blocks, "samples": self._samples, "beams": self._beams,
        }  # fmt: skip
        with self.autocast():
            total, shares = parts[kind](batch)
        scale = self._parallel.processes.world_size / num_targets
        return total * scale, {name: share / num_targets for name, share in shares.items()}

    def _blocks(self, batch: BlockBatch) -> tuple[Tensor, dict[str, Tensor]]:
        total, soft_sum, label_sum = self._head_loss(batch, batch.is_valid, batch.targets, self.head_loss)
        soft_name = "soft_targets_nats"
        if self.head_loss.unbiased and self.head_loss.temperature == 1.0:
            soft_sum = soft_sum - batch.entropy.double().sum()
        elif self.head_loss.unbiased:  # the cache holds no entropy of tempered distributions
            soft_name = "soft_targets_cross_entropy_nats"
        shares = {"soft_targets": (soft_name, soft_sum), "labels": ("labels_nats", label_sum)}
        return total, dict(share for part, share in shares.items() if self.weights[part])

    def _samples(self, batch: TextBatch) -> tuple[Tensor, dict[str, Tensor]]:
        targets = SparseTargets.labels_only(batch.label_ids)
        total, _, label_sum = self._head_loss(batch, batch.is_target, targets, _LABEL_LOSS)
        return total * self.weights["samples"], {"samples_nats": label_sum}

    def _beams(self, batch: BeamBatch) -> tuple[Tensor, dict[str, Tensor]]:
        scores_BN = candidate_scores(self._model, batch, self._length_penalty)
        loss = selection_loss(scores_BN, batch.teacher_scores, self._config.selection_temperature).sum()
        return loss * self.weights["beams"], {"beams_nats": loss.detach()}

    def _head_loss(
        self, batch: BlockBatch | TextBatch, is_target: Tensor, targets: SparseTargets, loss: HeadLoss
    ) -> tuple[Tensor, Tensor, Tensor]:
        hidden_PD = hidden_at(self._model, batch, is_target)
        return fused_head_loss(hidden_PD, head_weight(self._model), targets, loss)

    def autocast(self) -> torch.autocast:
        """bfloat16 arithmetic where it was asked for, or pays."""
        wanted = self._config.dtype
        enabled = wanted == "bfloat16" or (wanted == "auto" and self._device.type == "cuda")
        return torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=enabled)


def _texts_of(batch: _Batch) -> BlockBatch | TextBatch:
    return batch.texts if isinstance(batch, BeamBatch) else batch


def _num_targets(batch: _Batch) -> int:
    """What the loss on a batch is a sum over: valid positions, tokens of completions, or prompts."""
    match batch:
        case BlockBatch():
            return len(batch.targets)
        case TextBatch():
            return len(batch.label_ids)
        case _:
            return len(batch.teacher_scores)


def _cut(rows: pa.RecordBatch, most_rows: int, parts: int) -> list[pa.RecordBatch]:
    """Rows in at most `parts` nearly equal parts, as many as `most_rows` rows are cut into."""
    size = -(-most_rows // parts)
    return [rows.slice(start, size) for start in range(0, most_rows, size)]
