"""Rows of soft targets as a dictionary of tensors."""

from __future__ import annotations

import pyarrow as pa
import torch
from torch import Tensor

from storage.reading.cache import Cache
from storage.rows.soft_targets import decode, tempered_column
from student.loops.errors import UnservedTemperatureError
from student.loops.loss import IGNORED_LABEL
from student.losses.batches import block_tensors
from student.losses.targets import soft_target_settings


class SoftTargetTensors:
    """Makes the tensors that CacheDataset names, from blocks, for a loss at one temperature."""

    kind = "soft_targets"

    def __init__(self, cache: Cache, temperature: float, num_vocabulary_rows: int | None) -> None:
        """Raise UnservedTemperatureError when the cache cannot serve the temperature."""
        self._settings = soft_target_settings(cache)
        if temperature not in self._settings.served_temperatures:
            raise UnservedTemperatureError(cache.where, temperature, self._settings.served_temperatures)
        self._temperature, self._num_vocabulary_rows = temperature, num_vocabulary_rows

    def __call__(self, rows: pa.RecordBatch) -> dict[str, Tensor]:
        """Return the tensors; raise MissingRowError."""
        batch = block_tensors(
            decode(rows),
            tail_weight=self._settings.tail_weight,
            temperature=self._temperature,
            device=torch.device("cpu"),
            num_rows=self._num_vocabulary_rows,
            at_all_positions=True,
        )
        targets, (num_blocks, length) = batch.targets, batch.input_ids.shape
        of_positions = {
            "labels": targets.label_ids.masked_fill(~batch.is_valid.flatten(), IGNORED_LABEL),
            "head_ids": targets.head_ids,
            "head_logprobs": targets.head_logprobs,
            "is_head": targets.is_head,
            "tail_logprob": targets.tail_logprob,
        }
        if batch.entropy is not None:
            of_positions["entropy"] = batch.entropy
        if targets.tempered_tail_logmass is not None and self._temperature != 1.0:
            of_positions[tempered_column(self._temperature)] = targets.tempered_tail_logmass
        of_rows = {"input_ids": batch.input_ids, "position_ids": batch.position_ids}
        if self._settings.is_sampled_at(self._temperature):
            of_positions |= {"tail_ids": targets.tail_ids, "is_drawn": targets.is_drawn}
            of_rows["tail_weight"] = torch.full((num_blocks,), float(self._settings.tail_weight or 0.0))
        # Values of positions are [P] or [P, width].
        return of_rows | {name: v.reshape(num_blocks, length, *v.shape[1:]) for name, v in of_positions.items()}
