"""Share work among threads, each of which takes the next part when it is done with one.

A PyTorch operator gives every OpenMP thread an equal share and waits for the last. Beside another busy process, one of
the threads has half a core, and the others wait for it in every operator. Here a thread runs many operators on its part
without waiting for the others, and a slow thread takes fewer parts. Results depend on the parts alone, not on which
thread took them.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

R = TypeVar("R")

# With fewer parts, threads wait longer at the end; with more, small operators take a larger share of the time.
_NUM_PARTS = 16
# Fewer numbers are not worth parts: a training step with 4,096 ids took a sixth longer in them on an idle machine, and
# a twentieth less beside a busy process.
_LEAST_NUMBERS = 1 << 23


def parts_of(length: int, values: Tensor) -> list[slice]:
    """Return slices that cover `length` rows or columns of `values`: as many as threads should share, at least one.

    On a GPU, and for few values, that is one. On a CPU it is a multiple of the number of threads, and the same for 1,
    2, 4, 8 and 16 of them.
    """
    num_parts = 1
    if values.device.type == "cpu" and values.numel() >= _LEAST_NUMBERS:
        num_threads = torch.get_num_threads()
        num_parts = -(-_NUM_PARTS // num_threads) * num_threads
    size = max(1, -(-length // num_parts))
    return [slice(start, min(start + size, length)) for start in range(0, max(1, length), size)]


def run_parts(run: Callable[[slice], R], parts: list[slice]) -> list[R]:
    """Return run(part) of every part, in their order. Autograd does not record what `run` does.

    As many threads as PyTorch has call `run`, and operators use one thread there. They may write disjoint parts of one
    tensor. A single part is run by the caller, with all of PyTorch's threads. Raise the first error of `run`.
    """
    num_threads = torch.get_num_threads()
    is_inference = torch.is_inference_mode_enabled()
    run_one = functools.partial(_without_gradient, run, is_inference)
    if len(parts) == 1 or num_threads == 1:
        return [run_one(part) for part in parts]
    return list(_threads(num_threads, os.getpid()).map(run_one, parts))


def _without_gradient(run: Callable[[slice], R], is_inference: bool, part: slice) -> R:
    """Call run(part) in the modes of the caller's thread: tensors made in inference mode can be changed only there."""
    with torch.inference_mode(is_inference), torch.no_grad():
        return run(part)


@functools.lru_cache(maxsize=1)
def _threads(num_threads: int, process_id: int) -> ThreadPoolExecutor:
    """Return threads in which PyTorch's operators use one thread. A forked process has no threads, so it makes its own.

    A thread takes PyTorch's number when it first asks for it, and that is the number set last in any thread. So ask
    before setting 1, and set the old number again when all have done so.
    """
    have_started = threading.Barrier(num_threads + 1)

    def start() -> None:
        torch.get_num_threads()
        torch.set_num_threads(1)
        have_started.wait()

    threads = ThreadPoolExecutor(num_threads, thread_name_prefix="teachonce-loss")
    for _ in range(num_threads):
        threads.submit(start)
    have_started.wait()
    torch.set_num_threads(num_threads)
    return threads
