"""The loss on sampled texts: the next-token loss on the tokens of completions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
from torch import Tensor

from storage.reading.cache import Cache
from student.config import TrainConfig
from student.losses.batches import TextBatch, sample_batch
from student.losses.fused_head import HeadLoss, fused_head_loss
from student.losses.parts.part import LossPart
from student.losses.scores import hidden_at
from student.losses.targets import SparseTargets
from student.model.architecture import num_vocabulary_rows, output_head

_LABEL_LOSS = HeadLoss(divergence="forward_kl", unbiased=False, temperature=1.0, soft_weight=0.0, label_weight=1.0)


class SamplesPart(LossPart[TextBatch]):
    """The part for sampled texts; its loss is a mean over the tokens of completions."""

    kind = "samples"
    default_weight = 0.5

    def __init__(self, model: Any, cache: Cache, config: TrainConfig, weights: Mapping[str, float]) -> None:
        self._model, self._weight = model, weights[self.kind]

    @staticmethod
    def step_rows(config: TrainConfig) -> int:
        """Return the texts per step."""
        return config.batch_samples

    def batch(self, rows: pa.RecordBatch) -> TextBatch:
        """Return prompts with their completions."""
        return sample_batch(rows, self._model.device, num_vocabulary_rows(self._model))

    def num_targets(self, batch: TextBatch) -> int:
        """Return the number of tokens of completions."""
        return len(batch.label_ids)

    def num_tokens(self, batch: TextBatch) -> int:
        """Return the number of tokens of prompts and completions, padding included."""
        return batch.input_ids.numel()

    def loss(self, batch: TextBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the next-token loss."""
        hidden_PD = hidden_at(self._model, batch, batch.is_target)
        targets = SparseTargets.labels_only(batch.label_ids)
        total, _, label_sum = fused_head_loss(hidden_PD, output_head(self._model), targets, _LABEL_LOSS)
        return total * self._weight, {"samples_nats": label_sum}
