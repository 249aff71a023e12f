"""Measuring rows in parts that fit into memory.

accelerate's find_executable_batch_size, which is no dependency, begins the whole pass again with smaller batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pyarrow as pa
import torch
from torch.distributed.fsdp import FSDPModule

from storage.tensors.memory import is_out_of_memory

T = TypeVar("T")


def in_parts(model: Any, rows: pa.RecordBatch, measure: Callable[[pa.RecordBatch], T]) -> Iterator[T]:
    """What `measure` finds in the rows, or one after the other in halves of them for which there is memory.

    Running out over a single row is passed on; so it is for a model in parts, whose other processes make their passes
    over whole batches.
    """
    try:
        found = [measure(rows)]
    except RuntimeError as error:
        is_sharded = any(isinstance(module, FSDPModule) for module in model.modules())
        if not is_out_of_memory(error) or rows.num_rows < 2 or is_sharded:
            raise
        found = []
    yield from found
    if not found:  # behind the except clause, so that the traceback no longer holds the tensors of the pass
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        half = rows.num_rows // 2
        for part in (rows.slice(0, half), rows.slice(half)):
            yield from in_parts(model, part, measure)
