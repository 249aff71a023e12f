"""Measure rows in parts that fit into memory.

accelerate, which is no dependency, has find_executable_batch_size. It repeats the whole pass with smaller batches.
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
    """Yield `measure(rows)`. When memory runs out, cut the rows in halves and yield the results of the halves in order.

    When a single row does not fit, raise PyTorch's error. For an fsdp model, always raise it, because the other
    processes make their passes over whole batches.
    """
    try:
        found = [measure(rows)]
    except RuntimeError as error:
        is_sharded = any(isinstance(module, FSDPModule) for module in model.modules())
        if not is_out_of_memory(error) or rows.num_rows < 2 or is_sharded:
            raise
        found = []
    yield from found
    if not found:  # outside the except clause, because there the traceback still holds the tensors of the pass
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        half = rows.num_rows // 2
        for part in (rows.slice(0, half), rows.slice(half)):
            yield from in_parts(model, part, measure)
