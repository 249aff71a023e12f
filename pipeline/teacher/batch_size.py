"""How many tokens go through the teacher at a time: what was asked for, or what fits; fewer when memory runs out."""

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

# Longer passes are no faster on a CPU, and generation on any device keeps keys and values of all its tokens.
DEFAULT_BATCH_TOKENS = 8192
_FEWEST_TOKENS, _MOST_TOKENS = 1024, 65_536
# The rest is for logits and what becomes of them.
_SHARE_OF_FREE_MEMORY = 0.5

Result = TypeVar("Result")


def choose_batch_tokens(teacher: Teacher, config: PrecomputeConfig) -> int:
    """--batch-tokens, or as many tokens of a plain pass as a GPU's free memory holds, rounded down to a power of two.

    Rounded, so that the same kind of machine takes the same number, and rounding errors stay the same.
    """
    if config.batch_tokens is not None:
        return config.batch_tokens
    if teacher.device.type != "cuda":
        return DEFAULT_BATCH_TOKENS
    free_bytes, _ = torch.cuda.mem_get_info(teacher.device)
    fitting = int(free_bytes * _SHARE_OF_FREE_MEMORY) // _bytes_per_token(teacher, config.block_size)
    return min(max(1 << (fitting.bit_length() - 1) if fitting else 1, _FEWEST_TOKENS), _MOST_TOKENS)


def in_passes(run: Callable[[int, int], Result], start: int, stop: int, rows_per_pass: int) -> Iterator[Result]:
    """run(first, end) over ranges of rows [start, stop) of rows_per_pass, halved whenever memory runs out.

    Raises TeacherMemoryError when not even one row fits.
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
        # Behind the except clause, so that the traceback no longer holds the tensors of the pass.
        if end - first == 1:
            raise TeacherMemoryError(reason)
        rows_per_pass = (end - first) // 2
        print(f"out of memory: going on with {rows_per_pass} rows a pass", file=sys.stderr)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


@torch.inference_mode()
def _bytes_per_token(teacher: Teacher, block_size: int) -> int:
    """Device memory of a forward pass over one block, for each of its tokens."""
    input_ids = np.zeros((1, block_size), dtype=np.int64)
    torch.cuda.synchronize(teacher.device)
    before = torch.cuda.memory_allocated(teacher.device)
    torch.cuda.reset_peak_memory_stats(teacher.device)
    teacher.hidden(input_ids, [np.array([block_size])])
    torch.cuda.synchronize(teacher.device)
    return max(1, (torch.cuda.max_memory_allocated(teacher.device) - before) // block_size)
