"""Rows of sampled texts as a dictionary of tensors."""

from __future__ import annotations

import pyarrow as pa
import torch
from torch import Tensor

from storage.reading.cache import Cache
from student.loops.loss import IGNORED_LABEL
from student.losses.batches import sample_batch


class SampleTensors:
    """Makes input_ids, position_ids and labels [B, T] int64 of texts. T is the longest of them, less one token."""

    kind = "samples"

    def __init__(self, cache: Cache, temperature: float, num_vocabulary_rows: int | None) -> None:
        self._num_vocabulary_rows = num_vocabulary_rows

    def __call__(self, rows: pa.RecordBatch) -> dict[str, Tensor]:
        """Return the tensors; raise MissingRowError."""
        batch = sample_batch(rows, torch.device("cpu"), self._num_vocabulary_rows)
        labels = torch.full_like(batch.input_ids, IGNORED_LABEL).masked_scatter(batch.is_target, batch.label_ids)
        # Padding goes on with the positions of its text: a body that looks positions up has none for −1.
        places = torch.arange(labels.shape[1]).expand_as(labels)
        positions = torch.where(batch.position_ids < 0, places, batch.position_ids)
        return {"input_ids": batch.input_ids, "position_ids": positions, "labels": labels}
