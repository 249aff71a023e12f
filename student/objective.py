"""The parts of the loss: what each takes from the cache and how it becomes gradients.

Every part is a mean: over all valid positions, all completion tokens or all prompts of the step's whole
batch, however many micro-batches it is cut into.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from storage.cache import Cache
from student.batches import BeamBatch, BlockBatch, TextBatch, beam_batch, block_batch, sample_batch
from student.config import TrainConfig
from student.errors import TemperatureError
from student.losses.fused_head import HeadLoss, fused_head_loss
from student.losses.selection import length_normalised_scores, selection_loss
from student.losses.targets import SparseTargets
from student.losses.token_logprobs import token_logprobs
from student.model import head_weight, hidden_states

_DEFAULT_WEIGHTS = {"soft_targets": 1.0, "samples": 0.5, "beams": 0.25, "labels": 0.1}
_LABEL_LOSS = HeadLoss(divergence="forward_kl", unbiased=False, temperature=1.0, soft_weight=0.0, label_weight=1.0)


@dataclass(frozen=True, kw_only=True)
class SoftTargetSettings:
    """How the cache's soft targets were made, as far as the losses care."""

    tail_weight: float | None
    temperatures: tuple[float, ...]


def soft_target_settings(cache: Cache) -> SoftTargetSettings:
    """Settings of a cache that holds soft targets."""
    return SoftTargetSettings(
        tail_weight=cache.setting("config", "soft_targets", "tail_weight"), temperatures=cache.identity.temperatures
    )


def resolve_weights(config: TrainConfig, cache: Cache) -> dict[str, float]:
    """Weight of each part; parts left to their default count only where the cache holds them.

    Raises MissingKindError when a part is asked for and the cache does not hold it.
    """
    weights = {}
    for part, default in _DEFAULT_WEIGHTS.items():
        kind = "soft_targets" if part == "labels" else part  # labels are the tokens of the same blocks
        asked = getattr(config.mix, part)
        weights[part] = asked if asked is not None else default if cache.num_rows(kind, "train") else 0.0
        if weights[part]:
            cache.shards(kind, "train")
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

    def __init__(self, model: Any, cache: Cache, config: TrainConfig, device: torch.device) -> None:
        self.weights = resolve_weights(config, cache)
        self.head_loss = resolve_head_loss(config, cache, self.weights)
        self._model, self._config, self._device = model, config, device
        self._tail_weight = soft_target_settings(cache).tail_weight if self._uses_blocks else None
        self._length_penalty = (
            float(cache.setting("config", "beams", "length_penalty")) if self.weights["beams"] else 1.0
        )

    @property
    def _uses_blocks(self) -> bool:
        return self.weights["soft_targets"] > 0 or self.weights["labels"] > 0

    def batch_rows(self) -> dict[str, int]:
        """Rows per step of each kind that is used."""
        rows = {}
        if self._uses_blocks:
            rows["soft_targets"] = self._config.batch_blocks
        if self.weights["samples"]:
            rows["samples"] = self._config.batch_samples
        if self.weights["beams"]:
            rows["beams"] = self._config.batch_beams
        return rows

    def accumulate(self, rows: dict[str, pa.RecordBatch]) -> tuple[dict[str, Tensor], int]:
        """Backward pass over the rows of a step; returns losses in nats by name, and the number of tokens read."""
        losses: dict[str, Tensor] = {}
        num_tokens = 0
        if "soft_targets" in rows:
            blocks = [self._block_batch(part) for part in _cut(rows["soft_targets"], self._config.micro_batches)]
            losses |= self._blocks(blocks)
            num_tokens += sum(batch.input_ids.numel() for batch in blocks)
        if "samples" in rows:
            texts = [sample_batch(part, self._device) for part in _cut(rows["samples"], self._config.micro_batches)]
            losses |= self._samples(texts)
            num_tokens += sum(batch.input_ids.numel() for batch in texts)
        if "beams" in rows:
            beams = [beam_batch(part, self._device) for part in _cut(rows["beams"], self._config.micro_batches)]
            losses |= self._beams(beams)
            num_tokens += sum(batch.texts.input_ids.numel() for batch in beams)
        return losses, num_tokens

    def _block_batch(self, rows: pa.RecordBatch) -> BlockBatch:
        return block_batch(
            rows, tail_weight=self._tail_weight, temperature=self.head_loss.temperature, device=self._device
        )

    def _blocks(self, batches: list[BlockBatch]) -> dict[str, Tensor]:
        num_valid = max(sum(len(batch.targets) for batch in batches), 1)
        soft, labels = torch.zeros((), device=self._device), torch.zeros((), device=self._device)
        for batch in batches:
            total, soft_sum, label_sum = self._head_loss(batch, batch.is_valid, batch.targets, self.head_loss)
            (total / num_valid).backward()  # type: ignore[no-untyped-call]
            soft, labels = soft + soft_sum / num_valid, labels + label_sum / num_valid
            if self.head_loss.unbiased and self.head_loss.temperature == 1.0:
                soft = soft - batch.entropy.double().sum() / num_valid
        losses = {"soft_targets_nats": soft} if self.weights["soft_targets"] else {}
        return losses | ({"labels_nats": labels} if self.weights["labels"] else {})

    def _samples(self, batches: list[TextBatch]) -> dict[str, Tensor]:
        num_targets = sum(len(batch.label_ids) for batch in batches)
        mean = torch.zeros((), device=self._device)
        for batch in batches:
            targets = SparseTargets.labels_only(batch.label_ids)
            total, _, label_sum = self._head_loss(batch, batch.is_target, targets, _LABEL_LOSS)
            (total * (self.weights["samples"] / num_targets)).backward()  # type: ignore[no-untyped-call]
            mean = mean + label_sum / num_targets
        return {"samples_nats": mean}

    def _beams(self, batches: list[BeamBatch]) -> dict[str, Tensor]:
        num_prompts = sum(len(batch.teacher_scores) for batch in batches)
        mean = torch.zeros((), device=self._device)
        for batch in batches:
            with self.autocast():
                scores_BN = candidate_scores(self._model, batch, self._length_penalty)
            loss_B = selection_loss(scores_BN, batch.teacher_scores, self._config.selection_temperature)
            (loss_B.sum() * (self.weights["beams"] / num_prompts)).backward()  # type: ignore[no-untyped-call]
            mean = mean + loss_B.detach().sum() / num_prompts
        return {"beams_nats": mean}

    def _head_loss(
        self, batch: BlockBatch | TextBatch, is_target: Tensor, targets: SparseTargets, loss: HeadLoss
    ) -> tuple[Tensor, Tensor, Tensor]:
        with self.autocast():
            hidden_PD = hidden_states(self._model, batch.input_ids, batch.position_ids)[is_target]
            return fused_head_loss(hidden_PD, head_weight(self._model), targets, loss)

    def autocast(self) -> torch.autocast:
        """bfloat16 arithmetic where it was asked for, or pays."""
        wanted = self._config.dtype
        enabled = wanted == "bfloat16" or (wanted == "auto" and self._device.type == "cuda")
        return torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=enabled)


def candidate_scores(model: Any, batch: BeamBatch, length_penalty: float) -> Tensor:
    """The student's length-normalised scores [B, N], −inf where a prompt has fewer candidates."""
    texts = batch.texts
    hidden_PD = hidden_states(model, texts.input_ids, texts.position_ids)[texts.is_target]
    logprobs_P = token_logprobs(hidden_PD, head_weight(model), texts.label_ids)
    owner_P = torch.repeat_interleave(torch.arange(len(batch.lengths), device=hidden_PD.device), batch.lengths)
    sums_L = logprobs_P.new_zeros(len(batch.lengths)).index_add(0, owner_P, logprobs_P)
    scores_L = length_normalised_scores(sums_L, batch.lengths, length_penalty)
    scores_BN = torch.full_like(batch.teacher_scores, -torch.inf, dtype=scores_L.dtype)
    return scores_BN.index_put((batch.prompt_index, batch.slot), scores_L)


def _cut(rows: pa.RecordBatch, parts: int) -> list[pa.RecordBatch]:
    """Rows in at most `parts` nearly equal parts."""
    size = -(-rows.num_rows // parts)
    return [rows.slice(start, size) for start in range(0, rows.num_rows, size)]
