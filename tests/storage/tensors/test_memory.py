"""What running out of memory looks like, and what becomes of memory that is freed."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch

from storage.tensors.memory import is_out_of_memory


def test_the_host_s_refusal_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


def test_other_failures_of_a_device_are_not_taken_for_it() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


# Prints the median number of pages that the system hands out anew for 100 MB that are freed and allocated repeatedly.
_FAULTS = """
import resource, statistics, threading, torch
from storage.tensors.memory import keep_freed_memory

def pages(fill):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    fill()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def one_block():
    torch.empty(100 << 20, dtype=torch.uint8).fill_(1)

def blocks_of_a_thread():
    thread = threading.Thread(target=lambda: [torch.empty(1 << 20, dtype=torch.uint8).fill_(1) for _ in range(100)])
    thread.start()
    thread.join()

keep_freed_memory()
torch.set_num_threads(1)
print(statistics.median(pages({fill}) for _ in range(11)))
"""


def _keeps_large_blocks() -> bool:
    name, version = platform.libc_ver()
    return name == "glibc" and tuple(map(int, version.split("."))) >= (2, 35)


@pytest.mark.skipif(not _keeps_large_blocks(), reason="needs glibc 2.35 or newer")
@pytest.mark.parametrize("fill", ["one_block", "blocks_of_a_thread"])
def test_memory_that_was_freed_is_there_for_the_next(fill: str) -> None:
    # In a process of its own: for a thread that was once refused memory, glibc does otherwise.
    code = _FAULTS.format(fill=fill)
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(child.stdout) < 100
