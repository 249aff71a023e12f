"""Choose how many tokens the teacher reads in a pass: --batch-tokens, or what fits; fewer when memory runs out."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
import torch

from pipeline.config import PrecomputeConfig
from pipeline.errors import TeacherMemoryError
from pipeline.teacher.model import Teacher
from storage.tensors.memory import is_out_of_memory

# Longer passes are no faster on a CPU. Generation on any device stores keys and values of all its tokens.
DEFAULT_BATCH_TOKENS = 8192
_FEWEST_TOKENS, _MOST_TOKENS = 1024, 65_536
# The rest is for logits and what is computed from them.
_SHARE_OF_FREE_MEMORY = 0.5

Result = TypeVar("Result")


def choose_batch_tokens(teacher: Teacher, config: PrecomputeConfig) -> int:
    """Return --batch-tokens if it is set, else DEFAULT_BATCH_TOKENS on a CPU.

    On a GPU, return the tokens whose forward pass fits into half of its free memory, but at least 1,024 and at most
    65,536. The number is rounded down to a power of two, so that machines of the same kind choose the same number and
    get the same rounding errors.
    """
    if config.batch_tokens is not None:
        return config.batch_tokens
    if teacher.device.type != "cuda":
        return DEFAULT_BATCH_TOKENS
    free_bytes, _ = torch.cuda.mem_get_info(teacher.device)
    fitting = int(free_bytes * _SHARE_OF_FREE_MEMORY) // _bytes_per_token(teacher, config.block_size)
    return min(max(1 << (fitting.bit_length() - 1) if fitting else 1, _FEWEST_TOKENS), _MOST_TOKENS)


def in_passes(run: Callable[[int, int], Result], start: int, stop: int, rows_per_pass: int) -> Iterator[Result]:
    """Yield run(first, end) for ranges of rows_per_pass rows in [start, stop); halve them whenever memory runs out.

    Raises TeacherMemoryError when a single row does not fit.
    """
    first = start
    while first < stop:
        end = min(first + rows_per_pass, stop)
        try:
            result = run(first, end)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            result, reason = None, str(error)
        if result is not None:
            yield result
            first = end
            continue
        # After the except clause: here no traceback holds the tensors of the pass any more.
        if end - first == 1:
            raise TeacherMemoryError(reason)
        rows_per_pass = (end - first) // 2
        print(f"out of memory: going on with {rows_per_pass} rows a pass", file=sys.stderr)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


@torch.inference_mode()
def _bytes_per_token(teacher: Teacher, block_size: int) -> int:
    """Return the device memory of a forward pass over one block, in bytes per token."""
    input_ids = np.zeros((1, block_size), dtype=np.int64)
    torch.cuda.synchronize(teacher.device)
    before = torch.cuda.memory_allocated(teacher.device)
    torch.cuda.reset_peak_memory_stats(teacher.device)
    teacher.hidden(input_ids, [np.array([block_size])])
    torch.cuda.synchronize(teacher.device)
    return max(1, (torch.cuda.max_memory_allocated(teacher.device) - before) // block_size)
