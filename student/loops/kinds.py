"""The table of the kinds whose rows are made into plain dictionaries of tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pyarrow as pa
from torch import Tensor

from storage.reading.cache import Cache
from student.loops.samples import SampleTensors
from student.loops.soft_targets import SoftTargetTensors

# Makes the tensors of rows, for a cache, a temperature and the number of rows of the student's vocabulary.
MakeTensors = Callable[[Cache, float, int | None], Callable[[pa.RecordBatch], dict[str, Tensor]]]

BATCHES: Mapping[str, MakeTensors] = {tensors.kind: tensors for tensors in (SoftTargetTensors, SampleTensors)}
