"""The loss on blocks: the teacher's next-token distributions, and the next tokens of the text itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pyarrow as pa
from torch import Tensor

from storage.reading.cache import Cache
from student.config import TrainConfig
from student.errors import TemperatureError
from student.losses.batches import BlockBatch, block_batch
from student.losses.fused_head import HeadLoss, fused_head_loss
from student.losses.parts.part import LossPart
from student.losses.scores import hidden_at
from student.losses.targets import soft_target_settings
from student.model.architecture import num_vocabulary_rows, output_head


def resolve_head_loss(config: TrainConfig, cache: Cache, weights: Mapping[str, float]) -> HeadLoss:
    """Return the loss on blocks; raise TemperatureError when the cache cannot serve the temperature.

    Forward KL at the temperature at which the tail was drawn uses the sampled tail, if there is one. Every other
    combination uses the head and the tail's mass, which is exact at T = 1 and at every temperature whose tempered mass
    is stored.
    """
    unbiased, temperature = False, 1.0
    if weights["soft_targets"]:
        settings, temperature = soft_target_settings(cache), config.temperature
        unbiased = config.loss == "forward_kl" and settings.is_sampled_at(temperature)
        if temperature not in settings.served_temperatures:
            raise TemperatureError(temperature, config.loss, settings.served_temperatures)
    return HeadLoss(
        divergence=config.loss,
        unbiased=unbiased,
        temperature=temperature,
        soft_weight=weights["soft_targets"],
        label_weight=weights["labels"],
    )


class SoftTargetsPart(LossPart[BlockBatch]):
    """The part for blocks; its losses are means over valid positions."""

    kind = "soft_targets"
    default_weight = 1.0
    further_weights: ClassVar = {"labels": 0.1}

    def __init__(self, model: Any, cache: Cache, config: TrainConfig, weights: Mapping[str, float]) -> None:
        self._model, self._cache, self._weights = model, cache, weights
        self._head_loss = resolve_head_loss(config, cache, weights)
        self._settings = soft_target_settings(cache)

    @staticmethod
    def step_rows(config: TrainConfig) -> int:
        """Return the blocks per step."""
        return int(config.batch_blocks)

    def batch(self, rows: pa.RecordBatch) -> BlockBatch:
        """Return blocks, with the tail's mass at the loss's temperature."""
        return block_batch(
            rows,
            tail_weight=self._settings.tail_weight,
            temperature=self._head_loss.temperature,
            device=self._model.device,
            num_rows=num_vocabulary_rows(self._model),
        )

    def num_targets(self, batch: BlockBatch) -> int:
        """Return the number of valid positions."""
        return len(batch.targets)

    def num_tokens(self, batch: BlockBatch) -> int:
        """Return the number of tokens of the blocks."""
        return batch.input_ids.numel()

    def loss(self, batch: BlockBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the soft loss and the next-token loss in one pass through the head."""
        hidden_PD = hidden_at(self._model, batch, batch.is_valid)
        total, soft_sum, label_sum = fused_head_loss(
            hidden_PD, output_head(self._model), batch.targets, self._head_loss
        )
        soft_name = "soft_targets_nats"
        if self._head_loss.unbiased and self._head_loss.temperature == 1.0 and batch.entropy is not None:
            soft_sum = soft_sum - batch.entropy.double().sum()
        elif self._head_loss.unbiased:  # The cache holds no entropy of these distributions, such as tempered ones.
            soft_name = "soft_targets_cross_entropy_nats"
        sums = {"soft_targets": (soft_name, soft_sum), "labels": ("labels_nats", label_sum)}
        return total, dict(named for part, named in sums.items() if self._weights[part])

    def remark(self) -> str | None:
        """Tell the user when forward KL takes a tail that was drawn at another temperature as one mass."""
        loss, settings = self._head_loss, self._settings
        if not loss.soft_weight or loss.unbiased or loss.divergence != "forward_kl" or settings.tail_weight is None:
            return None
        return (
            f"{self._cache.where}: the tail was drawn at temperature {settings.temperatures[0]:g} and counts as one "
            f"mass at --temperature {loss.temperature:g}"
        )
