"""The loss on beam candidates: the student learns to choose the candidate that the teacher ranks best."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
from torch import Tensor

from storage.reading.cache import Cache
from student.config import TrainConfig
from student.losses.batches import BeamBatch, beam_batch
from student.losses.parts.part import LossPart
from student.losses.scores import candidate_scores
from student.losses.selection import selection_loss
from student.model.architecture import num_vocabulary_rows


class BeamsPart(LossPart[BeamBatch]):
    """The part for beam candidates; its loss is a mean over prompts."""

    kind = "beams"
    default_weight = 0.05

    def __init__(self, model: Any, cache: Cache, config: TrainConfig, weights: Mapping[str, float]) -> None:
        self._model, self._weight = model, weights[self.kind]
        self._temperature = config.selection_temperature
        self._length_penalty = float(cache.setting("config", self.kind, "length_penalty"))

    @staticmethod
    def step_rows(config: TrainConfig) -> int:
        """Return the prompts per step."""
        return config.batch_beams

    def batch(self, rows: pa.RecordBatch) -> BeamBatch:
        """Return prompts with all of their candidates."""
        return beam_batch(rows, self._model.device, num_vocabulary_rows(self._model))

    def num_targets(self, batch: BeamBatch) -> int:
        """Return the number of prompts."""
        return len(batch.teacher_scores)

    def num_tokens(self, batch: BeamBatch) -> int:
        """Return the number of tokens of prompts and candidates, padding included."""
        return batch.texts.input_ids.numel()

    def loss(self, batch: BeamBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the cross-entropy from the teacher's choice to the student's."""
        scores_BN = candidate_scores(self._model, batch, self._length_penalty)
        loss = selection_loss(scores_BN, batch.teacher_scores, self._temperature).sum()
        return loss * self._weight, {"beams_nats": loss.detach()}
